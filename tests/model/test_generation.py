"""Routed generation against transformers' ``generate`` with PEFT's active adapter, in float32."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from asr.base.split import SplitForward
from asr.errors import ConfigError
from asr.model.features import pad_left
from asr.model.generation import decode, generation_settings
from tests.routed import routed_by_hand, tiny_base
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = [
    "What is the date?",
    "Write a query that answers the question about the year of the city.\n" * 3,
    "one two three four five six seven",
    "user",
    "Classify the intent of this message. Reply with the label only.",
    "ten",
]
NEW = 9


def by_peft(model, folder, architecture, adapter, **generation):
    """Every prompt's answer from a fresh base, PEFT's active adapter and ``generate``, as text."""
    fresh = tiny_model(architecture)
    if adapter != "base":
        fresh = PeftModel.from_pretrained(fresh, folder / adapter, adapter_name="other")
        fresh.set_adapter("other")
    encoded = model.encode(PROMPTS)
    ids, mask = pad_left([prompt.input_ids for prompt in encoded], 0, torch.device("cpu"))
    with torch.no_grad():
        out = fresh.eval().generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=model._generation_config(NEW, generation),
        )
    return [tiny_tokenizer().decode(row[ids.shape[1] :], skip_special_tokens=True) for row in out]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "qwen3", "opt", "mixtral"])
def test_a_mixed_batch_answers_as_each_adapter_alone(architecture, tmp_path):
    """Deep and all-layer adapters and the base in one batch, routed and named, left-padded."""
    adapters = {"deep": ("one", "deep"), "other": ("one", "deep"), "all": ("two", "all")}
    routes = ["deep", "all", "base", "other", "all", "deep"]
    model = routed_by_hand(tmp_path, architecture, adapters, [])
    # Tiny Gemma 3 has tied, scaled embeddings: it would repeat the last token whatever the adapter.
    more = {"no_repeat_ngram_size": 1} if architecture == "gemma3" else {}
    expected = {n: by_peft(model, tmp_path, architecture, n, **more) for n in {*routes}}
    assert len({tuple(texts) for texts in expected.values()}) == 4  # the adapters do differ
    lengths = [len(prompt.input_ids) for prompt in model.encode(PROMPTS)]
    order = sorted(range(len(PROMPTS)), key=lambda i: (-lengths[i], i))  # the batch is sorted

    model.router.routes = [routes[i] for i in order]
    answers = model.generate(PROMPTS, max_new_tokens=NEW, **more)
    assert [answer.adapter for answer in answers] == routes
    assert [answer.text for answer in answers] == [expected[r][i] for i, r in enumerate(routes)]
    assert [answer.decision.route for answer in answers] == routes
    assert [answer.prompt_tokens for answer in answers] == lengths

    named = model.generate(PROMPTS, adapter=routes, max_new_tokens=NEW, batch_size=2, **more)
    assert [answer.text for answer in named] == [answer.text for answer in answers]
    assert all(answer.decision is None for answer in named)
    assert len(model.router.pooled) == 1  # nobody asked the router

    base = model.generate(PROMPTS, adapter="base", max_new_tokens=NEW, **more)
    assert [answer.text for answer in base] == expected["base"]
    # the features that were routed on are the base's, though adapters were resident by then
    model.router.routes = routes[:]
    model.generate(PROMPTS, max_new_tokens=1)
    first, again = model.router.pooled
    assert (first == again).all()
    model.close()


def test_two_passes_everywhere_give_the_same_answers(tmp_path):
    adapters = {"deep": ("one", "deep"), "all": ("two", "all")}
    routes = ["deep", "all", "base", "deep", "all", "base"]
    model = routed_by_hand(tmp_path, "llama", adapters, [])
    expected = [
        answer.text for answer in model.generate(PROMPTS, adapter=routes, max_new_tokens=NEW)
    ]
    model.forward = model.whole
    found = [answer.text for answer in model.generate(PROMPTS, adapter=routes, max_new_tokens=NEW)]
    assert found == expected
    model.close()


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 4}],
    ids=str,
)
def test_logits_processors_are_transformers_own(tmp_path, settings):
    model = routed_by_hand(tmp_path, "llama", {"deep": ("one", "deep")}, [])
    answers = model.generate(PROMPTS, adapter="deep", max_new_tokens=NEW, **settings)
    assert [a.text for a in answers] == by_peft(model, tmp_path, "llama", "deep", **settings)
    model.close()


def test_sampling_draws_as_transformers_does_and_again_with_the_seed(tmp_path):
    model = routed_by_hand(tmp_path, "llama", {"deep": ("one", "deep")}, [])
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 40, "top_p": 0.9}

    def sampled(seed, prompts=PROMPTS):
        torch.manual_seed(seed)
        answers = model.generate(prompts, adapter="deep", max_new_tokens=NEW, **settings)
        return [answer.text for answer in answers]

    assert sampled(1) == sampled(1)  # also where the first had to load the adapter
    assert sampled(1) != sampled(2)
    lengths = [len(prompt.input_ids) for prompt in model.encode(PROMPTS)]
    longest = max(range(len(PROMPTS)), key=lambda i: lengths[i])
    alone = by_peft_alone(model, tmp_path, PROMPTS[longest], settings)
    assert sampled(5, [PROMPTS[longest]]) == [alone]
    model.close()


def by_peft_alone(model, folder, prompt, settings):
    fresh = PeftModel.from_pretrained(tiny_model(), folder / "deep").eval()
    ids = torch.tensor([model.encode([prompt])[0].input_ids])
    torch.manual_seed(5)  # loading drew random numbers
    with torch.no_grad():
        out = fresh.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=model._generation_config(NEW, settings),
        )
    return tiny_tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_end_tokens_stop_their_row_only_and_lengths_are_kept(tmp_path):
    model = routed_by_hand(tmp_path, "llama", {"deep": ("one", "deep")}, [])
    never = {"eos_token_id": 1}  # a token that this model does not say here
    free = model.generate(PROMPTS, adapter="deep", max_new_tokens=NEW, **never)
    assert {answer.finish for answer in free} == {"length"}
    assert {answer.new_tokens for answer in free} == {NEW}
    tokenizer: PreTrainedTokenizerBase = model.base.tokenizer
    ids, mask = pad_left([p.input_ids for p in model.encode(PROMPTS)], 0, torch.device("cpu"))
    split = SplitForward(model.base.model, 2)
    state = split.prefix(ids, mask)
    config = model._generation_config(NEW, never)
    with model.applied(["deep"] * len(PROMPTS)):
        tokens = decode(model.base.model, state, lambda: split.suffix(state, 1), config)
    end = tokens[0][3]
    assert end not in tokens[0][:3]
    stopped = model.generate(PROMPTS, adapter="deep", max_new_tokens=NEW, eos_token_id=end)
    for row, answer in zip(tokens, stopped, strict=True):
        expected = row[: row.index(end) + 1] if end in row else row
        assert answer.new_tokens == len(expected)
        assert answer.finish == ("stop" if end in row else "length")
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert {answer.finish for answer in stopped} == {"stop", "length"}
    one = model.generate(PROMPTS, adapter="deep", max_new_tokens=1, **never)
    assert [answer.text for answer in one] == [
        tokenizer.decode(row[:1], skip_special_tokens=True) for row in tokens
    ]
    model.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_beams": 4},
            "num_beams=4 is not supported; a routed batch decodes greedily or by "
            "sampling, one answer per prompt, with num_beams=1",
        ),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2 is not supported"),
        (
            {"temprature": 0.5},
            "unknown generation setting 'temprature' (did you mean "
            "'temperature'?); fields of transformers' GenerationConfig are accepted",
        ),
        ({"do_sample": True, "temperature": 0}, "temperature=0 is out of range"),
        (
            {"do_sample": True, "temperature": -1.0},
            "temperature=-1.0 is out of range; give a number from 0.0001 up",
        ),
        ({"top_p": 1.2}, "top_p=1.2 is out of range; give a number from 0.0001 to 1"),
        ({"top_p": "0.9"}, "top_p='0.9' is out of range"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan is out of range"),
        (
            {"do_sample": True, "top_k": 1.5},
            "top_k=1.5 is out of range; give a whole number from 0 up",
        ),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size=-2 is out of range"),
        ({"stop_strings": ["x"]}, "stop_strings=['x'] is not supported; leave stop_strings out"),
        ({"dola_layers": "high"}, "dola_layers='high' is not supported; leave dola_layers out"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 is not supported"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported"),
        ({"use_cache": False}, "use_cache=False is not supported; leave use_cache out"),
        ({"cache_implementation": "static"}, "cache_implementation='static' is not supported"),
        ({"max_length": 300}, "max_length=300 is not supported; leave max_length out"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 is not supported"),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty=1.2 is not supported"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_before_anything_runs(
    tmp_path, settings, message
):
    model = routed_by_hand(tmp_path, "llama", {}, [])
    model.forward.prefix = None  # would fail if it were called
    with pytest.raises(ConfigError) as caught:
        model.generate(PROMPTS, adapter="base", **settings)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError):
        model.stream(PROMPTS[0], adapter="base", **settings)


def test_decode_refuses_beams_by_itself():
    with pytest.raises(ConfigError, match="num_beams=2 is not supported"):
        decode(None, None, None, GenerationConfig(num_beams=2))  # type: ignore[arg-type]


def test_the_callers_settings_win():
    config = generation_settings({"max_new_tokens": 3, "do_sample": False}, {"do_sample": True})
    assert (config.max_new_tokens, config.do_sample) == (3, True)


def test_the_base_is_the_same_object_of_all_these_models():
    """Every test above closed its model: nothing is left on the shared base."""
    model = tiny_base("llama")[1].model
    assert not any(".lora_" in name for name, _ in model.named_parameters())
    head = model.get_output_embeddings()  # has one of its own, from loading
    assert [m for m in model.modules() if m._forward_pre_hooks] == [head]
    assert len(head._forward_pre_hooks) == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mixtral"])
def test_rows_that_have_ended_leave_the_batch(architecture, tmp_path):
    """The rows that go on keep their adapter, cache, mask and position."""
    adapters = {"deep": ("one", "deep"), "other": ("one", "deep")}
    routes = ["other", "deep", "base", "other", "deep", "base"]
    model = routed_by_hand(tmp_path, architecture, adapters, [])
    ids, mask = pad_left([p.input_ids for p in model.encode(PROMPTS)], 0, torch.device("cpu"))
    split = SplitForward(model.base.model, 2)
    state = split.prefix(ids, mask)
    config = model._generation_config(NEW, {"eos_token_id": 1})
    with model.applied(routes):
        free = decode(model.base.model, state, lambda: split.suffix(state, 1), config)
    counts = Counter(token for row in free for token in set(row[:-1]))
    end = next(token for token, count in counts.most_common() if 2 <= count < len(routes))
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]

    sizes: list[int] = []
    handle = model.base.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = model.generate(PROMPTS, adapter=routes, max_new_tokens=NEW, eos_token_id=end)
    handle.remove()
    assert [answer.new_tokens for answer in found] == [len(row) for row in expected]
    assert [answer.text for answer in found] == [
        tiny_tokenizer().decode(row, skip_special_tokens=True) for row in expected
    ]
    assert sizes[0] == len(routes) > sizes[-1]
    model.close()
