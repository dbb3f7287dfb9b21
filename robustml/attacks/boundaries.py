"""The nearest decision boundary of several, by linearising the model once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .nearest import Nearest
from .planes import ENDLESS, to_plane
from .radii import ahead, dual_of, free_slope

__all__ = ["Boundary", "fewest_features", "likely_classes", "nearest_boundary", "step_across"]

_FLAT = 1e-3  # of the steepest class: how steep a class is taken to be at least


@dataclass(frozen=True)
class Boundary:
    """What one look at a batch says about its nearest boundaries.

    Attributes:
        scale: Turns the gap between a class's logit and the label's into a distance to first order, for
            each class (n, classes). Classes that were not looked at are taken for average.
        away: The distance of the nearest boundary to first order (n,), negative for what is wrong already.
        slope: The gradient of minus this distance with respect to the perturbation (n, features), 0 for what
            cannot move that way.
    """

    scale: Tensor
    away: Tensor
    slope: Tensor


def likely_classes(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The wrong classes with the largest logits, at most so many: int64 (n, k)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def nearest_boundary(
    search: Nearest, delta: Tensor, low: Tensor, high: Tensor, *, count: int, smooth: bool = False
) -> Boundary:
    """Find the nearest linearised boundary among those of the likeliest classes.

    The class with the largest wrong logit is often not the nearest one (MALT, Melamed et al. 2024), and an
    attack that follows the margin seldom leaves the class that it begins with.

    Args:
        search: The samples; one forward pass, and one backward pass per class, are spent on each.
        delta: The perturbation at which to linearise, within its range (n, features).
        low: Lowest value of each entry of `delta` (n, features).
        high: Highest value of each entry of `delta` (n, features).
        count: How many classes to look at, at most.
        smooth: Linearise with the surrogates.
    """
    norm = search.ball.threat.norm
    chosen: list[Tensor] = []

    def candidates(logits: Tensor) -> Tensor:
        chosen.append(likely_classes(logits, search.y, count))
        return chosen[0]

    logits, gradients = search.slopes(search.ball.point(delta), candidates, smooth=smooth)
    logits = logits.nan_to_num()
    slopes = [free_slope(search.ball.slope(g), delta, low, high) for g in gradients.unbind(1)]
    steep = torch.stack([dual_of(norm, slope, low, high) for slope in slopes], dim=1)
    # A class whose logit does not move must not look infinitely far from its boundary, nor infinitely near.
    floor = _FLAT * steep.amax(1, keepdim=True)
    steep = torch.where(floor > 0, torch.maximum(steep, floor), 1.0)
    scale = (1 / steep.mean(1, keepdim=True)).expand_as(logits).scatter(1, chosen[0], 1 / steep)
    leads = logits.gather(1, search.y[:, None]) - logits.gather(1, chosen[0])
    away, place = (leads / steep).min(1)
    nearest = torch.zeros_like(delta)
    for index, slope in enumerate(slopes):
        weight = (place == index).to(delta.dtype) / steep[:, index]
        nearest.addcmul_(weight[:, None], slope)
    return Boundary(scale, away, nearest)


def fewest_features(boundary: Boundary, low: Tensor, high: Tensor) -> Tensor:
    """Cross a linearised boundary by the fewest features, each at the end of its range.

    Args:
        boundary: The boundary, seen from the inputs.
        low: Lowest change of each feature (n, features).
        high: Highest change of each feature (n, features).

    Returns:
        The perturbation (n, features); the smallest there is if the model is linear.
    """
    slope = boundary.slope
    up = torch.gt(slope, 0).to(slope.dtype)
    end = torch.lerp(low, high, up)
    none = torch.zeros_like(slope)
    share = to_plane("l1", slope * end, boundary.away.clamp_min(0), none, torch.ones_like(slope))
    changed = torch.gt(share, 0).to(slope.dtype)
    # Where there is no end, to twice as far as the boundary seems to be.
    return torch.where(end.abs() < ENDLESS, changed * end, 2 * share * end)


def step_across(norm: str, boundary: Boundary, delta: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The perturbation after a step to a linearised boundary, as far as it seems to be: (n, features).

    Features at the end of their range take no part, and the others do their share, but no more: where the
    step ends many of them, to go farther with the rest would trust the linearisation too far.

    Args:
        norm: "linf" or "l2".
        boundary: The boundary, seen from about `delta`.
        delta: A perturbation (n, features).
        low: Lowest value of each entry of `delta` (n, features).
        high: Highest value of each entry of `delta` (n, features).
    """
    further = ahead(norm, delta, boundary.slope, boundary.away)
    return torch.minimum(torch.maximum(further, low), high)
