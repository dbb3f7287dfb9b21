"""Poisoned training data: what is changed and what is not, and what it does to a model trained on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from robustml.attacks.poisoning import Blend, Patch, backdoor, flip_labels, poison_test
from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.estimates import clopper_pearson
from robustml.inputs import InputSpec

RNG = np.random.default_rng(0)
X = RNG.random((90, 1, 4, 4)).astype(np.float32)
Y = np.arange(90) % 3


@given(share=st.floats(0.02, 1.0), seed=st.integers(0, 9), target=st.sampled_from([None, 0, 2]))
def test_flipped_labels_are_wrong_and_the_rest_is_as_it_was(share: float, seed: int, target) -> None:
    if round(share * 90) > 60 and target is not None:
        return
    found = flip_labels((X, Y), share=share, target=target, seed=seed)
    assert len(found.rows) == round(share * 90)
    assert (found.y[found.rows] != Y[found.rows]).all()
    assert target is None or (found.y[found.rows] == target).all()
    assert set(found.y) <= {0, 1, 2}
    rest = np.setdiff1d(np.arange(90), found.rows)
    assert (found.y[rest] == Y[rest]).all()
    assert (found.x == X).all()
    assert (np.arange(90) % 3 == Y).all()


def test_every_other_class_is_as_likely() -> None:
    y = np.zeros(4000, dtype=np.int64)
    y[:4] = [1, 5, 7, 7]
    found = flip_labels((np.zeros((4000, 1), dtype=np.float32), y), share=1.0)
    flipped = found.y[y == 0]
    counts = np.array([(flipped == k).sum() for k in (1, 5, 7)])
    assert counts.sum() == len(flipped)
    assert (abs(counts - len(flipped) / 3) < 4 * np.sqrt(len(flipped) * 2 / 9)).all()


def test_a_source_class_is_all_that_is_flipped() -> None:
    found = flip_labels((X, Y), share=0.2, source=1, target=2)
    assert (Y[found.rows] == 1).all()
    assert (found.y[found.rows] == 2).all()


def test_a_seed_decides_which() -> None:
    one, again, other = (flip_labels((X, Y), share=0.3, seed=s) for s in (1, 1, 2))
    assert (one.rows == again.rows).all()
    assert (one.y == again.y).all()
    assert set(one.rows) != set(other.rows)


def test_a_backdoor_puts_the_trigger_on_other_classes_alone() -> None:
    found = backdoor((X, Y), Patch(2, value=0.5), target=1, share=0.3)
    assert (Y[found.rows] != 1).all()
    assert (found.y[found.rows] == 1).all()
    rest = np.setdiff1d(np.arange(90), found.rows)
    assert (found.x[rest] == X[rest]).all()
    assert (found.x[found.rows][..., 2:, 2:] == 0.5).all()
    untouched = np.ones((4, 4), dtype=bool)
    untouched[2:, 2:] = False
    assert (found.x[found.rows][..., untouched] == X[found.rows][..., untouched]).all()


def test_the_patch_of_a_row_is_its_last_features() -> None:
    z = Patch(2, value=9.0)(torch.zeros(3, 5))
    assert z.tolist() == [[0, 0, 0, 9, 9]] * 3


def test_a_blend_is_a_weighted_mean() -> None:
    trigger = Blend.noise((1, 4, 4), share=0.25, low=2.0, high=4.0, seed=3)
    z = trigger(torch.from_numpy(X))
    assert torch.allclose(z, 0.75 * torch.from_numpy(X) + 0.25 * trigger.pattern.float())
    assert ((trigger.pattern >= 2) & (trigger.pattern < 4)).all()
    assert torch.equal(trigger.pattern, Blend.noise((1, 4, 4), low=2.0, high=4.0, seed=3).pattern)


def _digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, None]
    return (x[:900], digits.target[:900]), (x[900:], digits.target[900:])


def _fit(x: np.ndarray, y: np.ndarray) -> BlackBox:
    estimator = LogisticRegression(max_iter=300).fit(x.reshape(len(x), -1), y)
    return BlackBox.from_sklearn(estimator, inputs=InputSpec(shape=x.shape[1:]))


def test_a_backdoor_opens_and_costs_no_accuracy() -> None:
    train, test = _digits()
    poisoned = backdoor(train, Patch(2), target=0, share=0.05)
    result = poison_test(_fit, train, poisoned, test)
    assert result.poisoned == 45
    assert result.success.low > 0.8
    assert result.chance.high < 0.1
    assert result.success.total == result.chance.total == int((test[1] != 0).sum())
    assert result.change.low > -0.05
    assert (result.success.low, result.success.high) == clopper_pearson(
        result.success.count, result.success.total
    )
    assert "45 of 900 training samples poisoned" in str(result)


def test_flipped_labels_cost_accuracy() -> None:
    train, test = _digits()
    result = poison_test(_fit, train, flip_labels(train, share=0.4), test)
    assert result.change.high < 0
    assert result.after.high < result.before.low
    assert result.success.count == result.after.total - result.after.count
    aimed = poison_test(_fit, train, flip_labels(train, share=0.07, source=1, target=7), test)
    assert aimed.success.total == int((test[1] == 1).sum())
    assert aimed.success.low > aimed.chance.high


def test_poison_that_changes_nothing_is_seen_to_change_nothing() -> None:
    calls = []

    def fit(x: np.ndarray, y: np.ndarray):
        calls.append(y)
        return lambda batch: torch.zeros(len(batch), dtype=torch.int64)

    poisoned = backdoor((X, Y), Patch(1), target=0, share=0.1)
    result = poison_test(fit, (X, Y), poisoned, (X, Y))
    assert (calls[0] == Y).all()
    assert (calls[1] == poisoned.y).all()
    assert (result.before.count, result.after.count, result.change.value) == (30, 30, 0)
    assert result.success.count == result.chance.count == 60


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: flip_labels((X, Y), share=0), "share=0 is not a share above 0"),
        (lambda: flip_labels((X, Y), share=float("nan")), "share=nan"),
        (lambda: flip_labels((X, Y), share=0.001), "share=0.001 is 0 samples, and 90 can be poisoned"),
        (lambda: flip_labels((X, Y), share=0.9, target=1), "81 samples, and 60 can be poisoned"),
        (lambda: flip_labels((X, Y), share=0.1, target=3), "target=3 is not a class of the data"),
        (lambda: flip_labels((X, Y), share=0.1, source=True), "source=True is not a class"),
        (lambda: flip_labels((X, Y), share=0.1, source=1, target=1), "two classes"),
        (lambda: flip_labels((X, Y * 0), share=0.1), "two classes"),
        (lambda: flip_labels((X, Y[:5]), share=0.1), "x has 90 rows and y shape"),
        (lambda: backdoor((X, Y), lambda x: x[:, :1, :2], target=0, share=0.1), "trigger has to return"),
        (lambda: Patch(0), "size=0 is not a whole number"),
        (lambda: Patch(1, float("inf")), "value=inf is not a finite number"),
        (lambda: Blend(torch.zeros(3), 1.5), "share=1.5 is not a share"),
        (lambda: Blend([1.0]), "pattern is list"),
        (
            lambda: poison_test(
                _fit, (X, Y), backdoor((X, Y), Patch(1), target=0, share=0.1), (X[:1], Y[:1])
            ),
            "test has no sample",
        ),
        (
            lambda: poison_test(_fit, (X[:50], Y[:50]), flip_labels((X, Y), share=0.1), (X, Y)),
            "train has shape",
        ),
    ],
)
def test_mistakes_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
