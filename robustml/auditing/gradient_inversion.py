"""What a client's update gives away, with and without a defense, and whether the attack works at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attacks.gradient_inversion import (
    Gradients,
    closed_form,
    infer_labels,
    invert,
    psnr,
    shared_gradients,
)
from ..errors import InputError, brief
from ..estimates import Proportion, proportion
from ..sampling import Streams

__all__ = ["ClipAndNoise", "InversionAudit", "InversionOutcome", "audit_inversion"]

Defense = Callable[[Gradients, int], Gradients]
"""What a client does to a gradient before it is sent, given the number of the batch."""
Method = Literal["closed form", "cosine", "euclidean"]
Verdict = Literal["leaks", "defended", "attack failed"]


@dataclass(frozen=True)
class ClipAndNoise:
    """Clipping and normal noise, as in differentially private training (Abadi et al. 2016).

    Attributes:
        clip: The largest length of the gradient.
        noise: Standard deviation, in units of `clip`.
        seed: Decides the noise.
    """

    clip: float = 1.0
    noise: float = 0.1
    seed: int = 0

    def __call__(self, gradients: Gradients, number: int) -> Gradients:
        length = math.sqrt(sum(float(g.to(torch.float64).square().sum()) for g in gradients))
        scale = min(1.0, self.clip / length) if length else 1.0
        found = []
        for place, gradient in enumerate(gradients):
            purpose = f"inversion/noise/{place}"
            streams = Streams.derive(self.seed, purpose, torch.tensor([number]))
            noise = streams.normal(*gradient.shape, dtype=torch.float64)[0]
            found.append(gradient * scale + (self.clip * self.noise * noise).to(gradient))
        return tuple(found)


@dataclass(frozen=True)
class InversionOutcome:
    """What an attack got out of updates.

    Attributes:
        psnr: Of each sample, in decibels; -inf where nothing came out.
        recovered: The share of samples above the threshold.
        labels: The share of labels inferred, over batches.
    """

    psnr: tuple[float, ...]
    recovered: Proportion
    labels: Proportion


@dataclass(frozen=True)
class InversionAudit:
    """The attack on updates as they are, and on defended ones.

    Attributes:
        method: Of the attack.
        threshold: The PSNR in decibels from which on a sample counts as recovered.
        control: Without a defense.
        defended: By the name of each defense.
    """

    method: str
    threshold: float
    control: InversionOutcome
    defended: Mapping[str, InversionOutcome]

    def verdict(self, name: str | None = None) -> Verdict:
        """What is known of a defense, or of no defense.

        "leaks": a sample was recovered. "defended": none was, and without the defense at least half are.
        "attack failed": none was, and the attack does not work without the defense either, so that nothing
        is known about it.

        Raises:
            InputError: for a defense that was not tried.
        """
        if name is not None and name not in self.defended:
            raise InputError(f"name={brief(name)} was not tried; known: {', '.join(self.defended)}")
        outcome = self.control if name is None else self.defended[name]
        if outcome.recovered.count:
            return "leaks"
        if name is not None and 2 * self.control.recovered.count >= self.control.recovered.total:
            return "defended"
        return "attack failed"

    def __str__(self) -> str:
        shown = [f"no defense: {_told(self.control)}: {self.verdict()}"]
        shown += [f"{name}: {_told(found)}: {self.verdict(name)}" for name, found in self.defended.items()]
        return "\n".join(shown)


def audit_inversion(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    defenses: Mapping[str, Defense],
    *,
    method: Method = "cosine",
    batch: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    threshold: float = 20.0,
    confidence: float = 0.95,
    **options: Any,
) -> InversionAudit:
    """Attack the gradients of some samples, as they are and behind each defense.

    Args:
        net: The shared module, in the mode in which clients train it.
        x, y: Samples, as the module sees them, and labels int64.
        defenses: By name.
        method: "closed form" (single samples, a linear layer first), or what `invert` matches.
        batch: Samples per update; x is cut into whole batches.
        bounds: Of inputs.
        threshold: The PSNR in decibels from which on a sample counts as recovered.
        confidence: Of the intervals.
        options: Of `invert`: steps, restarts, variation, seed.

    Raises:
        InputError: for something that makes no sense.
    """
    if method not in {"closed form", "cosine", "euclidean"}:
        raise InputError(f"method={brief(method)} is not one of closed form, cosine, euclidean")
    if not 1 <= batch <= len(x) or (method == "closed form" and batch > 1):
        raise InputError(f"batch={batch} does not go with {len(x)} samples and the method {method!r}")

    def outcome(defense: Defense | None) -> InversionOutcome:
        found: list[float] = []
        right = 0
        for number in range(len(x) // batch):
            rows = slice(number * batch, (number + 1) * batch)
            sent = shared_gradients(net, x[rows], y[rows])
            sent = sent if defense is None else defense(sent, number)
            labels = infer_labels(net, sent, batch)
            right += _common(labels, y[rows])
            z = _attacked(net, sent, x[rows], labels, method, bounds, options)
            found += [-math.inf] * batch if z is None else psnr(z, x[rows], bounds).tolist()
        hit = sum(value >= threshold for value in found)
        return InversionOutcome(
            tuple(found), proportion(hit, len(found), confidence), proportion(right, len(found), confidence)
        )

    return InversionAudit(
        method, threshold, outcome(None), {name: outcome(defense) for name, defense in defenses.items()}
    )


def _attacked(
    net: nn.Module,
    sent: Gradients,
    x: Tensor,
    labels: Tensor,
    method: Method,
    bounds: tuple[float, float],
    options: Mapping[str, Any],
) -> Tensor | None:
    shape = x.shape[1:]
    if method == "closed form":
        return closed_form(net, sent, shape)
    return invert(net, sent, shape, count=len(x), labels=labels, match=method, bounds=bounds, **options).x


def _common(found: Tensor, truth: Tensor) -> int:
    """How many labels two batches have in common."""
    classes = int(max(found.max(), truth.max())) + 1
    counts = [torch.bincount(labels, minlength=classes) for labels in (found, truth)]
    return int(torch.minimum(*counts).sum())


def _told(found: InversionOutcome) -> str:
    middle = sorted(found.psnr)[len(found.psnr) // 2]
    return (
        f"median {middle:.1f} dB, {found.recovered.count} of {found.recovered.total} recovered, "
        f"{found.labels.count} labels right"
    )
