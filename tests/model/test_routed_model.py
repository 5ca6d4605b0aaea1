"""A trained model directory from the outside: answers, refusals, streams, callers in threads."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import asr
from asr.errors import (
    AdapterError,
    BaseModelError,
    ConfigError,
    ContractError,
    DataError,
    DirectoryError,
    RouterError,
)
from tests.routed import INSTRUCTIONS, trained
from tests.tiny_models import save_tiny_base

PROMPTS = [
    f"{INSTRUCTIONS['red']}\nred item 7 8",
    f"{INSTRUCTIONS['sum']}\nsum item 3 93",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Turn the word."}],
    f"{INSTRUCTIONS['rev']}\nrev item 12 1",
    f"{INSTRUCTIONS['sum']}\nsum item 4 11",
]


@pytest.fixture(scope="module")
def model():
    found = asr.RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    yield found
    found.close()


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(trained() / "model", tmp_path / "model")
    return tmp_path / "model"


def load(path, **options):
    return asr.RoutedModel.from_pretrained(path, device="cpu", dtype="float32", **options)


def texts(answers):
    return [answer.text for answer in answers]


# -- answers ---------------------------------------------------------------------------------------


def test_training_prompts_go_home_and_a_mixed_batch_answers_as_solo(model):
    assert model.domains == ("red", "sum", "rev")
    answers = model.generate(PROMPTS, max_new_tokens=8)
    assert [answers[i].adapter for i in (0, 1, 3, 4)] == ["red", "sum", "rev", "sum"]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        [alone] = model.generate([prompt], max_new_tokens=8)
        assert (alone.text, alone.adapter) == (answer.text, answer.adapter)
        assert alone.decision.score == pytest.approx(answer.decision.score, abs=1e-5)
        assert answer.decision.route == answer.adapter
    assert [d.route for d in model.route(PROMPTS)] == [answer.adapter for answer in answers]


@pytest.mark.parametrize("name", ["red", "sum", "rev", "base"])
def test_an_answer_is_what_plain_transformers_and_peft_give(model, name):
    plain = AutoModelForCausalLM.from_pretrained(trained() / "base", dtype=torch.float32)
    if name != "base":
        plain = PeftModel.from_pretrained(plain, trained() / "model" / "adapters" / name).eval()
    answers = model.generate(PROMPTS, adapter=name, max_new_tokens=8)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([model.encode([prompt])[0].input_ids])
        out = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=model._generation_config(8, {}),
        )
        tokenizer = model.base.tokenizer
        assert answer.text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_adapters_answer_differently(model):
    said = {
        name: tuple(texts(model.generate(PROMPTS, adapter=name, max_new_tokens=8)))
        for name in ("red", "sum", "rev", "base")
    }
    assert len(set(said.values())) == 4


def test_features_are_the_same_with_adapters_resident(model):
    model.generate(PROMPTS, max_new_tokens=1)
    resident = model.embed(model.encode(PROMPTS))
    model.close()
    assert np.array_equal(model.embed(model.encode(PROMPTS)), resident)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["auto", "red", "sum", "base"])
def test_a_stream_is_the_plain_answer_in_pieces(model, adapter):
    [plain] = model.generate([PROMPTS[1]], adapter=adapter, max_new_tokens=20)
    decision, name, pieces = model.stream(PROMPTS[1], adapter=adapter, max_new_tokens=20)
    assert name == plain.adapter
    assert decision == plain.decision
    assert "".join(pieces) == plain.text
    assert not model.bank.in_use


def test_an_abandoned_stream_frees_the_model(model):
    expected = texts(model.generate(PROMPTS, max_new_tokens=6))
    _, _, pieces = model.stream(PROMPTS[0], adapter="red", max_new_tokens=400)
    next(pieces)
    pieces.close()
    assert not model.bank.in_use
    assert texts(model.generate(PROMPTS, max_new_tokens=6)) == expected


def test_while_a_stream_runs_no_other_request_can_disturb_it(model):
    """Another request would have switched its adapter off between two of its tokens."""
    [plain] = model.generate([PROMPTS[0]], adapter="sum", max_new_tokens=60)
    _, _, pieces = model.stream(PROMPTS[0], adapter="sum", max_new_tokens=60)
    # The generation is held between two tokens, so that it surely still runs.
    inside, go_on = threading.Event(), threading.Event()

    def hold(module, args):
        inside.set()
        assert go_on.wait(20)

    handle = model.base.model.lm_head.register_forward_pre_hook(hold)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(pieces))
    reader.start()
    try:
        assert inside.wait(20)
        for request in (
            lambda: model.generate([PROMPTS[1]], adapter="rev", max_new_tokens=2),
            lambda: model.route([PROMPTS[1]]),
            lambda: model.stream(PROMPTS[1]),
            model.close,
        ):
            with pytest.raises(AdapterError, match=r"read its (stream|answer) to the end"):
                request()
    finally:
        go_on.set()
        reader.join()
        handle.remove()
    assert "".join(said) == plain.text
    model.generate([PROMPTS[1]], adapter="rev", max_new_tokens=2)


def test_an_error_inside_a_stream_reaches_its_reader_and_frees_the_model(model):
    def fail(module, args):
        raise RuntimeError("out of cheese")

    _, _, pieces = model.stream(PROMPTS[0], adapter="red", max_new_tokens=5)
    handle = model.base.decoder.modules[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of cheese"):
        list(pieces)
    handle.remove()
    assert not model.bank.in_use
    head = model.base.model.get_output_embeddings()  # has one of its own, from loading
    assert [m for m in model.base.model.modules() if m._forward_pre_hooks] == [head]
    assert model.generate([PROMPTS[0]], adapter="red", max_new_tokens=2)[0].adapter == "red"


# -- callers in threads ----------------------------------------------------------------------------


def test_decisions_travel_with_their_requests_across_threads(model):
    """Many clients, one after another at the model as a server lets them: nobody gets another's."""
    jobs = [
        (i, PROMPTS[i % 5], ["auto", "base", "rev", "auto", "sum", "red"][i % 6]) for i in range(24)
    ]
    expected = {
        i: model.generate([prompt], adapter=adapter, max_new_tokens=5)[0]
        for i, prompt, adapter in jobs
    }
    lock, found = threading.Lock(), {}

    def client(i, prompt, adapter):
        with lock:
            found[i] = model.generate([prompt], adapter=adapter, max_new_tokens=5)[0]

    threads = [threading.Thread(target=client, args=job) for job in reversed(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# -- bad requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, DataError, "no prompts given; give at least one"),
        ("hello", {}, DataError, "a text where a list of prompts is needed; give ['hello']"),
        ([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], {}, DataError,
         "messages where a list of prompts is needed; give a list of conversations: [[{"),
        (["ok"], {"batch_size": 0}, ConfigError, "batch_size is 0; it must be 1 or more"),
        (["ok"], {"batch_size": "4"}, ConfigError, "batch_size is '4'; it must be 1 or more"),
        (["ok"], {"max_new_tokens": "5"}, DataError, "max_new_tokens is '5'; it must be 1 or more"),
        (["ok"], {"max_new_tokens": 2.5}, DataError, "max_new_tokens is 2.5; it must be 1 or more"),
        (["ok"], {"adapter": None}, AdapterError, "unknown adapter 'None'; there are: auto, base"),
        (["ok"], {"adapter": [None]}, AdapterError, "unknown adapter 'None'; there are: auto"),
        ([""], {}, DataError, "the prompt has no text to route on"),
        (["ok", " \n\t"], {}, DataError, "prompt 2: the prompt has no text to route on"),
        ([[]], {}, DataError, "a prompt has no user message; give at least one"),
        ([[{"role": "system", "content": "x"}]], {}, DataError, "a prompt has no user message"),
        (["ok", [{"role": "user"}]], {}, DataError, "prompt 2: {'role': 'user'} is no message"),
        ([[{"role": "user", "content": 3}]], {}, DataError, "{'role': 'user', 'content': 3} is no"),
        ([["hello"]], {}, DataError, "'hello' is no message; a prompt is a text, or a list of"),
        ([7], {}, DataError, "7 is no message"),
        ([[{"role": "usr", "content": "hello"}]], {}, DataError,
         "unknown role 'usr' (did you mean 'user'?); there are: assistant, system, user"),
        (["ok"], {"temperature": 0.5}, ConfigError,
         "temperature=0.5 does nothing without do_sample=True; add it, or leave temperature out"),
        ([None], {}, DataError, "None is no message"),
        (["ok"], {"adapter": "redd"}, AdapterError,
         "unknown adapter 'redd' (did you mean 'red'?); there are: auto, base, red, rev, sum"),
        (["ok"], {"adapter": "../red"}, AdapterError, "unknown adapter '../red'"),
        (["ok", "ok"], {"adapter": ["red"]}, AdapterError,
         "1 adapter names for 2 prompts; give one for each"),
        (["ok"], {"max_new_tokens": 0}, DataError, "max_new_tokens is 0; it must be 1 or more"),
        (["ok"], {"max_new_tokens": 512}, DataError, "exceed the base's context of 512; shorten"),
        (["ok", "longer " * 9], {"max_new_tokens": 500}, DataError, "prompt 2 of "),
        (["a b " * 600], {}, DataError, "the base's context holds 512; shorten the prompt"),
    ],
)  # fmt: skip
def test_bad_requests(model, prompts, options, error, message):
    with pytest.raises(error) as caught:
        model.generate(prompts, **{"max_new_tokens": 4, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_just_fits_is_answered(model):
    [encoded] = model.encode(["one two three"])
    room = 512 - len(encoded.input_ids)
    assert model.generate(["one two three"], adapter="base", max_new_tokens=room)
    with pytest.raises(DataError, match="exceed the base's context of 512"):
        model.generate(["one two three"], adapter="base", max_new_tokens=room + 1)


# -- opening ---------------------------------------------------------------------------------------


def test_another_base_is_refused_with_both_fingerprints(copy, tmp_path):
    other = save_tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(BaseModelError) as caught:
        load(copy, base=str(other))
    recorded = json.loads((copy / "manifest.json").read_text())["base"]["fingerprint"]
    assert f"base '{other}' is not the one this model was trained on" in str(caught.value)
    assert recorded[:12] in str(caught.value)
    assert str(caught.value).endswith("give the right one with --base")


def test_the_same_base_elsewhere_is_accepted(copy, tmp_path):
    other = save_tiny_base(tmp_path / "moved")
    assert load(copy, base=str(other)).generate([PROMPTS[0]], max_new_tokens=1)[0].adapter == "red"


def test_a_path_a_device_and_a_dtype_are_taken_as_they_are(copy, tmp_path):
    other = save_tiny_base(tmp_path / "moved")
    own = asr.RoutedModel.from_pretrained(
        copy, base=other, device=torch.device("cpu"), dtype=torch.float32
    )
    assert own.base.dtype_name == "float32"
    assert own.generate([PROMPTS[0]], max_new_tokens=1)[0].adapter == "red"
    with pytest.raises(BaseModelError, match="no device '0' here"):
        asr.RoutedModel.from_pretrained(copy, device=0)  # type: ignore[arg-type]


def test_a_base_that_is_gone(copy, tmp_path):
    with pytest.raises(BaseModelError):
        load(copy, base=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "name",
    ["adapters/red/adapter_model.safetensors", "adapters/sum/adapter_config.json",
     "router/rev.safetensors"],
)  # fmt: skip
def test_a_published_file_that_is_missing_or_changed(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(AdapterError, match=rf"{name} was changed \(sha256"):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(AdapterError, match=f"{name} is missing; restore it from a copy"):
        load(copy)


def test_an_adapter_that_changes_after_opening_is_not_served(copy):
    model = load(copy)
    assert model.generate([PROMPTS[0]], adapter="red", max_new_tokens=2)
    shutil.copytree(copy / "adapters" / "red", copy / "adapters" / "rev", dirs_exist_ok=True)
    with pytest.raises(AdapterError, match="adapter 'rev' was changed since training"):
        model.generate([PROMPTS[0]], adapter="rev", max_new_tokens=2)
    assert model.bank.loaded == ("red",)
    assert model.generate([PROMPTS[0]], adapter="red", max_new_tokens=2)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda d: (d / "router/router.safetensors").unlink(), RouterError, "router.safetensors"),
        (lambda d: (d / "chat_template.jinja").unlink(), DirectoryError,
         "chat_template.jinja cannot be read"),
        (lambda d: (d / "chat_template.jinja").write_text(
            (d / "chat_template.jinja").read_text().replace("im_start", "im_starts")
        ), ContractError, "chat_template.jinja was changed: hash"),
        (lambda d: (d / "manifest.json").write_text("{"), DirectoryError, "manifest.json"),
        (lambda d: (d / "manifest.json").unlink(), DirectoryError, "not a routed model directory"),
        (shutil.rmtree, DirectoryError, "no folder"),
    ],
)  # fmt: skip
def test_a_directory_that_is_incomplete_or_was_edited(copy, edit, error, message):
    edit(copy)
    with pytest.raises(error) as caught:
        load(copy)
    assert message in str(caught.value)


