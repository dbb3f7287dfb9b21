from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import robustml as rml
from robustml import registry
from robustml.defenses.guards import BitDepth
from robustml.registry import Access, Attack, all_attacks, attack, find_attack
from robustml.report import Report
from robustml.sampling import Streams
from robustml.stress.folder import RunFolder
from robustml.stress.suite import load_suite
from robustml.threats import parse_threat

from ..base import Adapter, Task, Unsupported, Verdict

_NAMES = {"cw": "carlini-wagner", "ead": "ead", "ddn": "ddn", "fmn": "fmn"}
_TARGETED = {"apgd-t", "fab"}
"""Attacks that the standard suite needs at least one of, to be called an ensemble of the same rank."""


class RobustmlAdapter(Adapter):
    """robustml: attacks as functions from its registry, and the stress test for what a user is told.

    What is not there yet, because an attack is not registered, is unsupported and becomes a case to pass on
    the day that it is.
    """

    name = "robustml"
    title = "robustml"
    install = "pip install -e ."
    version = rml.__version__

    def _attack(self, task: Task, name: str, **options: Any) -> Tensor:
        chosen = self._found(name)
        if task.norm not in chosen.norms:
            raise ValueError(f"{name} has no {task.norm} version")
        model = rml.Classifier(task.model, inputs=_spec(task), classes=task.classes)
        threat = parse_threat(f"{task.norm}:{task.eps}").within(_spec(task))
        streams = Streams.derive(0, name, task.ids)
        with model.ready(torch.device("cpu")):
            return chosen.function(
                model, task.x.clone(), task.y, threat=threat, streams=streams, **chosen.check(options)
            )

    def _found(self, name: str) -> Attack:
        if name not in all_attacks():
            raise Unsupported(f"{name} is not in the registry yet")
        return find_attack(name)

    def squeezed(self, task: Task, *, bits: int) -> Tensor:
        model = rml.Classifier(task.model, inputs=_spec(task), classes=task.classes)
        guarded = rml.Guarded(model, [BitDepth(bits)])
        with torch.no_grad():
            return guarded(task.x)

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        return self._attack(task, "pgd", steps=steps, restarts=restarts)

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        return self._attack(task, "apgd", steps=steps)

    def square(self, task: Task, *, queries: int) -> Tensor:
        return self._attack(task, "square", queries=queries)

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        known = {option for option, _, _ in self._found(_NAMES[name]).parameters()}
        # Fewer steps than by default, as for the other libraries: a case asks whom a result depends on.
        options = {"nearest": True, "steps": 40}
        return self._attack(task, _NAMES[name], **{k: v for k, v in options.items() if k in known})

    def ensemble(self, task: Task) -> Verdict:
        if not _TARGETED & {entry.use for entry in load_suite("standard").attack}:
            raise Unsupported("its suite standard has no targeted attack yet")
        report = _stressed(task, "standard")
        passes = sum(row.passes.backward for row in report.threats[0].attacks) / len(task.x)
        return dataclasses.replace(_verdict(report), declared=passes)

    def defended(self, task: Task, defense: Callable[[Tensor], Tensor], *, steps: int) -> Verdict:
        """The defense as a layer, as long as there is no guard to declare its backward pass."""

        class Behind(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = task.model

            def forward(self, z: Tensor) -> Tensor:
                logits: Tensor = self.inner(defense(z))
                return logits

        return self.gradient_verdict(dataclasses.replace(task, model=Behind().eval()), steps=steps)

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        return _verdict(_stressed(task, _pgd_only(steps)))

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        spec = dataclasses.replace(_spec(task), mean=mean, std=std)
        model = rml.Classifier(task.model, inputs=spec, classes=task.classes)
        streams = Streams.derive(0, "pgd", task.ids)
        threat = parse_threat(f"linf:{task.eps}").within(spec)
        with model.ready(torch.device("cpu")):
            return find_attack("pgd").function(
                model, task.x.clone(), task.y, threat=threat, streams=streams, steps=steps
            )

    def successes(self, task: Task, z: Tensor) -> Tensor:
        """What the harness journals as broken by an attack that returns these points."""
        name = "conformance-returns-points"

        def returning(model: Any, x: Tensor, y: Tensor, *, threat: Any, streams: Any) -> Tensor:
            rows = (x[:, None] == task.x[None]).flatten(2).all(2).int().argmax(1)
            return z[rows]

        with _registered(name, returning), tempfile.TemporaryDirectory(prefix="robustml-") as folder:
            _stressed(task, f'[[attack]]\nid = "points"\nuse = "{name}"\n', out=Path(folder) / "run")
            journal = RunFolder.open(Path(folder) / "run")[0].records
        broken = [row for record in journal if record.stage.endswith("/points") for row in record.broken]
        return torch.isin(torch.arange(len(z)), torch.tensor(broken))

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        report = _stressed(task, _pgd_only(steps))
        upper = report.threats[0].robust_accuracy.upper
        assert upper is not None
        return upper.value, torch.tensor([outcome == "s" for outcome in report.threats[0].outcomes])

    def resumed(self, task: Task, interrupt: Callable[[], None]) -> tuple[float, float]:
        whole = _stressed(task, _pgd_only(10))
        with tempfile.TemporaryDirectory(prefix="robustml-") as folder:
            interrupt()
            try:
                _stressed(task, _pgd_only(10), out=Path(folder) / "run", batch_size=4)
            except KeyboardInterrupt:
                task.model.fail_after = None  # type: ignore[assignment]
            else:
                raise AssertionError("the run was not interrupted")
            resumed = _stressed(task, _pgd_only(10), out=Path(folder) / "run", batch_size=4, resume=True)
        first, second = (report.threats[0].robust_accuracy.upper for report in (whole, resumed))
        assert first is not None and second is not None
        return first.value, second.value

    def default_budgets(self) -> dict[str, float]:
        """The budget is the threat's, and a threat has no default."""
        return {
            name: default
            for name, entry in all_attacks().items()
            for option, _, default in entry.parameters()
            if option == "eps"
        }


@contextlib.contextmanager
def _registered(name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    """An attack that is known inside of the block only."""
    all_attacks()
    norms = {"linf", "l2", "l1"}
    attack(name, access=Access.GRADIENT, norms=norms, reference="made for the suite")(function)
    try:
        yield
    finally:
        del registry._ATTACKS[name]


def _spec(task: Task) -> rml.InputSpec:
    return rml.InputSpec(shape=tuple(task.x.shape[1:]))


def _pgd_only(steps: int) -> str:
    return f'[[attack]]\nid = "pgd"\nuse = "pgd"\noptions = {{ steps = {steps} }}\n'


def _stressed(task: Task, suite: str, **options: Any) -> Report:
    """A stress test under a suite by name, or of these attacks."""
    model = rml.Classifier(task.model, inputs=_spec(task), classes=task.classes)
    with tempfile.TemporaryDirectory(prefix="robustml-") as folder:
        if "\n" in suite:
            path = Path(folder) / "suite.toml"
            path.write_text(f'schema = 1\nname = "one"\n{suite}', encoding="utf-8")
            suite = str(path)
        return rml.stress_test(
            model,
            (task.x.numpy(), task.y.numpy().astype(np.int64)),
            threats=[f"{task.norm}:{task.eps}"],
            suite=suite,
            device="cpu",
            **options,
        )


def _verdict(report: Report) -> Verdict:
    left = torch.tensor([outcome == "s" for outcome in report.threats[0].outcomes])
    return Verdict(left, flag=None if report.trusted else report.distrust[0])
