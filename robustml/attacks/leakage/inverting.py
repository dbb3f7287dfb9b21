"""Reconstructing classes (MI-FACE): the ascent, and a control model that has learned nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...checks import whole
from ...classifier import Classifier, Model
from ...errors import InputError, suggest
from ...registry import Access
from ...sampling import Streams
from .asking import Asked, asked

__all__ = ["Inverted", "invert", "scrambled"]

_OBJECTIVES = ("log-probability", "probability")
_REACH = 0.05  # of the range of a feature: how far a black box is asked to either side
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Inverted:
    """Reconstructions of classes.

    Attributes:
        x: Valid inputs (classes, starts, *shape), in input units.
        confidence: The probability that the model gives to the class there: float64 (classes, starts).
        queries: Rows that the model was asked; a gradient is one query.
    """

    x: Tensor
    confidence: Tensor
    queries: int


def invert(
    model: Model,
    classes: Any = None,
    *,
    starts: int = 4,
    steps: int = 200,
    rate: float = 0.3,
    patience: int = 100,
    directions: int = 32,
    objective: Literal["log-probability", "probability"] = "log-probability",
    seed: int = 0,
    device: str = "auto",
) -> Inverted:
    """Climb to inputs that the model is most sure of (Fredrikson, Jha and Ristenpart 2015, algorithm 1).

    Nothing of the data is used. The first start is the middle of the range of inputs, the others are uniform
    in it; a step is in shares of that range. A `BlackBox` of scores is asked to both sides along random
    directions instead of for its gradient (Ilyas et al. 2018, section 3.1).

    Args:
        model: A `Classifier`, or a `BlackBox` that gives scores.
        classes: Which classes; None for all.
        starts: Reconstructions of each class.
        steps: At most so many for each.
        rate: The length of the first step of log-probability, which shrinks with the root of the steps; of
            probability, what the gradient is multiplied with, as in the paper.
        patience: Stop after so many steps without a higher probability.
        directions: For a black box: pairs of queries for a step.
        objective: What is climbed; the gradient of the probability itself vanishes far from the class.
        seed: Decides the random starts and directions.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: for a model that gives labels only, or an unacceptable argument.
    """
    for name, value in (("starts", starts), ("steps", steps), ("patience", patience)):
        whole(name, value, 1)
    whole("directions", directions, 1)
    if objective not in _OBJECTIVES:
        raise InputError(f"objective={objective!r} is not known{suggest(str(objective), _OBJECTIVES)}")
    if not isinstance(model, Model):
        raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
    if model.access is Access.DECISION:
        raise InputError("the model gives labels only; inversion climbs a score, so it needs scores")
    wanted = list(range(model.classes)) if classes is None else [int(label) for label in classes]
    if not wanted or not all(0 <= label < model.classes for label in wanted):
        raise InputError(f"classes={wanted} has a class outside [0, {model.classes - 1}]")
    labels = torch.tensor(wanted).repeat_interleave(starts)
    ids = labels * 100_003 + torch.arange(starts).repeat(len(wanted))
    with asked(model, device, seed, "leakage/inversion") as target:
        climb = _Climb(target, labels, Streams.derive(seed, "leakage/inversion", ids), directions)
        middle = torch.arange(starts).repeat(len(wanted)) == 0
        point, best = climb.go(middle, steps, rate, patience, log=objective == "log-probability")
    shape = (len(wanted), starts)
    return Inverted(point.view(*shape, *model.inputs.shape), best.view(shape), target.queries)


class _Climb:
    """The ascent in units of the range of each feature, all reconstructions side by side."""

    def __init__(self, target: Asked, labels: Tensor, streams: Streams, directions: int) -> None:
        self.target, self.labels, self.streams, self.directions = target, labels, streams, directions
        spec = target.model.inputs
        reference = torch.zeros(1, *spec.shape, dtype=spec.torch_dtype)
        self.low, high = (spec.like(side, reference) for side in spec.bounds)
        self.range, self.spec = high - self.low, spec

    def go(
        self, middle: Tensor, steps: int, rate: float, patience: int, *, log: bool
    ) -> tuple[Tensor, Tensor]:
        """The surest points on the way (n, *shape) in input units, and their probabilities (n,)."""
        shape, kind = self.spec.shape, self.spec.torch_dtype
        drawn = self.streams.uniform(*shape, dtype=kind)
        z = torch.where(middle.view(-1, *[1] * len(shape)), torch.full_like(drawn, 0.5), drawn)
        best, top = z.clone(), torch.full((len(z),), -math.inf, dtype=torch.float64)
        since, active = torch.zeros(len(z)), torch.arange(len(z))
        for step in range(steps + 1):
            sure, slope = self._look(z[active], active, log=log)
            better = sure > top[active]
            best[active[better]], top[active[better]] = z[active[better]], sure[better]
            since[active] = torch.where(better, 0.0, since[active] + 1)
            going = since[active] < patience
            active, slope = active[going], slope[going]
            if step == steps or not len(active):
                break
            moved = rate * slope
            if log:
                length = slope.flatten(1).norm(dim=1).clamp_min(_LEAST)
                moved = moved / length.view(-1, *[1] * len(shape)) / math.sqrt(step + 1)
            z[active] = (z[active] + moved).clamp(0, 1)
        return self.low + best * self.range, top

    def _look(self, z: Tensor, rows: Tensor, *, log: bool) -> tuple[Tensor, Tensor]:
        """The probability of the class (n,), and the slope of what is climbed (n, *shape)."""
        if self.target.model.access is Access.GRADIENT:
            return self._gradient(z, rows, log=log)
        # Drawn for all, so that it does not matter to one when others have arrived.
        draws = self.streams.normal(self.directions, *z.shape[1:], dtype=z.dtype)[rows]
        draws = draws * _REACH
        aside = torch.cat([z[:, None], z[:, None] + draws, z[:, None] - draws], dim=1).clamp(0, 1)
        asked_of = self.labels[rows].repeat_interleave(aside.shape[1])
        answers = self.target.logits((self.low + aside.flatten(0, 1) * self.range).to(z.dtype))
        scores = answers.log_softmax(1).gather(1, asked_of[:, None])[:, 0].view(len(z), -1)
        heights = scores if log else scores.exp()
        up, down = heights[:, 1 : 1 + self.directions], heights[:, 1 + self.directions :]
        weights = ((up - down) / (2 * _REACH**2 * self.directions)).to(z.dtype)
        slope = (weights.view(*weights.shape, *[1] * (z.ndim - 1)) * draws).sum(1)
        return scores[:, 0].exp(), slope

    def _gradient(self, z: Tensor, rows: Tensor, *, log: bool) -> tuple[Tensor, Tensor]:
        self.target.queries += len(z)
        place = self.target.device
        with torch.enable_grad():
            point = z.to(place).requires_grad_()
            logits = self.target.model(self.low.to(place) + point * self.range.to(place))
            chosen = self.labels[rows].to(place)[:, None]
            score = logits.double().log_softmax(1).gather(1, chosen)[:, 0]
            total = score.sum() if log else score.exp().sum()
            slope: Tensor | None = None
            if total.requires_grad:
                (slope,) = torch.autograd.grad(total, point, allow_unused=True)
        found = torch.zeros_like(z) if slope is None else slope.cpu().nan_to_num(0.0)
        return score.detach().exp().cpu(), found


def scrambled(model: Classifier, *, seed: int = 0) -> Classifier:
    """A copy whose weights are in another order: it has the same shape and scale and has learned nothing."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            order = Streams.derive(seed, f"leakage/scrambled/{number}", torch.arange(parameter.numel()))
            flat = parameter.detach().cpu().flatten()[order.bits(1)[:, 0].argsort(stable=True)]
            parameter.copy_(flat.view_as(parameter))
    return other
