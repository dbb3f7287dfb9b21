"""More effort, less access and another model: what breaks this way the suite should have broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ...losses import cross_entropy
from ...registry import Access, Logits, find_attack
from ...sampling import Streams
from ...threats import Ball
from ..attacking import Bench, Limits, Outcome, Rows, confirm, run_attack
from ..folder import Evidence, Record
from ..meter import Meter
from ..plan import Stage
from ..probing import effort_of
from ..suite import unusable
from .common import Recorder, record_of

__all__ = ["probe_black_box", "probe_effort", "probe_transfer"]

# What doubling may cost per sample that diagnostics look at, and the fewest samples that are worth it.
_EFFORT_PASSES = 50
_FEWEST = 16
# Of a trajectory, the calls at its end and the share of the whole rise that they may still add.
_TAIL = 10
_STILL_RISING = 0.05
# Attacks without gradients are slow, so few samples are tried: with labels by the first attack of the norm.
_DECISIONS = ("rays", "hop-skip-jump")
_DECISION_SAMPLES, _DECISION_QUERIES = 16, 150
_SCORE_SAMPLES, _SCORE_QUERIES = 32, 200
_TRANSFER_STEPS = 20


def probe_effort(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D08, D09: the suite's strongest attack with twice its steps and a new start, watched as it goes."""
    entry, threat = stage.entry, stage.threat
    assert entry is not None and threat is not None
    attack, options = find_attack(entry.use), entry.options
    price = (3 if attack.access is Access.GRADIENT else 1) * effort_of(entry)
    settings = bench.plan.suite.diagnostics
    few = rows.first(max(_FEWEST, settings.samples * _EFFORT_PASSES // price)).standing
    recorders: list[Recorder] = []

    def around(meter: Meter, y: Tensor) -> Logits:
        recorders.append(Recorder(meter, y))
        return recorders[-1]

    outcome = run_attack(bench, attack, options, threat, stage.key, few, limits, around)
    rising = [_is_rising(margins) for recorder in recorders for margins in recorder.progress()]
    facts = {
        "probed": float(len(few)),
        "doubled": float(outcome.broken.sum()),
        "watched": float(len(rising)),
        "rising": float(sum(rising)),
    }
    return record_of(stage, chunk, [outcome], few, facts)


def _is_rising(margins: list[float]) -> bool:
    """Whether the best margin of a trajectory that found nothing still rises at its end."""
    if len(margins) <= _TAIL or max(margins) > 0:
        return False
    best = np.maximum.accumulate(np.asarray(margins))
    whole = float(best[-1] - np.min(margins))
    return whole > 0 and float(best[-1] - best[-1 - _TAIL]) > _STILL_RISING * whole


def probe_black_box(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D11: a decision-based attack on a few survivors, and a score-based one if the suite has none."""
    assert stage.threat is not None
    norm = stage.threat.norm
    plans = [
        (name, _DECISION_SAMPLES, _DECISION_QUERIES) for name in _DECISIONS if norm in find_attack(name).norms
    ][:1]
    if norm in find_attack("square").norms and not _has_scores(bench, norm):
        plans.append(("square", _SCORE_SAMPLES, _SCORE_QUERIES))
    outcomes: list[Outcome] = []
    tried = rows.standing[:0]
    for name, samples, queries in plans:
        few = rows.first(samples).standing
        key, options = f"{stage.key}/{name}", {"queries": queries}
        outcomes.append(run_attack(bench, find_attack(name), options, stage.threat, key, few, limits))
        tried = np.union1d(tried, few)
    return record_of(stage, chunk, outcomes, tried, {"probed": float(len(tried))})


def _has_scores(bench: Bench, norm: str) -> bool:
    """Whether the suite itself attacks through scores."""
    return any(
        find_attack(entry.use).access is Access.SCORE
        for entry in bench.plan.suite.attack
        if unusable(entry, bench.model.access, norm) is None
    )


def probe_transfer(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D14: inputs that fool the twin as much as possible, shown to the model."""
    assert stage.threat is not None and bench.twin is not None
    few = rows.standing
    x, y, ids = bench.batch(few)
    ball = stage.threat.around(x)
    facts = {"probed": float(len(few))}
    if not len(few):
        return Record(stage=stage.key, chunk=chunk, facts=facts), None
    meter = Meter(bench.twin, ball, y, on_pass=limits.on_pass)
    start = ball.random(Streams.derive(bench.plan.seed, stage.key, ids))
    point = _against(meter, ball, start, y)
    # The meter of the twin knows nothing of the model, so it must not vouch for anything.
    idle = Meter(bench.model, ball, y)
    outcome = confirm(bench, idle, ball, y, few, point, "complete")
    outcome = dataclasses.replace(outcome, meter=meter)
    facts["broken"] = float(outcome.broken.sum())
    return record_of(stage, chunk, [outcome], few, facts)


def _against(twin: Meter, ball: Ball, start: Tensor, y: Tensor) -> Tensor:
    """Steps of falling length with momentum; they go on when the twin is fooled, for the model's sake.

    Dong et al. 2018, "Boosting adversarial attacks with momentum", Algorithm 1, with projection.
    """
    z, velocity = start, torch.zeros_like(start)
    for step in range(_TRANSFER_STEPS):
        point = ball.snap(z).detach().requires_grad_()
        loss = cross_entropy(twin(point), y)
        if not loss.requires_grad:
            break
        (gradient,) = torch.autograd.grad(loss.sum(), point, allow_unused=True)
        if gradient is None:
            break
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        size = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
        velocity = velocity + gradient / size.view(-1, *[1] * (z.ndim - 1))
        length = 2.0 * ball.eps * (1 - step / _TRANSFER_STEPS) ** 2
        z = ball.uphill(z, velocity, length)
    return ball.snap(z).detach()
