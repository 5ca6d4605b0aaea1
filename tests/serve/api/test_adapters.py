from __future__ import annotations

import pytest

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import client, error_of


def test_resident_adapters_are_listed(engine: FakeEngine) -> None:
    engine.resident = ["sum"]
    assert client(engine).get("/v1/adapters").json() == {
        "object": "list",
        "data": [{"id": "sum", "object": "adapter", "resident": True}],
        "resident_bytes": 10,
        "budget_bytes": 1000,
    }


def test_changes_are_off_by_default(engine: FakeEngine) -> None:
    caller = client(engine)
    for response in (
        caller.post("/v1/adapters", json={"name": "red"}),
        caller.delete("/v1/adapters/red"),
    ):
        error = error_of(response, 403)
        assert error["type"] == "permission_error"
        assert error["message"] == (
            "adapters cannot be loaded or unloaded: this server was started without "
            "--allow-adapter-changes"
        )
    assert engine.resident == []


def test_loading_and_unloading(engine: FakeEngine) -> None:
    caller = client(engine, allow_adapter_changes=True)
    loaded = caller.post("/v1/adapters", json={"name": "red"})
    assert loaded.json() == {"id": "red", "object": "adapter", "resident": True}
    assert engine.resident == ["red"]
    dropped = caller.delete("/v1/adapters/red")
    assert dropped.json() == {"id": "red", "object": "adapter", "resident": False}
    assert engine.resident == []


@pytest.mark.parametrize("name", ["rde", "base", "auto", "../red", "/models/red", "red/..", ""])
def test_only_served_names_are_taken(engine: FakeEngine, name: str) -> None:
    caller = client(engine, allow_adapter_changes=True)
    error = error_of(caller.post("/v1/adapters", json={"name": name}), 404)
    assert error["message"].startswith(f"unknown adapter '{name}'")
    assert error["message"].endswith("there are: red, sum")
    assert engine.resident == []


@pytest.mark.parametrize("path", ["..%2fred", "%2e%2e%2f%2e%2e", "red%00", "rde"])
def test_a_path_is_no_name(engine: FakeEngine, path: str) -> None:
    engine.resident = ["red"]
    caller = client(engine, allow_adapter_changes=True)
    error_of(caller.delete(f"/v1/adapters/{path}"), 404)
    assert engine.resident == ["red"]


def test_there_is_no_field_for_a_path(engine: FakeEngine) -> None:
    caller = client(engine, allow_adapter_changes=True)
    body = {"name": "red", "path": "/models/red"}
    error = error_of(caller.post("/v1/adapters", json=body), 400)
    assert error["message"] == "unknown field 'path'; there are: name"


def test_a_damaged_adapter_says_nothing_of_the_inside(engine: FakeEngine) -> None:
    engine.damaged = {"red"}
    caller = client(engine, allow_adapter_changes=True)
    response = caller.post("/v1/adapters", json={"name": "red"})
    error = error_of(response, 503)
    assert error["message"] == (
        "adapter 'red' cannot be loaded; the server's log says why, under "
        f"{response.headers['x-request-id']}"
    )
