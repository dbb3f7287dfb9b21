"""The main jobs as functions: stress-test a model on data, and audit what training gave away."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .classifier import Classifier, Model
from .data import as_dataset
from .errors import InputError, brief
from .goals import parse_goals
from .inputs import InputSpec
from .progress import display_for
from .report.federated import keep_federated
from .report.model import Report
from .runs import DEFAULT_BATCH, run_target, save_report
from .schema import validated
from .targets import Target
from .targets.privacy import PrivacyTable
from .threats import Threat, parse_threat
from .wrapping import collected, wrapped

if TYPE_CHECKING:
    from .defenses.federated import Federated
    from .defenses.privacy import Guarantee

__all__ = ["audit", "stress_test", "target_of"]


def stress_test(
    model: Any,
    data: Any,
    *,
    threats: Sequence[Threat | str],
    suite: str | Path = "standard",
    inputs: InputSpec | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "model",
    out: str | Path | None = None,
    samples: int | None = None,
    select: str = "stratified",
    goals: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    draws: int | None = None,
    eot: int | None = None,
    twin: torch.nn.Module | None = None,
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
        model: A `Classifier`, a `BlackBox`, a bare `torch.nn.Module` giving logits, or what `federate` gave.
        data: A pair (x, y) of arrays or tensors, or a `DataLoader`; x in input units, y whole numbers.
        threats: Threat models, such as `Linf(8/255)` or "linf:8/255".
        suite: "quick", "standard", or the path of a suite file.
        inputs: The space of inputs of a bare module; by default the shape of x with values in [0, 1].
        class_names: One per class; "0", "1", … by default.
        name: What the report calls the model.
        out: The run folder; if None the evidence is discarded with a temporary one.
        samples: Test on so many samples instead of all.
        select: How to choose them: "stratified" or "first".
        goals: What the attacker wants, as in `3->8` or `*->0`, on the samples concerned; else any mistake.
        seed: Decides every random number, together with each sample's place in the data.
        batch_size: Samples worked on, journalled and resumed together.
        draws: For a model that answers at random: how many draws vote on each point; 20 by default.
        eot: For such a model: how many draws attacks average over; 10 by default.
        twin: An undefended or an earlier model of the same inputs and classes: a `Classifier`, or a module
            that returns logits. What fools it is tried on the model, too (D14).
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
    target = dataclasses.replace(
        target,
        threats=tuple(threat.within(target.model.inputs) for threat in _threats(threats)),
        suite=str(suite),
        seed=seed,
        batch_size=batch_size,
        samples=samples,
        select=select,
        goals=parse_goals(goals, target.class_names).texts,
        draws=draws,
        eot=eot,
        twin=_twin_of(twin, target.model),
        gate=dict(gate or {}),
    )
    return _run(
        target,
        out,
        device=device,
        confidence=confidence,
        max_passes=max_passes,
        time_budget=time_budget,
        resume=resume,
        redact=redact,
        progress=progress,
        origin=model,
    )


def audit(
    model: Any,
    members: Any,
    non_members: Any,
    *,
    recipe: str | Path | None = None,
    guarantee: Guarantee | None = None,
    build: Callable[[], torch.nn.Module] | None = None,
    tier: str | None = None,
    references: int | None = None,
    canaries: int | None = None,
    runs: int | None = None,
    leakage: Sequence[str] = ("inversion", "extraction"),
    attribute: str | None = None,
    threats: Sequence[Threat | str] = (),
    inputs: InputSpec | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "model",
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
    gate: Mapping[str, str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Report:
    """Find out what a model gives away about the data that it was trained on.

    Args:
        model: A `Classifier`, a `BlackBox`, or a bare `torch.nn.Module` that returns logits.
        members: All that it was trained on: a pair (x, y) of arrays or tensors, or a `DataLoader`.
        non_members: Data of the same kind that it was not trained on, (x, y).
        recipe: How it was trained: the name or the path of a recipe. Models are trained by it for reference
            models, canaries, the conformance test and the ladder; without one there are none of these.
        guarantee: What its own training guarantees: `Hardened.privacy`.
        build: Makes its network as it was before training; by default its layers draw their weights anew.
        tier: "quick" (no reference models), "few" or "many".
        references: How many reference models instead.
        canaries: How many canaries; 0 for none.
        runs: Train so many models, half of them with one canary; none by default.
        leakage: Of "inversion" and "extraction", what to try.
        attribute: Of tabular data: the feature to infer from all others.
        threats: What an adversarial recipe trains against; the first counts.
        inputs: The space of inputs of a bare module; by default the shape of x with values in [0, 1].
        class_names: One per class.
        name: What the report calls the model.
        out: The folder of the audit; if None, what it finds is in the report alone.
        seed: Decides every random number but those of private training, which have their own.
        device: "auto", "cpu", "cuda", ...
        confidence: Of all intervals.
        gate: Conditions such as {"epsilon": "<= 8"}.
        resume: Go on with the audit in `out`.
        progress: Say on stderr what is done.

    Raises:
        InputError: if something given cannot be used.
        RunError: if training fails, or the folder cannot be written; finished parts are kept.
    """
    from .auditing.audit import audit_target, save_audit
    from .auditing.reporting import conditions_of

    target = target_of(model, non_members, inputs=inputs, class_names=class_names, name=name)
    train = as_dataset(members, target.model.inputs, target.model.classes, "members")
    table = _table(
        tier=tier,
        references=references,
        recipe=None if recipe is None else str(recipe),
        canaries=canaries,
        runs=runs,
        attribute=attribute,
        leakage=list(leakage),
    )
    target = dataclasses.replace(
        target,
        train=train,
        privacy=table,
        claim=None if guarantee is None else guarantee.to_dict(),
        build=build,
        threats=tuple(threat.within(target.model.inputs) for threat in _threats(threats)),
        seed=seed,
    )
    conditions = conditions_of({}, gate or {})
    with contextlib.ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="robustml-"))) / "audit"
        say = stack.enter_context(display_for()).note if progress else _silent
        found = audit_target(
            target, out=Path(out), device=device, confidence=confidence, resume=resume, say=say
        )
        return save_audit(found, gate=conditions, command="robustml.audit(model, members, non_members)")


def _table(**given: Any) -> PrivacyTable:
    return validated(PrivacyTable, {k: v for k, v in given.items() if v is not None}, where="audit")


def _silent(line: str) -> None:
    """Say nothing."""


def _federation(model: Any) -> Federated | None:
    """What a federation gave, if this is it."""
    if isinstance(model, (torch.nn.Module, Model)):
        return None
    from .defenses.federated import Federated

    return model if isinstance(model, Federated) else None


def _run(
    target: Target,
    out: str | Path | None,
    *,
    progress: bool,
    origin: Any = None,
    **options: Any,
) -> Report:
    with contextlib.ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="robustml-"))) / "run"
        observer = stack.enter_context(display_for()) if progress else None
        plan, folder = run_target(
            target, out=Path(out), observer=observer, command=_command(target), **options
        )
        if (federation := _federation(origin)) is not None:
            keep_federated(folder.path, federation.figures())
        return save_report(plan, folder, target.data)


def _command(target: Target) -> str:
    """The call that reproduces the figures."""
    listed = ", ".join(threat.name for threat in target.threats)
    given = {"goals": list(target.goals) or None, "draws": target.draws, "eot": target.eot}
    more = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
    more += ", twin=twin" if target.twin is not None else ""
    settings = f"threats=[{listed}], suite={target.suite!r}, seed={target.seed}{more}"
    return f"robustml.stress_test(model, data, {settings})"


def _twin_of(twin: Any, model: Model) -> Classifier | None:
    if twin is None:
        return None
    if not isinstance(twin, torch.nn.Module):
        raise InputError(f"twin is {type(twin).__name__}; give a torch.nn.Module or a Classifier")
    if not isinstance(twin, Classifier):
        return Classifier(twin, inputs=model.inputs, classes=model.classes)
    if twin.inputs.shape != model.inputs.shape or twin.classes != model.classes:
        raise InputError(
            f"twin takes inputs of shape {twin.inputs.shape} for {twin.classes} classes, the model "
            f"{model.inputs.shape} for {model.classes}"
        )
    return twin


def _threats(given: Any) -> list[Threat]:
    if isinstance(given, (str, Threat)):
        given = [given]
    if not isinstance(given, Iterable):
        raise InputError(f"threats={brief(given)} is not a list of threat models, as in ['linf:8/255']")
    found = [parse_threat(threat) if isinstance(threat, str) else threat for threat in given]
    for threat in found:
        if not isinstance(threat, Threat):
            raise InputError(
                f"threats holds {brief(threat)}; a threat model is written linf:8/255 or Linf(8/255)"
            )
    return found


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
    if (federation := _federation(model)) is not None:
        model = federation.model
    if not isinstance(model, Model):
        data = collected(data, np.dtype(inputs.dtype if inputs else "float32"))
        model = wrapped(model, data[0], inputs)
    elif inputs is not None and inputs != model.inputs:
        raise InputError("inputs differs from the specification that the model already has; give one of them")
    with torch.random.fork_rng(devices=[]):
        # A DataLoader draws a seed from the global stream whenever it is read, even without workers.
        dataset = as_dataset(data, model.inputs, model.classes)
    names = (
        tuple(str(n) for n in class_names)
        if class_names is not None
        else tuple(map(str, range(model.classes)))
    )
    if len(names) != model.classes:
        raise InputError(f"class_names has {len(names)} names for {model.classes} classes")
    return Target(name=str(name), model=model, model_name=str(name), data=dataset, class_names=names)
