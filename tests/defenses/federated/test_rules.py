"""Aggregation rules against slow independent references, and what is promised of each."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustml.defenses.federated.rules import (
    RULES,
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    NormBounding,
    Rule,
    Tolerant,
    TrimmedMean,
)
from robustml.defenses.federated.rules.base import distances, lengths
from robustml.errors import InputError

ROBUST = [
    Median(),
    TrimmedMean(hostile=2),
    Krum(hostile=2),
    MultiKrum(hostile=2),
    Bulyan(hostile=2),
    NormBounding(bound=3.0),
    GeometricMedian(),
    CenteredClipping(radius=1.0),
    NearestNeighborMixing(hostile=2),
]
EVERY = [Mean(), Mean(weighted=False), NormBounding(), CenteredClipping(), *ROBUST]
N, F, D = 11, 2, 7


def rows(seed: int, n: int = N, d: int = D, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * spread


def combine(rule: Rule, updates: np.ndarray, center: np.ndarray | None = None, weights=None) -> np.ndarray:
    weights = np.ones(len(updates)) if weights is None else weights
    return rule.combine(updates, weights, np.zeros(updates.shape[1]) if center is None else center)


def named(rule: Rule) -> str:
    return rule.name


# Slow references, written from the definitions.


def slow_trimmed(x: np.ndarray, cut: int) -> list[float]:
    return [
        math.fsum(sorted(column)[cut : len(column) - cut]) / (len(column) - 2 * cut)
        for column in x.T.tolist()
    ]


def slow_scores(x: np.ndarray, f: int) -> list[float]:
    scores = []
    for i, a in enumerate(x):
        apart = sorted(
            math.fsum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for j, b in enumerate(x) if j != i
        )
        scores.append(math.fsum(apart[: max(1, len(x) - f - 2)]))
    return scores


def slow_bulyan(x: np.ndarray, f: int) -> list[float]:
    left, chosen = x.tolist(), []
    for _ in range(len(x) - 2 * f):
        scores = slow_scores(np.array(left), f) if len(left) > 1 else [0.0]
        # Two rows that are each other's only neighbor tie: the smaller one goes first.
        chosen.append(left.pop(min(range(len(left)), key=lambda i: (scores[i], left[i]))))
    keep = len(x) - 4 * f
    out = []
    for column in np.array(chosen).T.tolist():
        middle = float(np.median(column))
        # Every subset, the one whose farthest member is nearest to the median.
        best = min(
            itertools.combinations(sorted(column), keep), key=lambda s: max(abs(v - middle) for v in s)
        )
        out.append(math.fsum(best) / keep)
    return out


@given(st.integers(0, 10**6))
def test_averages_are_what_their_definitions_say(seed):
    x = rows(seed)
    weights = np.random.default_rng(seed).uniform(1, 5, N)
    expected = [math.fsum(w * v for w, v in zip(weights, c, strict=True)) / math.fsum(weights) for c in x.T]
    np.testing.assert_allclose(combine(Mean(), x, weights=weights), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(combine(TrimmedMean(hostile=F), x), slow_trimmed(x, F), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(combine(Median(), x), slow_trimmed(x, N // 2), rtol=1e-12, atol=1e-14)
    shrunk = [[v * min(1, 2.0 / math.hypot(*r)) for v in r] for r in x.tolist()]
    np.testing.assert_allclose(
        combine(NormBounding(bound=2.0), x), np.mean(shrunk, 0), rtol=1e-12, atol=1e-14
    )


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2, 4]))
def test_krum_and_multi_krum_select_by_the_scores_of_their_definition(seed, f):
    x = rows(seed)
    order = np.argsort(slow_scores(x, f), kind="stable")
    np.testing.assert_array_equal(combine(Krum(hostile=f), x), x[order[0]])
    np.testing.assert_allclose(
        combine(MultiKrum(hostile=f, select=3), x), x[order[:3]].mean(0), rtol=1e-12, atol=1e-14
    )


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2]))
def test_bulyan_is_that_of_its_definition(seed, f):
    x = rows(seed)
    np.testing.assert_allclose(combine(Bulyan(hostile=f), x), slow_bulyan(x, f), rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10**6))
def test_the_geometric_median_minimizes_the_sum_of_distances(seed):
    x = rows(seed, d=3)
    weights = np.random.default_rng(seed).uniform(1, 2, N)
    found = combine(GeometricMedian(weighted=True), x, weights=weights)

    def cost(v):
        return float((weights * np.sqrt(np.square(x - v).sum(1))).sum())

    best = minimize(
        cost, found, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}
    )
    assert cost(found) <= best.fun + 1e-6


def test_the_geometric_median_of_a_line_is_its_median_and_of_a_triangle_its_fermat_point():
    line = np.array([[0.0], [1.0], [10.0]])
    np.testing.assert_allclose(combine(GeometricMedian(), line), [1.0], atol=1e-8)
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    np.testing.assert_allclose(combine(GeometricMedian(), corner), corner.mean(0), atol=1e-7)
    # The median starts on a row here, which is not the answer.
    cross = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [5.0, 4.0], [0.0, 3.0]])
    found = combine(GeometricMedian(), cross)
    assert all(
        np.sqrt(np.square(cross - found).sum(1)).sum()
        <= np.sqrt(np.square(cross - found - step).sum(1)).sum() + 1e-9
        for step in 1e-3 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    )


@given(st.integers(0, 10**6))
def test_centered_clipping_is_that_of_its_algorithm(seed):
    x, center = rows(seed), rows(seed + 1)[0]
    v = center.tolist()
    for _ in range(2):
        pulls = []
        for r in x.tolist():
            away = [a - b for a, b in zip(r, v, strict=True)]
            pulls.append([a * min(1, 0.7 / math.hypot(*away)) for a in away])
        v = [b + math.fsum(p[j] for p in pulls) / N for j, b in enumerate(v)]
    np.testing.assert_allclose(combine(CenteredClipping(radius=0.7, steps=2), x, center), v, rtol=1e-12)


@given(st.integers(0, 10**6))
def test_mixing_replaces_each_update_by_the_mean_of_its_nearest(seed):
    x = rows(seed)
    mixed = []
    for a in x:
        nearest = sorted(x.tolist(), key=lambda b, a=a: math.dist(a, b))[: N - F]
        mixed.append(np.mean(nearest, 0))
    found = combine(NearestNeighborMixing(hostile=F, then=Median()), x)
    np.testing.assert_allclose(found, np.median(mixed, 0), rtol=1e-12, atol=1e-14)


# Properties.


@pytest.mark.parametrize("rule", EVERY, ids=named)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_clients_does_not_matter(rule, seed):
    x = rows(seed)
    shuffled = np.random.default_rng(seed).permutation(N)
    np.testing.assert_allclose(combine(rule, x[shuffled]), combine(rule, x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", [Krum(hostile=0), MultiKrum(hostile=0, select=2)], ids=named)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_nor_does_it_where_scores_tie(rule, seed, n):
    # Two rows that are each other's only neighbor tie always.
    x = rows(seed, n=n + 1, d=2)[[0, 1, *range(2, n)]]
    order = np.random.default_rng(seed).permutation(len(x))
    np.testing.assert_allclose(combine(rule, x[order]), combine(rule, x), rtol=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in EVERY if not isinstance(rule, NormBounding)], ids=named)
@given(seed=st.integers(0, 10**6))
def test_moving_everything_moves_the_outcome_where_the_rule_has_no_fixed_point(rule, seed):
    # Norm bounding measures from zero; centered clipping does from a center that moves too.
    x, shift = rows(seed), rows(seed + 7)[0] * 3
    moved = combine(rule, x + shift, center=shift)
    np.testing.assert_allclose(moved, combine(rule, x) + shift, rtol=1e-7, atol=1e-7)


def bound(rule: Rule, honest: np.ndarray, n: int, f: int) -> tuple[np.ndarray, float]:
    """A point and how far from it the outcome may be, whatever f of n clients send."""
    middle = honest.mean(0)
    radius = float(lengths(honest - middle).max())
    across = float(np.sqrt(distances(honest).max()))
    half = float(np.sqrt(np.square(honest.max(0) - honest.min(0)).sum()))
    nearest = across * math.sqrt((n - f - 2) / (n - 2 * f - 1))
    known = {
        "median": half,
        "trimmed-mean": half,
        # What is selected is no farther from an honest update than this (see the score of an honest one).
        "krum": nearest + radius,
        "multi-krum": nearest + radius,
        "bulyan": 2 * half,
        # Minsker 2015, lemma 2.1
        "geometric-median": radius * (1 - f / n) / math.sqrt(1 - 2 * f / n),
    }
    if isinstance(rule, NormBounding):
        return combine(rule, np.vstack([honest, np.zeros((f, D))])), rule.bound * f / n
    if isinstance(rule, CenteredClipping):
        return combine(rule, np.vstack([honest, np.zeros((f, D))])), 2 * rule.radius * rule.steps * f / n
    if isinstance(rule, NearestNeighborMixing):
        # A mixture of n - f rows holds f foreign ones at most, all nearer than the farthest honest row: every
        # honest mixture lies within the diameter, and the trimmed mean stays among those per coordinate.
        return middle, math.sqrt(D) * 2 * across + radius
    return middle, known[rule.name]


@pytest.mark.parametrize("rule", ROBUST, ids=named)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1.0, 3.0, 1e3, 1e9, 1e38, 1e140]))
def test_hostile_updates_of_any_size_move_it_by_a_bounded_amount(rule, seed, size):
    honest = rows(seed, n=N - F)
    evil = rows(seed + 1, n=F) * size
    point, most = bound(rule, honest, N, F)
    found = combine(rule, np.vstack([honest, evil]))
    assert lengths((found - point)[None])[0] <= most * (1 + 1e-9)


def test_one_hostile_update_moves_the_mean_anywhere():
    x = rows(0)
    x[0] = 1e9
    assert np.abs(combine(Mean(weighted=False), x)).min() > 1e7


@pytest.mark.parametrize("rule", EVERY, ids=named)
def test_weights_matter_only_where_that_is_said(rule):
    x, weights = rows(3), np.arange(1.0, N + 1)
    same = np.array_equal(combine(rule, x), combine(rule, x, weights=weights))
    assert same is not getattr(rule, "weighted", False)


@pytest.mark.parametrize(
    "rule",
    [rule for rule in EVERY if rule.sensitivity(N) is not None and not getattr(rule, "weighted", 0)],
    ids=named,
)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 1.0, 10.0]))
def test_the_sensitivity_holds(rule, seed, spread):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) * spread
    x /= np.maximum(1, lengths(x))[:, None]
    y = x.copy()
    y[rng.integers(N)] = 0
    center = rng.normal(size=D) * 0.3
    moved = lengths((combine(rule, x, center) - combine(rule, y, center))[None])[0]
    assert moved <= rule.sensitivity(N) * (1 + 1e-9)


def test_the_sensitivity_of_the_mean_and_of_the_trimmed_mean_is_reached():
    x = np.zeros((5, 2))
    x[0, 0] = 1
    assert combine(Mean(weighted=False), x)[0] == pytest.approx(Mean().sensitivity(5))
    y = np.array([[0.0], [0.0], [0.5], [1.0], [1.0]])
    z = y.copy()
    z[2] = 0
    rule = TrimmedMean(hostile=2)
    # One value in the middle: the outcome moves as far as the client does.
    assert (combine(rule, y) - combine(rule, z))[0] == pytest.approx(0.5 * rule.sensitivity(5))


def test_fewer_clients_bear_fewer_hostile_ones():
    assert Bulyan(hostile=2).at(11) == Bulyan(hostile=2)
    assert Bulyan(hostile=2).at(10) == Bulyan(hostile=1)
    assert Bulyan(hostile=1).at(2) is None
    assert Krum(hostile=2).at(6) == Krum(hostile=1)
    assert TrimmedMean(hostile=2).at(4) == TrimmedMean(hostile=1)
    assert TrimmedMean(hostile=2).at(0) is None
    mixed = NearestNeighborMixing(hostile=2, then=Bulyan()).at(8)
    assert mixed.hostile == 1 and mixed.then.hostile == 1


@pytest.mark.parametrize("rule", EVERY, ids=named)
def test_a_rule_works_on_as_few_clients_as_it_says(rule):
    n = next(k for k in range(1, 20) if rule.at(k) is not None)
    few = rule.at(n)
    x = rows(5, n=n)
    assert np.isfinite(combine(few, x)).all()
    if isinstance(few, Tolerant):
        assert few.hostile == 0


def test_options_that_make_no_sense_are_refused():
    for make in (
        lambda: TrimmedMean(hostile=-1),
        lambda: Krum(hostile=1.5),
        lambda: MultiKrum(select=0),
        lambda: NormBounding(bound=0.0),
        lambda: NormBounding(bound=math.nan),
        lambda: CenteredClipping(radius=-1.0),
        lambda: CenteredClipping(steps=0),
        lambda: GeometricMedian(steps=0),
        lambda: NearestNeighborMixing(then=NearestNeighborMixing()),
    ):
        with pytest.raises(InputError):
            make()


def test_every_rule_is_known_by_its_name():
    assert {rule.name for rule in EVERY} == set(RULES)
    assert all(RULES[name].name == name for name in RULES)
    assert NearestNeighborMixing(hostile=2).to_dict() == {
        "name": "nearest-neighbor-mixing",
        "hostile": 2,
        "then": {"name": "trimmed-mean", "hostile": 2},
    }
