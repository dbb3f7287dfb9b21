"""One attack on one batch: metered, and believed only as far as the check outside it confirms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..balls import Ball
from ..classifier import Model
from ..data import Dataset
from ..errors import RunError
from ..guarded import Guarded
from ..losses import is_wrong, margin
from ..registry import Attack, Logits
from ..sampling import Streams
from ..threats import Threat
from .aiming import Aimed, outcome
from .folder import Evidence
from .meter import BudgetSpent, Meter
from .plan import Plan
from .randomized import CLEAN, Averaged, Seeded, Votes, take_vote
from .rejecting import Accepting, accepted

__all__ = [
    "Around",
    "Bench",
    "Limits",
    "Outcome",
    "Rows",
    "attackable",
    "confirm",
    "metered",
    "run_attack",
]


@dataclass(frozen=True)
class Bench:
    """The plan with the real model and data on the table.

    A model that answers at random becomes one whose every call is reproducible (`Seeded`); what it says of
    a point is then for `answers` to decide, and attacks meet it as `opponent` shows it.
    """

    plan: Plan
    model: Model
    data: Dataset
    device: torch.device
    twin: Model | None = None
    """An undefended or earlier model whose adversarial inputs are tried on this one."""

    def __post_init__(self) -> None:
        if self.plan.randomness is not None and not isinstance(self.model, Seeded):
            object.__setattr__(self, "model", Seeded(self.model, self.plan.seed))

    def begin(self, unit: str) -> None:
        """Start on a unit of work."""
        if isinstance(self.model, Seeded):
            self.model.begin(unit)

    @property
    def guarded(self) -> Guarded | None:
        """The model with its guards, if it has any."""
        inner = self.model.inner if isinstance(self.model, Seeded) else self.model
        return inner if isinstance(inner, Guarded) else None

    @property
    def price(self) -> int:
        """Forward passes that deciding on one point takes."""
        return self.plan.randomness.draws if self.plan.randomness is not None else 1

    def answers(self, x: Tensor, y: Tensor, ids: Tensor, *, aimed: bool = True) -> Tensor:
        """What the harness takes the model to say: logits (n, classes) for `is_wrong`, `margin` and argmax.

        For a randomized model these are shares of votes. With goals only a target class is wrong, and a
        rejection is not, unless `aimed` is off: then no attacker is at work, a rejection is an error, and
        randomized models draw what they draw on clean data.
        """
        targets = self.targets(y) if aimed and self.plan.goals else None
        if self.plan.randomness is not None:
            return self.vote(x, y, ids, targets, aimed=aimed).logits
        with torch.no_grad():
            logits = self.model(x)
        if targets is not None:
            return outcome(logits, y, targets)
        return accepted(logits, y) if aimed and self.model.rejects else logits

    def vote(
        self, x: Tensor, y: Tensor, ids: Tensor, targets: Tensor | None = None, *, aimed: bool = True
    ) -> Votes:
        """The vote on each point, with its flip rate; the model has to be a randomized one."""
        assert isinstance(self.model, Seeded) and self.plan.randomness is not None
        # A sample that is correct by the luck of its draws must not owe them its robustness, too.
        purpose = "attacked" if aimed else CLEAN
        return take_vote(self.model, x, y, ids, self.plan.randomness, purpose, targets)

    def targets(self, y: Tensor) -> Tensor:
        """The classes that count as wrong for each label, by the goals: bool (n, as many as logits)."""
        table = torch.from_numpy(self.plan.aims.table).to(y.device)[y]
        return torch.nn.functional.pad(table, (0, int(self.model.rejects)))

    def groups(self, positions: np.ndarray[Any, Any]) -> list[tuple[Tensor, Tensor | None]]:
        """The places of samples that share their targets, and the targets: bool (classes,), if any."""
        everything = torch.arange(len(positions), device=self.device)
        if not (self.plan.goals and len(positions)):
            return [(everything, None)]
        targets = self.targets(self.batch(positions)[1])
        distinct, group = torch.unique(targets, dim=0, return_inverse=True)
        return [(everything[group == number], row) for number, row in enumerate(distinct)]

    def opponent(self, y: Tensor, targets: Tensor | None) -> tuple[Logits, Tensor]:
        """The model as an attack meets it on samples that share their targets, and the labels it gets."""
        labels = y if targets is None else torch.zeros_like(y)
        if isinstance(self.model, Seeded) and self.plan.randomness is not None:
            return Averaged(self.model, labels, self.plan.randomness, targets=targets), labels
        return attackable(self.model, labels, targets, rejects=self.model.rejects), labels

    def batch(self, positions: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels and sample ids of some positions of the plan, on the device."""
        ids = np.asarray(self.plan.ids)[positions]
        x = torch.from_numpy(self.data.x[ids]).to(self.device)
        y = torch.from_numpy(self.data.y[ids]).to(self.device)
        return x, y, torch.from_numpy(ids).to(self.device)


