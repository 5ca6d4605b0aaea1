from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asr.errors import ConfigError
from asr.model.contract import FeatureContract, NumericContract, Truncation
from asr.model.manifest import (
    AdapterEntry,
    BaseEntry,
    DataEntry,
    Manifest,
    RouterEntry,
    Versions,
)
from asr.train.changes import DomainPlan, Resume, RunPlan, check_resume, holding

A, B = "a" * 64, "b" * 64
CONTRACT = FeatureContract(
    base_fingerprint=A,
    layer=4,
    template_hash=A,
    truncation=Truncation(max_length=1024),
    views=("templated", "bare"),
)
PLACEMENT: dict[str, Any] = {
    "kind": "deep",
    "modules": ["model.layers.4.mlp", "model.layers.5.mlp"],
    "rank": 8,
}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 0.001,
    "schedule": {"name": "cosine", "warmup": 0.03},
    "limit": None,
}
PUBLISHED = {
    "adapter": AdapterEntry(sha256=A, parameters=1, bytes=4, rank=8),
    "router": RouterEntry(sha256=A, prompts=1),
}


def ledger(**statuses: str) -> Manifest:
    manifest = Manifest(
        versions=Versions(asr="0", torch="0", transformers="0", peft="0", numpy="0"),
        base=BaseEntry(
            name="x",
            source="folder",
            fingerprint=A,
            n_layers=30,
            hidden_size=8,
            architecture="Llama",
        ),
        contract=CONTRACT,
        numeric=NumericContract(dtype="float32", device="cpu"),
        router={"ridge": 0.01},
    )
    for name, status in statuses.items():
        manifest.add(
            name,
            status=status,
            data=DataEntry(path=f"/d/{name}", sha256=A),
            placement=PLACEMENT,
            training=TRAINING,
            **(PUBLISHED if status in {"trained", "routed", "done"} else {}),
        )
    return manifest


def domain(name: str, sha256: str | None = A, **changes: Any) -> DomainPlan:
    return DomainPlan(name, sha256, {**TRAINING, "placement": PLACEMENT} | changes)


def plan(*domains: str | DomainPlan, **changes: Any) -> RunPlan:
    plans = [d if isinstance(d, DomainPlan) else domain(d) for d in domains]
    return replace(RunPlan(A, CONTRACT, 0, plans), **changes)


@pytest.mark.parametrize(
    ("manifest", "wanted", "expected"),
    [
        (ledger(a="done"), plan("a"), Resume(())),
        (ledger(a="done"), plan("a", "b"), Resume(("b",))),
        (ledger(), plan("a", "b"), Resume(("a", "b"))),
        (ledger(a="done", b="training", c="pending"), plan("a", "b", "c"), Resume(("b", "c"))),
        (ledger(a="done", b="trained", c="routed"), plan("a", "b", "c"), Resume(("b", "c"))),
        # What is not finished may change: what its checkpoint was made with is said.
        (
            ledger(a="done", b="training", c="pending"),
            plan("a", domain("b", epochs=3), domain("c", epochs=3)),
            Resume(("b", "c"), restart={"b": ("epochs changed: 2 -> 3",)}),
        ),
        (
            ledger(b="training"),
            plan(domain("b", B)),
            Resume(("b",), {"b": (f"training data (sha256) changed: {A[:12]}... -> {B[:12]}...",)}),
        ),
        (
            ledger(b="training"),
            plan("b", seed=1),
            Resume(("b",), {"b": ("seed changed: 0 -> 1",)}),
        ),
        (
            ledger(b="training"),
            plan("b", quantisation="nf4"),
            Resume(("b",), {"b": ("quantisation changed: null -> nf4",)}),
        ),
        (ledger(a="pending", b="pending"), plan("b", "a"), Resume(("b", "a"))),
        (ledger(a="done", b="pending", c="training"), plan("a"), Resume((), {}, ("b", "c"))),
        (ledger(a="done", b="pending"), plan("a", "x", "b"), Resume(("x", "b"))),
        (ledger(a="pending", b="done"), plan("a", "b"), Resume(("a",))),
        # A finished domain survives the loss of its data.
        (ledger(a="done"), plan(domain("a", None)), Resume(())),
        # Settings that only one version of the program knows are not compared.
        (ledger(a="done"), plan(domain("a", new_setting=1)), Resume(())),
        (ledger(a="done"), plan(DomainPlan("a", A, {"epochs": 2})), Resume(())),
        (
            ledger(a="done"),
            plan(domain("a", placement=PLACEMENT | {"found": {"share": 0.5}})),  # measured
            Resume(()),
        ),
        # A tuple of the config is a list of the manifest.
        (
            ledger(a="done"),
            plan(domain("a", placement=PLACEMENT | {"modules": tuple(PLACEMENT["modules"])})),
            Resume(()),
        ),
        # With nothing finished everything may change.
        (
            ledger(a="pending"),
            plan("a", seed=1, base_fingerprint=B, contract=CONTRACT.model_copy()),
            Resume(("a",)),
        ),
    ],
)
def test_what_is_left_to_do(manifest: Manifest, wanted: RunPlan, expected: Resume) -> None:
    assert check_resume(manifest, wanted) == expected


