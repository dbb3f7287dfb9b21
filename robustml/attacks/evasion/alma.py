from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns
from ..nearest import Nearest
from ..penalty import bisect, scaled_margin, scales

# As in the paper: how slowly the multiplier follows, its limits, and what counts as progress.
_INERTIA = 0.9
_LIMITS = (1e-6, 1e12)
_PROGRESS = 0.95
# How often and by how much the curvature of the penalty grows; faster than in the paper, with fewer steps.
_CHECK = 5
_GROWTH = 1.5
_MOMENTUM = 0.9
_RMS = 0.99
_AIMED = 0.5  # the share of the steps that go towards one class
_LAST = 0.003  # the share of the first step that is left at the end
_REFINE = 4  # forward passes that move the result to the boundary
_TINY = 1e-30


@dataclass
class _State(Columns):
    scale: Tensor
    """Of the margin to each class (n, classes)."""
    target: Tensor
    """The class whose boundary seemed to be the nearest at the input, int64 (n,)."""
    delta: Tensor
    """The perturbation (n, features)."""
    velocity: Tensor
    square: Tensor
    """Running means of the gradient and of its square (n, features)."""
    low: Tensor
    high: Tensor
    """The range of the perturbation."""
    length: Tensor
    """How far the boundary seems to be (n,)."""
    multiplier: Tensor
    curvature: Tensor
    """Of the penalty (n,)."""
    lack: Tensor
    """By how much the constraint was violated at the last check (n,)."""
    solved: Tensor
    """Whether there has been a success since, bool (n,)."""


@attack(
    "alma",
    access=Access.GRADIENT,
    norms={"l2", "l1"},
    reference="Rony et al. 2021, Algorithm 1",
    minimum=True,
)
def alma(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(1)] = 300,
    step_size: Annotated[float, Gt(0)] = 6.0,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """ALMA: the distance under the constraint of a wrong answer, by an augmented Lagrangian.

    The constraint is the margin in units of the linearised distance, so that the first multiplier of 1 is
    right for a linear model, whatever the scale of logits and inputs. For L1 the distance acts through
    its proximal step, which keeps perturbations sparse.

    Args:
        steps: Gradient steps.
        step_size: Length of the first steps, relative to the distance of the boundary; long ones get past
            features that have no gradient at the input.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    smooth = gradient == "smooth"
    state = _begin(search, smooth=smooth)
    for step in range(steps):
        # The first steps are long, and could leave the search near the boundary of another class.
        aim = state.target if step < _AIMED * steps else None
        objective = scaled_margin(state.scale, target=aim)
        value, slope = search.climb(search.ball.point(state.delta), objective, smooth=smooth)
        pressure = _press(state, value)
        share = step_size * _LAST ** (step / steps)
        _move(state, threat.norm, search.ball.slope(slope), pressure, step, share)
        if (step + 1) % _CHECK == 0:
            _harden(state, value)
        if not search.prune(step, state):
            break
    bisect(search, _REFINE)
    return search.finish()


def _begin(search: Nearest, *, smooth: bool) -> _State:
    scale, target, length = scales(search, smooth=smooth)
    delta = search.ball.delta(search.x)
    low, high = search.ball.room()
    return _State(
        scale=scale,
        target=target,
        delta=delta,
        velocity=torch.zeros_like(delta),
        square=torch.zeros_like(delta),
        low=low,
        high=high,
        length=length,
        multiplier=torch.ones_like(length),
        curvature=1 / length.clamp_min(_TINY),
        lack=torch.full_like(length, torch.inf),
        solved=torch.zeros_like(length, dtype=torch.bool),
    )


def _press(state: _State, value: Tensor) -> Tensor:
    """The slope of the penalty P2 (section 3.1) at a margin (n,), which the multiplier then follows."""
    short = -value
    above, below = short.clamp_min(0), short.clamp_max(0)
    rho, mu = state.curvature, state.multiplier
    rising = mu * (1 + 2 * rho * above) + (rho * above).square() / 2
    pressure = torch.where(short >= 0, rising, mu / (1 - rho * below).square()).clamp(*_LIMITS)
    state.multiplier = torch.lerp(pressure, mu, _INERTIA)
    state.solved = state.solved | (value > 0)
    return pressure


def _move(state: _State, norm: str, slope: Tensor, pressure: Tensor, step: int, share: float) -> None:
    """One step of RMSProp with momentum on distance and penalty; it overwrites `slope`."""
    delta = state.delta
    push = slope.mul_(-pressure[:, None])
    if norm == "l1":
        whole = delta.sign().add_(push)
    else:
        length = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
        whole = push.addcmul_(delta, length.clamp_min_(_TINY).reciprocal_())
    state.square.mul_(_RMS).addcmul_(whole, whole, value=1 - _RMS)
    # For L1 the distance has its own, proximal step.
    state.velocity.lerp_(push, 1 - _MOMENTUM)
    size = share * math.sqrt((1 - _RMS ** (step + 1)) / whole.shape[1]) * state.length
    rate = torch.add(state.square, _TINY, out=whole).rsqrt_().mul_(size[:, None])
    moved = delta.addcmul_(state.velocity, rate, value=-1 / (1 - _MOMENTUM ** (step + 1)))
    if norm == "l1":
        moved.sub_(torch.clamp(moved, -rate, rate))
    moved.clamp_(state.low, state.high)


def _harden(state: _State, value: Tensor) -> None:
    """Let the penalty grow where the constraint is neither met nor getting nearer."""
    lack = -value
    stuck = ~state.solved & (lack > _PROGRESS * state.lack)
    state.curvature = torch.where(stuck, state.curvature * _GROWTH, state.curvature)
    state.lack = lack
    state.solved = torch.zeros_like(state.solved)
