"""The conformance check on simulated mechanisms: what it finds, what it cannot, how often it is wrong."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from robustml.attacks.audit import Claims, conformance, phantom_epsilon
from robustml.attacks.audit.mixture import fit, moments
from robustml.errors import InputError
from tests.attacks.audit.mechanisms import FAULTS, Mechanism

MECHANISM = Mechanism()


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
def test_finds_each_fault(fault: str, check: str) -> None:
    for seed in range(3):
        seen, included, samples = MECHANISM.run(seed, fault)
        found = conformance(seen, included, MECHANISM.claims, samples=samples)
        assert check in found.failed
        assert not found.passed
        assert not found.unresolved


def test_finds_nothing_where_there_is_nothing() -> None:
    wrong, held = 0, Counter[str]()
    for seed in range(40):
        seen, included, samples = MECHANISM.run(seed)
        found = conformance(seen, included, MECHANISM.claims, samples=samples)
        wrong += not found.passed
        assert found.unresolved == ()
        for one in found.parameters:
            assert one.low is not None and one.high is not None
            held[one.name] += one.low <= one.claimed <= one.high
    # At most 1 % of faultless runs, and intervals at 99 %.
    assert wrong <= 2
    assert min(held.values()) >= 37
    assert len(held) == 3


@pytest.mark.slow
def test_power_and_false_alarms_over_forty_seeds() -> None:
    for mechanism in (MECHANISM, Mechanism(norm=0.05, steps=300, noise=0.45)):
        counts = Counter[str]()
        for seed in range(40):
            for fault in ("", *FAULTS):
                seen, included, samples = mechanism.run(seed, fault)
                counts[fault] += not conformance(seen, included, mechanism.claims, samples=samples).passed
        assert counts[""] <= 2
        assert {fault: counts[fault] for fault in FAULTS if counts[fault] < 38} == {}


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_said() -> None:
    for mechanism in (MECHANISM, Mechanism(noise=1.0, steps=100)):
        wrong = 0
        for seed in range(200):
            seen, included, samples = mechanism.run(1000 + seed)
            found = conformance(seen, included, mechanism.claims, samples=samples, confidence=0.95)
            wrong += not found.passed
        assert binom.sf(wrong - 1, 200, 0.05) > 1e-3


def test_what_was_measured_is_what_was_done() -> None:
    seen, included, samples = MECHANISM.run(0, "sensitivity doubled")
    found = {
        one.name: one for one in conformance(seen, included, MECHANISM.claims, samples=samples).parameters
    }
    truth = {"noise_multiplier": 0.15, "clipping_norm": 2.0, "sampling_rate": 0.1}
    for name, value in truth.items():
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None
        assert low <= value <= high
        assert high / low < 1.25
    seen, included, _ = MECHANISM.run(0, "noise missing")
    silent = conformance(seen, included, MECHANISM.claims)
    assert silent.parameters[0].value == 0
    assert silent.parameters[1].value == pytest.approx(1.0)


def test_wrong_number_of_steps_is_found() -> None:
    seen, included, samples = MECHANISM.run(0)
    found = conformance(seen[:-1], included, MECHANISM.claims, samples=samples)
    assert found.failed == ("steps",)
    assert str(found) == "failed: steps"


def test_says_what_it_cannot_see() -> None:
    few = Mechanism(canaries=100, steps=40, rate=0.02, noise=1.5)
    seen, included, samples = few.run(0)
    found = conformance(seen, included, few.claims, samples=samples)
    assert {"sampling rate", "draws over steps", "draws of one sample", "batch size"} <= set(found.unresolved)
    assert "not resolvable" in str(found)
    reasons = {check.name: check.reason for check in found.checks}
    assert "draws in noise of 1.5 clipping norms" in reasons["sampling rate"]
    assert reasons["noise"] == reasons["steps"] == ""
    assert [one.value for one in found.parameters] == [None] * 3
    assert all("take more canaries" in one.reason for one in found.parameters)
    # Batches of a fixed size are seen by canaries alone if it is known how many samples there are.
    seen, included, _ = MECHANISM.run(0)
    unknown = conformance(seen, included, MECHANISM.claims)
    assert unknown.unresolved == ("batch size",)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["rate halved", "sensitivity doubled", "shuffled", "batches of fixed size"])
def test_power_is_what_is_said(fault: str) -> None:
    # Where power is neither nothing nor everything, so that the formulas have to be right.
    weak = {
        "rate halved": Mechanism(canaries=60, steps=60, noise=0.8),
        "sensitivity doubled": Mechanism(canaries=40, steps=25, noise=1.0, rate=0.1),
        "shuffled": Mechanism(canaries=100, steps=60, noise=0.7),
        "batches of fixed size": Mechanism(steps=100, noise=0.4),
    }[fault]
    hits, said = 0, 0.0
    for seed in range(80):
        seen, included, samples = weak.run(seed, fault)
        found = conformance(seen, included, weak.claims, samples=samples, confidence=0.9)
        check = next(one for one in found.checks if one.name == FAULTS[fault])
        hits += not check.passed
        said += check.power / 80
    assert 0.2 < said < 0.97 or said == 0
    assert hits / 80 == pytest.approx(said, abs=0.2) or hits / 80 > said


@pytest.mark.parametrize("noise", [0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_moments_are_those_of_samples(noise: float, rate: float) -> None:
    known = moments(rate, noise)
    rng = np.random.default_rng(0)
    x = (rng.random(400_000) < rate) + noise * rng.normal(size=400_000)
    ratio = rate / (1 - rate) * np.exp((x - 0.5) / noise**2)
    chance = ratio / (1 + ratio)
    assert known.variance == pytest.approx(((chance - rate) ** 2).mean(), rel=0.1)
    assert known.pull == pytest.approx(((chance * (x - 1) / noise**2) ** 2).mean(), rel=0.1)
    assert 0 < known.sharpness(rate) <= 1


def test_the_fit_is_the_most_likely() -> None:
    rng = np.random.default_rng(1)
    inside = 0.7 * (rng.random(20_000) < 0.2) + 0.4 * rng.normal(size=20_000)
    outside = 0.4 * rng.normal(size=20_000)
    found = fit(inside, outside, rate=0.05, norm=2.0)

    def likelihood(rate: float, norm: float) -> float:
        near = np.exp(-((inside - norm) ** 2) / 2 / found.noise**2)
        far = np.exp(-(inside**2) / 2 / found.noise**2)
        return float(np.log((1 - rate) * far + rate * near).sum())

    best = likelihood(found.rate, found.norm)
    for a in (-0.01, 0.0, 0.01):
        for b in (-0.01, 0.0, 0.01):
            assert likelihood(found.rate * math.exp(a), found.norm * math.exp(b)) <= best + 1e-6
    assert found.rate == pytest.approx(0.2, rel=0.1)
    assert found.norm == pytest.approx(0.7, rel=0.1)


def test_epsilon_from_below_by_phantoms() -> None:
    seen, included, _ = MECHANISM.run(0, "noise missing")
    plain = phantom_epsilon(seen, included, MECHANISM.claims)
    gaussian = phantom_epsilon(seen, included, MECHANISM.claims, gaussian=True)
    assert plain.epsilon == pytest.approx(plain.cap)
    assert plain.epsilon is not None and gaussian.epsilon is not None
    assert 4 < plain.epsilon < gaussian.epsilon
    hidden = Mechanism(noise=20.0)
    seen, included, _ = hidden.run(0)
    assert phantom_epsilon(seen, included, hidden.claims).epsilon is None


def test_refuses_what_cannot_be_judged() -> None:
    seen, included, _ = MECHANISM.run(0)
    with pytest.raises(InputError, match="one row per step"):
        conformance(seen[0], included, MECHANISM.claims)
    with pytest.raises(InputError, match="NaN"):
        conformance(np.full_like(seen, math.nan), included, MECHANISM.claims)
    with pytest.raises(InputError, match="8 at least"):
        conformance(seen, np.zeros_like(included), MECHANISM.claims)
    with pytest.raises(InputError, match="confidence"):
        conformance(seen, included, MECHANISM.claims, confidence=1.0)
    for wrong in ((0.0, 1.0, 0.1, 5), (1.0, math.inf, 0.1, 5), (1.0, 1.0, 1.0, 5), (1.0, 1.0, 0.1, 0)):
        with pytest.raises(InputError):
            Claims(*wrong)
