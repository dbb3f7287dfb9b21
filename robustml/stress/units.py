"""The work on one chunk: the clean pass, an attack with the check outside it, and the diagnostic probes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..classifier import Model
from ..data import Dataset
from ..errors import InputError, RobustmlError, RunError
from ..losses import cross_entropy, is_wrong, margin
from ..registry import Access, Attack, find_attack
from ..sampling import Streams
from ..threats import Ball, Threat
from .folder import Evidence, Record
from .meter import BudgetSpent, Meter
from .plan import Plan, Stage

__all__ = ["Bench", "Limits", "Rows", "run_unit"]

# Below this L1 norm a gradient points nowhere: float32 rounding decides its direction.
_NO_GRADIENT = 1e-12


@dataclass(frozen=True)
class Bench:
    """The plan with the real model and data on the table."""

    plan: Plan
    model: Model
    data: Dataset
    device: torch.device

    def batch(self, positions: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels and sample ids of some positions of the plan, on the device."""
        ids = np.asarray(self.plan.ids)[positions]
        x = torch.from_numpy(self.data.x[ids]).to(self.device)
        y = torch.from_numpy(self.data.y[ids]).to(self.device)
        return x, y, torch.from_numpy(ids).to(self.device)


@dataclass(frozen=True)
class Rows:
    """The positions of a chunk that a stage may work on: correct on clean data, and still standing."""

    correct: np.ndarray[Any, Any]
    standing: np.ndarray[Any, Any]

    def first(self, samples: int) -> Rows:
        """Only those among the first samples of the plan."""
        return Rows(self.correct[self.correct < samples], self.standing[self.standing < samples])


@dataclass(frozen=True)
class Limits:
    """What a unit may still spend; `on_pass` is told of every forward pass."""

    max_passes: float | None = None
    deadline: float | None = None
    on_pass: Callable[[int], None] | None = None


@dataclass
class _Outcome:
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


def run_unit(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """Carry out one stage on one chunk.

    Raises:
        RunError: if the model or the attack raises.
    """
    begun = time.monotonic()
    try:
        if stage.kind == "clean":
            record, evidence = _clean(bench, stage, chunk), None
        elif stage.kind in {"attack", "curve"}:
            record, evidence = _attack(bench, stage, chunk, rows.standing, limits)
        else:
            probe = {"gradients": _gradients, "ordering": _ordering, "unbounded": _unbounded}[stage.kind]
            subset = rows.first(bench.plan.suite.diagnostics.samples)
            # A probe cut short would judge the suite by half a measurement; its cost is small and bounded.
            record, evidence = probe(bench, stage, chunk, subset, Limits(on_pass=limits.on_pass))
    except (RobustmlError, BudgetSpent):
        raise
    except Exception as error:
        # User code or a foreign library can raise anything; the journal keeps what was finished before.
        raise RunError(f"{stage.key}, chunk {chunk}: {type(error).__name__}: {_one_line(error)}") from error
    return record.model_copy(update={"seconds": round(time.monotonic() - begun, 6)}), evidence


def _clean(bench: Bench, stage: Stage, chunk: int) -> Record:
    x, y, ids = bench.batch(bench.plan.positions(chunk))
    with torch.no_grad():
        logits = bench.model(x)
    if bool(logits.isnan().any()):
        sample = int(ids[int(logits.isnan().any(1).nonzero()[0])])
        raise InputError(f"the model answers NaN for sample {sample} of the data; it must return numbers")
    saturated = torch.softmax(logits.float(), 1).amax(1) == 1.0
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(x),
        forward=len(x),
        facts={"saturated": float(saturated.sum())},
        labels=logits.argmax(1).tolist(),
        margins=[round(float(value), 6) for value in -margin(logits, y)],
    )


