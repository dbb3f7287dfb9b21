"""The main job as functions: stress-test, replay, merge."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .classifier import Classifier, Model
from .data import Dataset, as_dataset, choose
from .errors import InputError
from .inputs import InputSpec
from .report.build import build_report
from .report.gate import check_gate
from .report.model import Report
from .stress.admission import admit, check_mode, infer_classes
from .stress.folder import RunFolder
from .stress.folder import merge as merge_folders
from .stress.plan import Plan
from .stress.runner import Observer, Shard, Silent, execute
from .stress.suite import complete, load_suite
from .stress.units import Bench
from .targets import Target
from .threats import Threat, parse_threat

__all__ = [
    "make_plan",
    "merge_runs",
    "pick_device",
    "run_target",
    "save_report",
    "stress_target",
    "stress_test",
    "target_of",
]

DEFAULT_BATCH = 256


def stress_test(
    model: Any,
    data: Any,
    *,
    threats: Sequence[Threat | str],
    suite: str = "standard",
    inputs: InputSpec | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "model",
    out: str | Path | None = None,
    samples: int | None = None,
    select: str = "stratified",
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    device: str = "auto",
    confidence: float = 0.95,
    max_passes: float | None = None,
    time_budget: float | None = None,
    gate: Mapping[str, str] | None = None,
    resume: bool = False,
    redact: bool = False,
    progress: bool = False,
) -> Report:
    """Attack a model with everything a suite holds and report how much of its accuracy survives.

    Args:
        model: A `Classifier`, a `BlackBox`, or a bare `torch.nn.Module` that returns logits.
        data: A pair (x, y) of arrays or tensors, or a `DataLoader`; x in input units, y whole numbers.
        threats: Threat models, such as `Linf(8/255)` or "linf:8/255".
        suite: "quick", "standard", or the path of a suite file.
        inputs: The space of inputs of a bare module; by default the shape of x with values in [0, 1].
        class_names: One per class; "0", "1", … by default.
        name: What the report calls the model.
        out: The run folder; if None the evidence is discarded with a temporary one.
        samples: Test on so many samples instead of all.
        select: How to choose them: "stratified" or "first".
        seed: Decides every random number, together with each sample's place in the data.
        batch_size: Samples worked on, journalled and resumed together.
        device: "auto", "cpu", "cuda", "cuda:1", …
        confidence: Of all intervals.
        max_passes: Stop attacking a chunk when it has cost so many passes per sample (backward counts twice).
        time_budget: Stop after so many seconds. Either budget leaves a report that says what is missing.
        gate: Conditions such as {"evasion": ">= 40"}.
        resume: Continue the run in `out` instead of starting a new one.
        redact: Keep inputs out of the report (the evidence folder still holds them).
        progress: Show progress on stderr.

    Returns:
        The report; with `out` it is also in out/report.json and out/report.html.

    Raises:
        InputError: if something given cannot be used; nothing has been attacked then.
        RunError: if the model or an attack fails, or the folder cannot be written; finished work is kept.
    """
    target = target_of(model, data, inputs=inputs, class_names=class_names, name=name)
    bound = tuple((parse_threat(t) if isinstance(t, str) else t).within(target.model.inputs) for t in threats)
    target = dataclasses.replace(
        target,
        threats=bound,
        suite=suite,
        seed=seed,
        batch_size=batch_size,
        samples=samples,
        select=select,
        gate=dict(gate or {}),
    )
    listed = ", ".join(threat.name for threat in bound)
    observer: Observer = Silent()
    if progress:
        from .progress import observer_for

        observer = observer_for()
    return stress_target(
        target,
        out=None if out is None else Path(out),
        device=device,
        confidence=confidence,
        max_passes=max_passes,
        time_budget=time_budget,
        resume=resume,
        redact=redact,
        observer=observer,
        command=f"robustml.stress_test(model, data, threats=[{listed}], suite={suite!r}, seed={seed})",
    )


def target_of(
    model: Any,
    data: Any,
    *,
    inputs: InputSpec | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "model",
) -> Target:
    """Make a target of a model and its data, inferring for a bare module what was not said.

    Raises:
        InputError: if something cannot be inferred or used.
    """
    if not isinstance(model, Model):
        model = _wrapped(model, data, inputs)
    elif inputs is not None and inputs != model.inputs:
        raise InputError("inputs differs from the specification that the model already has; give one of them")
    dataset = as_dataset(data, model.inputs, model.classes)
    names = (
        tuple(str(n) for n in class_names)
        if class_names is not None
        else tuple(map(str, range(model.classes)))
    )
    if len(names) != model.classes:
        raise InputError(f"class_names has {len(names)} names for {model.classes} classes")
    return Target(name=name, model=model, model_name=name, data=dataset, class_names=names)


def _wrapped(model: Any, data: Any, inputs: InputSpec | None) -> Classifier:
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"model is {type(model).__name__}; give a torch.nn.Module, a Classifier or a BlackBox"
        )
    from .gathering import gather

    dtype = np.dtype(inputs.dtype if inputs else "float32")
    x, _ = gather(data, dtype)
    if inputs is None:
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
        if x.dtype != np.uint8 and not (low >= 0 and high <= 1):
            raise InputError(
                f"x has values from {low:g} to {high:g}; say what is valid with "
                f"inputs=InputSpec(shape={x.shape[1:]}, bounds=(lowest, highest))"
            )
        inputs = InputSpec(shape=x.shape[1:])
    probe = (x[:2].astype(dtype) / (255 if x.dtype == np.uint8 else 1)).astype(dtype)
    return Classifier(model, inputs=inputs, classes=infer_classes(model, probe.reshape(-1, *inputs.shape)))


def stress_target(
    target: Target,
    *,
    out: Path | None = None,
    device: str = "auto",
    confidence: float = 0.95,
    max_passes: float | None = None,
    time_budget: float | None = None,
    resume: bool = False,
    redact: bool = False,
    observer: Observer | None = None,
    command: str = "",
) -> Report:
    """Stress-test a target; see `stress_test` for the arguments.

    Raises:
        InputError, RunError: as `stress_test`.
    """
    with contextlib.ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="robustml-"))) / "run"
        plan, folder = run_target(
            target,
            out=out,
            device=device,
            confidence=confidence,
            max_passes=max_passes,
            time_budget=time_budget,
            resume=resume,
            redact=redact,
            observer=observer,
            command=command,
        )
        return save_report(plan, folder, target.data)


def run_target(
    target: Target,
    *,
    out: Path,
    device: str = "auto",
    confidence: float = 0.95,
    max_passes: float | None = None,
    time_budget: float | None = None,
    shard: Shard | None = None,
    resume: bool = False,
    redact: bool = False,
    observer: Observer | None = None,
    command: str = "",
) -> tuple[Plan, RunFolder]:
    """Do the attacking of a stress test, all of it or one shard; `save_report` or `merge_runs` come after.

    Raises:
        InputError, RunError: as `stress_test`.
    """
    place = pick_device(device)
    _check_settings(target, confidence, max_passes, time_budget, shard or Shard())
    check_mode(target.model)
    with target.model.ready(place):
        admit(target.model, target.data, place)
        plan = make_plan(
            target, place, confidence=confidence, max_passes=max_passes, redact=redact, command=command
        )
        folder = _resumed(out, plan) if resume else RunFolder.create(out, plan)
        bench = Bench(plan, target.model, target.data, place)
        execute(bench, folder, observer=observer or Silent(), shard=shard, time_budget=time_budget)
    return plan, folder


def merge_runs(paths: Sequence[Path], out: Path, target: Target) -> Report:
    """Put the shards of a run together in a new folder and write its report.

    Raises:
        InputError: if the folders are not the shards of one run on this target.
        RunError: if the new folder cannot be written.
    """
    _, plan = RunFolder.open(paths[0])
    if plan.data_sha256 != target.data.sha256:
        raise InputError(f"{str(paths[0])!r} was run on other data than target {target.name!r} has")
    return save_report(plan, merge_folders(paths, out), target.data)


def save_report(plan: Plan, folder: RunFolder, data: Dataset) -> Report:
    """Build the report of a run and write it into the run's folder, as JSON and as HTML."""
    report = build_report(plan, folder, data)
    report.save(folder.path / "report.json")
    report.save(folder.path / "report.html")
    return report


