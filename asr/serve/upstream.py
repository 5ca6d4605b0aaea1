"""The engine behind a proxy: where it is, and what it serves.

It knows the ``/v1/models`` of OpenAI-compatible engines, in which adapters name their ``parent``;
it does not know which engine it talks to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from asr.errors import AdapterError, ConfigError, first_line, unknown
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest

_TIMEOUT = 10


@dataclass(frozen=True)
class Upstream:
    """An engine that serves a routed model's base with all its adapters.

    Attributes:
        url: its address, without ``/v1``.
        base_name: the base's name there.
        domains: of the routed model.
    """

    url: str
    base_name: str
    domains: tuple[str, ...]


def check_upstream(
    model: Path, engine_url: str, *, base_name: str | None = None, key: str | None = None
) -> Upstream:
    """Ask an engine what it serves, and hold it against a routed model directory.

    Args:
        model: the directory.
        engine_url: the engine's address, with or without ``/v1``.
        base_name: the base's name there; where it is None the engine's list must tell.
        key: the engine's API key.

    Raises:
        ConfigError: no address of a server; no engine answers, or it wants another key, or its
            answer is no list of models; the list does not tell which one is the base.
        AdapterError: a domain, or ``base_name``, is not served there.
        DirectoryError: no routed model directory.
    """
    url = server_url("--engine-url", engine_url)
    domains = tuple(Manifest.load(ModelDirectory.open(model).path).routed)
    served = _list_models(url, key)
    names = [entry["id"] for entry in served]
    missing = [name for name in domains if name not in names]
    if missing:
        raise AdapterError(
            f"the engine at {url} does not serve {', '.join(missing)} of the domains of {model}; "
            f"asr export {model} --to vllm prints the command that serves all"
        )
    others = [entry for entry in served if entry["id"] not in domains]
    return Upstream(url, _base_of(others, base_name, url), domains)


def server_url(option: str, text: str) -> str:
    """Return a server's address without ``/v1`` or a slash at its end.

    Raises:
        ConfigError: it is no http or https address, or holds more than host, port and path.
    """
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{option} is '{text}'; give an address such as http://127.0.0.1:8000")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(f"{option} holds more than an address; give http://HOST:PORT alone")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")


def _list_models(url: str, key: str | None) -> list[dict[str, Any]]:
    headers = {b"authorization": f"Bearer {key}".encode()} if key else {}
    try:
        # not through a web proxy of the environment, as requests do not go there either
        with httpx.Client(transport=httpx.HTTPTransport(), timeout=_TIMEOUT) as client:
            answer = client.get(f"{url}/v1/models", headers=headers)
    except httpx.HTTPError as error:
        raise ConfigError(
            f"no engine answers at {url} ({first_line(error)}); start it, or give another "
            "--engine-url"
        ) from error
    if answer.status_code in (401, 403):
        wrong = "another" if key else "an"
        raise ConfigError(
            f"the engine at {url} wants {wrong} API key; give it in ASR_ENGINE_KEY or with "
            "--engine-key"
        )
    if answer.status_code >= 500:
        raise ConfigError(
            f"the engine at {url} is not ready ({answer.status_code} for /v1/models); try again "
            "when it is"
        )
    try:
        listed = answer.json()["data"]
        if all(isinstance(entry["id"], str) for entry in listed):
            return list(listed)
    except (ValueError, KeyError, TypeError):
        pass  # said below, with the status
    raise ConfigError(
        f"{url}/v1/models is no list of models (status {answer.status_code}); give the address of "
        "an OpenAI-compatible engine with --engine-url"
    )


def _base_of(others: Sequence[dict[str, Any]], wanted: str | None, url: str) -> str:
    """Return the base's name among the models that are no domains."""
    names = [entry["id"] for entry in others]
    if wanted is not None:
        if wanted not in names:
            raise AdapterError(f"the engine at {url}: {unknown('base name', wanted, names)}")
        return wanted
    # "auto" is the routing of another router
    bases = [entry for entry in others if not entry.get("parent") and entry["id"] != "auto"]
    if not bases:
        raise ConfigError(f"the engine at {url} lists no base; give its name with --base-name")
    # one model may have several names, and then one root
    roots = {entry.get("root") or entry["id"] for entry in bases}
    if len(roots) > 1:
        listing = ", ".join(entry["id"] for entry in bases)
        raise ConfigError(
            f"the engine at {url} lists several models that may be the base ({listing}); give its "
            "name with --base-name"
        )
    return str(bases[0]["id"])