def _attack(
    bench: Bench, stage: Stage, chunk: int, positions: np.ndarray[Any, Any], limits: Limits
) -> tuple[Record, Evidence]:
    assert stage.entry is not None and stage.threat is not None
    attack = find_attack(stage.entry.use)
    outcome = _run_attack(bench, attack, stage.entry.options, stage.threat, stage.key, positions, limits)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        status=outcome.status,
        attempted=len(positions),
        broken=outcome.evidence.position.tolist(),
        rescued=outcome.rescued,
        unconfirmed=outcome.unconfirmed,
        forward=outcome.meter.forward,
        backward=outcome.meter.backward,
        checks=outcome.checks,
        facts={"claims": float(outcome.claims), "on_grid": float(outcome.grid_survivors)},
    )
    return record, outcome.evidence


def _run_attack(
    bench: Bench,
    attack: Attack,
    options: dict[str, Any],
    threat: Threat,
    purpose: str,
    positions: np.ndarray[Any, Any],
    limits: Limits,
) -> _Outcome:
    x, y, ids = bench.batch(positions)
    ball = threat.around(x)
    meter = Meter(
        bench.model, ball, y, max_passes=limits.max_passes, deadline=limits.deadline, on_pass=limits.on_pass
    )
    streams = Streams.derive(bench.plan.seed, purpose, ids)
    status = "complete"
    if not len(positions):
        # Not every model answers for an empty batch.
        return _confirm(bench, meter, ball, y, positions, x, status)
    try:
        # Copies: the check below must not depend on what an attack does to its arguments.
        candidates = attack.function(meter, x.clone(), y.clone(), threat=threat, streams=streams, **options)
    except BudgetSpent as spent:
        status, candidates = spent.kind, meter.point
    if candidates.shape != x.shape:
        raise RunError(f"{attack.name} returned shape {tuple(candidates.shape)} for inputs {tuple(x.shape)}")
    return _confirm(bench, meter, ball, y, positions, candidates.detach().to(x.dtype), status)


def _confirm(
    bench: Bench,
    meter: Meter,
    ball: Ball,
    y: Tensor,
    positions: np.ndarray[Any, Any],
    candidates: Tensor,
    status: Any,
) -> _Outcome:
    """Believe only what the plain model, in its own precision and another batch, says of valid points."""
    returned, logits = _holds(bench, ball, y, candidates)
    checks = len(y)
    point = candidates.clone()
    # The attack may have visited an adversarial point that it did not return, or that did not hold up.
    second = (meter.hit & ~returned).nonzero()[:, 0]
    broken = returned.clone()
    if len(second):
        kept, kept_logits = _holds(bench, ball.select(second), y[second], meter.point[second])
        checks += len(second)
        better = second[kept]
        point[better], logits[better], broken[better] = meter.point[better], kept_logits[kept], True
    rows = broken.nonzero()[:, 0]
    evidence = _evidence(ball.select(rows), y[rows], positions[rows.cpu().numpy()], point[rows], logits[rows])
    on_grid, grid_checks = _on_grid(bench, y[rows], point[rows])
    return _Outcome(
        broken=broken,
        rescued=int((broken & ~returned).sum()),
        unconfirmed=int((meter.hit & ~broken).sum()),
        claims=int((meter.hit | broken).sum()),
        evidence=evidence,
        grid_survivors=on_grid,
        status=status,
        meter=meter,
        checks=checks + grid_checks,
    )


