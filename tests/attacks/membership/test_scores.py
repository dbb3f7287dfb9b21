"""Membership scores against the formulas of their papers, computed in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from robustml.attacks.membership import (
    calibrated_loss,
    confidence_logit,
    exposure,
    gap,
    lira_offline,
    lira_online,
    log_probability,
    loss_threshold,
    losses,
    quantile_scores,
    rmia_log_ratio,
    rmia_offline,
    rmia_online,
)
from robustml.errors import InputError

RNG = np.random.default_rng(0)
N, K = 40, 12


@pytest.fixture(name="worlds")
def _worlds():
    inside = np.zeros((K, N), dtype=bool)
    for pair in range(K // 2):
        inside[2 * pair, RNG.permutation(N)[: N // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    references = RNG.normal(1 + 2 * inside, 1 + RNG.random(N))
    return RNG.normal(2, 2, N), references, inside


@given(
    st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(0, 2),
)
def test_log_odds_are_those_of_the_softmax(rows, label) -> None:
    z, y = np.array(rows), np.full(len(rows), label)
    p = torch.softmax(torch.tensor(z), 1)[:, label].numpy()
    q = torch.softmax(torch.tensor(z), 1).numpy().sum(1) - p
    found = confidence_logit(z, y)
    assert losses(found) == pytest.approx(-np.log(p), rel=1e-6, abs=1e-9)
    assert np.exp(log_probability(found)) == pytest.approx(p, rel=1e-6)
    clear = (q > 1e-9) & (p > 1e-9)
    assert found[clear] == pytest.approx(np.log(p / q)[clear], rel=1e-5, abs=1e-6)


def test_a_sure_model_is_told_from_a_surer_one() -> None:
    # In float32 both probabilities are 1, and both losses 0.
    z = np.array([[60.0, 0.0, 0.0], [90.0, 0.0, 0.0]], dtype=np.float32)
    found = confidence_logit(z, np.zeros(2, dtype=int))
    assert found == pytest.approx([60 - math.log(2), 90 - math.log(2)])
    first, second = loss_threshold(found)
    assert second > first


def test_strange_answers() -> None:
    y = np.zeros(1, dtype=int)
    assert confidence_logit(np.array([[np.inf, 0.0]]), y) == 1e6
    assert confidence_logit(np.array([[-np.inf, 0.0]]), y) == -1e6
    assert confidence_logit(np.array([[0.0, -np.inf]]), y) == 1e6
    for row in ([np.nan, 0.0], [np.inf, np.inf], [-np.inf, -np.inf]):
        with pytest.raises(InputError, match="sample 1 has no odds"):
            confidence_logit(np.array([[1.0, 0.0], row]), np.zeros(2, dtype=int))


def test_calibrated_loss(worlds) -> None:
    phi, references, inside = worlds
    found = calibrated_loss(phi, references, inside)
    for i in range(N):
        unseen = [-math.log(1 / (1 + math.exp(-references[k, i]))) for k in range(K) if not inside[k, i]]
        assert found[i] == pytest.approx(np.mean(unseen) + math.log(1 / (1 + math.exp(-phi[i]))))


def test_lira_with_one_variance_for_all(worlds) -> None:
    phi, references, inside = worlds
    means = {
        side: np.array([references[inside[:, i] == side, i].mean() for i in range(N)])
        for side in (True, False)
    }
    spread = {}
    for side, mean in means.items():
        residuals = [references[k, i] - mean[i] for k in range(K) for i in range(N) if inside[k, i] == side]
        spread[side] = math.sqrt(np.square(residuals).sum() / (len(residuals) - N))
    online = norm.logpdf(phi, means[True], spread[True]) - norm.logpdf(phi, means[False], spread[False])
    assert lira_online(phi, references, inside) == pytest.approx(online)
    offline = norm.cdf(phi, means[False], spread[False])
    assert norm.cdf(lira_offline(phi, references, inside)) == pytest.approx(offline)


def test_lira_with_a_variance_for_each() -> None:
    rng = np.random.default_rng(1)
    inside = np.arange(64)[:, None] % 2 == np.zeros(9)
    references, phi = rng.normal(size=(64, 9)) * np.linspace(0.2, 5, 9) + 3 * inside, rng.normal(size=9)
    seen, unseen = references[::2], references[1::2]
    online = norm.logpdf(phi, seen.mean(0), seen.std(0, ddof=1)) - norm.logpdf(
        phi, unseen.mean(0), unseen.std(0, ddof=1)
    )
    assert lira_online(phi, references, inside) == pytest.approx(online)
    z = (phi - unseen.mean(0)) / unseen.std(0, ddof=1)
    assert lira_offline(phi, references, inside) == pytest.approx(z)


def test_one_model_on_a_side_has_no_spread_of_its_own() -> None:
    references, inside = np.array([[1.0, 5.0], [4.0, 2.0]]), np.array([[False, True], [True, False]])
    assert lira_offline(np.array([3.0, 3.0]), references, inside).tolist() == [2.0, 1.0]


def rmia(phi, prior, population_phi, population_prior, gamma):
    """The share of z with (p(x | theta) / p(x)) / (p(z | theta) / p(z)) >= gamma, in probabilities."""
    p = 1 / (1 + np.exp(-phi))
    q = 1 / (1 + np.exp(-population_phi))
    return np.mean((p / prior)[:, None] / (q / population_prior)[None] >= gamma, axis=1)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_rmia_offline(worlds, gamma, a) -> None:
    phi, references, inside = worlds
    p = 1 / (1 + np.exp(-references))
    out = np.array([p[~inside[:, i], i].mean() for i in range(N)])
    prior = 0.5 * ((1 + a) * out + (1 - a))
    z = slice(0, 15)
    ratio = rmia_log_ratio(phi, references, inside, a=a)
    assert ratio == pytest.approx(np.log(1 / (1 + np.exp(-phi)) / prior))
    found = rmia_offline(phi, references, inside, ratio[z], a=a, gamma=gamma)
    expected = rmia(phi, prior, phi[z], prior[z], gamma)
    assert np.floor(found * 16 + 1e-9) / 15 == pytest.approx(expected)
    # Ties are broken by the ratio, so that the ratio decides the order.
    assert (np.argsort(found) == np.argsort(ratio)).all()
    assert len(set(found)) == N


def test_rmia_online(worlds) -> None:
    phi, references, inside = worlds
    p = 1 / (1 + np.exp(-references))
    prior = np.array([(p[inside[:, i], i].mean() + p[~inside[:, i], i].mean()) / 2 for i in range(N)])
    ratio = rmia_log_ratio(phi, references, inside)
    found = rmia_online(phi, references, inside, ratio[:15])
    assert np.floor(found * 16 + 1e-9) / 15 == pytest.approx(rmia(phi, prior, phi[:15], prior[:15], 1.0))


def test_rmia_of_sure_models_does_not_tie() -> None:
    phi = np.array([20.0, 30.0, 34.0])
    references, inside = np.full((2, 3), 3.0), np.zeros((2, 3), dtype=bool)
    ratio = rmia_log_ratio(phi, references, inside, a=0.3)
    scores = rmia_offline(phi, references, inside, np.array([-5.0]), a=0.3)
    assert (np.diff(ratio) > 0).all() and scores[0] < scores[1] <= scores[2]


def test_what_cannot_be_scored(worlds) -> None:
    phi, references, inside = worlds
    nowhere = np.zeros_like(inside)
    with pytest.raises(InputError, match="sample 0 has no reference model"):
        lira_online(phi, references, nowhere)
    with pytest.raises(InputError, match="sample 0 has no reference model"):
        calibrated_loss(phi, references, ~nowhere)
    with pytest.raises(InputError, match="sample 0 has no reference model"):
        rmia_log_ratio(phi, references, nowhere)
    with pytest.raises(InputError, match="inside has shape"):
        lira_offline(phi, references, inside[:3])
    with pytest.raises(InputError, match="gamma=0.5"):
        rmia_offline(phi, references, inside, phi, gamma=0.5)
    with pytest.raises(InputError, match="a=2"):
        rmia_offline(phi, references, inside, phi, a=2)
    with pytest.raises(InputError, match="population is empty"):
        rmia_online(phi, references, inside, phi[:0])


def test_exposure_is_what_training_on_a_sample_does(worlds) -> None:
    _, references, inside = worlds
    expected = [references[inside[:, i], i].mean() - references[~inside[:, i], i].mean() for i in range(N)]
    assert exposure(references, inside) == pytest.approx(expected)
    assert exposure(references, np.zeros_like(inside)) == pytest.approx(-references.mean(0))


def test_gap_is_correctness() -> None:
    assert gap(np.array([True, False])).tolist() == [1.0, 0.0]


def test_quantile_regression_takes_away_what_makes_a_sample_easy() -> None:
    rng = np.random.default_rng(7)
    n = 1200
    x, y = rng.random((n, 3)), rng.integers(0, 2, n)
    usual = 8 * x[:, 0] + 5 * y
    member = np.arange(n) < 400
    phi = usual + rng.normal(0, 0.5, n) + member
    learn_from = np.arange(400, 800)
    scores = quantile_scores(x, y, phi, learn_from, level=0.9)
    fresh = scores[800:]
    # About nine of ten non-members lie below their quantile, those that were learned from no more often.
    assert 0.03 < (fresh > 0).mean() < 0.2
    assert abs((scores[400:800] > 0).mean() - (fresh > 0).mean()) < 0.08
    gap_before = (phi[member].mean() - phi[800:].mean()) / phi[800:].std()
    gap_after = (scores[member].mean() - fresh.mean()) / fresh.std()
    assert gap_after > 3 * gap_before


def test_quantile_regression_never_sees_what_it_scores() -> None:
    rng = np.random.default_rng(8)
    x, y, phi = rng.random((200, 2)), np.zeros(200, dtype=int), rng.normal(size=200)
    before = quantile_scores(x, y, phi, np.arange(100, 150))
    changed = phi.copy()
    changed[150:] += 100
    after = quantile_scores(x, y, changed, np.arange(100, 150))
    assert (after[:150] == before[:150]).all()
    assert after[150:] - before[150:] == pytest.approx(100)
    # One that is learned from is scored by regressors of the other quarters.
    changed = phi.copy()
    changed[120] += 100
    assert quantile_scores(x, y, changed, np.arange(100, 150))[120] - before[120] == pytest.approx(100)


def test_too_few_to_learn_from() -> None:
    with pytest.raises(InputError, match="too few to learn from"):
        quantile_scores(np.zeros((60, 2)), np.zeros(60, dtype=int), np.zeros(60), np.arange(20))
