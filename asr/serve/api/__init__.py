"""The HTTP API of ``asr serve``: OpenAI's endpoints over a serving engine."""

from asr.serve.api.app import make_app
from asr.serve.api.settings import Api, ApiSettings

__all__ = ["Api", "ApiSettings", "make_app"]
