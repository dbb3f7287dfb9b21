"""Who gets which samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import robustml as rml
from robustml.defenses.federated.partition import Partition, _dirichlet, are_shards, parse_partition


@given(
    st.integers(20, 200),
    st.integers(1, 6),
    st.integers(2, 10),
    st.sampled_from(["iid", "dirichlet:0.3", "dirichlet:5"]),
    st.integers(0, 2**40),
)
def test_every_row_belongs_to_one_client(n: int, clients: int, classes: int, text: str, seed: int) -> None:
    y = np.random.default_rng(seed).integers(0, classes, n)
    try:
        parts = parse_partition(text).rows(y, clients, seed)
    except rml.InputError:
        assert n < 60 * clients  # so few that some client may always go short
        return
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert min(map(len, parts)) >= 2
    again = parse_partition(text).rows(y, clients, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_parts_are_equal_and_alike_if_iid() -> None:
    y = np.repeat(np.arange(10), 400)
    parts = Partition().rows(y, 4, 0)
    counts = np.stack([np.bincount(y[rows], minlength=10) for rows in parts])
    assert [len(rows) for rows in parts] == [1000] * 4
    # Hypergeometric, with a standard deviation of 8.2.
    assert np.abs(counts - 100).max() < 40


def test_a_small_alpha_makes_clients_unlike() -> None:
    y = np.repeat(np.arange(10), 400)

    def unlike(alpha: float) -> float:
        parts = Partition(alpha).rows(y, 5, 1)
        shares = np.stack([np.bincount(y[rows], minlength=10) / 400 for rows in parts])
        return float(np.square(shares - 0.2).sum(0).mean())

    assert unlike(100.0) < unlike(1.0) < unlike(0.1)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 10.0])
def test_shares_have_the_moments_of_a_dirichlet_distribution(alpha: float) -> None:
    count, draws = 4, 4000
    shares = np.stack([_dirichlet(count, alpha, f"draw/{k}", 0) for k in range(draws)])
    assert np.allclose(shares.sum(1), 1)
    variance = (count - 1) / (count**2 * (count * alpha + 1))
    assert np.abs(shares.mean(0) - 1 / count).max() < 5 * np.sqrt(variance / draws)
    assert np.allclose(shares.var(0), variance, rtol=0.15)


def test_too_unequal_shares_are_refused() -> None:
    with pytest.raises(rml.InputError, match="take a larger alpha or fewer clients"):
        Partition(1e-4, least=10).rows(np.repeat([0, 1], 50), 8, 0)


@pytest.mark.parametrize("text", ["dirichlet:nan", "dirichlet:inf", "dirichlet:", "iid:3", "", 3, None])
def test_nonsense_is_refused(text) -> None:
    with pytest.raises(rml.InputError, match="partition="):
        parse_partition(text)


def test_data_of_clients_are_told_from_one_data_set() -> None:
    x, y = np.zeros((2, 3)), np.zeros(2, dtype=int)
    assert are_shards([(x, y), (x, y)])
    assert are_shards(((x, y), (x, y)))
    assert not are_shards((x, y))
    assert not are_shards((x.tolist(), y.tolist()))
    assert not are_shards([])
