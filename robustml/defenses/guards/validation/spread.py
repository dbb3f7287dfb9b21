"""How far an input lies from the training data as a whole: a Mahalanobis distance of limited rank.

The covariance is that of probabilistic PCA (Tipping and Bishop 1999, equations 6 to 8): the `rank` widest
directions have their own variance, all others share one. It costs rank + 1 multiplications per feature, and
is a figure that random noise, foreign data and broken sensors move. Adversarial perturbations are made to be
small, so they hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spread", "fit_spread"]

_BLOCK = 4096  # rows that are brought to double precision at a time
_MOST_FEATURES = 2048  # up to here the covariance itself fits; beyond, that of so many rows
_NARROWEST = 1e-3  # the least variance of a direction, in units of the mean one


@dataclass(frozen=True)
class Spread:
    """The distance: |w|^2 - |w D|^2 with w = (x - center) * weight.

    Attributes:
        center, weight: (features,) each.
        directions: D, (features, rank).
    """

    center: Tensor
    weight: Tensor
    directions: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Squared distances (n,) of a batch (n, *shape), divided by the number of features."""
        away = (x.flatten(1) - self.center.to(x)) * self.weight.to(x)
        inside = away @ self.directions.to(x)
        return (away.square().sum(1) - inside.square().sum(1)) / away.shape[1]

    def blocks(self, x: Tensor) -> Tensor:
        """The same for a large x, in double precision."""
        return torch.cat([self(block.double()) for block in _blocks(x)])


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))


def fit_spread(x: Tensor, rank: int, groups: int) -> Spread:
    """Fit center, scale and directions to x (n, features).

    Args:
        x: Training data.
        rank: How many directions have a variance of their own.
        groups: How many scales there are; so many runs of neighboring features share one each.
    """
    mean = sum(block.double().sum(0) for block in _blocks(x)) / len(x)
    assert isinstance(mean, Tensor)
    variance = sum((block.double() - mean).square().sum(0) for block in _blocks(x)) / len(x)
    assert isinstance(variance, Tensor)
    shared = variance.view(groups, -1).mean(1)
    # What never varies has no scale; that it never does is the business of the training ranges.
    scale = torch.where(shared > 0, shared.rsqrt(), 0.0).repeat_interleave(len(mean) // groups)
    values, vectors = _widest(x, mean, scale, rank)
    total = float((variance * scale.square()).sum())
    rest = len(mean) - len(values)
    left = max(total - float(values.sum()), 0.0) / rest if rest else float(values.min())
    floor = max(left, _NARROWEST * total / len(mean), 1e-12)
    gain = (1 - floor / values.clamp_min(floor)).sqrt()
    # Laid out as it will be after saving and loading: another layout is multiplied in another order.
    return Spread(mean, scale / math.sqrt(floor), (vectors * gain).contiguous())


def _widest(x: Tensor, mean: Tensor, scale: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the covariance (r,) and their eigenvectors (features, r)."""
    features = len(mean)
    rank = min(rank, features)
    if features <= _MOST_FEATURES:
        covariance = torch.zeros(features, features, dtype=torch.float64)
        for block in _blocks(x):
            away = (block.double() - mean) * scale
            covariance += away.T @ away
        values, vectors = torch.linalg.eigh(covariance / len(x))
        return values[-rank:].clamp_min(0), vectors[:, -rank:]
    # Rows of the same order, evenly chosen: their inner products have the same eigenvalues.
    away = (x[:: -(-len(x) // _MOST_FEATURES)].double() - mean) * scale
    values, inner = torch.linalg.eigh(away @ away.T / len(away))
    values, inner = values[-rank:].clamp_min(1e-12), inner[:, -rank:]
    return values, away.T @ inner / (values * len(away)).sqrt()
