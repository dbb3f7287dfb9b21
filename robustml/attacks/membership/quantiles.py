"""The quantile regression attack: how sure the model would be of a sample that it never saw."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from .signals import Array

__all__ = ["learn_quantiles", "quantile_scores"]

_COMPONENTS = 24
_FOLDS = 4
_ROUNDS = 60


def learn_quantiles(x: Array, y: Array, phi: Array, *, level: float = 0.9, seed: int = 0) -> _Regressor:
    """Learn a quantile of the target's log-odds, given a sample and its label, from non-members alone.

    Bertran et al. 2023, algorithm 1, with gradient boosting of the pinball loss on the principal components
    of the inputs and the label, in place of a network.

    Args:
        x, y, phi: Non-members (n, *shape), (n,), and their log-odds under the target (n,).
        level: The quantile; the false positive rate that one cares for is 1 minus this, but the quantiles
            that few samples cannot show are learned badly.
        seed: Decides what the components and the boosting draw.

    Raises:
        InputError: for fewer than 20 samples.
    """
    return _Regressor(x, y, phi, level, seed)


class _Regressor:
    def __init__(self, x: Array, y: Array, phi: Array, level: float, seed: int) -> None:
        from sklearn.decomposition import PCA
        from sklearn.ensemble import HistGradientBoostingRegressor

        if len(x) < 20:
            raise InputError(f"{len(x)} non-members are too few to learn from; give at least 20")
        flat = _flat(x)
        count = min(_COMPONENTS, *flat.shape)
        self._components = PCA(count, random_state=seed).fit(flat)
        self._boosting = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=_ROUNDS,
            max_leaf_nodes=8,
            learning_rate=0.1,
            min_samples_leaf=min(20, max(2, len(x) // 10)),
            early_stopping=False,
            random_state=seed,
        ).fit(self._seen(flat, y), phi)

    def _seen(self, flat: Array, y: Array) -> Array:
        return np.column_stack([self._components.transform(flat), y])

    def __call__(self, x: Array, y: Array) -> Array:
        predicted: Array = self._boosting.predict(self._seen(_flat(x), y))
        return predicted


def quantile_scores(
    x: Array, y: Array, phi: Array, learn_from: Array, *, level: float = 0.9, seed: int = 0
) -> Array:
    """By how much the log-odds exceed what is usual for a sample like this that was not trained on.

    Each of four regressors learns from three quarters of the rows `learn_from`, and scores the other quarter
    together with a quarter of all other rows: no row is scored by a regressor that has seen it, and those in
    `learn_from` are scored in the way that all others are.

    Args:
        x, y, phi: All samples (n, *shape), (n,), and their log-odds (n,).
        learn_from: Which rows are non-members to learn from, int (r,).
        level, seed: As in `learn_quantiles`; the seed also decides the quarters.

    Returns:
        float64 (n,).
    """
    rng = np.random.default_rng([seed, len(x)])
    learners = np.zeros(len(x), dtype=bool)
    learners[learn_from] = True
    fold = np.empty(len(x), dtype=np.int64)
    for group in (np.flatnonzero(learners), np.flatnonzero(~learners)):
        fold[group] = rng.permutation(np.arange(len(group)) % _FOLDS)
    scores = np.empty(len(x))
    for number in range(_FOLDS):
        teach, ask = learners & (fold != number), fold == number
        learned = learn_quantiles(x[teach], y[teach], phi[teach], level=level, seed=seed)
        scores[ask] = phi[ask] - learned(x[ask], y[ask]) if ask.any() else 0.0
    return scores


def _flat(x: Array) -> Array:
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)
