"""Noise and sampling: their distributions, and that no two purposes share a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest

from robustml.defenses.privacy.mechanism import Mechanism, Sampler
from robustml.defenses.privacy.randomness import Seeded, System, randomness

SOURCES = [Seeded(5), System()]
# The chance that one of these tests fails by itself is below one in a hundred thousand.
SURE = 1e-7


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_noise_is_standard_normal_and_fresh_at_each_step(source) -> None:
    one, other = source.normal(0, 100_001).double().numpy(), source.normal(1, 100_001).double().numpy()
    for drawn in (one, other):
        assert kstest(drawn, "norm").pvalue > SURE
        assert np.abs(drawn).max() > 3.5
    assert abs(np.corrcoef(one, other)[0, 1]) < 5.4 / np.sqrt(len(one))
    half = len(one) // 2
    assert abs(np.corrcoef(one[:half], one[half : 2 * half])[0, 1]) < 5.4 / np.sqrt(half)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
@pytest.mark.parametrize("rate", [0.003, 0.25, 1.0])
def test_samples_are_taken_at_the_rate_each_on_its_own(source, rate) -> None:
    n, steps = 500, 200
    taken = np.zeros((steps, n), dtype=bool)
    for step in range(steps):
        taken[step, source.chosen(step, n, rate).numpy()] = True
    assert binomtest(int(taken.sum()), steps * n, rate).pvalue > SURE
    # How many samples a step takes varies as it should: a fixed number would vary by nothing.
    expected = n * rate * (1 - rate)
    assert taken.sum(1).var() == pytest.approx(expected, rel=0.6, abs=1e-9)
    assert taken.sum(0).var() == pytest.approx(steps * rate * (1 - rate), rel=0.4, abs=1e-9)


def test_a_seed_repeats_and_the_operating_system_does_not() -> None:
    assert torch.equal(Seeded(5).normal(3, 9), Seeded(5).normal(3, 9))
    assert not torch.equal(Seeded(5).normal(3, 9), Seeded(6).normal(3, 9))
    assert not torch.equal(System().normal(3, 9), System().normal(3, 9))
    words = [Seeded(5).words(purpose, 0, 8) for purpose in ("noise", "sample")]
    assert not torch.equal(*words)
    assert (randomness(None).name, randomness(5).name) == ("operating system", "seed 5")


def test_global_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    System().normal(0, 5)
    Seeded(1).chosen(0, 5, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mechanism_clips_below_the_norm_and_adds_its_noise() -> None:
    made = Mechanism(0.5, 2.0, Seeded(1))
    gradients = (
        torch.randn(50, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 50)[:, None]
    )
    norms = gradients.norm(dim=1)
    clipped = (gradients * made.factors(norms)[:, None]).double().norm(dim=1)
    assert float(clipped.max()) <= 0.5
    small = norms < 0.49
    assert torch.allclose(clipped[small].float(), norms[small], rtol=1e-4)
    sums = [torch.zeros(300, 100), torch.full((7,), 3.0)]
    noised = made.noised(0, sums)
    assert [each.shape for each in noised] == [each.shape for each in sums]
    assert float(noised[0].std()) == pytest.approx(1.0, rel=0.03)
    silent = Mechanism(0.5, 0.0, Seeded(1)).noised(0, sums)
    assert all(torch.equal(a, b) for a, b in zip(silent, sums, strict=True))


def test_a_sampler_may_take_none() -> None:
    assert len(Sampler(10, 1e-9, Seeded(1)).draw(0)) == 0
    assert Sampler(10, 1.0, Seeded(1)).draw(0).tolist() == list(range(10))
