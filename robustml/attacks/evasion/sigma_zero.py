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
from ..boundaries import fewest_features, nearest_boundary
from ..nearest import Nearest
from ..penalty import column_if_alike, scaled_margin
from ..planes import ENDLESS

_SMOOTH_SHARE = 0.6
_SIGMA = 1e-3  # below its square root a change hardly counts as one, beyond it fully
_RATE = (1.0, 0.1)  # the first and the last step, as a share of a feature's range
_CHANGE = 0.01  # of the threshold, per step and as a share of the rate
_BETAS = (0.9, 0.999)
_FLOOR = 1e-8  # of the root of the mean square, in Adam
_TINY = 1e-12


@dataclass
class _State(Columns):
    share: Tensor
    """The perturbation as a share of each feature's range (n, features)."""
    low: Tensor
    high: Tensor
    """The limits of `share`."""
    width: Tensor
    """The range of each feature: (n, features), or (n, 1) if they are the same."""
    threshold: Tensor
    """The share below which a change is dropped (n,)."""
    scale: Tensor
    """What turns the lead of each class into a distance (n, classes)."""
    first: Tensor
    second: Tensor
    """Moments of the gradient (n, features)."""


@attack(
    "sigma-zero",
    access=Access.GRADIENT,
    norms={"l0"},
    reference="Cina, Villani, Pintor, Schonherr, Biggio and Pelillo 2024, Algorithm 1",
    minimum=True,
)
def sigma_zero(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(2)] = 100,
    classes: Annotated[int, Ge(1)] = 3,
    threshold: Annotated[float, Gt(0)] = 0.3,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """sigma-zero: descent on a smooth count of the changed features, with a threshold that adapts.

    Beyond the paper: the leads of the classes are weighed by how far their boundaries seem to be, the fewest
    features that would do if the model were linear are tried first, and changes are counted in shares of the
    range of each feature, so that its units do not matter. As in the authors' code, steps are those of Adam.

    Args:
        steps: Evaluations of the model; the last one takes no gradient.
        classes: How many classes to look at in the first step, a backward pass each.
        threshold: The first threshold, as a share of a feature's range: smaller changes are dropped.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    smooth = gradient == "smooth"
    state = _begin(search, classes, threshold, smooth=smooth)
    for step in range(1, steps - 1):
        if not search.prune(step - 1, state, done=search.reached <= 1):
            return search.finish()
        _advance(search, state, step, steps, smooth=smooth and step < _SMOOTH_SHARE * steps)
    search.look(search.ball.point(state.share * state.width))
    return search.finish()


def _begin(search: Nearest, classes: int, threshold: float, *, smooth: bool) -> _State:
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    boundary = nearest_boundary(search, torch.zeros_like(low), low, high, count=classes, smooth=smooth)
    # The optimum if the model is linear; elsewhere the search does better from the input.
    search.look(search.ball.point(fewest_features(boundary, low, high)))
    width = column_if_alike((high - low).clamp_min(_TINY))
    return _State(
        share=torch.zeros_like(low),
        low=low / width,
        high=high / width,
        width=width,
        threshold=torch.full_like(boundary.away, threshold),
        scale=boundary.scale,
        first=torch.zeros_like(low),
        second=torch.zeros_like(low),
    )


def _advance(search: Nearest, state: _State, step: int, steps: int, *, smooth: bool) -> None:
    """Equations 3 to 5: a step down the penalty and the count, and what is too small for a change goes."""
    before = search.reached
    share = state.share
    work = share * state.width
    point = search.ball.point(work)
    lead, gradient = search.climb(point, scaled_margin(state.scale), smooth=smooth)
    success = (lead > 0) | (search.reached < before)
    ascent = search.ball.slope(gradient).mul_(state.width)
    # The slope of the count, up to a factor by which the penalty is divided: only the direction matters.
    descent = torch.square(share, out=work).add_(_SIGMA).square_()
    torch.div(share, descent, out=descent)
    relative = (~success) * (ascent.shape[1] / (2 * _SIGMA))
    descent.addcmul_(ascent, relative[:, None].to(ascent.dtype), value=-1)
    # The absolute values would have to be written first.
    peak = torch.maximum(descent.amax(1, keepdim=True), -descent.amin(1, keepdim=True))
    descent *= peak.clamp_min(_TINY).reciprocal_()
    rate = _RATE[1] + (_RATE[0] - _RATE[1]) * (1 + math.cos(math.pi * step / steps)) / 2
    _adam(state, descent, step, rate)
    share.clamp_(state.low, state.high)
    change = torch.where(success, _CHANGE * rate, -_CHANGE * rate)
    state.threshold = (state.threshold + change).clamp(0, 1)
    kept = torch.abs(share, out=work)
    share.mul_(torch.gt(kept, state.threshold[:, None], out=kept))


def _adam(state: _State, descent: Tensor, step: int, rate: float) -> None:
    """Move the shares; it overwrites `descent`."""
    state.first.lerp_(descent, 1 - _BETAS[0])
    state.second.mul_(_BETAS[1]).addcmul_(descent, descent, value=1 - _BETAS[1])
    # The mean of the squares starts at 0, for which the length of the step makes up.
    even = math.sqrt(1 - _BETAS[1] ** step)
    inverse = torch.add(state.second, (_FLOOR * even) ** 2, out=descent).rsqrt_()
    state.share.addcmul_(inverse, state.first, value=-rate * even / (1 - _BETAS[0] ** step))
