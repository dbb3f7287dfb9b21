"""Intervals and paired differences against published figures and against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from robustml.estimates import clopper_pearson, mean_interval, paired_difference


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 100, 0.0, 0.0362),
        (50, 100, 0.3983, 0.6017),
        (100, 100, 0.9638, 1.0),
        (1, 10, 0.0025, 0.4450),
        (0, 1, 0.0, 0.975),
    ],
)
def test_clopper_pearson_agrees_with_tables(count: int, total: int, low: float, high: float) -> None:
    assert clopper_pearson(count, total) == pytest.approx((low, high), abs=5e-5)


def test_rule_of_three() -> None:
    # Nothing out of n: the upper limit of the two-sided interval solves (1 - p)^n = 0.025.
    for total in (10, 300, 5000):
        assert clopper_pearson(0, total)[1] == pytest.approx(1 - 0.025 ** (1 / total), rel=1e-6)


def _binomial(count: int, total: int, share: float) -> float:
    return math.comb(total, count) * share**count * (1 - share) ** (total - count)


@settings(max_examples=10)
@given(total=st.integers(1, 25), share=st.floats(0.0, 1.0), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_coverage_is_never_below_the_confidence(total: int, share: float, confidence: float) -> None:
    covered = 0.0
    for count in range(total + 1):
        low, high = clopper_pearson(count, total, confidence)
        if low <= share <= high:
            covered += _binomial(count, total, share)
    assert covered >= confidence - 1e-9


@given(total=st.integers(1, 500), data=st.data())
def test_limits_rise_with_the_count_and_widen_with_the_confidence(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total - 1))
    low, high = clopper_pearson(count, total)
    assert 0 <= low <= count / total <= high <= 1
    higher = clopper_pearson(count + 1, total)
    assert low < higher[0]
    assert high < higher[1] or high == 1
    wide = clopper_pearson(count, total, 0.99)
    assert wide[0] <= low
    assert wide[1] >= high


@given(total=st.integers(1, 300), data=st.data())
def test_what_holds_and_what_does_not_have_mirrored_intervals(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = clopper_pearson(count, total)
    assert clopper_pearson(total - count, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        (5, 0, 2 * 0.5**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (6, 6, 1.0),
        (0, 0, 1.0),
        (0, 1, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int, p_value: float) -> None:
    assert paired_difference(gained, lost, 100).p_value == pytest.approx(p_value)


def test_interval_follows_equation_4_of_bonett_and_price() -> None:
    # One is added to each count of discordant pairs and two to the total; nothing else is adjusted.
    found = paired_difference(gained=20, lost=5, total=100)
    up, down, n = 21 / 102, 6 / 102, 102
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / n)
    assert found.value == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half), abs=1e-6)
    assert found.low > 0  # twenty against five is no accident
    assert found.p_value < 0.05


@given(total=st.integers(1, 400), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), data=st.data())
def test_difference_is_antisymmetric_bounded_and_inside_its_interval(
    total: int, shares: tuple[float, float], data: st.DataObject
) -> None:
    gained = int(shares[0] * total)
    lost = int(shares[1] * (total - gained))
    assume(gained + lost <= total)
    forth, back = paired_difference(gained, lost, total), paired_difference(lost, gained, total)
    assert forth.value == -back.value
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.p_value == pytest.approx(back.p_value)
    assert -1 <= forth.low < forth.high <= 1
    assert 0 <= forth.p_value <= 1
    assert math.copysign(1, forth.value) == math.copysign(1, gained - lost) or forth.value == 0
    # The interval is centred nearer to zero, but never so far that it loses the estimate.
    assert forth.low <= forth.value + 1e-12
    assert forth.value <= forth.high + 1e-12


@given(total=st.integers(1, 2000), data=st.data())
def test_both_agree_with_scipy(total: int, data: st.DataObject) -> None:
    from scipy.stats import binomtest

    count = data.draw(st.integers(0, total))
    interval = binomtest(count, total).proportion_ci(0.95, method="exact")
    assert clopper_pearson(count, total) == pytest.approx((interval.low, interval.high), abs=1e-9)
    expected = binomtest(count, total).pvalue
    assert paired_difference(count, total - count, total).p_value == pytest.approx(expected, rel=1e-6)


# The mean of a distribution on [0, 1].

DISTRIBUTIONS: dict[str, Any] = {
    "fair coin": (lambda draw, n: (draw.random(n) < 0.5).astype(float), 0.5),
    "rare failure": (lambda draw, n: (draw.random(n) < 0.97).astype(float), 0.97),
    "mostly right": (lambda draw, n: draw.beta(8, 2, n), 0.8),
    "all or nothing": (lambda draw, n: draw.beta(0.3, 0.1, n), 0.75),
    "right or half": (lambda draw, n: np.where(draw.random(n) < 0.8, 1.0, draw.random(n) / 2), 0.85),
    "eighty-five cells": (lambda draw, n: draw.binomial(85, draw.beta(4, 1, n)) / 85, 0.8),
    "no spread": (lambda draw, n: np.full(n, 0.7), 0.7),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [3, 25, 150])
def test_intervals_of_a_mean_hold_it_often_enough(name: str, n: int) -> None:
    make, mean = DISTRIBUTIONS[name]
    draw, runs = np.random.default_rng(n), 400
    too_high = too_low = 0
    for _ in range(runs):
        low, high = mean_interval(make(draw, n), 0.8)
        too_high += low > mean
        too_low += high < mean
    # Each end may fail in a tenth of the runs; more than so many by chance would be one in ten thousand.
    most = stats.binom.ppf(1 - 1e-4, runs, 0.1)
    assert too_high <= most
    assert too_low <= most


@settings(deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]),
    seed=st.integers(0, 99),
)
def test_intervals_of_a_mean_are_intervals(values: list[float], confidence: float, seed: int) -> None:
    x = np.array(values)
    low, high = mean_interval(x, confidence)
    assert 0 <= low <= x.mean() + 1e-12
    assert x.mean() - 1e-12 <= high <= 1
    # The order of the samples is no information, and failures are successes seen from the other side.
    again = mean_interval(np.random.default_rng(seed).permutation(x), confidence)
    assert again == pytest.approx((low, high), abs=2e-6)
    assert mean_interval(1 - x, confidence) == pytest.approx((1 - high, 1 - low), abs=2e-6)


def test_the_lower_end_is_where_the_bets_pay_just_enough() -> None:
    x = np.random.default_rng(0).beta(5, 2, 60)
    low, high = mean_interval(x, 0.95)

    def wealth(m: float) -> float:
        scale = np.sqrt(2 * np.log(40) / len(x))
        stakes = [min(scale / spread, 1 / m) for spread in 0.5 * 0.5 ** (np.arange(8) / 2)] + [1 / m]
        return float(np.mean([np.prod(1 + stake * (x - m)) for stake in stakes]))

    assert wealth(low) > 40 > wealth(low + 3e-6)
    assert high == pytest.approx(1 - mean_interval(1 - x, 0.95)[0], abs=2e-6)


def test_a_mean_that_varies_little_is_known_well() -> None:
    n = 400
    narrow = mean_interval(np.random.default_rng(1).beta(80, 20, n))
    hoeffding = 2 * np.sqrt(np.log(40) / (2 * n))
    assert narrow[1] - narrow[0] < hoeffding / 5
    # At the ends it is nearly the exact binomial interval.
    assert mean_interval(np.ones(n))[0] == pytest.approx(clopper_pearson(n, n)[0], abs=2e-3)
    assert mean_interval(np.ones(n))[1] == 1.0


def test_the_mean_of_a_number_that_is_next_to_nothing() -> None:
    low, high = mean_interval(np.array([2.2250738585072014e-308]), 0.5)
    assert low == 0
    assert 0 < high <= 1
