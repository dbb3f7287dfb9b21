"""Distillation: a student learns what a teacher answers, at a temperature or under attack."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ...checks import real, share
from ...classifier import Classifier
from ...errors import InputError
from ...losses import cross_entropy
from .adversarial import Bounded
from .hardening import Hardened, harden
from .objective import Answers, Batch, Objective

__all__ = ["AdversarialDistillation", "Distillation", "Tempered", "distill"]

_CHECKPOINT = "checkpoint.safetensors"


def frozen(teacher: Classifier) -> Classifier:
    """A teacher that nothing changes: in evaluation mode, without gradients, apart from any student.

    Raises:
        InputError: if it is not a classifier with gradients.
    """
    if not isinstance(teacher, Classifier):
        raise InputError(f"teacher is {type(teacher).__name__}; wrap it in rml.Classifier")
    learns = any(parameter.requires_grad for parameter in teacher.parameters())
    if not learns and not any(layer.training for layer in teacher.modules()):
        return teacher
    # A copy: the caller's model keeps its mode, and may be the very one that is trained now.
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def divergence(logits: Tensor, soft: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of the student's answers from soft labels: (n,).

    Args:
        logits: Of the student (n, classes).
        soft: Logarithms of the teacher's probabilities (n, classes).
    """
    return (soft.exp() * (soft - log_softmax(logits, 1))).sum(1)


def _suits(teacher: Classifier, model: Classifier) -> None:
    if teacher.classes != model.classes:
        raise InputError(f"teacher has {teacher.classes} classes, the model {model.classes}")
    if teacher.inputs.shape != model.inputs.shape:
        raise InputError(f"teacher takes {teacher.inputs.shape}, the model {model.inputs.shape}")


def _answers(teacher: Classifier, x: Tensor) -> Tensor:
    # Moved only where it must be: `to` writes to every parameter, which `torch.func` does not survive.
    if any(parameter.device != x.device for parameter in teacher.parameters()):
        teacher.to(x.device)
    with torch.no_grad():
        return teacher(x)


@dataclass(frozen=True)
class Tempered(Objective):
    """Cross-entropy of the logits divided by a temperature: how the teacher of a distillation is trained.

    Args:
        temperature: What logits are divided by in training, and in training alone.
    """

    temperature: float = 100.0

    name = "tempered"

    def __post_init__(self) -> None:
        real("temperature", self.temperature)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return cross_entropy(ask(batch.x) / self.temperature, batch.y)


@dataclass(frozen=True)
class Distillation(Objective):
    """Defensive distillation (Papernot et al. 2016), which masks gradients and protects from nothing.

    The student learns the teacher's probabilities at a temperature T by their cross-entropy, both with logits
    divided by T, and is deployed at T = 1. Its logits are then T times larger than what it was trained to
    answer: the softmax is exactly 0 or 1, the cross-entropy has no gradient, and an attack that follows it
    stands still. Attacks on differences of logits do not notice (Carlini and Wagner 2017). It is here to be
    measured.

    Args:
        teacher: Trained at the same temperature (`Tempered`), of the same classes; `distill` does both.
        temperature: T, from 1 to 100 in the paper.
    """

    teacher: Classifier
    temperature: float = 100.0

    name = "distillation"

    def __post_init__(self) -> None:
        real("temperature", self.temperature)
        object.__setattr__(self, "teacher", frozen(self.teacher))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        soft = torch.softmax(_answers(self.teacher, batch.x) / self.temperature, 1)
        return -(soft * log_softmax(ask(batch.x) / self.temperature, 1)).sum(1)

    def check(self, model: Classifier) -> None:
        _suits(self.teacher, model)


@dataclass(frozen=True, kw_only=True)
class AdversarialDistillation(Bounded):
    """Learning from a robust teacher under attack: robust soft labels, RSLAD (Zi et al. 2021).

    What the teacher answers to the input as it is, is the label of the input and of the point that PGD finds
    by going up the divergence from that label. True labels are not used.

    Args:
        teacher: Adversarially trained; the student inherits what robustness it has.
        threat, steps, step, ramp: As for `Bounded`.
        clean: The share of the loss that goes to the inputs as they are, from 0 to 1; 1/6 in the authors'
            experiments.
    """

    teacher: Classifier
    clean: float = 1 / 6

    name = "adversarial-distillation"

    def __post_init__(self) -> None:
        super().__post_init__()
        share("clean", self.clean)
        object.__setattr__(self, "teacher", frozen(self.teacher))

    def _soft(self, batch: Batch) -> Tensor:
        return log_softmax(_answers(self.teacher, batch.x), 1)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        soft = self._soft(batch)
        start = ball.random(batch.streams)
        return self.climbed(model, batch, ball, start, lambda logits, _: divergence(logits, soft))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        soft = self._soft(batch)
        losses = divergence(ask(z), soft)
        if not self.clean:
            return losses
        return (1 - self.clean) * losses + self.clean * divergence(ask(batch.x), soft)

    def check(self, model: Classifier) -> None:
        _suits(self.teacher, model)


def distill(
    model: nn.Module | Classifier,
    train: Any,
    *,
    temperature: float = 100.0,
    out: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Hardened:
    """Defensive distillation, both stages: a teacher at a temperature, then a student of the same kind.

    Args:
        model: The student, trained in place; the teacher begins as a copy of it.
        train: As for `harden`.
        temperature: Of both stages.
        out: A folder for the checkpoints and logs, in `teacher` and `student`; nothing is written if None.
        resume: Go on in that folder, with whichever stage was interrupted.
        settings: The other arguments of `harden`, for both stages.

    Returns:
        The student; its provenance holds that of the teacher too.

    Raises:
        InputError: as `harden`, and for an objective, since there are two already.
    """
    real("temperature", temperature)
    if "objective" in settings:
        raise InputError("objective cannot be chosen: distill trains on Tempered, then on Distillation")
    folders = {name: None if out is None else Path(out) / name for name in ("teacher", "student")}

    def stage(name: str, module: nn.Module | Classifier, objective: Objective) -> Hardened:
        folder = folders[name]
        begun = resume and folder is not None and (folder / _CHECKPOINT).is_file()
        again = begun or (resume and folder is None)
        return harden(module, train, objective=objective, out=folder, resume=again, **settings)

    teacher = stage("teacher", copy.deepcopy(model), Tempered(temperature))
    student = stage("student", model, Distillation(teacher.model, temperature))
    return dataclasses.replace(student, provenance={**student.provenance, "teacher": teacher.provenance})
