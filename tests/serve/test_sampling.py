"""Each setting against a direct computation, and rows that know nothing of each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessorList

from asr.errors import ConfigError
from asr.serve.request import Sampling, TokenLogprob
from asr.serve.sampling import (
    AnswerPenaltyLogitsProcessor,
    Chosen,
    InvalidLogitsError,
    Sampler,
    choose_tokens,
)
from tests.tiny_models import VOCAB, tiny_model

PROMPT = [7, 8, 9, 8]


def sampler(vocabulary_size: int = VOCAB, prompt=PROMPT, end_ids=(2,), **fields) -> Sampler:
    return Sampler(Sampling(max_tokens=50, **fields), prompt, vocabulary_size, end_ids)


def logits_of(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def processed(one: Sampler, row: torch.Tensor) -> torch.Tensor:
    return one._processors(one._ids, row[None])[0]


# What each setting does


def test_defaults_are_greedy_and_take_the_first_of_equal_logits():
    one = sampler(4)
    assert one.is_greedy
    assert one.choose(torch.tensor([0.0, 5.0, 5.0, 1.0])) == 1
    assert one.generated == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.2},
        {"presence_penalty": -1.0},
        {"frequency_penalty": 0.5},
        {"logit_bias": ((3, 1.0),)},
    ],
)
def test_what_changes_the_choice_is_not_greedy(fields):
    assert not sampler(**fields).is_greedy


@pytest.mark.parametrize("fields", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {"seed": 1}])
def test_settings_of_sampling_leave_a_greedy_choice_alone(fields):
    assert sampler(**fields).is_greedy


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 9e-6])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert sampler(temperature=temperature).is_greedy


def test_temperature_divides():
    row = logits_of(VOCAB)
    one = sampler(temperature=0.3)
    assert torch.equal(processed(one, row), row / 0.3)


def test_top_k_keeps_the_k_largest():
    row = torch.tensor([1.0, 4.0, 3.0, 2.0])
    kept = processed(sampler(4, temperature=1.0, top_k=2), row)
    assert kept.tolist() == [-math.inf, 4.0, 3.0, -math.inf]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    row = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    kept = processed(sampler(4, temperature=1.0, top_p=0.7), row)
    assert kept.isfinite().tolist() == [False, True, True, False]


def test_min_p_keeps_what_has_the_share_of_the_likeliest():
    row = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    kept = processed(sampler(4, temperature=1.0, min_p=0.4), row)
    assert kept.isfinite().tolist() == [False, True, True, False]


def test_logit_bias_is_added():
    row = logits_of(VOCAB)
    one = sampler(logit_bias=((3, 100.0), (5, -2)))
    expected = row.clone()
    expected[3] += 100.0
    expected[5] -= 2
    assert torch.equal(processed(one, row), expected)
    assert one.choose(row) == 3


def test_a_banned_token_is_not_chosen():
    row = logits_of(VOCAB)
    likeliest = int(row.argmax())
    assert sampler(logit_bias=((likeliest, -100.0),)).choose(row) == int(row.topk(2).indices[1])


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_logit_bias_of_a_token_that_does_not_exist_is_refused(token):
    with pytest.raises(ConfigError) as error:
        sampler(logit_bias=((3, 1.0), (token, 1.0)))
    assert str(error.value) == (
        f"logit_bias names token {token}, but token ids go from 0 to {VOCAB - 1}; leave it out"
    )


def test_repetition_penalty_counts_prompt_and_answer():
    one = sampler(5, prompt=[0, 1], repetition_penalty=2.0)
    one.keep(3)
    row = torch.tensor([4.0, -4.0, 4.0, -4.0, -4.0])
    assert processed(one, row).tolist() == [2.0, -8.0, 4.0, -8.0, -4.0]


@pytest.mark.parametrize(
    ("presence", "frequency", "expected"),
    [
        # the prompt is [1]; the answer holds token 2 once and token 3 three times
        (0.5, 0.0, [1.0, 1.0, 0.5, 0.5]),
        (0.0, 0.25, [1.0, 1.0, 0.75, 0.25]),
        (1.0, 0.5, [1.0, 1.0, -0.5, -1.5]),
        (-1.0, -0.5, [1.0, 1.0, 2.5, 3.5]),
    ],
)
def test_presence_and_frequency_penalties_count_the_answer_only(presence, frequency, expected):
    one = sampler(4, prompt=[1], presence_penalty=presence, frequency_penalty=frequency)
    for token in (3, 2, 3, 3):
        one.keep(token)
    assert processed(one, torch.ones(4)).tolist() == expected


def test_penalties_of_several_rows_do_not_mix():
    processor = AnswerPenaltyLogitsProcessor(1.0, 0.5, prompt_length=1)
    ids = torch.tensor([[0, 1, 1], [0, 2, 0]])
    assert processor(ids, torch.zeros(2, 3)).tolist() == [[0, -2.0, 0], [-1.5, 0, -1.5]]


def test_penalties_change_a_greedy_answer_step_by_step():
    one = sampler(3, frequency_penalty=1.0)
    row = torch.tensor([2.5, 2.0, 1.0])
    assert [one.choose(row) for _ in range(5)] == [0, 1, 0, 1, 2]


def test_logits_are_processed_in_float32():
    row = logits_of(VOCAB).bfloat16()
    one, other = sampler(temperature=0.7, seed=1), sampler(temperature=0.7, seed=1)
    exact = torch.multinomial(
        (row.float() / 0.7).softmax(-1), 1, generator=torch.Generator().manual_seed(1)
    )
    assert one.choose(row) == int(exact)
    assert other.choose(row.float()) == int(exact)


# transformers' own


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.5, "repetition_penalty": 1.3},
    {"temperature": 0.8, "top_p": 0.9, "logit_bias": ((3, 4.0), (5, -100.0))},
    {"temperature": 0.9, "presence_penalty": 1.5, "frequency_penalty": 0.7, "top_k": 40},
    {"repetition_penalty": 1.7, "logit_bias": ((11, 2.0),), "presence_penalty": 0.5},
]


def generation_config(sampling: Sampling, **more) -> GenerationConfig:
    random = sampling.temperature > 0
    warping = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
    return GenerationConfig(
        do_sample=random,
        repetition_penalty=sampling.repetition_penalty,
        sequence_bias=[[[token], bias] for token, bias in sampling.logit_bias] or None,
        **(warping if random else {}),
        **more,
    )


@pytest.mark.parametrize("fields", SETTINGS)
def test_processors_are_those_of_generate_in_its_order(fields):
    sampling = Sampling(max_tokens=1, **fields)
    own = LogitsProcessorList()
    if sampling.presence_penalty or sampling.frequency_penalty:
        own.append(
            AnswerPenaltyLogitsProcessor(sampling.presence_penalty, sampling.frequency_penalty, 4)
        )
    theirs = tiny_model()._get_logits_processor(
        generation_config(sampling), input_ids_seq_length=4, logits_processor=own
    )
    ours = Sampler(sampling, PROMPT, VOCAB, [2])._processors
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    ids = torch.tensor([[*PROMPT, 3, 5, 3]])
    row = logits_of(1, VOCAB)
    assert torch.equal(ours(ids, row), theirs(ids, row))


@pytest.mark.parametrize("fields", SETTINGS)
def test_answers_equal_those_of_generate_with_the_same_seed(fields):
    model = tiny_model()
    sampling = Sampling(max_tokens=12, seed=5, **fields)
    one = Sampler(sampling, PROMPT, VOCAB, [2])
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(12):
            ids.append(one.choose(model(torch.tensor([ids])).logits[0, -1]))
        torch.manual_seed(5)
        penalties = AnswerPenaltyLogitsProcessor(
            sampling.presence_penalty, sampling.frequency_penalty, len(PROMPT)
        )
        expected = model.generate(
            torch.tensor([PROMPT]),
            generation_config=generation_config(
                sampling, max_new_tokens=12, min_new_tokens=0, eos_token_id=None, pad_token_id=0
            ),
            logits_processor=LogitsProcessorList([penalties]),
        )
    assert ids == expected[0].tolist()
    assert one.generated == ids[len(PROMPT) :]


# Rows and their batch


def test_a_seed_gives_the_same_tokens_whatever_the_other_rows_are():
    steps = logits_of(20, VOCAB)
    alone = sampler(temperature=1.0, seed=3)
    solo = [alone.choose(row) for row in steps]
    others = [sampler(temperature=2.0, seed=4), sampler(), sampler(temperature=1.0)]
    mixed = sampler(temperature=1.0, seed=3)
    for step, row in enumerate(steps):
        torch.manual_seed(step)  # the global generator has no say
        batch = torch.stack([logits_of(VOCAB, seed=step), row, *logits_of(2, VOCAB, seed=step)])
        choose_tokens(batch, [others[0], mixed, *others[1:]])
    assert mixed.generated == solo
    assert len(set(solo)) > 3


def test_choosing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sampler(temperature=1.0).choose(logits_of(VOCAB))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_seed_is_drawn_where_none_is_given():
    assert sampler(seed=0).seed == 0
    seeds = {sampler(temperature=1.0).seed for _ in range(20)}
    assert len(seeds) == 20


def test_equal_rows_choose_alike_in_a_batch_and_alone():
    logits = logits_of(4, VOCAB)
    fields = [{}, {"temperature": 1.0, "seed": 1}, {"presence_penalty": 1.0}, {"top_logprobs": 2}]
    batch = choose_tokens(logits, [sampler(**one) for one in fields])
    alone = [sampler(**one).choose(row) for one, row in zip(fields, logits, strict=True)]
    assert [chosen.token for chosen in batch] == alone


def test_every_row_keeps_its_token():
    samplers = [sampler(), sampler(temperature=1.0), sampler(frequency_penalty=0.1)]
    first = choose_tokens(logits_of(3, VOCAB), samplers)
    second = choose_tokens(logits_of(3, VOCAB, seed=1), samplers)
    assert [one.generated for one in samplers] == [
        [a.token, b.token] for a, b in zip(first, second, strict=True)
    ]


def test_the_logits_are_left_as_they_are():
    logits = logits_of(2, VOCAB)
    before = logits.clone()
    fields = {"temperature": 0.5, "top_p": 0.5, "repetition_penalty": 2.0, "top_logprobs": 1}
    choose_tokens(logits, [sampler(**fields), sampler()])
    assert torch.equal(logits, before)


def test_as_many_samplers_as_rows():
    with pytest.raises(ValueError):
        choose_tokens(logits_of(2, VOCAB), [sampler()])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0, "seed": 2}])
def test_a_row_without_a_distribution_fails_alone(value, fields):
    logits = logits_of(3, VOCAB)
    logits[1, 17] = value
    samplers = [sampler(**fields) for _ in range(3)]
    chosen = choose_tokens(logits, samplers)
    assert isinstance(chosen[1], InvalidLogitsError)
    assert str(chosen[1]) == f"the largest logit of a row is {value}"
    alone = [sampler(**fields).choose(row) for row in (logits[0], logits[2])]
    assert [chosen[0], chosen[2]] == [Chosen(token) for token in alone]
    assert samplers[1].generated == []
    with pytest.raises(InvalidLogitsError):
        samplers[1].choose(logits[1])


def test_a_row_with_no_token_left_fails():
    logits = torch.full((1, 4), -math.inf)
    assert isinstance(choose_tokens(logits, [sampler(4)])[0], InvalidLogitsError)


def test_a_masked_token_is_no_failure():
    assert choose_tokens(torch.tensor([[-math.inf, 1.0]]), [sampler(2)]) == [Chosen(1)]


def test_processors_that_leave_no_distribution_fail_their_row():
    one = sampler(2, prompt=[0], repetition_penalty=1e-39)
    chosen = choose_tokens(torch.tensor([[5.0, 1.0], [5.0, 1.0]]), [one, sampler(2)])
    assert isinstance(chosen[0], InvalidLogitsError)
    assert chosen[1] == Chosen(0)


# Log-probabilities


def test_logprobs_are_those_of_the_unprocessed_logits():
    logits = logits_of(3, VOCAB).bfloat16()
    fields = [
        {"temperature": 0.5, "seed": 1, "presence_penalty": 2.0, "top_logprobs": 3},
        {},
        {"top_logprobs": 0},
    ]
    chosen = choose_tokens(logits, [sampler(**one) for one in fields])
    expected = logits.float().log_softmax(-1)
    assert chosen[1].logprobs is None
    for row, number in ((0, 3), (2, 0)):
        own = chosen[row].logprobs
        assert own.logprob == pytest.approx(float(expected[row, chosen[row].token]), abs=1e-6)
        best = expected[row].sort(descending=True, stable=True)
        assert [value for _, value in own.top] == pytest.approx(best.values[:number].tolist())
        assert all(
            value == pytest.approx(float(expected[row, token]), abs=1e-6)
            for token, value in own.top
        )


def test_more_likeliest_than_tokens_gives_all_of_them():
    chosen = choose_tokens(torch.tensor([[1.0, 2.0]]), [sampler(2, top_logprobs=20)])
    assert [token for token, _ in chosen[0].logprobs.top] == [1, 0]


def test_a_failed_row_has_no_logprobs():
    logits = torch.tensor([[math.nan, 1.0], [1.0, 2.0]])
    chosen = choose_tokens(logits, [sampler(2, top_logprobs=1), sampler(2, top_logprobs=1)])
    assert isinstance(chosen[0], InvalidLogitsError)
    assert chosen[1].logprobs.top[0][0] == 1


def test_reported_with_texts():
    chosen = choose_tokens(torch.tensor([[1.0, 2.0]]), [sampler(2, top_logprobs=1)])[0]
    logprob = -math.log(1 + math.exp(-1))
    reported = chosen.reported("ab".__getitem__)
    near = pytest.approx(logprob, abs=1e-6)
    assert reported == TokenLogprob(1, "b", near, ((1, "b", near),))
    assert Chosen(1).reported("ab".__getitem__) is None


# Ends


def test_an_end_token_ends_the_answer():
    one = sampler(4, end_ids=(2, 3))
    assert not one.ended
    one.keep(1)
    assert not one.ended
    one.keep(3)
    assert one.ended


def test_ends_are_ignored_on_request():
    one = sampler(4, end_ids=(2,), ignore_end=True)
    one.keep(2)
    assert not one.ended


# Whatever the settings


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    temperature=st.floats(0.05, 3.0),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_a_chosen_token_is_always_one_that_the_settings_keep(
    seed, scale, temperature, top_k, top_p, min_p
):
    row = logits_of(40, seed=seed % 1000, scale=scale)
    one = sampler(40, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    probabilities = (row.double() / temperature).softmax(-1)
    chosen = one.choose(row)
    # by direct computation, one setting after the other, each on what the one before it kept
    order = probabilities.argsort(descending=True).tolist()
    if top_k:
        order = order[:top_k]
    kept, reached, total = [], 0.0, float(probabilities[order].sum())
    for token in order:
        if reached > (top_p + 1e-5) * total:
            break
        kept.append(token)
        reached += float(probabilities[token])
    least = (min_p - 1e-5) * float(probabilities[kept[0]])
    assert chosen in [token for token in kept if float(probabilities[token]) >= least]
