"""Model inversion: what reconstructions show of the classes, and whether they show anything of members."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import whole
from ...classifier import Classifier, Model
from ...errors import InputError
from ...estimates import Proportion, proportion
from ...inputs import InputSpec
from .asking import Array, both
from .inverting import invert, scrambled
from .nearness import Nearness, centered, nearness, permuted

__all__ = ["ClassInversion", "Inversion", "inversion_test"]

_WAYS = 40  # a p-value of twice one in so many is 0.05


@dataclass(frozen=True)
class ClassInversion:
    """The reconstructions of one class.

    Attributes:
        label: The class.
        members, non_members: How many of the class they are compared with.
        confidence: The highest probability that the model gives to one of them.
        correlation: Their mean correlation with the mean of the members of the class, after the mean of all
            non-members is taken off both; None if that has no direction.
        control: The same of what the control model reconstructs.
        public: The same of the mean of the non-members of the class: what data without any model gives.
        nearer: The chance that a member of the class is nearer to a reconstruction than a non-member of it
            is; 0.5 if they know nothing of the members.
    """

    label: int
    members: int
    non_members: int
    confidence: float
    correlation: float | None
    control: float | None
    public: float | None
    nearer: float


@dataclass(frozen=True)
class Inversion:
    """What model inversion shows of the classes, and whether it shows anything of the members.

    A correlation with the mean of a class says how well the model describes the class, which is what it was
    trained for. That is not a leak of a member. Only `nearer` and `nearest` compare members with non-members
    of the same class; they hold if members and non-members were drawn alike.

    Attributes:
        classes: One entry for each class that has members and non-members.
        correlation, control, public: Means over the classes; None where no class has one.
        nearer: As for a class, over all classes.
        nearest: Reconstructions whose nearest sample of the class is a member. Those of one class are not
            independent, so the interval is too narrow; the p-value takes care of that.
        nearest_chance: The share of them if they know nothing of the members: that of members among samples.
        p_value: Of no tie to the members: exact for exchangeable samples (permutations within classes), and
            doubled, since both `nearer` and `nearest` were tried; None if nothing could be compared.
        queries: Rows that the model was asked.
        control_is: What the control model is: "scrambled weights", "given", or "none".
        reason: Why there is no figure of members; empty if there is one.
    """

    classes: tuple[ClassInversion, ...]
    correlation: float | None
    control: float | None
    public: float | None
    nearer: float | None
    nearest: Proportion
    nearest_chance: float
    p_value: float | None
    queries: int
    control_is: str
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name} {'-' if value is None else f'{value:.2f}'}"
            for name, value in (("control", self.control), ("public data", self.public))
        )
        known = "-" if self.correlation is None else f"{self.correlation:.2f}"
        line = f"correlation with the mean of the class {known} ({shown}), which is no member's secret; "
        if self.nearer is None:
            return f"{line}members: {self.reason}"
        return (
            f"{line}a member is nearer than a non-member in {100 * self.nearer:.1f} % of pairs, "
            f"a member is nearest to {self.nearest} of reconstructions "
            f"(by chance {100 * self.nearest_chance:.1f} %), p = {self.p_value:.2g}"
        )


def inversion_test(
    model: Model,
    members: Any,
    non_members: Any,
    *,
    control: Model | None = None,
    permutations: int = 999,
    seed: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
    **settings: Any,
) -> Inversion:
    """Reconstruct every class, and compare with members, non-members, a control model and public data.

    Args:
        model: A `Classifier`, or a `BlackBox` that gives scores.
        members: Labelled samples that the model was trained on.
        non_members: Labelled samples of the same kind that it was not trained on.
        control: A model of the same inputs and classes that was not trained on the members; a copy with
            scrambled weights if None and the model is a `Classifier`.
        permutations: Of the test.
        seed: Decides every random number.
        device: "auto", "cpu", "cuda", ...
        confidence: Of the interval.
        settings: Those of `invert`: starts, steps, rate, patience, directions, objective.

    Raises:
        InputError: for a model that gives labels only, a sample that is in both, or an unacceptable argument.
    """
    whole("permutations", permutations, 1)
    inside, outside = both(model, members, non_members)
    labels = [int(k) for k in np.unique(inside.y) if (outside.y == k).any()]
    if not labels:
        raise InputError("members and non_members have no class in common")
    made = invert(model, labels, seed=seed, device=device, **settings)
    named = "given" if control is not None else "none"
    if control is None and type(model) is Classifier:
        control, named = scrambled(model, seed=seed), "scrambled weights"
    other = None if control is None else _comparable(control, model)
    sham = None if other is None else invert(other, labels, seed=seed, device=device, **settings)
    spec = model.inputs
    inner, outer = _flat(inside.x, spec), _flat(outside.x, spec)
    middle = outer.mean(0)
    found, entries = [], []
    for place, label in enumerate(labels):
        points = _flat(made.x[place].numpy(), spec)
        near = nearness(points, inner[inside.y == label], outer[outside.y == label], seed=seed + place)
        mean, public = inner[inside.y == label].mean(0), outer[outside.y == label].mean(0)
        entries.append(
            ClassInversion(
                label,
                near.members,
                len(near.ranks) - near.members,
                float(made.confidence[place].max()),
                centered(points, mean, middle),
                None if sham is None else centered(_flat(sham.x[place].numpy(), spec), mean, middle),
                centered(public[None], mean, middle),
                near.nearer,
            )
        )
        found.append(near)
    nearer, nearest, p_value, reason = _members(found, permutations, seed, confidence)
    return Inversion(
        classes=tuple(entries),
        correlation=_mean([entry.correlation for entry in entries]),
        control=_mean([entry.control for entry in entries]),
        public=_mean([entry.public for entry in entries]),
        nearer=nearer,
        nearest=nearest,
        nearest_chance=float(np.mean([near.chance for near in found])),
        p_value=p_value,
        queries=made.queries,
        control_is=named,
        reason=reason,
    )


def _comparable(control: Model, model: Model) -> Model:
    if not isinstance(control, Model):
        raise InputError(f"control is {type(control).__name__}; give a Classifier or a BlackBox")
    if control.inputs.shape != model.inputs.shape or control.classes != model.classes:
        raise InputError(
            f"control has inputs {control.inputs.shape} and {control.classes} classes, "
            f"the model {model.inputs.shape} and {model.classes}"
        )
    return control


def _flat(x: Array, spec: InputSpec) -> Array:
    """Samples (n, d) in units of the scale of each feature, float64."""
    return x.reshape(len(x), -1).astype(np.float64) / np.asarray(spec.scale, dtype=np.float64)


def _members(
    found: list[Nearness], permutations: int, seed: int, confidence: float
) -> tuple[float | None, Proportion, float | None, str]:
    """The figures that compare members with non-members, or the reason why there are none."""
    # With so few ways to choose the members, no outcome could have a small p-value.
    ways = sum(math.log(math.comb(len(near.ranks), near.members)) for near in found)
    if ways < math.log(_WAYS) or permutations + 1 < _WAYS:
        few = f"{sum(len(near.ranks) for near in found)} samples and {permutations} permutations"
        return None, proportion(0, 0), None, f"not resolvable with {few}"
    nearer, nearest, p_value = permuted(found, permutations, seed)
    return nearer, proportion(nearest, sum(len(near.first) for near in found), confidence), p_value, ""


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