def attackable(model: Logits, labels: Tensor, targets: Tensor | None, *, rejects: bool) -> Logits:
    """A model as an attack may take it: wrong is what is worth something to the attacker."""
    if targets is not None:
        return Aimed(model, targets)
    return Accepting(model, labels) if rejects else model


@dataclass(frozen=True)
class Rows:
    """The positions of a chunk that a stage may work on: correct on clean data, and still standing.

    Attributes:
        lead: What the model answered at first about each correct one, for probes: the margin of the label.
        aside: The same for a random point of its ball.
        radius: The certified radius of each correct one, for what is held against it.
    """

    correct: np.ndarray[Any, Any]
    standing: np.ndarray[Any, Any]
    lead: np.ndarray[Any, Any] | None = None
    aside: np.ndarray[Any, Any] | None = None
    radius: np.ndarray[Any, Any] | None = None

    def first(self, samples: int) -> Rows:
        """Only those among the first samples of the plan."""
        few = self.correct < samples
        lead, aside = (None if values is None else values[few] for values in (self.lead, self.aside))
        return Rows(self.correct[few], self.standing[self.standing < samples], lead, aside)


@dataclass(frozen=True)
class Limits:
    """What a unit may still spend; `on_pass` is told of every forward pass."""

    max_passes: float | None = None
    deadline: float | None = None
    on_pass: Callable[[int], None] | None = None


Around = Callable[[Meter, Tensor], Logits]


@dataclass
class Outcome:
    """What an attack achieved on the rows it was given, as confirmed outside it."""

    broken: Tensor
    rescued: int
    unconfirmed: int
    claims: int
    evidence: Evidence
    grid_survivors: int
    status: Any
    meter: Meter
    checks: int
    queries: list[int] = dataclasses.field(default_factory=list)
    """Forward passes that each broken sample took, in the order of the evidence; empty if not known."""


def run_attack(
    bench: Bench,
    attack: Attack,
    options: dict[str, Any],
    threat: Threat,
    purpose: str,
    positions: np.ndarray[Any, Any],
    limits: Limits,
    around: Around | None = None,
    start: Tensor | None = None,
) -> Outcome:
    """Run an attack on some positions of the plan and confirm what it returns.

    With goals, samples that are to be turned into the same classes are attacked together.

    Args:
        start: Adversarial inputs that are known, for an attack that can begin with them: one row per
            position, the input itself where there is none.
        around: What to put between the attack and its meter, for probes that look at what passes.

    Raises:
        RunError: if it returns something that is not one candidate per sample.
    """
    outcomes: list[Outcome] = []
    groups = bench.groups(positions)
    for places, targets in groups:
        spent = sum(outcome.meter.forward + 2 * outcome.meter.backward for outcome in outcomes)
        left = None if limits.max_passes is None else limits.max_passes - spent
        rest = dataclasses.replace(limits, max_passes=left)
        outcomes.append(
            _run_group(
                bench,
                attack,
                options,
                threat,
                purpose,
                positions[places.cpu().numpy()],
                targets,
                rest,
                around,
                None if start is None else start[places],
            )
        )
    if len(outcomes) == 1:
        return outcomes[0]
    return _joined(outcomes, [places for places, _ in groups])


def metered(
    bench: Bench, ball: Ball, y: Tensor, targets: Tensor | None, limits: Limits
) -> tuple[Meter, Tensor]:
    """The model as an attack on samples that share their targets meets it, and the labels it works with."""
    model, labels = bench.opponent(y, targets)
    averaged = model if isinstance(model, Averaged) else None
    meter = Meter(
        model,
        ball,
        labels,
        max_passes=limits.max_passes,
        deadline=limits.deadline,
        on_pass=limits.on_pass,
        weight=averaged.count if averaged else 1,
        follow=model.focus if isinstance(model, (Averaged, Accepting)) else None,
    )
    if averaged is not None:
        averaged.on_pass = meter.count
    return meter, labels


def _run_group(
    bench: Bench,
    attack: Attack,
    options: dict[str, Any],
    threat: Threat,
    purpose: str,
    positions: np.ndarray[Any, Any],
    targets: Tensor | None,
    limits: Limits,
    around: Around | None,
    start: Tensor | None,
) -> Outcome:
    x, y, ids = bench.batch(positions)
    ball = threat.around(x)
    meter, labels = metered(bench, ball, y, targets, limits)
    streams = Streams.derive(bench.plan.seed, purpose, ids)
    status = "complete"
    if not len(positions):
        # Not every model answers for an empty batch.
        return confirm(bench, meter, ball, y, positions, x, status)
    seen = meter if around is None else around(meter, labels)
    if start is not None and attack.takes_start:
        options = {**options, "start": start}
    try:
        # Copies: the check below must not depend on what an attack does to its arguments.
        candidates = attack.function(
            seen, x.clone(), labels.clone(), threat=threat, streams=streams, **options
        )
    except BudgetSpent as spent:
        status, candidates = spent.kind, meter.point
    if candidates.shape != x.shape:
        raise RunError(f"{attack.name} returned shape {tuple(candidates.shape)} for inputs {tuple(x.shape)}")
    return confirm(bench, meter, ball, y, positions, candidates.detach().to(x.dtype), status)


