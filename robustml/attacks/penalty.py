"""What attacks share that weigh the distance against a penalty on a right answer: the weight, per sample.

Such an attack minimises distance + weight * penalty in stages; a stage with a success asks for a smaller
weight and one without for a larger one. Every sample has its own stage, ends it on its own and leaves when it
has had them all, so that no sample waits for another or is cut short by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..losses import Loss
from ..threats import overwrite_, reads_freely
from .active import Columns
from .nearest import Nearest

__all__ = [
    "Confident",
    "Stages",
    "bisect",
    "column_if_alike",
    "erase_",
    "restore_",
    "scaled_margin",
    "scales",
]

_FACTOR = 10.0  # how fast the weight is raised or lowered until it is bracketed (Carlini & Wagner 2017)
_SURE = 4.0  # to a weight that sufficed once, for a stage that must not fail
_LARGEST = 1e30
_STALL = 0.9999  # an objective that is not below this share of the last one is no progress
_PATIENCE = 3  # checks without progress that end a stage
_CHECKS = 10  # how often a stage is asked whether it still gets anywhere
_MEASURED = 9  # classes whose boundaries are measured
_FLAT = 1e-3
_ROUNDING = 8  # units in the last place within which numbers cannot be told from one another


class Confident(Nearest):
    """A search to which a point is adversarial once a wrong logit exceeds the label's by more than a margin.

    Attributes:
        confidence: That margin.
    """

    confidence = 0.0

    def _record(self, point: Tensor, logits: Tensor) -> None:
        if self.confidence:
            raised = logits.gather(1, self.y[:, None]) + self.confidence
            logits = logits.scatter(1, self.y[:, None], raised)
        super()._record(point, logits)


@dataclass
class Stages(Columns):
    """The weights of a batch and how far each sample is in the search for them; all are (n,)."""

    weight: Tensor
    short: Tensor
    """The largest weight that failed."""
    ample: Tensor
    """The smallest weight that sufficed."""
    left: Tensor
    """Whether this stage has seen a right answer, bool."""
    solved: Tensor
    """Whether it has seen a wrong one since, bool."""
    age: Tensor
    """Steps of this stage."""
    stage: Tensor
    """Stages that are over."""
    stale: Tensor
    """Checks in a row that saw no progress."""
    objective: Tensor
    """The lowest objective of this stage."""
    reference: Tensor
    """The lowest objective of this stage at the last check."""

    @classmethod
    def begin(cls, weight: Tensor) -> Self:
        """Start everywhere with a first weight (n,)."""
        zeros, whole = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.int64)
        infinite = torch.full_like(weight, torch.inf)
        return cls(
            weight=weight.clamp_max(_LARGEST),
            short=zeros,
            ample=infinite,
            left=whole.bool(),
            solved=whole.bool(),
            age=whole,
            stage=whole.clone(),
            stale=whole.clone(),
            objective=infinite.clone(),
            reference=infinite.clone(),
        )

    def note(self, objective: Tensor, success: Tensor) -> None:
        """Enter the objective of a step (n,) and whether it was a success, bool (n,)."""
        self.age = self.age + 1
        # A stage that begins at a success proves its weight only by coming back to one.
        self.solved = self.solved | (self.left & success)
        self.left = self.left | ~success
        self.objective = torch.fmin(self.objective, objective)

    @staticmethod
    def period(steps: int) -> int:
        """After how many steps of a stage of so many the stages are to be asked whether they are over."""
        return -(-steps // _CHECKS)

    def turn(self, steps: int, stages: int) -> Tensor:
        """End the stages that are over and choose the weights of the next ones.

        The last stage of several takes the smallest weight that has sufficed, to make the most of it.

        Args:
            steps: The most steps of a stage.
            stages: How many stages there are.

        Returns:
            Which stages were over: bool (n,).
        """
        stale = torch.where(self.objective > _STALL * self.reference, self.stale + 1, 0)
        over = (self.age >= steps) | (stale >= _PATIENCE)
        if reads_freely(over) and not bool(over.any()):
            self.stale, self.reference = stale, self.objective
            return over
        solved = self.solved | ~self.left
        ample = torch.where(over & solved, torch.fmin(self.ample, self.weight), self.ample)
        short = torch.where(over & ~solved, torch.fmax(self.short, self.weight), self.short)
        raised = torch.where(ample < torch.inf, (short * ample).sqrt(), short * _FACTOR)
        chosen = torch.where(short > 0, raised, ample / _FACTOR).clamp_max(_LARGEST)
        refine = (self.stage == stages - 2) & (ample < torch.inf)
        self.weight = torch.where(over, torch.where(refine, ample * _SURE, chosen), self.weight)
        self.short, self.ample = short, ample
        self.reference = torch.where(over, torch.inf, self.objective)
        self.objective = torch.where(over, torch.inf, self.objective)
        self.solved, self.left = self.solved & ~over, self.left & ~over
        self.age, self.stale = torch.where(over, 0, self.age), torch.where(over, 0, stale)
        self.stage = self.stage + over
        return over


def scales(search: Nearest, *, smooth: bool, confidence: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """What turns gaps of logits into distances to first order, from one look at the inputs.

    Among several classes the nearest boundary is often not that of the largest logit (MALT, Melamed et al.
    2024). One forward pass, and one backward pass for each class that is measured.

    Args:
        search: The samples.
        smooth: Measure with the gradients of the surrogates.
        confidence: By how much a wrong logit must exceed the label's.

    Returns:
        For each class, the inverse of the dual norm of the gradient of its logit minus the label's
        (n, classes); the class with the nearest boundary, int64 (n,); and the distance of that boundary
        (n,), no more than the range allows. Classes that are not among the likeliest are taken for average.
    """
    likely: list[Tensor] = []

    def likeliest(logits: Tensor) -> Tensor:
        others = logits.scatter(1, search.y[:, None], -torch.inf)
        likely.append(others.topk(min(_MEASURED, logits.shape[1] - 1), dim=1).indices)
        return likely[0]

    logits, slopes = search.slopes(search.x, likeliest, smooth=smooth)
    steep = torch.stack([search.ball.dual(slope) for slope in slopes.unbind(1)], dim=1)
    # A class whose logit does not move must not look infinitely far from its boundary, nor infinitely near.
    floor = _FLAT * steep.amax(1, keepdim=True)
    steep = torch.where(floor > 0, steep.clamp_min(floor), 1.0)
    scale = (1 / steep.mean(1, keepdim=True)).expand_as(logits).scatter(1, likely[0], 1 / steep)
    gaps = (logits - logits.gather(1, search.y[:, None]) - confidence) * scale
    lead, target = gaps.scatter(1, search.y[:, None], -torch.inf).max(1)
    return scale, target, torch.minimum(lead.abs().nan_to_num(1.0, 1.0), _span(search))


def scaled_margin(scale: Tensor, confidence: float = 0.0, target: Tensor | None = None) -> Loss:
    """The margin with a scale for each class, (n, classes); positive once the prediction is wrong.

    Args:
        scale: As `scales` returns it.
        confidence: By how much a wrong logit must exceed the label's.
        target: The class to go by, int64 (n,); the label where that of the largest value is to count.
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        label, seen = y[:, None], logits.detach()
        # Which class it is has no gradient, and to differentiate the choice takes long.
        gaps = ((seen - (seen.gather(1, label) + confidence)) * scale).scatter_(1, label, -torch.inf)
        chosen = gaps.argmax(1, keepdim=True)
        if target is not None:
            chosen = torch.where(target[:, None] == label, chosen, target[:, None])
        gap = logits.gather(1, chosen) - logits.gather(1, label)
        return ((gap - confidence if confidence else gap) * scale.gather(1, chosen))[:, 0]

    return loss


