from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import client, error_of


def test_a_text_is_gone_on_with(ai: openai.OpenAI, engine: FakeEngine) -> None:
    raw = ai.completions.with_raw_response.create(model="auto", prompt="about red", logprobs=1)
    assert raw.headers["x-asr-adapter"] == "red"
    answer = raw.parse()
    assert answer.choices[0].text == "Hello, world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.tokens == ["Hello", ", ", "world"]
    assert answer.choices[0].logprobs.text_offset == [0, 5, 7]
    assert answer.choices[0].logprobs.top_logprobs[0] == {"Hello": -0.5}
    assert answer.model == "red"
    assert answer.model_extra["asr"]["route"] == "auto"
    Completion.model_validate(answer.model_dump(), strict=True)
    request = engine.requests[0]
    assert engine.tokenizer.decode(request.prompt.input_ids) == "about red"
    assert request.prompt.pool_mask[0] is False and all(request.prompt.pool_mask[1:])
    assert request.opening == ""


def test_special_tokens_of_a_raw_prompt_are_special_and_not_pooled(engine: FakeEngine) -> None:
    body = {"prompt": "<|im_start|>user\nred<|im_end|>"}
    assert client(engine).post("/v1/completions", json=body).is_success
    prompt = engine.requests[0].prompt
    pooled = [i for i, on in zip(prompt.input_ids, prompt.pool_mask, strict=True) if on]
    assert engine.tokenizer.decode(pooled) == "user\nred"
    assert engine.tokenizer.eos_token_id in prompt.input_ids


def tokens(text: str) -> list[int]:
    return list(FakeEngine().tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a red", ["a red"]),
        (["a red", "a sum"], ["a red", "a sum"]),
        (tokens("a red"), ["a red"]),
        ([tokens("a red"), tokens("a sum")], ["a red", "a sum"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_choices(
    ai: openai.OpenAI, engine: FakeEngine, prompt: Any, texts: list[str], stream: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    got = ai.completions.create(
        model="auto", prompt=prompt, n=2, seed=5, stream=stream, logprobs=0, **options
    )
    sent = [engine.tokenizer.decode(request.prompt.input_ids) for request in engine.requests]
    assert sent == [text for text in texts for _ in range(2)]
    assert [request.sampling.seed for request in engine.requests] == [5, 6] * len(texts)
    if stream:
        chunks = list(got)
        pieces: dict[int, str] = {}
        routes: dict[int, str] = {}
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            pieces[choice.index] = pieces.get(choice.index, "") + choice.text
            if "asr" in choice.model_extra:
                routes[choice.index] = choice.model_extra["asr"]["adapter"]
        usage = chunks[-1].usage
    else:
        pieces = {choice.index: choice.text for choice in got.choices}
        routes = {choice.index: choice.model_extra["asr"]["adapter"] for choice in got.choices}
        usage = got.usage
    assert pieces == dict.fromkeys(range(2 * len(texts)), "Hello, world")
    wanted = [text.split()[-1] for text in texts for _ in range(2)]
    assert [routes[index] for index in sorted(routes)] == wanted
    assert usage.prompt_tokens == sum(len(tokens(text)) for text in texts)
    assert usage.completion_tokens == 6 * len(texts)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": ""}, "prompt: must have at least 1 character"),
        ({"prompt": []}, "prompt: must have at least 1 item"),
        ({"prompt": None}, "prompt: is missing; give it"),
        ({"prompt": [[]]}, "prompt[0]: must have at least 1 item"),
        ({"prompt": {"a": 1}}, "prompt: must be text or an array"),
        ({"prompt": ["a", 1]}, "prompt[1]: must be text"),
        ({"prompt": [-1]}, "prompt[0]: must be greater than or equal to 0"),
        (
            {"prompt": [1, 5000]},
            "the prompt names a token that does not exist; token ids go from 0 to 319",
        ),
        (
            {"prompt": [1]},
            "the prompt has no text to route on; write at least two tokens of text",
        ),
        (
            {"prompt": "<|im_end|><|im_end|>"},
            "the prompt has no text to route on; write at least two tokens of text",
        ),
        (
            {"prompt": [7] * 600},
            "the prompt has 600 tokens, the context holds 512 with the answer; shorten the prompt",
        ),
        (
            {"prompt": [7] * 512},
            "the prompt has 512 tokens, the context holds 512 with the answer; shorten the prompt",
        ),
        (
            {"prompt": [7] * 500, "max_tokens": 13},
            "the prompt of 500 tokens and max_tokens=13 exceed the context of 512; "
            "ask for at most 12, or shorten the prompt",
        ),
        ({"prompt": "ab", "suffix": "c"}, "'suffix' is not supported by this server; leave it out"),
        ({"prompt": "ab", "echo": True}, "echo: must be False"),
        ({"prompt": "ab", "best_of": 2}, "best_of: must be 1"),
        ({"prompt": ["ab"] * 65}, "prompt: must have at most 64 items"),
    ],
)
def test_bad_prompts(engine: FakeEngine, body: dict[str, Any], message: str) -> None:
    error = error_of(client(engine).post("/v1/completions", json=body), 400)
    assert error["message"] == message
    assert engine.requests == []
