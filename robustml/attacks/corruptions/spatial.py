"""Rotation and translation: small movements of the camera, the worst of which is searched for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...inputs import InputSpec
from ...registry import Grid, transformations
from .filters import sample, spread

__all__ = ["spatial"]


@dataclass(frozen=True)
class _Poses:
    """A grid of poses: degrees counterclockwise, and pixels down and to the right."""

    spec: InputSpec
    poses: tuple[tuple[float, float, float], ...]

    @functools.cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.poses, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.poses)

    def apply(self, x: Tensor, place: Tensor) -> Tensor:
        """See `robustml.registry.Grid.apply`."""
        unit = self.spec.to_unit(x)
        pose = self._table.to(x.device)[place]
        angle, down, right = (part[:, None, None] for part in pose.unbind(1))
        angle = angle * (math.pi / 180)
        middle = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
        rows, columns = spread(unit)
        # Each pixel looks up where it comes from: back along the translation, then back by the rotation.
        v, u = rows - middle[0] - down, columns - middle[1] - right
        back_v, back_u = angle.sin() * u + angle.cos() * v, angle.cos() * u - angle.sin() * v
        seen = sample(unit, middle[0] + back_v, middle[1] + back_u, outside="zeros")
        return self.spec.from_unit(seen, x)

    def describe(self, place: int) -> str:
        """See `robustml.registry.Grid.describe`."""
        angle, down, right = self.poses[place]
        return f"rotated by {angle:g} degrees, moved {down:g} pixels down and {right:g} to the right"


@transformations("spatial", reference="Engstrom et al. 2019, section 3 (grid search)")
def spatial(
    spec: InputSpec,
    *,
    rotation: Annotated[float, Ge(0), Le(180)] = 30.0,
    translation: Annotated[float, Ge(0), Le(1)] = 0.1,
    rotations: Annotated[int, Gt(0), Le(1000)] = 31,
    translations: Annotated[int, Gt(0), Le(100)] = 5,
) -> Grid:
    """Rotation and translation of the image; what comes in from outside is black (the lowest value).

    Args:
        rotation: The largest rotation, in degrees either way.
        translation: The largest translation, as a share of the height and of the width.
        rotations: How many rotations are tried, evenly spaced.
        translations: How many translations are tried along each axis, evenly spaced.
    """
    angles = _between(rotation, rotations)
    downs = _between(translation * spec.shape[1], translations)
    rights = _between(translation * spec.shape[2], translations)
    poses = {(a, d, r) for a in angles for d in downs for r in rights}

    def mildness(pose: tuple[float, float, float]) -> tuple[float, tuple[float, float, float]]:
        limits = (rotation, translation * spec.shape[1], translation * spec.shape[2])
        shares = [abs(part) / limit for part, limit in zip(pose, limits, strict=True) if limit]
        return -sum(shares), pose

    # The most drastic first: what they break need not be tried again. The last one is the image as it is.
    return _Poses(spec, tuple(sorted(poses, key=mildness)))


def _between(limit: float, count: int) -> list[float]:
    """`count` numbers from -limit to limit, or 0 alone."""
    if count == 1 or limit == 0:
        return [0.0]
    return [limit * (2 * step - (count - 1)) / (count - 1) for step in range(count)]