def edit_manifest(copy, edit):
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))


def test_no_finished_domain(copy):
    def unfinished(manifest):
        manifest["domains"] = {}

    edit_manifest(copy, unfinished)
    with pytest.raises(
        DirectoryError, match=r"has no finished domain yet; run asr train with --res"
    ):
        load(copy)


def test_an_older_router_is_said(copy):
    """It never routes to the domain that was added since: nobody would see why."""
    shutil.copy(trained() / "router-sum.safetensors", copy / "router" / "router.safetensors")
    said: list[str] = []
    assert load(copy, say=said.append).domains == ("red", "sum")
    [warning] = [line for line in said if line.startswith("warning")]
    assert warning == (
        "warning: the router does not know 'rev' and sends nothing there, though it is finished: "
        "finish asr remove MODEL rev if that was stopped, or run asr train CONFIG --out MODEL "
        "--resume to derive the router again"
    )


def test_an_unknown_quantisation_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nothing", quantisation="int4")
    assert str(caught.value) == (
        "unknown quantisation 'int4' (did you mean 'int8'?); there are: int8, nf4, none"
    )


def test_a_router_of_domains_that_are_gone(copy):
    edit_manifest(copy, lambda manifest: manifest["domains"].pop("rev"))
    with pytest.raises(RouterError, match="routes to 'rev', which the manifest does not hold"):
        load(copy)
