"""The ledger: figures of the published accountants, and what holds of any budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from robustml.defenses.privacy import Ledger
from robustml.defenses.privacy.ledger import noise_for
from robustml.errors import InputError

# What opacus makes of 4,000 samples, batches of 256 and 6 epochs.
HISTORY, DELTA = (0.692, 1 / 16, 96), 4000**-1.1


def test_prv_is_the_upper_end_and_rdp_is_looser() -> None:
    ledger = Ledger([HISTORY])
    prv, rdp = ledger.spent(DELTA), ledger.spent(DELTA, ("rdp",))
    assert (prv.accountant, rdp.accountant) == ("prv", "rdp")
    assert prv.epsilon == pytest.approx(7.99, abs=0.05)
    assert rdp.epsilon == pytest.approx(9.40, abs=0.05)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Of a Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (3.0, 10), (20.0, 50)])
def test_without_subsampling_it_bounds_the_exact_gaussian_mechanism_closely(noise, steps) -> None:
    epsilon = Ledger([(noise, 1.0, steps)]).spent(1e-5).epsilon
    mu = math.sqrt(steps) / noise
    assert gaussian_delta(epsilon, mu) <= 1e-5
    assert gaussian_delta(epsilon - 0.03, mu) > 1e-5


def test_the_central_limit_of_gaussian_privacy_is_below_the_truth_and_never_shown() -> None:
    # What opacus calls GDP, on the same history: 6.83, where at least 7.9 is spent.
    noise, rate, steps = HISTORY
    mu = rate * math.sqrt(steps * (math.exp(noise**-2) - 1))
    epsilon = Ledger([HISTORY]).spent(DELTA).epsilon
    assert gaussian_delta(6.9, mu) < DELTA
    assert epsilon > 7.9


def test_renyi_takes_over_where_prv_fails() -> None:
    # A privacy loss so wide that no grid of the PRV accountant holds it.
    spent = Ledger([(0.02, 0.5, 3000)]).spent(1e-5)
    assert spent.accountant == "rdp"
    assert spent.epsilon > 1000


def test_nothing_spent_and_no_noise() -> None:
    assert Ledger().spent(1e-5).epsilon == 0
    assert Ledger([(1.0, 0.0, 10)]).spent(1e-5).epsilon == 0
    assert Ledger([(1.0, 0.1, 10), (0.0, 0.1, 1)]).spent(1e-5).epsilon == math.inf


def test_rounds_add_up_as_one_history() -> None:
    rounds, alone = Ledger(), Ledger([(1.0, 0.1, 10)])
    for _ in range(5):
        rounds.step(1.0, 0.1, 10)
    assert rounds.history == [(1.0, 0.1, 50)]
    assert rounds.spent(1e-5).epsilon > 1.5 * alone.spent(1e-5).epsilon
    other = Ledger([(1.0, 0.1, 25), (2.0, 0.1, 0), (1.0, 0.1, 25)])
    assert other.history == rounds.history
    assert Ledger.from_dict(rounds.to_dict()).spent(1e-5) == rounds.spent(1e-5)


@given(
    noise=st.floats(0.6, 5),
    rate=st.floats(0.001, 0.2),
    steps=st.integers(1, 300),
    delta=st.sampled_from([1e-6, 1e-4]),
)
def test_more_steps_and_less_noise_never_cost_less(noise, rate, steps, delta) -> None:
    spent = Ledger([(noise, rate, steps)]).spent(delta).epsilon
    # Each figure is an upper bound with an error of a hundredth.
    assert Ledger([(noise, rate, 2 * steps)]).spent(delta).epsilon >= spent - 0.03
    assert Ledger([(noise * 1.5, rate, steps)]).spent(delta).epsilon <= spent + 0.03
    assert Ledger([(noise, rate, steps)]).spent(delta * 10).epsilon <= spent + 0.03


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 20.0])
def test_noise_is_the_least_that_keeps_to_a_target(epsilon) -> None:
    asked = {"epsilon": epsilon, "delta": 1e-5, "rate": 0.05, "steps": 200}
    noise = noise_for(Ledger(), **asked)
    assert Ledger([(noise, 0.05, 200)]).spent(1e-5).epsilon <= epsilon
    assert Ledger([(noise * 0.98, 0.05, 200)]).spent(1e-5).epsilon > epsilon
    before = Ledger([(noise, 0.05, 100)])
    more = noise_for(before, **asked)
    assert more > noise
    assert before.after(more, 0.05, 200).spent(1e-5).epsilon <= epsilon


def test_a_budget_that_is_gone() -> None:
    with pytest.raises(
        InputError, match=r"epsilon=1 cannot be reached with 10 steps .*: 5.* is spent already"
    ):
        noise_for(Ledger([(1.0, 0.1, 50)]), epsilon=1, delta=1e-5, rate=0.1, steps=10)


def test_room_is_the_most_steps() -> None:
    ledger = Ledger([(1.0, 0.05, 20)])
    room = ledger.room(1.0, 0.05, 1e-5, 3.0, 1000)
    assert 0 < room < 1000
    assert ledger.after(1.0, 0.05, room).spent(1e-5).epsilon <= 3
    assert ledger.after(1.0, 0.05, room + 1).spent(1e-5).epsilon > 3
    assert ledger.room(1.0, 0.05, 1e-5, 0.01, 1000) == 0
    assert ledger.room(1.0, 0.05, 1e-5, 100.0, 7) == 7


@pytest.mark.parametrize(
    "entry", [(-1.0, 0.1, 1), (1.0, 1.5, 1), (1.0, 0.1, -1), (1.0, 0.1), (math.nan, 0.1, 1)]
)
def test_entries_that_no_step_could_have_made(entry) -> None:
    with pytest.raises(InputError):
        Ledger([entry])


@pytest.mark.parametrize(
    "data", [None, {}, {"history": 3}, {"history": [["a", 1, 1]]}, {"history": [[1, 2]]}]
)
def test_damaged_ledgers(data) -> None:
    with pytest.raises(InputError, match="ledger="):
        Ledger.from_dict(data)
