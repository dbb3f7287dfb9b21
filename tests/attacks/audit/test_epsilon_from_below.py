"""Audited epsilons: against a reference implementation, closed forms, and mechanisms that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustml.attacks.audit import (
    AuditedEpsilon,
    fdp_one_run,
    many_runs,
    many_runs_rates,
    one_run,
)
from robustml.attacks.audit.fdp import fdp_one_run_mu
from robustml.attacks.audit.gaussian import gaussian_delta, gaussian_epsilon
from robustml.attacks.audit.one_run import one_run_epsilon, one_run_risk
from robustml.errors import InputError

Array = np.ndarray[Any, Any]

# canaries, guesses, right ones, delta, level: what jax_privacy (commit 8967688) says of them.
REFERENCE = [
    (1000, 320, 313, 1e-5, 0.05, 3.1548, 5.4479),
    (1000, 320, 313, 1e-5, 0.005, 2.8628, 4.2060),
    (1000, 320, 313, 1e-3, 0.05, 2.0588, 3.9651),
    (1000, 1000, 600, 1e-5, 0.05, 0.2972, 0.5835),
    (5000, 1000, 800, 1e-5, 0.005, 1.1725, 1.4686),
    (100, 100, 100, 1e-5, 0.05, 3.4902, 8.2162),
    (1000, 200, 120, 1e-5, 0.05, 0.1579, 0.2187),
    (1000, 20, 20, 1e-3, 0.05, 0.0, 1.6234),
]


@pytest.mark.parametrize(("canaries", "made", "right", "delta", "level", "plain", "gaussian"), REFERENCE)
def test_agrees_with_the_reference(
    canaries: int, made: int, right: int, delta: float, level: float, plain: float, gaussian: float
) -> None:
    found = one_run_epsilon(canaries=canaries, made=made, right=right, delta=delta, level=level)
    assert found == pytest.approx(plain, abs=1e-4)
    mu = fdp_one_run_mu(canaries=canaries, made=made, right=right, level=level)
    assert gaussian_epsilon(mu, delta) == pytest.approx(gaussian, abs=1e-3)


@pytest.mark.parametrize(("made", "cap"), [(100, 3.493), (1000, 5.809), (10000, 8.113)])
def test_the_most_that_guesses_can_show(made: int, cap: float) -> None:
    share = 0.05 ** (1 / made)
    assert math.log(share / (1 - share)) == pytest.approx(cap, abs=1e-3)
    found = one_run_epsilon(canaries=made, made=made, right=made, delta=0.0, level=0.05)
    assert found == pytest.approx(cap, abs=1e-3)


@settings(max_examples=40)
@given(made=st.integers(2, 400), data=st.data())
def test_more_right_guesses_never_show_less(made: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(1, made))
    canaries = data.draw(st.integers(made, 2 * made))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-3]))

    def plain(v: int) -> float:
        return one_run_epsilon(canaries=canaries, made=made, right=v, delta=delta, level=0.05)

    def gaussian(v: int) -> float:
        return fdp_one_run_mu(canaries=canaries, made=made, right=v, level=0.05)

    assert plain(right - 1) <= plain(right)
    assert gaussian(right - 1) <= gaussian(right)


@settings(max_examples=60)
@given(made=st.integers(2, 400), data=st.data())
def test_a_weaker_guarantee_is_never_easier_to_refute(made: int, data: st.DataObject) -> None:
    # Bisection, and the validity of what it ends at, rest on it.
    right = data.draw(st.integers(1, made))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-4]))
    risks = [
        one_run_risk(float(e), canaries=made, made=made, right=right, delta=delta)
        for e in np.linspace(0, 6, 49)
    ]
    refuted = [risk < 0.05 for risk in risks]
    assert refuted == sorted(refuted, reverse=True)


def _known_nothing(seed: int, m: int = 200) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=m), rng.random(m) < 0.5


def test_scores_without_information_show_nothing() -> None:
    runs = 400
    counts = np.zeros(4)
    for seed in range(runs):
        scores, included = _known_nothing(seed)
        found: list[AuditedEpsilon] = [
            one_run(scores, included, delta=0.0),
            fdp_one_run(scores, included),
            many_runs(scores, included, delta=0.0),
            many_runs(scores, included, gaussian=True),
        ]
        counts += [one.epsilon is not None for one in found]
        assert all(("not resolvable" in one.reason) == (one.epsilon is None) for one in found)
    # 5 % of 400 are 20; more than 33 come once in five hundred times.
    assert counts.max() <= 33


def test_randomized_response_has_the_epsilon_that_it_has() -> None:
    # Every canary's coin is told truly with probability e / (1 + e): exactly 1-DP, and no training is worse.
    above, shown = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        included = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < math.e / (1 + math.e), included, ~included)
        found = one_run(told + 0.01 * rng.random(1000), included, delta=1e-6).epsilon
        above += (found or 0.0) > 1
        shown.append(found or 0.0)
    assert above <= 11
    assert np.mean(shown) > 0.7


def test_gaussian_mechanism_has_the_epsilon_that_it_has() -> None:
    above, shown = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        included = rng.random(1000) < 0.5
        scores = rng.normal(size=1000) + included
        found = fdp_one_run(scores, included).epsilon
        above += (found or 0.0) > gaussian_epsilon(1.0, 1e-5)
        shown.append(found or 0.0)
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.38, abs=0.01)
    assert above <= 10
    # And more than without the assumption: 1.9 against 1.4.
    assert np.mean(shown) > 1.7


def test_gaussian_privacy_is_its_definition() -> None:
    # Balle and Wang 2018, Theorem 8: the exact delta of the Gaussian mechanism with sigma 1.
    assert gaussian_delta(1.0, 1.0) == pytest.approx(0.12693674, abs=1e-8)
    for mu in (0.1, 1.0, 8.0, 40.0):
        for delta in (1e-2, 1e-6):
            epsilon = gaussian_epsilon(mu, delta)
            assert epsilon == 0 or gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon(0.0, 1e-5) == 0


def test_many_runs_agree_with_their_formula() -> None:
    perfect = many_runs_rates(1000, 1000, 0, 1000, delta=0.0)
    assert perfect.epsilon == perfect.cap
    assert perfect.cap == pytest.approx(math.log(1000 / 3.7), abs=0.01)
    # One-sided limits at 2.5 % each: 0.8563 of 90 of 100, 0.0990 for 4 of 100.
    some = many_runs_rates(90, 100, 4, 100, delta=1e-5)
    low, high = 0.823777, 0.099262
    expected = max(math.log((low - 1e-5) / high), math.log((1 - high - 1e-5) / (1 - low)))
    assert some.epsilon == pytest.approx(expected, abs=1e-4)
    assert (some.guesses, some.correct, some.canaries) == (200, 186, 200)
    assert "assuming" not in some.method
    gaussian = many_runs_rates(90, 100, 4, 100, delta=1e-5, gaussian=True)
    assert gaussian.epsilon is not None
    assert gaussian.epsilon > expected
    assert "assuming a Gaussian trade-off" in gaussian.method


def test_many_runs_judge_by_a_threshold_found_elsewhere() -> None:
    rng = np.random.default_rng(0)
    included = np.arange(2000) % 2 == 0
    found = many_runs(rng.normal(size=2000) + 2.0 * included, included, gaussian=True)
    assert found.epsilon is not None
    assert gaussian_epsilon(1.2, 1e-5) < found.epsilon < gaussian_epsilon(2.0, 1e-5)
    assert found.canaries == 1000


def test_what_is_said_of_an_audit() -> None:
    scores, included = np.arange(100.0), np.arange(100) >= 50
    found = one_run(scores, included)
    assert found.epsilon is not None
    assert found.guesses == found.correct
    assert found.epsilon <= found.cap
    assert str(found).startswith(f"epsilon at least {found.epsilon:.2f} at delta 1e-05 and 95 % confidence")
    few = one_run([1.0, 0.0], np.array([True, False]))
    assert few.epsilon is None
    assert "even guesses that are all right would show nothing" in few.reason
    assert str(few) == few.reason
    nothing = one_run(-scores, included)
    assert nothing.epsilon is None
    assert nothing.reason.startswith("not resolvable with 100 canaries")


@pytest.mark.parametrize(
    ("scores", "included", "message"),
    [
        (np.zeros(3), np.zeros(4, dtype=bool), "one of each per canary"),
        (np.zeros(4), np.array([1, 0, 1, 0]), "True or False"),
        (np.array([0.0, math.nan]), np.array([True, False]), "NaN"),
        (np.zeros(100), np.arange(100) < 10, "fair coins"),
    ],
)
def test_refuses_what_is_no_audit(scores: Array, included: Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_run(scores, included)


def test_refuses_impossible_numbers() -> None:
    scores, included = _known_nothing(0)
    with pytest.raises(InputError, match="delta=1"):
        one_run(scores, included, delta=1.0)
    with pytest.raises(InputError, match="confidence=95"):
        one_run(scores, included, confidence=95)
    with pytest.raises(InputError, match="Gaussian privacy needs"):
        fdp_one_run(scores, included, delta=0.0)
    with pytest.raises(InputError, match="hits=5 of 4"):
        many_runs_rates(5, 4, 0, 4)
    with pytest.raises(InputError, match="give 4 of each"):
        many_runs(scores[:6], np.arange(6) < 3)
    with pytest.raises(InputError, match="NaN"):
        many_runs(np.full(8, math.nan), np.arange(8) % 2 == 0)
    with pytest.raises(InputError, match="per run"):
        many_runs(np.zeros(8), np.zeros(7, dtype=bool))
