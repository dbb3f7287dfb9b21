"""Replaying a run: does the evidence hold against the model, and does every figure follow from it?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset
from ..errors import InputError
from ..goals import choose_rows
from ..guarded import Guarded
from ..losses import is_wrong, margin
from ..stress.admission import admit
from ..stress.attacking import Bench, Limits
from ..stress.corrupting import CORRUPTING
from ..stress.curve import known_points
from ..stress.folder import Evidence, Record, RunFolder
from ..stress.ledger import Ledger
from ..stress.plan import Plan, Stage, stages
from ..stress.units import run_unit
from ..targets import Target
from .build import build_report
from .model import Report
from .replaying import replay_unattacked, replayed_predictions

__all__ = ["Verification", "verify_run"]

# Another machine or another batch rounds differently; a change of the model or of a sample moves more.
_SLACK = 1e-3


@dataclass(frozen=True)
class Verification:
    """What a replay found.

    Attributes:
        problems: One line each; none means that the run is what it says.
        samples: Clean predictions that were made again.
        counterexamples: Adversarial inputs that were evaluated again.
        units: Units of the journal that were attacked again and compared.
        corrupted: Predictions on corrupted and transformed samples that were made again.
    """

    problems: tuple[str, ...]
    samples: int
    counterexamples: int
    units: int
    corrupted: int = 0

    @property
    def passed(self) -> bool:
        return not self.problems


def verify_run(path: Path, target: Target, device: torch.device, *, rerun: int = 0) -> Verification:
    """Replay a run against the model and the data that it claims to be about.

    The clean and corrupted predictions and every stored adversarial input are evaluated again, with distance,
    range and digests; then the report is built anew from the journal and compared figure by figure.

    Args:
        path: The run folder.
        target: The model and data, from a source that the caller trusts; nothing in the folder is executed.
        device: Where to evaluate.
        rerun: Carry out so many units of the journal again (spread evenly) and compare what they find. This
            is what can expose an attack that was only claimed to have failed.

    Raises:
        InputError: if the folder is not a run, or cannot be read as one.
    """
    folder, plan = RunFolder.open(path)
    report = Report.load(path)
    problems = list(_identity(plan, target))
    if any(problem.startswith("data") for problem in problems):
        # Nothing can be replayed on other inputs.
        return Verification(tuple(problems), 0, 0, 0)
    replayed = counterexamples = corrupted = units = 0
    with target.ready(device):
        problems += _repeatability(plan, target, device)
        bench = Bench(plan, target.model, target.data, device, target.twin)
        by_key = {stage.key: stage for stage in stages(plan)}
        for record in folder.records:
            if record.stage not in by_key or record.chunk >= plan.chunks:
                problems.append(f"journal: {record.stage} {record.chunk} is not in the plan")
            elif by_key[record.stage].skipped is not None:
                problems.append(f"journal: {record.stage} cannot run at all, but has a record")
            elif record.stage == "clean":
                problems += _replay_clean(bench, record)
                replayed += len(record.labels)
            elif by_key[record.stage].kind in {"certificate"} | CORRUPTING:
                clean = _clean_of(folder, record)
                problems += replay_unattacked(bench, by_key[record.stage], record, clean, _slack(plan))
                corrupted += replayed_predictions(record)
            elif record.broken:
                problems += _replay_evidence(bench, folder, record, by_key[record.stage])
                counterexamples += len(record.broken)
        if rerun and not problems:
            try:
                units, found = _rerun(bench, folder, rerun)
                problems += found
            except InputError as error:
                problems.append(f"journal: {error}")
    problems += _figures(plan, folder, target.data, report)
    return Verification(tuple(problems), replayed, counterexamples, units, corrupted)


def _clean_of(folder: RunFolder, record: Record) -> Record | None:
    return next((r for r in folder.records if (r.stage, r.chunk) == ("clean", record.chunk)), None)


def _identity(plan: Plan, target: Target) -> Iterator[str]:
    if plan.data_sha256 != target.data.sha256 or plan.data_rows != len(target.data):
        yield f"data: SHA-256 {target.data.sha256[:16]} of the target, {plan.data_sha256[:16]} of the run"
    digest = target.model.fingerprint()
    if digest != plan.model_sha256:
        yield f"model: SHA-256 {str(digest)[:16]} of the target, {str(plan.model_sha256)[:16]} of the run"
    twin = target.twin.fingerprint() if target.twin is not None else None
    if twin != plan.twin_sha256:
        yield f"model: SHA-256 {str(twin)[:16]} of the target's twin, {str(plan.twin_sha256)[:16]} of the run"
    chosen = choose_rows(target.data.y, plan.requested, plan.select, plan.seed, plan.aims)
    if plan.ids != chosen.tolist():
        yield f"plan: its samples are not those that select={plan.select!r} and seed={plan.seed} choose"
    model = target.model
    for name, stated, found in (
        ("inputs", plan.inputs, model.inputs.to_dict()),
        ("classes", plan.classes, model.classes),
        ("outputs", plan.outputs, model.outputs),
        ("parameters", plan.parameters, model.size),
        # The digest covers guards; a black box has none.
        ("guards", plan.guards, model.describe() if isinstance(model, Guarded) else []),
        # A plan that states less access than the model gives would leave out the attacks that need it.
        ("access", plan.access, model.access.label),
    ):
        if stated != found:
            yield f"model: {name} of the target is {_brief(found)}, of the run {_brief(stated)}"


def _repeatability(plan: Plan, target: Target, device: torch.device) -> Iterator[str]:
    """One draw of a model that answers at random proves nothing, whatever the plan says of it."""
    found, stated = admit(target.model, target.data, device).randomness, plan.randomness
    if (found is None) != (stated is None):
        yield f"model: it answers {'alike' if found is None else 'at random'}, the run says otherwise"
    elif found is not None and found.foreign:
        yield "model: its random numbers come from outside of torch, so no vote can be taken again"


def _replay_clean(bench: Bench, record: Record) -> Iterator[str]:
    positions = bench.plan.positions(record.chunk)
    x, y, ids = bench.batch(positions)
    if not len(record.labels) == len(record.margins) == len(positions):
        yield f"journal: the clean record of chunk {record.chunk} does not hold one label per sample"
        return
    logits, slack = bench.answers(x, y, ids, aimed=False), _slack(bench.plan)
    labels, leads = logits.argmax(1).tolist(), (-margin(logits, y)).tolist()
    for place, sample in enumerate(ids.tolist()):
        near = _close(leads[place], record.margins[place], slack)
        if not near or (labels[place] != record.labels[place] and abs(leads[place]) > slack):
            yield (
                f"sample {sample}: the model answers {labels[place]} by {leads[place]:.4f}, "
                f"the run says {record.labels[place]} by {record.margins[place]:.4f}"
            )


def _close(value: float, stored: float, slack: float) -> bool:
    return abs(value - stored) <= slack * max(1.0, abs(stored))


def _slack(plan: Plan) -> float:
    # Rounding may turn the odd vote; one vote moves the lead by two draws.
    return _SLACK if plan.randomness is None else 4 / plan.randomness.draws


def _replay_evidence(bench: Bench, folder: RunFolder, record: Record, stage: Stage) -> Iterator[str]:
    where = f"{record.stage}, chunk {record.chunk}"
    try:
        evidence = folder.read_evidence(record)
    except InputError as error:
        ids = ", ".join(str(bench.plan.ids[p]) for p in record.broken[:5] if p < bench.plan.samples)
        yield f"{where}: {error} (samples {ids}{', …' if len(record.broken) > 5 else ''})"
        return
    digests = evidence.digests()
    damaged = {row for row, digest in enumerate(digests) if digest != _at(record.digests, row)}
    for row in sorted(damaged):
        sample = _sample(bench.plan, record.broken[row])
        yield f"{where}: evidence of sample {sample} is not what was recorded"
    content = (folder.path / str(record.evidence)).read_bytes()
    if not damaged and hashlib.sha256(content).hexdigest() != record.sha256:
        yield f"{where}: {record.evidence} is not the file that was recorded"
    if record.distances != evidence.distance.tolist():
        yield f"{where}: its distances are not those of its evidence"
    yield from _replay_points(bench, stage, record, evidence, skip=damaged)


def _at(items: list[str], index: int) -> str | None:
    return items[index] if index < len(items) else None


def _sample(plan: Plan, position: int) -> str:
    return (
        str(plan.ids[position])
        if position < plan.samples
        else f"at position {position}, which does not exist"
    )


def _replay_points(
    bench: Bench, stage: Stage, record: Record, evidence: Evidence, *, skip: set[int]
) -> Iterator[str]:
    assert stage.threat is not None
    held = set(bench.plan.positions(record.chunk).tolist())
    positions = np.asarray(record.broken, dtype=np.int64)
    if evidence.position.tolist() != record.broken or not set(record.broken) <= held:
        yield f"{record.stage}, chunk {record.chunk}: the evidence is not about the recorded samples"
        return
    x, y, ids = bench.batch(positions)
    point = torch.from_numpy(evidence.x).to(x)
    if point.shape != x.shape:
        yield f"{record.stage}, chunk {record.chunk}: the evidence has shape {tuple(point.shape)}"
        return
    ball = stage.threat.around(x)
    logits = bench.answers(point, y, ids)
    lead, slack = margin(logits, y), _slack(bench.plan)
    failures = _judge(
        logits,
        y,
        lead,
        ball.contains(point),
        ball.distance(point),
        evidence,
        slack,
        aimed=bool(bench.plan.goals),
    )
    for row, sample in enumerate(ids.tolist()):
        if row not in skip and failures[row]:
            yield f"sample {sample}: {record.stage}: {failures[row]}"


def _equal(value: float, stored: float) -> bool:
    # Written so that NaN is not equal.
    return abs(value - stored) <= 1e-6 * max(1.0, value)


def _judge(
    logits: Tensor,
    y: Tensor,
    lead: Tensor,
    inside: Tensor,
    distance: Tensor,
    evidence: Evidence,
    slack: float,
    *,
    aimed: bool,
) -> list[str | None]:
    wrong, top = is_wrong(logits, y), logits.amax(1, keepdim=True)
    answers = (logits >= top - slack).tolist()
    found: list[str | None] = []
    for row in range(len(y)):
        value = float(lead[row])
        if not bool(inside[row]):
            found.append("the adversarial input is not within the budget and the valid range")
        elif not _equal(float(distance[row]), float(evidence.distance[row])):
            found.append(
                f"its distance is {float(distance[row]):.6g}, not {float(evidence.distance[row]):.6g}"
            )
        elif not bool(wrong[row]) and value < -slack:
            said = f"it answers {int(y[row])}, correctly," if not aimed else "no target class wins,"
            found.append(f"the model is not fooled: {said} by {-value:.4f}")
        elif not _close(value, float(evidence.margin[row]), slack):
            found.append(f"it fools the model by {value:.4f}, the run says {float(evidence.margin[row]):.4f}")
        elif not _among(answers[row], int(evidence.label[row])):
            found.append(f"the model does not answer {int(evidence.label[row])}, as the run says")
        else:
            found.append(None)
    return found


def _among(accepted: list[bool], label: int) -> bool:
    """Whether a label is one of those that the model gives, up to rounding; none is where it answers NaN."""
    return not any(accepted) or (0 <= label < len(accepted) and accepted[label])


def _rerun(bench: Bench, folder: RunFolder, count: int) -> tuple[int, list[str]]:
    """Do some units again, from the state in which the run met them."""
    plan = bench.plan
    ledger = Ledger(plan, bench.data.y[plan.ids], [])
    candidates = [record for record in folder.records if record.status == "complete"]
    step = max(1, len(candidates) // count)
    chosen = {(record.stage, record.chunk) for record in candidates[::step][:count]}
    problems: list[str] = []
    units = 0
    for stage in ledger.stages:
        for chunk in range(plan.chunks):
            stored = [r for r in folder.records if (r.stage, r.chunk) == (stage.key, chunk)]
            if (stage.key, chunk) in chosen and len(stored) == 1:
                limits = Limits()
                known = known_points(ledger, folder, bench.data, stage, chunk)
                again, _ = run_unit(bench, stage, chunk, ledger.rows(stage, chunk), limits, known)
                units += 1
                if differing := _disagreement(plan, again, stored[0]):
                    problems.append(f"{stage.key}, chunk {chunk}: done again, it differs on {differing}")
            if stored:
                ledger.take(stage, chunk, stored)
    return units, problems


def _disagreement(plan: Plan, again: Record, stored: Record) -> str | None:
    """What two records of a unit differ on, other than time."""
    differing = sorted(set(again.broken) ^ set(stored.broken))
    if stored.stage == "clean" and again.labels != stored.labels:
        pairs = zip(plan.positions(stored.chunk).tolist(), again.labels, stored.labels, strict=True)
        differing = [position for position, new, old in pairs if new != old]
    if differing:
        more = ", …" if len(differing) > 5 else ""
        return f"samples {', '.join(_sample(plan, position) for position in differing[:5])}{more}"
    counts = ("attempted", "rescued", "unconfirmed", "forward", "backward", "checks")
    figures = ("status", *counts, "facts", "labels", "radii", "choices", "queries")
    return ", ".join(name for name in figures if getattr(again, name) != getattr(stored, name)) or None


def _figures(plan: Plan, folder: RunFolder, data: Dataset, report: Report) -> list[str]:
    try:
        rebuilt = build_report(plan, folder, data, created=report.created)
    except InputError as error:
        return [f"journal: {error}"]
    problems = []
    for path, stated, follows in _differences(
        report.model_dump(by_alias=True), rebuilt.model_dump(by_alias=True), ""
    ):
        problems.append(
            f"report: {path} is {_brief(stated)}, but {_brief(follows)} follows from the evidence"
        )
    return problems


def _differences(stated: Any, follows: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stated, dict) and isinstance(follows, dict):
        for key in sorted(stated.keys() | follows.keys()):
            yield from _differences(stated.get(key), follows.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(stated, list) and isinstance(follows, list) and len(stated) == len(follows):
        for index, (left, right) in enumerate(zip(stated, follows, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif stated != follows:
        yield path, stated, follows


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
