"""The OpenAPI schema says what the application does.

Requests are made up from it, fitting and not fitting; what comes back is held against it.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from asr.serve.api import ApiSettings, make_app
from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import client

APP = make_app(FakeEngine(), ApiSettings(allow_adapter_changes=True))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_requests_from_the_schema(case: Any) -> None:
    # what fits the schema may still name a token or a conversation that cannot be answered
    case.call_and_validate(excluded_checks=CHECKS.get_by_names(["positive_data_acceptance"]))


def test_every_operation_documents_its_errors(engine: FakeEngine) -> None:
    schema = client(engine).get("/openapi.json").json()
    operations = [
        (path, operation)
        for path, methods in schema["paths"].items()
        for operation in methods.values()
    ]
    assert len(operations) == 13
    for path, operation in operations:
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}, path
        assert operation["description"], path
    request = schema["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] is False
    assert request["required"] == ["messages"]