def _joined(outcomes: list[Outcome], groups: list[Tensor]) -> Outcome:
    """The outcomes of the groups of one batch as that of the batch; the first meter holds the sums."""
    first = outcomes[0]
    broken = torch.cat([outcome.broken for outcome in outcomes])[torch.cat(groups).argsort()]
    for other in outcomes[1:]:
        first.meter.forward += other.meter.forward
        first.meter.backward += other.meter.backward
    columns = {
        name: np.concatenate([getattr(outcome.evidence, name) for outcome in outcomes])
        for name in vars(first.evidence)
    }
    order = np.argsort(columns["position"], kind="stable")
    return Outcome(
        broken=broken,
        rescued=sum(outcome.rescued for outcome in outcomes),
        unconfirmed=sum(outcome.unconfirmed for outcome in outcomes),
        claims=sum(outcome.claims for outcome in outcomes),
        evidence=Evidence(**{name: column[order] for name, column in columns.items()}),
        grid_survivors=sum(outcome.grid_survivors for outcome in outcomes),
        status=next((o.status for o in outcomes if o.status != "complete"), "complete"),
        meter=first.meter,
        checks=sum(outcome.checks for outcome in outcomes),
        queries=_in_order([outcome.queries for outcome in outcomes], order),
    )


def _in_order(parts: list[list[int]], order: np.ndarray[Any, Any]) -> list[int]:
    queries = [count for part in parts for count in part]
    return [queries[place] for place in order] if len(queries) == len(order) else []


def confirm(
    bench: Bench,
    meter: Meter,
    ball: Ball,
    y: Tensor,
    positions: np.ndarray[Any, Any],
    candidates: Tensor,
    status: Any,
) -> Outcome:
    """Believe only what the plain model, in its own precision and another batch, says of valid points."""
    ids = bench.batch(positions)[2]
    returned, logits = _holds(bench, ball, y, ids, candidates)
    checks = len(y) * bench.price
    point = candidates.clone()
    # The attack may have visited an adversarial point that it did not return, or that did not hold up.
    second = (meter.hit & ~returned).nonzero()[:, 0]
    broken = returned.clone()
    if len(second):
        kept, kept_logits = _holds(bench, ball.select(second), y[second], ids[second], meter.point[second])
        checks += len(second) * bench.price
        better = second[kept]
        point[better], logits[better], broken[better] = meter.point[better], kept_logits[kept], True
    rows = broken.nonzero()[:, 0]
    evidence = _evidence(ball.select(rows), y[rows], positions[rows.cpu().numpy()], point[rows], logits[rows])
    on_grid, grid_checks = _on_grid(bench, y[rows], ids[rows], point[rows])
    return Outcome(
        broken=broken,
        rescued=int((broken & ~returned).sum()),
        unconfirmed=int((meter.hit & ~broken).sum()),
        claims=int((meter.hit | broken).sum()),
        evidence=evidence,
        grid_survivors=on_grid,
        status=status,
        meter=meter,
        checks=checks + grid_checks,
        queries=torch.where(meter.hit, meter.needed, meter.asked)[rows].tolist() if meter.matched else [],
    )


def _holds(bench: Bench, ball: Ball, y: Tensor, ids: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is valid and misclassified, with the logits that say so."""
    if not len(z):
        return torch.zeros(0, dtype=torch.bool, device=z.device), z.new_zeros(0, bench.plan.classes)
    logits = bench.answers(z, y, ids)
    return is_wrong(logits, y) & ball.contains(z), logits


def _evidence(
    ball: Ball, y: Tensor, positions: np.ndarray[Any, Any], point: Tensor, logits: Tensor
) -> Evidence:
    def column(tensor: Tensor) -> np.ndarray[Any, Any]:
        return tensor.detach().cpu().contiguous().numpy()

    return Evidence(
        position=np.ascontiguousarray(positions, dtype=np.int64),
        x=column(point),
        label=column(logits.argmax(1)),
        margin=column(margin(logits, y)),
        distance=column(ball.distance(point)),
    )


def _on_grid(bench: Bench, y: Tensor, ids: Tensor, point: Tensor) -> tuple[int, int]:
    """How many adversarial images stay adversarial when stored with 8 bits, and the passes this took."""
    spec = bench.plan.spec
    if not (spec.is_image and spec.bounds == (0.0, 1.0) and len(y)):
        return len(y), 0
    logits = bench.answers((point * 255).round() / 255, y, ids)
    return int(is_wrong(logits, y).sum()), len(y) * bench.price
