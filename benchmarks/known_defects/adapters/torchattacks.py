from __future__ import annotations

import contextlib
import inspect
import io
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..base import Adapter, Task, Unsupported, Verdict, heard, standing

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class TorchattacksAdapter(Adapter):
    """torchattacks: classes that are made with a model and called with a batch."""

    name = "torchattacks"
    title = "torchattacks"
    install = "pip install --no-deps torchattacks==3.5.1"

    def __init__(self) -> None:
        # It prints at import and when it is used.
        with contextlib.redirect_stdout(io.StringIO()):
            import torchattacks

        self.library = torchattacks
        self.version = metadata.version("torchattacks")

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        options = {"eps": task.eps, "alpha": 2.5 * task.eps / steps, "steps": steps}
        attacks = [self.library.PGD(task.model, **options) for _ in range(restarts)]
        return _called(attacks[0] if restarts == 1 else self.library.MultiAttack(attacks), task)

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        return _called(self.library.APGD(task.model, eps=task.eps, steps=steps), task)

    def ensemble(self, task: Task) -> Verdict:
        attack = self.library.AutoAttack(task.model, eps=task.eps, n_classes=task.classes, seed=0)
        # "AutoAttack in the paper": 100 steps of APGD on cross-entropy, and 100 per target.
        promised = 100.0 * (1 + min(9, task.classes - 1))
        return Verdict(standing(task, _called(attack, task)), declared=promised)

    def square(self, task: Task, *, queries: int) -> Tensor:
        norm = _NORMS[task.norm]
        attack = self.library.Square(task.model, norm=norm, eps=task.eps, n_queries=queries)
        return _called(attack, task)

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        if name not in {"cw", "ead"}:
            self._no(f"attack {name!r}")
        if name == "cw":
            return _called(self.library.CW(task.model, c=10, steps=200), task)
        return _called(self.library.EADL1(task.model, max_iterations=100), task)

    def nearest_of(self, task: Task, points: list[Tensor]) -> Tensor:
        raise Unsupported("MultiAttack keeps the first success by design: it is for a fixed budget")

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        with heard() as said:
            z = self.pgd(task, steps=steps)
        return Verdict(standing(task, z), flag="; ".join(said) or None)

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        attack = self.library.PGD(task.model, eps=task.eps, alpha=2.5 * task.eps / steps, steps=steps)
        attack.set_normalization_used(mean=[mean], std=[std])
        z: Tensor = attack((task.x - mean) / std, task.y)
        return z * std + mean

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        kept: list[Tensor] = []

        class Kept(self.library.PGD):  # type: ignore[name-defined,misc]
            """PGD whose points can be looked at, since `save` keeps them to itself."""

            def forward(self, images: Tensor, labels: Tensor) -> Tensor:
                kept.append(super().forward(images, labels))
                return kept[-1]

        attack = Kept(task.model, eps=task.eps, alpha=2.5 * task.eps / steps, steps=steps)
        data = DataLoader(TensorDataset(task.x, task.y), batch_size=len(task.x))
        percent, *_ = attack.save(data, verbose=False, return_verbose=True)
        return percent / 100, ~task.wrong(torch.cat(kept))

    def default_budgets(self) -> dict[str, float]:
        found = {}
        for name, attack in vars(self.library).items():
            if inspect.isclass(attack) and issubclass(attack, self.library.attack.Attack):
                eps = inspect.signature(attack).parameters.get("eps")
                if eps is not None and isinstance(eps.default, float) and _is_linf(attack):
                    found[name] = eps.default
        return found


def _is_linf(attack: Any) -> bool:
    text = inspect.getdoc(attack) or ""
    measure = text.partition("Distance Measure")[2].partition("\n")[0]
    return "Linf" in measure


def _called(attack: Any, task: Task) -> Tensor:
    with contextlib.redirect_stdout(io.StringIO()):
        z: Tensor = attack(task.x, task.y)
    return z.detach()
