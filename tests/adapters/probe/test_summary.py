"""From energies to shares, margins and noise, against plain numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from asr.adapters.placement import LinearModule, linear_modules
from asr.adapters.probe.summary import module_kinds
from asr.errors import DataError
from tests.adapters.probe.probed import measured, modules_of, result_of
from tests.tiny_models import tiny_model

MEANS = [3.0, 1.0, 2.0, 5.0, 4.0, 1.5, 0.5, 6.0, 9.0, 0.1, 0.2, 8.0]


def test_one_domain_against_numpy() -> None:
    domain = measured(means=MEANS, noise=0.3, samples=9)
    result = result_of([domain])
    by_seed = np.stack([domain.energy[list(draw)].mean(axis=0) for draw in domain.draws])
    mean = by_seed.mean(axis=0)
    shares = by_seed / by_seed.sum(axis=1, keepdims=True)
    order = np.argsort(-mean)
    assert [m.name for m in result.modules] == [modules_of()[i].name for i in order]
    np.testing.assert_allclose([m.energy for m in result.modules], mean[order])
    np.testing.assert_allclose([m.share for m in result.modules], (mean / mean.sum())[order])
    np.testing.assert_allclose(
        [m.spread_seeds for m in result.modules], shares.std(axis=0, ddof=1)[order]
    )
    np.testing.assert_allclose([m.energy_without_first for m in result.modules], (mean / 2)[order])
    sizes = np.array([m.in_features * m.out_features for m in result.modules])
    np.testing.assert_allclose(
        [m.gradient_norm for m in result.modules], np.sqrt(3 * mean[order] / sizes)
    )
    assert {m.spread_domains for m in result.modules} == {None}
    assert result.margin == pytest.approx(mean[order[0]] / mean[order[1]])
    paired = stats.ttest_rel(domain.energy[:, order[0]], domain.energy[:, order[1]])
    assert result.z == pytest.approx(paired.statistic)
    (probe,) = result.domains
    assert (probe.margin, probe.z) == (pytest.approx(result.margin), pytest.approx(result.z))
    assert (probe.winner, probe.runner_up) == (result.modules[0].name, result.modules[1].name)
    assert probe.samples == 9


@given(factor=st.floats(1e-6, 1e6))
def test_every_domain_weighs_the_same(factor: float) -> None:
    first = measured("a", means=MEANS, noise=0.2)
    scaled = measured("b", means=[factor * m for m in MEANS[::-1]], noise=0.2, seed=1)
    plain = measured("b", means=MEANS[::-1], noise=0.2, seed=1)
    shares = {m.name: m.share for m in result_of([first, scaled]).modules}
    expected = {m.name: m.share for m in result_of([first, plain]).modules}
    assert shares == pytest.approx(expected, rel=1e-9)
    assert sum(shares.values()) == pytest.approx(1)


def test_energy_and_share_rank_alike_over_domains() -> None:
    result = result_of(
        [measured("a", means=MEANS), measured("b", means=[1e4 * m for m in MEANS[::-1]])]
    )
    energies = [m.energy for m in result.modules]
    assert energies == sorted(energies, reverse=True)
    total = np.mean([sum(MEANS), 1e4 * sum(MEANS)])
    np.testing.assert_allclose(energies, [m.share * total for m in result.modules])
    spread = np.stack([np.array(MEANS), np.array(MEANS[::-1])]).std(axis=0, ddof=1) / sum(MEANS)
    by_name = {m.name: m.spread_domains for m in result.modules}
    np.testing.assert_allclose([by_name[m.name] for m in modules_of()], spread, atol=1e-15)


def test_concentration() -> None:
    even = result_of([measured(means=[2.0] * 12)])
    assert even.effective_modules == pytest.approx(12)
    assert even.top1_share == pytest.approx(1 / 12)
    alone = result_of([measured(means=[0.0] * 5 + [3.0] + [0.0] * 6)])
    assert alone.effective_modules == pytest.approx(1)
    assert (alone.top1_share, alone.margin) == (1.0, None)
    half = result_of([measured(means=[1.0, 1.0] + [0.0] * 10)])
    assert half.effective_modules == pytest.approx(2)


def test_within_noise() -> None:
    clear = result_of([measured(means=MEANS, noise=0.01)])
    assert not clear.within_noise
    assert clear.z is not None
    assert clear.z > 2
    close = [*MEANS]
    close[11] = 9.001
    unsure = result_of([measured(means=close, noise=0.3)])
    assert unsure.z is not None
    assert abs(unsure.z) < 2
    assert unsure.within_noise
    untold = result_of([measured(means=MEANS)])  # nothing varies
    assert untold.z is None
    assert untold.within_noise


def test_a_winner_that_changes_between_seeds_is_noise_whatever_z_says() -> None:
    energy = np.tile(np.asarray(MEANS), (90, 1))
    energy[:, 8] += np.random.default_rng(0).uniform(0, 1e-3, 90)
    energy[:3, 11] = 9.5  # the third seed's own samples
    draws = (tuple(range(3, 40)), tuple(range(40, 90)), (0, 1, 2))
    domain = measured(means=MEANS)
    changed = type(domain)(
        **{**vars(domain), "energy": energy, "without_first": energy, "gradient": energy}
        | {"draws": draws}
    )
    result = result_of([changed])
    assert result.z is not None
    names = [m.name for m in modules_of()]
    assert result.winners_by_seed == (names[8], names[8], names[11])
    assert result.domains[0].winners_by_seed == result.winners_by_seed
    assert result.within_noise


def test_domains_that_disagree() -> None:
    last = [*MEANS]
    last[11] = 30.0
    result = result_of(
        [measured("a", means=MEANS, noise=0.01), measured("b", means=last, noise=0.01, seed=3)]
    )
    assert not result.same_winner
    assert [d.winner for d in result.domains] == [modules_of()[8].name, modules_of()[11].name]
    assert result.winner.name == modules_of()[11].name
    assert result_of([measured("a", means=MEANS), measured("b", means=MEANS)]).same_winner


def test_one_draw_has_no_spread() -> None:
    result = result_of([measured(means=MEANS, seeds=1, whole=True)])
    assert {m.spread_seeds for m in result.modules} == {None}
    assert result.domains[0].spread_seeds is None
    assert result.domains[0].whole


def test_without_the_first_token_another_module_may_lead() -> None:
    energy = np.tile(np.asarray(MEANS), (8, 1))
    rest = energy.copy()
    rest[:, 8] *= 0.01
    result = result_of([measured(means=MEANS, without_first=rest)])
    assert result.domains[0].winner_without_first == modules_of()[11].name
    assert result.winner.energy_without_first == pytest.approx(0.09)


def test_alignments_are_averaged_over_the_domains_that_have_one() -> None:
    first = [1.0, None, None] + [2.0] * 9
    second = [2.0, 3.0, None] + [2.0] * 9
    result = result_of(
        [measured("a", means=MEANS, alignment=first), measured("b", means=MEANS, alignment=second)],
        kappa=range(1, 13),
    )
    found = {m.name: m for m in result.modules}
    names = [m.name for m in modules_of()]
    assert [found[name].alignment for name in names[:4]] == [1.5, 3.0, None, 2.0]
    assert [found[name].kappa_rank for name in names] == list(range(1, 13))


def test_gradients_that_are_all_zero() -> None:
    with pytest.raises(DataError) as caught:
        result_of([measured("legal", means=[0.0] * 12)])
    assert str(caught.value) == (
        "legal: every gradient is zero, so that no module can be told from another; the base "
        "answers these examples with certainty, or does not read them"
    )


def test_types_are_told_apart_where_a_layer_has_a_name_twice() -> None:
    gpt2 = linear_modules(tiny_model("gpt2"))
    assert set(module_kinds(gpt2)) == {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}
    assert module_kinds(modules_of(1)) == ["q_proj", "up_proj", "down_proj"]
    odd = [LinearModule("head.down_proj", 0, 2, 2), LinearModule("tail.down_proj", 0, 2, 2)]
    assert module_kinds(odd) == ["head.down_proj", "tail.down_proj"]
