"""Random streams: the reference generator's numbers, and independence of everything but the key."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustml.sampling import Coarse, Streams, splitmix64

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

seeds = st.integers(0, 2**63 - 1)
id_lists = st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True)


def signed(value: int) -> int:
    return (value & MASK) - ((value & MASK) >> 63 << 64)


def reference_splitmix64(state: int) -> int:
    z = (state + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def streams(ids: list[int], seed: int = 0, purpose: str = "test") -> Streams:
    return Streams.derive(seed, purpose, torch.tensor(ids))


def test_splitmix64_gives_the_published_sequence() -> None:
    states = torch.tensor([signed(1234567 + k * GOLDEN) for k in range(5)])
    assert [int(v) & MASK for v in splitmix64(states)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_splitmix64_agrees_with_unbounded_integers(states: list[int]) -> None:
    got = [int(v) & MASK for v in splitmix64(torch.tensor(states))]
    assert got == [reference_splitmix64(state & MASK) for state in states]


@given(seeds, id_lists, st.data())
def test_a_sample_draws_the_same_numbers_in_any_batch(seed: int, ids: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=6))
    whole, part = streams(ids, seed), streams([ids[row] for row in rows], seed)
    for _ in range(2):
        assert torch.equal(whole.uniform(3, 2)[rows], part.uniform(3, 2))
        assert torch.equal(whole.normal(5)[rows], part.normal(5))
        assert torch.equal(whole.signs(4)[rows], part.signs(4))
        assert torch.equal(whole.integers(7, 3)[rows], part.integers(7, 3))


@given(seeds, id_lists, st.integers(0, 3), st.data())
def test_selected_streams_go_on_where_they_were(
    seed: int, ids: list[int], drawn: int, data: st.DataObject
) -> None:
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=6)), dtype=torch.int64)
    whole = streams(ids, seed)
    for _ in range(drawn):
        whole.bits(2)
    part = whole.select(rows)
    assert len(part) == len(rows)
    assert torch.equal(part.bits(4), whole.bits(4)[rows])


def test_an_element_does_not_depend_on_how_many_are_drawn() -> None:
    assert torch.equal(streams([5, 6]).uniform(10)[:, :4], streams([5, 6]).uniform(4))


def test_seed_purpose_and_sample_each_change_the_numbers() -> None:
    drawn = [
        streams([1], seed=0).bits(4),
        streams([1], seed=1).bits(4),
        streams([1], seed=0, purpose="other").bits(4),
        streams([2], seed=0).bits(4),
    ]
    assert len({tuple(bits.flatten().tolist()) for bits in drawn}) == len(drawn)


def test_successive_draws_and_restarts_are_distinct_and_uncorrelated() -> None:
    base = streams([3])
    parts = [base.normal(4000), base.normal(4000)]
    parts += [base.restart(number).normal(4000) for number in range(3)]
    correlation = np.corrcoef(torch.cat(parts).numpy()) - np.eye(len(parts))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_a_restart_does_not_depend_on_what_was_drawn_before() -> None:
    fresh, used = streams([3, 4]), streams([3, 4])
    used.normal(100)
    assert torch.equal(fresh.restart(2).bits(3), used.restart(2).bits(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform_on_the_half_open_interval(dtype: torch.dtype) -> None:
    drawn = streams(list(range(50)), seed=1).uniform(400, dtype=dtype)
    assert drawn.dtype == dtype
    assert 0 <= drawn.min() < drawn.max() < 1
    assert scipy.stats.kstest(drawn.flatten().double().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_standard_normal(dtype: torch.dtype) -> None:
    drawn = streams(list(range(50)), seed=2).normal(400, dtype=dtype)
    assert drawn.dtype == dtype
    assert scipy.stats.kstest(drawn.flatten().double().numpy(), "norm").pvalue > 0.01


def test_normal_is_finite_and_symmetric_at_the_ends_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0, -1]])  # the smallest and the largest pattern of 64 bits
    monkeypatch.setattr(Streams, "bits", lambda self, *shape: ends)
    low, high = streams([0]).normal(2, dtype=torch.float64)[0].tolist()
    assert low == -high
    assert 8 < high < 9


def test_the_first_numbers_of_many_samples_are_uniform() -> None:
    first = streams(list(range(20_000)), seed=3).uniform()
    assert first.shape == (20_000,)
    assert scipy.stats.kstest(first.double().numpy(), "uniform").pvalue > 0.01


def test_signs_are_fair() -> None:
    signs = streams(list(range(20)), seed=4).signs(1000)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert scipy.stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 0.01


def test_integers_are_uniform_over_their_range() -> None:
    drawn = streams(list(range(20)), seed=5).integers(7, 1000)
    counts = torch.bincount(drawn.flatten(), minlength=7)
    assert len(counts) == 7
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01


@given(seeds, st.lists(st.integers(1, 2**53), min_size=1, max_size=6))
def test_integers_stay_below_a_limit_of_their_own(seed: int, highs: list[int]) -> None:
    drawn = streams([0, 1, 2], seed).integers(torch.tensor(highs), len(highs))
    assert drawn.dtype == torch.int64
    assert ((drawn >= 0) & (drawn < torch.tensor(highs))).all()


def test_no_shape_gives_one_number_per_sample_and_no_sample_gives_none() -> None:
    assert streams([1, 2, 3]).uniform().shape == (3,)
    assert streams([]).normal(2, 3).shape == (0, 2, 3)
    assert streams([1]).uniform(0).shape == (1, 0)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    s = streams([1, 2])
    s.uniform(3), s.normal(3), s.signs(3), s.integers(5, 3), s.restart(1).bits(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (3, 7)])
def test_coarse_numbers_are_uniform_and_belong_to_their_sample(shape) -> None:
    ids = torch.arange(4000)
    drawn = Coarse(Streams.derive(0, "coarse", ids).keys).uniform(*shape, dtype=torch.float64)
    assert drawn.shape == (4000, *shape)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert torch.equal(drawn * 2**16, (drawn * 2**16).round())
    # The mean of so many uniform numbers is within five standard deviations of a half.
    assert (drawn.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 4000)
    assert (drawn.var(0) - 1 / 12).abs().max() < 0.01
    alone = Coarse(Streams.derive(0, "coarse", ids[5:7]).keys).uniform(*shape, dtype=torch.float64)
    assert torch.equal(alone, drawn[5:7])
