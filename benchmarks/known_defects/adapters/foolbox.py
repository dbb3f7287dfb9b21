from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..base import Adapter, Task, Verdict, heard, standing


class FoolboxAdapter(Adapter):
    """Foolbox: a model wrapper, and attacks that are called with a batch and a list of budgets."""

    name = "foolbox"
    title = "Foolbox"
    install = "pip install foolbox==3.3.4"

    def __init__(self) -> None:
        import foolbox

        self.library = foolbox
        self.version = metadata.version("foolbox")

    def _model(self, task: Task, **options: Any) -> Any:
        return self.library.PyTorchModel(task.model, bounds=(0, 1), device="cpu", **options)

    def _pgd(self, steps: int) -> Any:
        return self.library.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        attack = self._pgd(steps)
        if restarts > 1:
            attack = attack.repeat(restarts)
        return self._clipped(attack, self._model(task), task)

    def _clipped(self, attack: Any, model: Any, task: Task) -> Tensor:
        _, clipped, _ = attack(model, task.x, task.y, epsilons=task.eps)
        z: Tensor = clipped.detach()
        return z

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        attacks = self.library.attacks
        if name == "cw":
            attack = attacks.L2CarliniWagnerAttack(steps=200)
        elif name == "ead":
            attack = attacks.EADAttack(steps=200, decision_rule="L1")
        elif name == "ddn":
            attack = attacks.DDNAttack(steps=100)
        else:
            attack = attacks.L2FMNAttack(steps=100)
        return self._nearest(attack, task)

    def _nearest(self, attack: Any, task: Task) -> Tensor:
        raw, _, _ = attack(self._model(task), task.x, task.y, epsilons=None)
        z: Tensor = raw.detach()
        return z

    def nearest_of(self, task: Task, points: list[Tensor]) -> Tensor:
        """`repeat` is its ensemble of one attack; this one returns the points in turn."""
        turns = iter(points)

        class InTurn(self.library.attacks.base.MinimizationAttack):  # type: ignore[name-defined,misc]
            distance = self.library.distances.l2

            def run(self, model: Any, inputs: Any, criterion: Any, **options: Any) -> Any:
                return type(inputs)(next(turns).clone())

        return self._nearest(InTurn().repeat(len(points)), task)

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        with heard() as said:
            z = self.pgd(task, steps=steps)
        return Verdict(standing(task, z), flag="; ".join(said) or None)

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        preprocessing = {"mean": torch.tensor([mean]), "std": torch.tensor([std]), "axis": -3}
        return self._clipped(self._pgd(steps), self._model(task, preprocessing=preprocessing), task)

    def successes(self, task: Task, z: Tensor) -> Tensor:
        import eagerpy

        criterion = self.library.criteria.Misclassification(task.y)
        points = eagerpy.astensor(z)
        counted: Tensor = criterion(points, self._model(task)(points)).raw
        return counted

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        model = self._model(task)
        _, z, success = self._pgd(steps)(model, task.x, task.y, epsilons=task.eps)
        # As in its examples: 1 - success.float32().mean(axis=-1).
        return 1 - float(success.float().mean()), ~task.wrong(z)

    def default_budgets(self) -> dict[str, float]:
        """`epsilons` has no default."""
        return {}