UNDO = "; undo the change, or train into a new folder"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            plan(domain("a", B), "b"),
            "domain 'a' is finished and training data (sha256) changed: aaaaaaaaaaaa... -> "
            "bbbbbbbbbbbb...",
        ),
        (
            plan("a", domain("b", learning_rate=0.002)),
            "domain 'b' is finished and learning_rate changed: 0.001 -> 0.002",
        ),
        (
            plan("a", domain("b", limit=5)),
            "domain 'b' is finished and limit changed: null -> 5",
        ),
        (
            plan("a", domain("b", schedule={"name": "linear", "warmup": 0.03})),
            "domain 'b' is finished and schedule.name changed: cosine -> linear",
        ),
        (
            plan("a", domain("b", schedule={"name": "cosine"})),
            "domain 'b' is finished and schedule.warmup changed: 0.03 -> not set",
        ),
        (
            plan("a", domain("b", placement=PLACEMENT | {"rank": 16})),
            "domain 'b' is finished and placement.rank changed: 8 -> 16",
        ),
        (
            plan("a", domain("b", placement=PLACEMENT | {"modules": ["model.layers.9.mlp"]})),
            "domain 'b' is finished and placement.modules changed: [model.layers.4.mlp, "
            "model.layers.5.mlp] -> [model.layers.9.mlp]",
        ),
        (
            plan("a", domain("b", placement=PLACEMENT | {"modules": [f"m.{i}" for i in range(9)]})),
            "domain 'b' is finished and placement.modules changed: 2 entries -> 9 entries (gone: "
            "[model.layers.4.mlp, model.layers.5.mlp], new: [m.0, m.1, m.2])",
        ),
        (
            plan("a", "b", seed=1),
            "seed changed: 0 -> 1, and domains 'a', 'b' are finished with it",
        ),
        (
            plan("a", "b", quantisation="nf4"),
            "quantisation changed: null -> nf4, and domains 'a', 'b' are finished with it",
        ),
        (
            plan("a", "b", base_fingerprint=B),
            "base fingerprint changed: aaaaaaaaaaaa... -> bbbbbbbbbbbb..., and domains 'a', 'b' "
            "are finished with it",
        ),
        (
            plan(
                "a",
                "b",
                base_fingerprint=B,
                contract=CONTRACT.model_copy(update={"base_fingerprint": B}),
            ),
            "base fingerprint changed: aaaaaaaaaaaa... -> bbbbbbbbbbbb..., and domains 'a', 'b' "
            "are finished with it",
        ),
        (
            plan("a", "b", contract=CONTRACT.model_copy(update={"layer": 6})),
            "the feature contract's layer changed: 4 -> 6, and domains 'a', 'b' are finished with "
            "it",
        ),
        (
            plan("a", "b", contract=CONTRACT.model_copy(update={"views": ("bare",)})),
            "the feature contract's views changed: [templated, bare] -> [bare], and domains 'a', "
            "'b' are finished with it",
        ),
        (
            plan("b", "a"),
            "the order of finished domains changed: [a, b] -> [b, a]",
        ),
        (
            plan("a", "new", "b"),
            "domain 'new' stands before the finished 'b': append new domains at the end",
        ),
        (
            plan("a"),
            "domain 'b' is finished and no longer in the config: put it back, or take it out of "
            "the model with asr remove",
        ),
    ],
)
def test_a_change_that_touches_a_finished_domain_is_refused(wanted: RunPlan, message: str) -> None:
    # A published adapter is finished work, whatever is left of the domain.
    for status in ("done", "routed", "trained"):
        with pytest.raises(ConfigError) as caught:
            check_resume(ledger(a="done", b=status), wanted)
        assert str(caught.value) == f"cannot resume: {message}{UNDO}"


def test_all_changes_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        check_resume(
            ledger(a="done", b="done", c="pending"),
            plan("x", domain("a", B, epochs=3), domain("c", epochs=9), seed=1),
        )
    assert str(caught.value).splitlines() == [
        "cannot resume: 5 changes touch finished domains; undo the change, or train into a new "
        "folder",
        "  seed changed: 0 -> 1, and domains 'a', 'b' are finished with it",
        "  domain 'b' is finished and no longer in the config: put it back, or take it out of the "
        "model with asr remove",
        "  domain 'x' stands before the finished 'a': append new domains at the end",
        "  domain 'a' is finished and training data (sha256) changed: aaaaaaaaaaaa... -> "
        "bbbbbbbbbbbb...",
        "  domain 'a' is finished and epochs changed: 2 -> 3",
    ]


def test_a_resumed_growth_can_be_resumed_again() -> None:
    """What check_resume accepts, it accepts again once that work is done."""
    manifest = ledger(a="done", b="pending")
    wanted = plan("a", "x", "b")
    todo = check_resume(manifest, wanted).todo
    manifest.add("x")
    manifest.arrange(["a", "x", "b"])
    for name in todo:
        manifest.update(name, status="done", **PUBLISHED)
    assert check_resume(manifest, wanted) == Resume(())


def test_which_placements_hold() -> None:
    manifest = ledger(a="pending", b="training", c="trained", d="done", e="pending")
    manifest.update("e", placement={})
    assert list(holding(manifest, plan())) == ["a", "b", "c", "d"]
    for changes in ({"base_fingerprint": B}, {"seed": 1}, {"quantisation": "nf4"}):
        assert list(holding(manifest, plan(**changes))) == ["c", "d"]