def _span(search: Nearest) -> Tensor:
    """The length of the longest valid perturbation (n,), infinite where there is no limit."""
    low, high = search.ball.room()
    return search.ball.length(search.ball.point(torch.where(high > -low, high, low))).nan_to_num(torch.inf)


def bisect(search: Nearest, rounds: int) -> None:
    """Look for the boundary between each input and its nearest adversarial point, a forward pass a round."""
    low, high = torch.zeros_like(search.reached), torch.ones_like(search.reached)
    end = search.ball.delta(search.best)
    for _ in range(rounds):
        middle = (low + high) / 2
        before = search.reached
        search.look(search.ball.point(end * middle[:, None]))
        hit = search.reached < before
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)


def restore_(search: Nearest, delta: Tensor, rows: Tensor) -> None:
    """Put the nearest adversarial point, if there is one, into some rows bool (n,) of perturbations."""
    overwrite_(delta, rows & (search.reached < torch.inf), search.ball.delta(search.best))


def erase_(rows: Tensor, *tensors: Tensor) -> None:
    """Set rows bool (n,) of some tensors (n, features) to 0."""
    # To write by a mask takes a CPU ten times as long as to write to places.
    places = rows.nonzero()[:, 0] if reads_freely(rows) else None
    for tensor in tensors:
        if places is None:
            tensor.masked_fill_(rows[:, None], 0.0)
        else:
            tensor.index_fill_(0, places, 0.0)


def column_if_alike(values: Tensor) -> Tensor:
    """Positive values (n, features) as one column (n, 1), if those of each row are the same but for rounding.

    As a rule all features have the same range, and every array that a step need not read counts.
    """
    if not reads_freely(values) or not values.numel():
        return values
    alike = values.amax(1) <= values.amin(1) * (1 + _ROUNDING * torch.finfo(values.dtype).eps)
    return values[:, :1] if bool(alike.all()) else values
