from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from asr.errors import ContractError, RouterError
from asr.router import (
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
    load_domain,
    load_router,
    save_domain,
    save_router,
)
from tests.router.conftest import MakeDomain, pooled_states

HIDDEN = 12
CONTRACT = "c0ffee" * 10


@pytest.fixture(scope="module")
def feature_map() -> FeatureMap:
    return FeatureMap(HIDDEN, expansion=30)


@pytest.fixture(scope="module")
def domain(make_domain: MakeDomain, feature_map: FeatureMap) -> RoutingDomain:
    return make_domain("law", 0, feature_map, prompts=40)


@pytest.fixture(scope="module")
def router(make_domain: MakeDomain, feature_map: FeatureMap) -> Router:
    made = [make_domain(name, seed, feature_map, prompts=10) for seed, name in enumerate("ab")]
    return Router.fit(made, RouterSettings(expansion=30), feature_map)


def write_domain(path: Path, domain: RoutingDomain, **options: Any) -> Path:
    save_domain(path, domain.name, domain.statistics, domain.calibration, CONTRACT, **options)
    return path


def rewrite_header(path: Path, **changes: Any) -> None:
    """Change entries of the header and leave the tensors as they are."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["asr"])
    path.write_bytes(save(load(data), metadata={"asr": json.dumps(header | changes)}))


@pytest.mark.parametrize("prompts", [5, 40])  # the factor, the Gram
def test_domain_round_trip(
    tmp_path: Path, prompts: int, make_domain: MakeDomain, feature_map: FeatureMap
) -> None:
    made = make_domain("law", 0, feature_map, prompts=prompts)
    path = write_domain(tmp_path / "law.safetensors", made, metadata={"rows": [1, {"x": None}]})
    read = load_domain(path, CONTRACT)
    assert (read.name, read.contract_hash) == ("law", CONTRACT)
    assert read.metadata == {"rows": [1, {"x": None}]}
    assert read.statistics.prompts == prompts
    assert read.statistics.is_factored == made.statistics.is_factored
    np.testing.assert_array_equal(read.statistics.gram(), made.statistics.gram())
    assert read.calibration is not None
    assert made.calibration is not None
    assert read.calibration.view_names == made.calibration.view_names
    np.testing.assert_array_equal(read.calibration.pooled, made.calibration.pooled)
    again = tmp_path / "again.safetensors"
    save_domain(again, read.name, read.statistics, read.calibration, CONTRACT, read.metadata)
    assert again.read_bytes() == path.read_bytes()


def test_domain_without_calibration(tmp_path: Path, domain: RoutingDomain) -> None:
    path = tmp_path / "law.safetensors"
    save_domain(path, "law", domain.statistics, None, CONTRACT)
    assert load_domain(path).calibration is None


def test_router_round_trip(tmp_path: Path, router: Router) -> None:
    path = tmp_path / "router.safetensors"
    extra = {"canaries": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([1, 2])}
    save_router(path, router, CONTRACT, extra, metadata={"note": "x", 2: "key"})
    read = load_router(path, CONTRACT)
    assert read.metadata == {"note": "x", "2": "key"}
    assert set(read.extra_tensors) == {"canaries", "ids"}
    np.testing.assert_array_equal(read.extra_tensors["canaries"], extra["canaries"])
    assert (read.router.settings, read.router.report) == (router.settings, router.report)
    assert read.router.columns == router.columns
    probes = pooled_states(4, 20, HIDDEN)[:, 0]
    assert read.router.decide(probes) == router.decide(probes)
    again = tmp_path / "again.safetensors"
    save_router(again, read.router, CONTRACT, read.extra_tensors, read.metadata)
    assert again.read_bytes() == path.read_bytes()


def test_infinite_threshold_survives(
    tmp_path: Path, make_domain: MakeDomain, feature_map: FeatureMap
) -> None:
    choice = RouterSettings(expansion=30, abstain=0)
    made = Router.fit([make_domain("a", 0, feature_map)], choice, feature_map)
    save_router(tmp_path / "r", made, CONTRACT)
    assert load_router(tmp_path / "r").router.threshold == -np.inf


def test_bytes_do_not_depend_on_the_process(tmp_path: Path, domain: RoutingDomain) -> None:
    """safetensors orders several metadata entries at random: there must be one only."""
    path = write_domain(tmp_path / "a", domain)
    script = (
        "import sys; from pathlib import Path; from asr.router import load_domain, save_domain;"
        "d = load_domain(Path(sys.argv[1]));"
        "save_domain(Path(sys.argv[2]), d.name, d.statistics, d.calibration, d.contract_hash)"
    )
    root = Path(__file__).parents[2]
    for copy in ("b", "c"):
        command = [sys.executable, "-c", script, str(path), str(tmp_path / copy)]
        subprocess.run(command, check=True, cwd=root)
        assert (tmp_path / copy).read_bytes() == path.read_bytes()


def test_every_shortened_file_is_refused(tmp_path: Path, domain: RoutingDomain) -> None:
    path = write_domain(tmp_path / "law.safetensors", domain)
    data = path.read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(RouterError) as caught:
            load_domain(path)
        assert str(caught.value).startswith(f"{path} is damaged (")
        assert str(caught.value).endswith(
            "; restore it from a copy, or take the domain out with asr remove MODEL NAME and add it"
            " again"
        )
        assert "\n" not in str(caught.value)


def test_every_changed_byte_is_noticed(tmp_path: Path, router: Router) -> None:
    path = tmp_path / "router.safetensors"
    save_router(path, router, CONTRACT)
    data = path.read_bytes()
    header_size = 8 + int.from_bytes(data[:8], "little")
    positions = np.random.default_rng(0).integers(0, len(data), 60)
    for position in (*positions, header_size // 2, header_size + 1, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        if data[:header_size].rstrip() == bytes(changed[:header_size]).rstrip():
            with pytest.raises(RouterError, match="does not match its checksum"):
                load_router(path)
        else:
            with pytest.raises(RouterError):
                load_router(path)


def test_checksum_message(tmp_path: Path, router: Router) -> None:
    path = tmp_path / "router.safetensors"
    save_router(path, router, CONTRACT)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    message = (
        f"{path} is damaged (its content does not match its checksum); restore it from a copy, or"
        " run asr train CONFIG --out MODEL --resume to derive it again"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        load_router(path)


def test_changed_header_is_noticed(tmp_path: Path, domain: RoutingDomain) -> None:
    path = write_domain(tmp_path / "law.safetensors", domain)
    rewrite_header(path, name="code")
    with pytest.raises(RouterError, match="does not match its checksum"):
        load_domain(path)


def test_newer_schema(tmp_path: Path, domain: RoutingDomain) -> None:
    path = write_domain(tmp_path / "law.safetensors", domain)
    rewrite_header(path, schema=2)  # version 2 is a router's, not a domain's
    message = (
        f"{path} was written by a newer version (schema 2; this one reads up to 1); type: pip"
        " install -U analytic-subspace-routing"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        load_domain(path)


def test_other_contract(tmp_path: Path, domain: RoutingDomain) -> None:
    path = write_domain(tmp_path / "law.safetensors", domain)
    message = (
        f"{path} was made under feature contract c0ffeec0ffee, this model uses deadbeefdead; take"
        " the domain out with asr remove MODEL NAME and add it again"
    )
    with pytest.raises(ContractError, match=f"^{re.escape(message)}$"):
        load_domain(path, "deadbeef" * 8)
    assert load_domain(path).name == "law"


def test_other_files(tmp_path: Path, domain: RoutingDomain) -> None:
    path = write_domain(tmp_path / "law.safetensors", domain)
    with pytest.raises(RouterError, match=r"is a domain file; a router file is needed$"):
        load_router(path)
    missing = tmp_path / "none"
    message = (
        f"{missing} does not exist; take the domain out with asr remove MODEL NAME and add it again"
    )
    with pytest.raises(RouterError, match=f"^{re.escape(message)}$"):
        load_domain(missing)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(save({"x": np.zeros(3)}))
    with pytest.raises(RouterError, match=r"is damaged \(it lacks 'asr'\)"):
        load_domain(foreign)
    with pytest.raises(RouterError, match="is damaged"):
        load_domain(tmp_path)


def test_metadata_must_be_json(tmp_path: Path, domain: RoutingDomain) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_domain(tmp_path / "x", domain, metadata={"x": float("nan")})
    assert not list(tmp_path.iterdir())
