"""Statistics of membership scores: exact where they can be, honest where they cannot be resolved."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm

from robustml.attacks.membership import (
    Subjects,
    advantage,
    auc,
    judge,
    rate_at,
    roc,
    strongest,
    threshold_for,
)
from robustml.errors import InputError

small = st.lists(st.integers(-4, 4), min_size=1, max_size=30).map(lambda v: np.array(v, dtype=np.float64))


def brute(members, others):
    return np.mean([(a > b) + 0.5 * (a == b) for a in members for b in others])


@given(members=small, others=small)
def test_auc_is_the_share_of_pairs(members, others) -> None:
    found = auc(members, others)
    assert found.value == pytest.approx(brute(members, others))
    assert found.low <= found.value <= found.high
    swapped = auc(others, members)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (1 - found.value, 1 - found.high, 1 - found.low), abs=1e-9
    )


@given(members=small, others=small)
def test_advantage_is_the_highest_gap_of_the_curve(members, others) -> None:
    levels = [-math.inf, *np.concatenate([members, others])]
    expected = max((members > t).mean() - (others > t).mean() for t in levels)
    found = advantage(members, others)
    assert found.value == pytest.approx(max(expected, 0))
    assert found.low <= found.value <= found.high
    curve = np.array(roc(members, others))
    assert (curve[:, 1] - curve[:, 0]).max() == pytest.approx(found.value)


@given(members=small, others=small)
def test_a_curve_rises_from_nothing_to_everything(members, others) -> None:
    curve = np.array(roc(members, others))
    assert (np.diff(curve, axis=0) >= 0).all()
    assert curve[0].tolist() == [0, (members > others.max()).mean()] or curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]


def test_a_long_curve_is_thinned_to_points_of_itself() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 5000), rng.normal(0, 1, 20000)
    curve = roc(members, others)
    assert 100 < len(curve) <= 200
    assert curve[-1] == (1, 1)
    fprs = [fpr for fpr, _ in curve]
    assert sum(0 < fpr < 0.01 for fpr in fprs) > 30
    for fpr, tpr in curve[1:-1]:
        threshold = np.sort(others)[::-1][round(fpr * len(others))]
        assert tpr == pytest.approx((members > threshold).mean(), abs=1e-3)


@given(
    members=small,
    others=st.lists(st.integers(-4, 4), min_size=4, max_size=30).map(lambda v: np.array(v, dtype=float)),
    bend=st.sampled_from([np.exp, np.arctan, lambda s: s**3 + 5, lambda s: 1e9 * s]),
)
def test_only_the_order_of_scores_counts(members, others, bend) -> None:
    scores = np.concatenate([members, others])
    rows = len(members) + np.arange(len(others))
    subjects = Subjects(np.arange(len(members)), rows[::2], rows[1::2], np.arange(len(scores)) % 3)
    plain, bent = (judge("a", s, subjects, fprs=(0.5, 0.01)) for s in (scores, bend(scores)))
    assert (plain.auc, plain.advantage, plain.roc) == (bent.auc, bent.advantage, bent.roc)
    assert [p.auc for p in plain.per_class] == [p.auc for p in bent.per_class]
    assert [(r.tpr, r.achieved) for r in plain.tpr] == [(r.tpr, r.achieved) for r in bent.tpr]


def test_the_interval_of_an_auc_is_hoeffdings() -> None:
    # k KL(v || t) = log(2 / 0.05) at each end, with k = 100 of the smaller side.
    members, others = np.repeat([1.0, 0.0], [100, 100]), np.repeat([1.0, 0.0], [50, 50])
    found = auc(members, others)
    assert found.value == 0.5
    for end in (found.low, found.high):
        divergence = 0.5 * math.log(0.5 / end) + 0.5 * math.log(0.5 / (1 - end))
        assert 100 * divergence == pytest.approx(math.log(40), rel=1e-6)
    assert auc(np.ones(10), np.zeros(10)).high == pytest.approx(1)
    assert auc(np.ones(10), np.zeros(10)).low == pytest.approx(0.025 ** (1 / 10))
    assert auc(np.ones(0), np.zeros(5)) is None


def test_limits_of_an_advantage_are_those_of_hoeffding_and_massart() -> None:
    members, others = np.repeat([1.0, 0.0], [300, 100]), np.repeat([1.0, 0.0], [250, 550])
    found = advantage(members, others)
    assert found.value == pytest.approx(0.75 - 0.3125)
    assert found.high - found.value == pytest.approx(math.sqrt(math.log(40) / 2 * (1 / 400 + 1 / 800)))
    down = math.sqrt(math.log(80) / 800) + math.sqrt(math.log(80) / 1600)
    assert found.value - found.low == pytest.approx(down)
    assert advantage(np.ones(500), np.zeros(500)).high == 1


TRIALS = 400


@pytest.mark.parametrize(("m", "n"), [(60, 60), (200, 50)])
@pytest.mark.parametrize("shift", [0.0, 0.8, 2.5])
def test_intervals_hold_the_truth_as_often_as_they_say(m, n, shift) -> None:
    rng = np.random.default_rng([m, n, round(10 * shift)])
    area, best = norm.cdf(shift / math.sqrt(2)), 2 * norm.cdf(shift / 2) - 1
    missed = np.zeros(4, dtype=int)
    for _ in range(TRIALS):
        members, others = rng.normal(shift, 1, m), rng.normal(0, 1, n)
        a, d = auc(members, others), advantage(members, others)
        missed += [a.low > area, a.high < area, d.low > best, d.high < best]
    # At most 2.5 % on each side; a binomial count above this has a probability of 1e-4.
    assert (missed <= 23).all()


def test_scores_without_information_say_nothing() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(TRIALS):
        scores = rng.integers(0, 6, 200).astype(float)
        rows = rng.permutation(200)
        subjects = Subjects(rows[:100], rows[100:150], rows[150:], rng.integers(0, 2, 200))
        found = judge("a", scores, subjects, fprs=(0.1,))
        rate = found.tpr[0]
        wrong += not found.auc.low <= 0.5 <= found.auc.high
        wrong += found.advantage.low > 0
        # Nobody is found more often than others are accused.
        wrong += rate.tpr.low > rate.achieved.high
    assert wrong <= 10


def test_the_upper_limit_of_a_maximum_over_attacks_holds() -> None:
    rng = np.random.default_rng(5)
    missed = [0, 0]
    for _ in range(100):
        n = 120
        rows = np.arange(2 * n)
        subjects = Subjects(rows[:n], rows[n : n + n // 2], rows[n + n // 2 :], rows % 2)
        member = (rows < n).astype(float)
        scores = {f"a{k}": rng.normal(0.6 * member) for k in range(4)}
        results = [judge(name, s, subjects, fprs=(0.1,)) for name, s in scores.items()]
        most = strongest(scores, subjects, results, set())
        truth = 2 * norm.cdf(0.3) - 1
        missed[0] += most.advantage.high < truth
        missed[1] += most.advantage.low > truth
        assert most.advantage.value == max(r.advantage.value for r in results)
        assert most.attacks == 4 and most.advantage_by in scores
    assert missed[0] <= 9 and missed[1] <= 9


def test_lower_limits_of_a_maximum_are_corrected() -> None:
    rng = np.random.default_rng(6)
    rows = np.arange(400)
    subjects = Subjects(rows[:200], rows[200:300], rows[300:], rows % 2)
    scores = {f"a{k}": rng.normal(1.5 * (rows < 200)) for k in range(4)}
    results = [judge(name, s, subjects, fprs=(0.05, 0.001)) for name, s in scores.items()]
    most = strongest(scores, subjects, results, set())
    best = max(results, key=lambda r: r.advantage.value)
    assert most.advantage_by == best.attack
    assert most.advantage.low < best.advantage.low
    assert most.auc.low < max(r.auc.low for r in results)
    assert most.auc.high == max(r.auc.high for r in results)
    top = max((r.tpr[0].tpr for r in results), key=lambda p: p.value)
    assert most.tpr[0].tpr.count == top.count
    assert most.tpr[0].tpr.low == pytest.approx(
        max(beta.ppf(0.05 / 4 / 2, r.tpr[0].tpr.count, 201 - r.tpr[0].tpr.count) for r in results)
    )
    assert most.tpr[1].tpr is None and most.tpr_by[1] is None and "not resolvable" in most.tpr[1].reason


@pytest.mark.parametrize(
    ("fpr", "n", "rank"), [(0.01, 99, 1), (0.01, 100, 1), (0.01, 199, 2), (0.1, 19, 2), (0.001, 999, 1)]
)
def test_the_threshold_is_an_order_statistic(fpr, n, rank) -> None:
    scores = np.random.default_rng(0).permutation(n).astype(float)
    threshold, reason = threshold_for(fpr, scores)
    assert reason is None
    assert (scores >= threshold).sum() == rank


def test_a_threshold_is_exceeded_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(1)
    rates = [float(norm.sf(threshold_for(0.05, rng.normal(size=39))[0])) for _ in range(4000)]
    # k / (n + 1) exactly, for continuous scores; the error of the mean is 0.0006.
    assert np.mean(rates) == pytest.approx(0.05, abs=0.0025)


def test_what_cannot_be_resolved_is_said_to_be_so() -> None:
    for fpr, n, wanted in ((0.01, 98, 99), (0.001, 500, 999), (0.001, 998, 999)):
        found = rate_at(fpr, np.ones(5), np.zeros(n), np.zeros(7))
        assert (found.threshold, found.tpr, found.achieved) == (None, None, None)
        assert (
            found.reason
            == f"not resolvable: {n} non-members to choose the threshold on, and {wanted} are needed"
        )
        assert rate_at(fpr, np.ones(5), np.zeros(wanted), np.zeros(7)).tpr.count == 5
    with pytest.raises(InputError, match="fpr=1.5"):
        threshold_for(1.5, np.zeros(9))


def test_a_part_that_nobody_belongs_to() -> None:
    rows = np.arange(60)
    subjects = Subjects(rows[:20], rows[20:40], rows[40:], rows // 20, np.zeros(60))
    found = judge("a", rows.astype(float), subjects, fprs=(0.1,))
    first, second, _ = found.per_class
    assert (first.members, first.non_members, first.auc, first.advantage) == (20, 0, None, None)
    assert first.tpr[0].tpr.total == 20 and first.tpr[0].achieved is None
    assert second.tpr[0].tpr is None and second.tpr[0].reason == "not resolvable: no members"
    # Nobody is more exposed than the others.
    assert found.most_exposed.members == found.most_exposed.non_members == 0


def test_rates_have_exact_intervals() -> None:
    found = rate_at(0.1, np.arange(40.0), np.arange(19.0), np.arange(100.0))
    assert found.threshold == 17
    assert (found.tpr.count, found.tpr.total) == (22, 40)
    assert (found.achieved.count, found.achieved.total) == (82, 100)
    assert found.tpr.low == pytest.approx(beta.ppf(0.025, 22, 19))
    assert found.tpr.high == pytest.approx(beta.ppf(0.975, 23, 18))


def test_an_attack_that_learned_is_reported_on_the_others_alone() -> None:
    rng = np.random.default_rng(2)
    rows = np.arange(300)
    scores = rng.normal(rows < 100)
    # What was learned from looks like anything at all; no figure may depend on it but the threshold.
    scores[100:200] = 50
    subjects = Subjects(rows[:100], rows[100:200], rows[200:], rows % 2)
    found = judge("a", scores, subjects, learned=True, fprs=(0.1,))
    assert found.non_members == 100
    assert found.auc == auc(scores[:100], scores[200:])
    assert found.advantage == advantage(scores[:100], scores[200:])
    assert found.tpr[0].tpr.count == 0
    assert judge("a", scores, subjects).non_members == 200


def test_parts_are_about_their_samples() -> None:
    rng = np.random.default_rng(4)
    rows = np.arange(2000)
    y = rng.integers(0, 3, 2000)
    exposed = rng.permutation(2000) < 200
    member = rows < 1000
    scores = rng.normal(3.0 * (member & exposed))
    subjects = Subjects(rows[:1000], rows[1000:1500], rows[1500:], y, exposed + 0.001 * rng.random(2000))
    found = judge("a", scores, subjects)
    assert [part.name for part in found.per_class] == ["class 0", "class 1", "class 2"]
    assert sum(part.members for part in found.per_class) == 1000
    assert sum(part.non_members for part in found.per_class) == 1000
    worst = found.most_exposed
    assert worst.members + worst.non_members == 200
    assert worst.auc.value > 0.95 > 0.6 > found.auc.value
    assert worst.tpr[0].threshold == found.tpr[0].threshold
    assert worst.tpr[0].tpr.value > 0.4
    # Three classes at once: wider than one by itself.
    one = found.per_class[0]
    alone = auc(scores[:1000][y[:1000] == 0], scores[1000:][y[1000:] == 0])
    assert one.auc.value == alone.value and one.auc.high > alone.high


def test_the_highest_score_that_six_hundred_samples_can_give() -> None:
    alike = np.arange(600.0)
    assert 100 * (1 - advantage(alike, alike).high) == pytest.approx(92.2, abs=0.1)
