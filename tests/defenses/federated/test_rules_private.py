"""Differential privacy of whole clients: the noise, the account, the order, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

pytest.importorskip("flwr")

from robustml.defenses.federated.aggregation import aggregation
from robustml.defenses.federated.dp import ClientPrivacy, epsilon_of, noise_for_rounds, private_rule
from robustml.defenses.federated.guarding import Guarded
from robustml.defenses.federated.rules import RULES, CenteredClipping, Mean, Median, NormBounding, TrimmedMean
from robustml.errors import InputError
from tests.defenses.federated.scene import drift, honest, received, reply, run, weights


def divergence(epsilon, strength):
    """The hockey-stick divergence of two normal distributions, by numerical integration."""

    def rest(x):
        return max(norm.pdf(x, strength) - math.exp(epsilon) * norm.pdf(x), 0.0)

    low = epsilon / strength + strength / 2
    return quad(rest, low, low + 40, epsabs=1e-14, limit=500)[0]


@given(st.floats(0.3, 20), st.integers(1, 40), st.sampled_from([1e-3, 1e-5]))
def test_epsilon_is_exact(noise, rounds, delta):
    epsilon = epsilon_of([(noise, 1.0, rounds)], delta)
    strength = math.sqrt(rounds) / noise
    if epsilon == 0:
        assert 2 * norm.cdf(strength / 2) - 1 <= delta * (1 + 1e-9)
    elif epsilon < 300:
        assert divergence(epsilon, strength) == pytest.approx(delta, rel=1e-4)


def test_epsilon_composes_over_rounds_of_different_noise_and_is_below_that_of_renyi():
    # 1 / 4 + 1 / 4 + 1 / 2 of squared strength is one round with noise 1.
    together = epsilon_of([(2.0, 1.0, 2), (math.sqrt(2), 1.0, 1)], 1e-5)
    assert together == pytest.approx(epsilon_of([(1.0, 1.0, 1)], 1e-5))
    # Balle and Wang 2018: the Gaussian mechanism with sigma = sensitivity has epsilon 4.3772 at delta = 1e-5.
    assert together == pytest.approx(4.3772, abs=1e-3)
    accountants = pytest.importorskip("opacus.accountants")
    for noise, rounds in ((1.0, 1), (2.0, 30), (5.0, 100)):
        renyi = accountants.RDPAccountant()
        renyi.history = [(noise, 1.0, rounds)]
        exact = epsilon_of([(noise, 1.0, rounds)], 1e-5)
        assert exact <= renyi.get_epsilon(1e-5) <= 1.3 * exact + 0.1


@given(st.floats(0.1, 20), st.integers(1, 100))
def test_the_noise_for_a_budget_spends_it(epsilon, rounds):
    noise = noise_for_rounds(epsilon, 1e-5, rounds)
    assert epsilon_of([(noise, 1.0, rounds)], 1e-5) <= epsilon
    assert epsilon_of([(0.999 * noise, 1.0, rounds)], 1e-5) > epsilon


def test_sampled_rounds_are_not_accounted():
    with pytest.raises(InputError, match="sampled"):
        epsilon_of([(1.0, 0.5, 1)], 1e-5)


@pytest.mark.parametrize(
    ("rule", "sensitivity"),
    [
        (Mean(), 1 / 10),
        (TrimmedMean(hostile=2), 1 / 6),
        (Median(), 1 / 2),
        (NormBounding(bound=1.0), 1 / 10),
        (CenteredClipping(radius=1.0, steps=2), 2 / 10),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_noise_is_that_of_the_sensitivity(rule, sensitivity):
    privacy = ClientPrivacy(clip=0.25, clients=10, noise_multiplier=3.0, seed=5)
    rule = private_rule(rule, privacy)
    updates = np.zeros((4, 40000))
    released = np.stack([privacy.released(rule, updates, np.zeros(40000), step) for step in range(2)])
    expected = 3.0 * 0.25 * sensitivity
    assert released.std() == pytest.approx(expected, rel=0.02)
    assert abs(released.mean()) < 4 * expected / math.sqrt(released.size)
    # Each round has noise of its own; kurtosis and correlation are those of independent normal numbers.
    assert abs(np.corrcoef(released)[0, 1]) < 0.02
    assert (released**4).mean() / (released**2).mean() ** 2 == pytest.approx(3, abs=0.15)


def test_noise_comes_from_the_operating_system_unless_a_seed_is_given():
    one = ClientPrivacy(clip=1.0, clients=3)
    rows, center = np.zeros((3, 4)), np.zeros(4)
    assert not np.array_equal(
        one.released(Median(), rows, center, 1), one.released(Median(), rows, center, 1)
    )
    same = ClientPrivacy(clip=1.0, clients=3, seed=1)
    first, second = (same.released(Median(), rows, center, step) for step in (1, 1))
    np.testing.assert_array_equal(first, second)


@given(st.integers(0, 10**6))
def test_one_client_moves_what_is_published_by_no_more_than_is_accounted(seed):
    """Whatever it sends, and whether it is there at all: with the same noise the difference is bounded."""
    rng = np.random.default_rng(seed)
    privacy = ClientPrivacy(clip=0.5, clients=9, noise_multiplier=1.0, seed=3)
    others = rng.normal(size=(8, 6)) * rng.choice([0.1, 1, 100])
    mine = rng.normal(size=(1, 6)) * rng.choice([0.01, 1, 1e6])
    for rule in (Mean(weighted=False), TrimmedMean(hostile=3), Median(), CenteredClipping(radius=0.2)):
        center = rng.normal(size=6) * 0.1
        there = privacy.released(rule, np.vstack([others, mine]), center, 1)
        gone = privacy.released(rule, others, center, 1)
        assert np.linalg.norm(there - gone) <= 0.5 * rule.sensitivity(9) * (1 + 1e-9)


def test_what_has_no_known_sensitivity_is_refused_with_the_reason():
    privacy = ClientPrivacy(clip=1.0, clients=11)
    for name in ("krum", "multi-krum", "bulyan", "geometric-median", "nearest-neighbor-mixing"):
        with pytest.raises(InputError, match=f"{name} cannot be made private: .*take one of .*trimmed-mean"):
            aggregation(name, privacy=privacy)
        assert RULES[name]().sensitivity(11) is None
    for name in ("norm-bounding", "centered-clipping"):
        with pytest.raises(InputError, match="learned from the updates; give it one"):
            aggregation(name, privacy=privacy)
    for name in ("fedadam", "flower-krum", "fedmedian"):
        with pytest.raises(InputError, match="cannot be made private"):
            aggregation(name, privacy=privacy)
    with pytest.raises(InputError, match="too few"):
        aggregation("trimmed-mean", hostile=6, privacy=privacy)
    for options in (
        {"clip": 0.0},
        {"clients": 0},
        {"delta": 1.0},
        {"noise_multiplier": 0.0},
        {"epsilon": -1.0},
    ):
        with pytest.raises(InputError):
            ClientPrivacy(**{"clip": 1.0, "clients": 5, **options})


def test_running_statistics_are_refused():
    privacy = ClientPrivacy(clip=1.0, clients=4)
    start = {**weights(), "n.running_mean": np.zeros(3, np.float32)}
    with pytest.raises(InputError, match="running statistics"):
        run(Guarded(aggregation("mean", privacy=privacy)), [honest] * 4, start=start)


def test_weights_do_not_matter_and_metrics_are_not_published():
    """With a seed, the noise is the same, so that the weights would show."""
    privacy = ClientPrivacy(clip=0.3, clients=5, noise_multiplier=0.1, seed=2)

    def heavy(message, context):
        answer = honest(message, context)
        answer.content["metrics"]["num-examples"] = 9000 + context.node_config["partition-id"]
        return answer

    found, result = run(Guarded(aggregation("mean", privacy=privacy)), [honest] * 5)
    other, _ = run(Guarded(aggregation("mean", privacy=privacy)), [*[honest] * 3, heavy, heavy])
    for key, value in found.items():
        np.testing.assert_array_equal(value, other[key])
    assert result.train_metrics_clientapp == {}


def test_a_hostile_client_under_trimmed_mean_and_privacy():
    privacy = ClientPrivacy(clip=1.0, clients=8, noise_multiplier=0.05, seed=2)

    def far(message, context):
        state = received(message)
        return reply(message, {key: state[key] - 50 for key in drift(state, 0, 0)}, {"num-examples": 10})

    strategy = aggregation("trimmed-mean", hostile=1, privacy=privacy)
    clean, _ = run(Guarded(aggregation("trimmed-mean", hostile=1, privacy=privacy)), [honest] * 8)
    found, _ = run(Guarded(strategy), [*[honest] * 7, far])
    distance = math.sqrt(sum(np.square(found[key] - clean[key]).sum() for key in found))
    # A client replaced is one gone and one come: twice the sensitivity, each of three rounds.
    assert distance <= 3 * 2 * strategy.rule.sensitivity(8) * (1 + 1e-5)
    assert strategy.spent() == (pytest.approx(epsilon_of([(0.05, 1.0, 3)], 1e-5)), 1e-5)


def test_the_budget_ends_training_and_the_rounds_say_so():
    noise = noise_for_rounds(2.0, 1e-5, 2)
    privacy = ClientPrivacy(clip=1.0, clients=4, noise_multiplier=noise, epsilon=2.0, seed=1)
    guard = Guarded(aggregation("mean", privacy=privacy))
    run(guard, [honest] * 4, rounds=4)
    assert [entry.applied for entry in guard.rounds] == [True, True, False, False]
    assert guard.note == "the budget epsilon=2 does not last for another round"
    assert guard.strategy.spent()[0] <= 2.0


def test_a_client_too_many_is_not_what_was_promised():
    guard = Guarded(aggregation("mean", privacy=ClientPrivacy(clip=1.0, clients=3)))
    run(guard, [honest] * 4, rounds=1)
    assert guard.note == "4 updates came, and privacy was promised for 3"


def test_what_was_spent_is_carried_to_the_next_server():
    def made():
        return aggregation("mean", privacy=ClientPrivacy(clip=1.0, clients=4, noise_multiplier=2.0))

    first = Guarded(made())
    run(first, [honest] * 4, rounds=3)
    second = Guarded(made())
    second.load_state_dict(first.state_dict())
    run(second, [honest] * 4, rounds=2)
    assert second.strategy.spent()[0] == pytest.approx(epsilon_of([(2.0, 1.0, 5)], 1e-5))