def _holds(bench: Bench, ball: Ball, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is valid and misclassified, with the logits."""
    if not len(z):
        return torch.zeros(0, dtype=torch.bool, device=z.device), z.new_zeros(0, bench.plan.classes)
    with torch.no_grad():
        logits = bench.model(z)
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


def _on_grid(bench: Bench, y: Tensor, point: Tensor) -> tuple[int, int]:
    """How many adversarial images stay adversarial when stored with 8 bits, and the passes this took."""
    spec = bench.plan.spec
    if not (spec.is_image and spec.bounds == (0.0, 1.0) and len(y)):
        return len(y), 0
    with torch.no_grad():
        logits = bench.model((point * 255).round() / 255)
    return int(is_wrong(logits, y).sum()), len(y)


def _gradients(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, None]:
    """D01: is there a gradient to follow, at the input and at a random start, under each loss?"""
    assert stage.threat is not None
    x, y, ids = bench.batch(rows.correct)
    ball = stage.threat.around(x)
    start = ball.random(Streams.derive(bench.plan.seed, stage.key, ids))
    meter = Meter(bench.model, ball, y, on_pass=limits.on_pass)
    unusable = {
        name: _no_gradient(meter, x, y, loss) | _no_gradient(meter, start, y, loss)
        for name, loss in (("ce", cross_entropy), ("margin", margin))
    }
    facts = {
        "probed": float(len(x)),
        "ce": float(unusable["ce"].sum()),
        "margin": float(unusable["margin"].sum()),
        "every": float((unusable["ce"] & unusable["margin"]).sum()),
    }
    return (
        Record(
            stage=stage.key,
            chunk=chunk,
            attempted=len(x),
            forward=meter.forward,
            backward=meter.backward,
            facts=facts,
        ),
        None,
    )


def _no_gradient(model: Meter, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    point = x.detach().clone().requires_grad_()
    values = loss(model(point), y)
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
    if gradient is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    size = gradient.double().abs().flatten(1).sum(1)
    return ~(size.isfinite() & (size >= _NO_GRADIENT))


def _ordering(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, Evidence]:
    """D10: what a weak attack breaks, a stronger one must break; neither may break what the suite left."""
    assert stage.threat is not None
    settings = bench.plan.suite.diagnostics
    facts, outcomes = {"probed": float(len(rows.correct))}, []
    if bench.model.access is Access.GRADIENT and stage.threat.norm in find_attack("pgd").norms:
        weak = _run_attack(
            bench, find_attack("fgsm"), {}, stage.threat, f"{stage.key}/fgsm", rows.correct, limits
        )
        strong = _run_attack(
            bench, find_attack("pgd"), {}, stage.threat, f"{stage.key}/pgd", weak.evidence.position, limits
        )
        outcomes = [strong, weak]
        found = _joined(outcomes, rows.standing)
        facts |= {"weak": float(weak.broken.sum()), "missed": float((~strong.broken).sum())}
        facts["overlooked"] = float(len(found.position))
    options = {"draws": settings.noise_draws}
    random = _run_attack(
        bench, find_attack("noise"), options, stage.threat, f"{stage.key}/noise", rows.standing, limits
    )
    facts |= {"noise_attempted": float(len(rows.standing)), "noise_broken": float(random.broken.sum())}
    outcomes.append(random)
    evidence = _joined(outcomes, rows.standing)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.standing),
        broken=evidence.position.tolist(),
        forward=sum(outcome.meter.forward for outcome in outcomes),
        backward=sum(outcome.meter.backward for outcome in outcomes),
        checks=sum(outcome.checks for outcome in outcomes),
        facts=facts,
    )
    return record, evidence


def _joined(outcomes: list[_Outcome], among: np.ndarray[Any, Any]) -> Evidence:
    """One counterexample for each of the positions `among` that an attack broke; earlier attacks first."""
    columns = {
        name: np.concatenate([getattr(outcome.evidence, name) for outcome in outcomes])
        for name in vars(outcomes[0].evidence)
    }
    positions, first = np.unique(columns["position"], return_index=True)
    kept = first[np.isin(positions, among)]
    return Evidence(**{name: column[kept] for name, column in columns.items()})


def _unbounded(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, None]:
    """D13: with a budget that reaches every valid input, nothing but a constant answer can stand."""
    assert stage.threat is not None
    # Constraints may protect a sample for good; the question here is whether the attack finds its way.
    spec = dataclasses.replace(bench.plan.spec, immutable=(), integer=(), one_hot=())
    threat = stage.threat.within(spec).unbounded()
    name, options = ("apgd", {"loss": "margin", "steps": 50})
    if bench.model.access is not Access.GRADIENT:
        name, options = ("square", {"queries": 500})
    attack = find_attack(name)
    if threat.norm not in attack.norms:
        return Record(stage=stage.key, chunk=chunk), None
    outcome = _run_attack(bench, attack, options, threat, stage.key, rows.correct, limits)
    facts = {"probed": float(len(rows.correct)), "standing": float((~outcome.broken).sum())}
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.correct),
        forward=outcome.meter.forward,
        backward=outcome.meter.backward,
        checks=outcome.checks,
        facts=facts,
    )
    return record, None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
