"""Model extraction: a copy made of answers, how faithful it is at a budget of queries, and what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...checks import whole
from ...classifier import Classifier, Model
from ...data import as_dataset
from ...errors import InputError, suggest
from ...estimates import PairedDifference, Proportion, paired_difference
from ...registry import Access, find_attack
from ...sampling import Streams
from ...threats import Threat
from .asking import Array, Asked, agreement, asked, shared
from .substitute import Build, taught

__all__ = ["Extracted", "Extraction", "Stolen", "extraction_test", "steal"]

Reply = Literal["auto", "probabilities", "labels"]

_REPLIES = ("auto", "probabilities", "labels")


@dataclass(frozen=True, eq=False)
class Stolen:
    """A substitute and what it cost.

    Attributes:
        model: The substitute.
        queries: Rows that the target was asked.
        rows: Which of the pool, in the order in which they were asked.
        answers: What the target answered: (queries, width).
    """

    model: Classifier
    queries: int
    rows: Array
    answers: Tensor


@dataclass(frozen=True)
class Extracted:
    """What so many queries buy.

    Attributes:
        queries: Rows that the target was asked: exact.
        fidelity: How often the substitute answers as the target does, on data that was not asked.
        on_mistakes: The same where the target is wrong: there, being right does not help to agree.
        accuracy: Of the substitute.
        without: Fidelity of the same network trained on the true labels of the same samples without a single
            query; None where the pool has no labels.
        without_accuracy: Its accuracy.
        gain: Of the fidelity over that, on the same data: what the queries are worth.
        transfer: Share of the samples that the target has right which adversarial examples made on the
            substitute make it answer wrongly; None if no threat model was given.
        without_transfer: The same of the network trained without queries.
    """

    queries: int
    fidelity: Proportion
    on_mistakes: Proportion
    accuracy: Proportion
    without: Proportion | None
    without_accuracy: Proportion | None
    gain: PairedDifference | None
    transfer: Proportion | None
    without_transfer: Proportion | None


@dataclass(frozen=True)
class Extraction:
    """How well a model can be copied from its answers.

    Fidelity is high for any good model of the same task, copied or not: read it beside `without` and
    `constant`, and `on_mistakes`. Each budget has an interval of its own.

    Attributes:
        reply: What the thief sees of an answer: "probabilities" or "labels".
        target: Accuracy of the target on the same data.
        constant: Fidelity of always answering what the target answered most often.
        points: One for each budget, ascending; the queries of a smaller one are among those of a larger one.
        attack: What made the adversarial examples, or None.
    """

    reply: str
    target: Proportion
    constant: Proportion
    points: tuple[Extracted, ...]
    attack: str | None

    def __str__(self) -> str:
        parts = [
            f"{p.queries} queries: fidelity {p.fidelity}, accuracy {p.accuracy}"
            + (f", without queries {p.without} and {p.without_accuracy}" if p.without else "")
            for p in self.points
        ]
        return f"from {self.reply}, target {self.target}, constant {self.constant}; {'; '.join(parts)}"


def steal(
    model: Model,
    pool: Any,
    budget: int,
    *,
    reply: Reply = "auto",
    build: Build | None = None,
    steps: int = 400,
    seed: int = 0,
    device: str = "auto",
) -> Stolen:
    """Ask about samples drawn from a pool, and train a substitute on the answers (Orekondy et al. 2019).

    This is the random strategy of Knockoff Nets, and Copycat CNN (Correia-Silva et al. 2018) with labels.

    Args:
        model: Any model; of a `BlackBox` of labels, labels are all there is.
        pool: Inputs (n, *shape) that the thief has, or labelled data whose labels are then ignored.
        budget: Rows to ask about, each once.
        reply: What the thief sees: "probabilities", "labels", or "auto" for as much as there is.
        build: Makes the substitute's untrained module; a small network that suits the inputs if None.
        steps: Of training, in batches of 64.
        seed: Decides what is asked and how the substitute is trained.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: for a pool smaller than the budget, or more wanted of an answer than the model gives.
    """
    whole("budget", budget, 1)
    whole("steps", steps, 1)
    x, _ = _pool(model, pool)
    if budget > len(x):
        raise InputError(f"budget={budget} is more than the {len(x)} samples of the pool")
    reply = _reply(model, reply)
    order = Streams.derive(seed, "leakage/extraction", torch.arange(len(x))).bits(1)[:, 0]
    rows = order.argsort(stable=True)[:budget]
    with asked(model, device, seed, "leakage/extraction") as target:
        answers = target.probabilities(x[rows])
        queries, place = target.queries, target.device
    if reply == "labels":
        answers = torch.nn.functional.one_hot(answers.argmax(1), answers.shape[1]).double()
    student = taught(model.inputs, x[rows], answers, build=build, steps=steps, seed=seed, device=place)
    return Stolen(student, queries, rows.numpy(), answers)


def extraction_test(
    model: Model,
    pool: Any,
    held_out: Any,
    *,
    budgets: Sequence[int] = (100, 500),
    reply: Reply = "auto",
    threat: Threat | None = None,
    attack: str = "pgd",
    build: Build | None = None,
    steps: int = 400,
    seed: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
) -> Extraction:
    """Copy a model at several budgets, and compare with what the pool gives without any query.

    What is asked to measure fidelity is no query of the thief's, and not counted.

    Args:
        model, reply, build, steps, seed, device: As for `steal`.
        pool: Inputs (n, *shape) that the thief has; or labelled data: then the baseline without queries is
            trained on the true labels of the very samples that are asked.
        held_out: Labelled data, none of it in the pool.
        budgets: Numbers of queries.
        threat: If given, adversarial examples within it are made on each substitute and tried on the target.
        attack: What makes them.
        confidence: Of the intervals.

    Raises:
        InputError: as `steal`; for held-out data that is in the pool, or no budget at all.
    """
    for size in budgets:
        whole("budgets", size, 1)
    sizes = sorted(set(budgets))
    if not sizes:
        raise InputError("budgets is empty; give at least one number of queries")
    x, labels = _pool(model, pool)
    test = as_dataset(held_out, model.inputs, model.classes, "held_out")
    if (found := shared(x.numpy(), test.x)) is not None:
        raise InputError(
            f"held_out[{found[1]}] is pool[{found[0]}]; fidelity is measured on what was not asked"
        )
    z, y = torch.from_numpy(test.x), torch.from_numpy(test.y)
    bound = None if threat is None else threat.within(model.inputs)
    settings: dict[str, Any] = {"build": build, "steps": steps, "seed": seed}
    stolen = [steal(model, x, size, reply=reply, device=device, **settings) for size in sizes]
    points = []
    with asked(model, device, seed, "leakage/fidelity") as target:
        said = target.labels(z)
        trial = _Trial(target, z, y, said, bound, attack, seed, confidence)
        for copy in stolen:
            other = None
            if labels is not None:
                rows = torch.from_numpy(copy.rows)
                known = torch.nn.functional.one_hot(labels[rows], copy.answers.shape[1]).double()
                other = taught(model.inputs, x[rows], known, device=target.device, **settings)
            points.append(trial.of(copy, other))
    commonest = stolen[-1].answers.argmax(1).bincount().argmax()
    return Extraction(
        _reply(model, reply),
        agreement(said == y, confidence),
        agreement(said == commonest, confidence),
        tuple(points),
        None if threat is None else attack,
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    """Held-out data on which substitutes are compared with the target."""

    target: Asked
    x: Tensor
    y: Tensor
    said: Tensor
    threat: Threat | None
    attack: str
    seed: int
    confidence: float

    def of(self, copy: Stolen, other: Classifier | None) -> Extracted:
        mine = self._answers(copy.model)
        wrong = self.said != self.y
        without = accuracy = gain = moved = None
        agrees = mine == self.said
        if other is not None:
            theirs = self._answers(other)
            before = theirs == self.said
            without, accuracy = self._share(before), self._share(theirs == self.y)
            gained, lost = int((agrees & ~before).sum()), int((~agrees & before).sum())
            gain = paired_difference(gained, lost, len(self.y), self.confidence)
            moved = self._transfer(other)
        return Extracted(
            copy.queries,
            self._share(agrees),
            self._share(agrees[wrong]),
            self._share(mine == self.y),
            *(without, accuracy, gain, self._transfer(copy.model), moved),
        )

    def _answers(self, student: Classifier) -> Tensor:
        with torch.no_grad():
            return student(self.x).argmax(1)

    def _share(self, hits: Tensor) -> Proportion:
        return agreement(hits.numpy(), self.confidence)

    def _transfer(self, student: Classifier) -> Proportion | None:
        if self.threat is None:
            return None
        right = self.said == self.y
        x, y = self.x[right], self.y[right]
        found = find_attack(self.attack)
        if self.threat.norm not in found.norms:
            raise InputError(f"attack={self.attack!r} does not attack under {self.threat.norm}")
        streams = Streams.derive(self.seed, "leakage/transfer", torch.arange(len(x)))
        with student.ready(torch.device("cpu")):
            z = found.function(student, x, y, threat=self.threat, streams=streams, **found.check({}))
        around = self.threat.around(x)
        z = around.snap(around.project(z.detach()))
        return self._share(self.target.labels(z) != y)


def _pool(model: Model, pool: Any) -> tuple[Tensor, Tensor | None]:
    """What the thief can ask about, and true labels if they came with it."""
    if not isinstance(model, Model):
        raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
    bare = isinstance(pool, (np.ndarray, Tensor))
    given = (pool, np.zeros(len(pool), dtype=np.int64)) if bare else pool
    data = as_dataset(given, model.inputs, model.classes, "pool")
    return torch.from_numpy(data.x), None if bare else torch.from_numpy(data.y)


def _reply(model: Model, reply: Reply) -> Reply:
    if reply not in _REPLIES:
        raise InputError(f"reply={reply!r} is not known{suggest(str(reply), _REPLIES)}")
    labels_only = model.access is Access.DECISION
    if reply == "probabilities" and labels_only:
        raise InputError('reply="probabilities" is not there to be had: the model gives labels only')
    if reply == "auto":
        return "labels" if labels_only else "probabilities"
    return reply