def make_plan(
    target: Target,
    device: torch.device,
    *,
    confidence: float,
    max_passes: float | None,
    redact: bool,
    command: str,
) -> Plan:
    """Fix everything that decides the figures of a run."""
    model, data = target.model, target.data
    ids = choose(data.y, target.samples, target.select, target.seed)
    return Plan(
        target=target.name,
        model_name=target.model_name,
        model_sha256=model.fingerprint(),
        parameters=model.size,
        access=model.access.label,
        outputs=model.outputs,
        inputs=model.inputs.to_dict(),
        classes=model.classes,
        class_names=list(target.class_names),
        data_name=data.name,
        data_sha256=data.sha256,
        data_rows=len(data),
        ids=ids.tolist(),
        threats=[threat.name for threat in target.threats],
        suite=complete(load_suite(target.suite), model.access, {threat.norm for threat in target.threats}),
        seed=target.seed,
        chunk=target.batch_size or DEFAULT_BATCH,
        confidence=confidence,
        max_passes=max_passes,
        gate=target.gate,
        redact=redact,
        environment={
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "robustml": __version__,
            "torch": torch.__version__,
        },
        command=command,
    )


def pick_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is a GPU where there is one.

    Raises:
        InputError: for a name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={name!r} cannot be used: {str(error).splitlines()[0][:120]}") from None
    return device


def _check_settings(
    target: Target, confidence: float, max_passes: float | None, time_budget: float | None, shard: Shard
) -> None:
    if not target.threats:
        raise InputError("threats is empty; give at least one threat model, as in linf:8/255")
    names = [threat.name for threat in target.threats]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"threats names {sorted(twice)[0]} twice")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} is outside (0, 1)")
    for name, budget in (("max_passes", max_passes), ("time_budget", time_budget)):
        if budget is not None and not budget > 0:
            raise InputError(f"{name}={budget} is not above 0")
    batch = target.batch_size
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InputError(f"batch_size={batch!r} is not a whole number of at least 1")
    if isinstance(target.seed, bool) or not isinstance(target.seed, int):
        raise InputError(f"seed={target.seed!r} is not a whole number")
    if not 1 <= shard.index <= shard.count:
        raise InputError(f"shard {shard.index}/{shard.count} is not of the form 1/2, 2/2")
    check_gate(target.gate, names)


def _resumed(out: Path, plan: Plan) -> RunFolder:
    folder, before = RunFolder.open(out)
    for field in Plan.model_fields:
        # The command that is run again names the folder to resume, and is otherwise the same.
        if field != "command" and getattr(before, field) != getattr(plan, field):
            raise InputError(f"{str(out)!r} cannot be resumed: its {field} is not the same as now")
    return folder
