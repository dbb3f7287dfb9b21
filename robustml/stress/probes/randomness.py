"""Whether attacks on a randomized model do all they can: without the randomness, and with more averaging."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...registry import Access, Attack, Logits, find_attack
from ...sampling import Streams
from ..attacking import Bench, Limits, Outcome, Rows, attackable, run_attack
from ..folder import Evidence, Record
from ..meter import Meter
from ..plan import Stage
from ..randomized import Seeded
from ..rejecting import Accepting

__all__ = ["probe_randomness"]

# Four times the draws of every step are spent on each of them, so they are few.
_SAMPLES = 32

Positions = np.ndarray[Any, np.dtype[np.int64]]


def probe_randomness(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D15: one fixed draw must be easier to fool than the vote, and more draws per step break nothing new."""
    assert stage.threat is not None
    found = _attack(bench, stage.threat.norm)
    few = rows.first(_SAMPLES)
    if found is None or not len(few.correct):
        return Record(stage=stage.key, chunk=chunk), None
    attack, options = found
    randomness = bench.plan.randomness
    assert randomness is not None
    facts = {"probed": float(len(few.correct))}
    outcomes: list[Outcome] = []
    passes = (0, 0)
    if not randomness.foreign:
        broken, passes = _frozen(bench, attack, options, stage, few.correct, limits)
        facts |= {"frozen": float(broken)}
    standing = few.standing
    for factor in (2, 4):
        facts[f"attempted_{factor}"] = float(len(standing))
        more = _with_eot(bench, factor * randomness.eot)
        purpose = f"{stage.key}/{factor}"
        outcome = run_attack(more, attack, options, stage.threat, purpose, standing, limits)
        outcomes.append(outcome)
        facts[f"broken_{factor}"] = float(outcome.broken.sum())
        standing = np.setdiff1d(standing, outcome.evidence.position)
        if not len(outcome.evidence.position):
            break
    facts["voted"] = float(len(few.correct) - len(standing))
    evidence = _together(outcomes)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(few.standing),
        broken=evidence.position.tolist(),
        forward=passes[0] + sum(outcome.meter.forward for outcome in outcomes),
        backward=passes[1] + sum(outcome.meter.backward for outcome in outcomes),
        checks=sum(outcome.checks for outcome in outcomes),
        facts=facts,
    )
    return record, evidence


def _attack(bench: Bench, norm: str) -> tuple[Attack, dict[str, Any]] | None:
    candidates: list[tuple[str, dict[str, Any]]] = []
    if bench.model.access is Access.GRADIENT:
        candidates.append(("apgd", {"loss": "margin", "steps": 20}))
    if bench.model.access >= Access.SCORE:
        candidates.append(("square", {"queries": 100}))
    usable = ((find_attack(name), options) for name, options in candidates)
    return next(((attack, options) for attack, options in usable if norm in attack.norms), None)


def _with_eot(bench: Bench, eot: int) -> Bench:
    assert bench.plan.randomness is not None
    randomness = bench.plan.randomness.model_copy(update={"eot": eot})
    return dataclasses.replace(bench, plan=bench.plan.model_copy(update={"randomness": randomness}))


def _together(outcomes: list[Outcome]) -> Evidence:
    columns = {
        name: np.concatenate([getattr(outcome.evidence, name) for outcome in outcomes])
        for name in vars(outcomes[0].evidence)
    }
    order = np.argsort(columns["position"], kind="stable")
    return Evidence(**{name: column[order] for name, column in columns.items()})


class _Frozen:
    """A randomized model that draws the same numbers for a sample each time, wherever its row has moved to.

    The rows that have left the batch are filled up with their inputs, since a model draws for a batch as a
    whole.
    """

    def __init__(self, model: Seeded, x: Tensor, *key: object) -> None:
        self._model, self._x, self._key = model, x, key
        self._rows = torch.arange(len(x), device=x.device)
        self.on_pass: Callable[[int], None] = lambda samples: None
        """Told of the rows that were filled up."""

    def focus(self, rows: Tensor) -> None:
        self._rows = rows

    def __call__(self, x: Tensor, /) -> Tensor:
        self.on_pass(len(self._x) - len(x))
        logits = self._model.draw(self._x.index_copy(0, self._rows, x), "frozen", *self._key)
        return logits[self._rows]


def _frozen(
    bench: Bench,
    attack: Attack,
    options: dict[str, Any],
    stage: Stage,
    positions: Positions,
    limits: Limits,
) -> tuple[int, tuple[int, int]]:
    """How many samples an attack breaks when every call draws the same numbers, and the passes it took."""
    assert stage.threat is not None and isinstance(bench.model, Seeded)
    broken, forward, backward = 0, 0, 0
    for places, targets in bench.groups(positions):
        x, y, ids = bench.batch(positions[places.cpu().numpy()])
        frozen = _Frozen(bench.model, x, stage.key, int(ids[0]))
        labels = y if targets is None else torch.zeros_like(y)
        model = attackable(frozen, labels, targets, rejects=bench.model.rejects)
        ball = stage.threat.around(x)

        def follow(rows: Tensor, frozen: _Frozen = frozen, model: Logits = model) -> None:
            frozen.focus(rows)
            if isinstance(model, Accepting):
                model.focus(rows)

        meter = Meter(model, ball, labels, on_pass=limits.on_pass, follow=follow)
        frozen.on_pass = meter.count
        streams = Streams.derive(bench.plan.seed, f"{stage.key}/frozen", ids)
        points = attack.function(
            meter, x.clone(), labels.clone(), threat=stage.threat, streams=streams, **options
        )
        meter.focus(torch.arange(len(x), device=x.device))
        with torch.no_grad():
            meter(points.detach().to(x.dtype))
        broken += int(meter.hit.sum())
        forward, backward = forward + meter.forward, backward + meter.backward
    return broken, (forward, backward)
