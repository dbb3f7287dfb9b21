from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base import Adapter, Task, Unsupported, Verdict, heard, standing

_NORMS = {"linf": np.inf, "l2": 2, "l1": 1}


class ArtAdapter(Adapter):
    """The Adversarial Robustness Toolbox: an estimator around a model, and NumPy arrays."""

    name = "art"
    title = "ART"
    install = "pip install adversarial-robustness-toolbox==1.20.1 multiprocess"

    def __init__(self) -> None:
        import art
        import art.attacks.evasion

        self.library = art
        self.evasion = art.attacks.evasion
        self.version = metadata.version("adversarial-robustness-toolbox")

    def _estimator(self, task: Task, **options: Any) -> Any:
        from art.estimators.classification import PyTorchClassifier

        return PyTorchClassifier(
            model=task.model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(task.x.shape[1:]),
            nb_classes=task.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
            **options,
        )

    def _pgd(self, estimator: Any, task: Task, *, steps: int, restarts: int = 1) -> Any:
        return self.evasion.ProjectedGradientDescent(
            estimator,
            norm=np.inf,
            eps=task.eps,
            eps_step=2.5 * task.eps / steps,
            max_iter=steps,
            num_random_init=restarts,
            batch_size=len(task.x),
            verbose=False,
        )

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        return _generated(self._pgd(self._estimator(task), task, steps=steps, restarts=restarts), task)

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        attack = self.evasion.AutoProjectedGradientDescent(
            self._estimator(task),
            eps=task.eps,
            eps_step=2 * task.eps,
            max_iter=steps,
            nb_random_init=1,
            batch_size=len(task.x),
            loss_type="cross_entropy",
            verbose=False,
        )
        return _generated(attack, task)

    def ensemble(self, task: Task) -> Verdict:
        if importlib.util.find_spec("multiprocess") is None:
            raise Unsupported("its AutoAttack imports the package multiprocess, which ART does not install")
        estimator = self._estimator(task)
        attack = self.evasion.AutoAttack(estimator, eps=task.eps, eps_step=task.eps / 4)
        for part in attack.attacks:
            part.set_params(verbose=False)
        # Its own list: APGD of 100 steps with five starts, on two losses.
        return Verdict(standing(task, _generated(attack, task)), declared=1000.0)

    def square(self, task: Task, *, queries: int) -> Tensor:
        attack = self.evasion.SquareAttack(
            self._estimator(task), norm=_NORMS[task.norm], eps=task.eps, max_iter=queries, verbose=False
        )
        return _generated(attack, task)

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        estimator, n = self._estimator(task), len(task.x)
        if name == "cw":
            attack = self.evasion.CarliniL2Method(
                estimator, binary_search_steps=5, max_iter=15, batch_size=n, verbose=False
            )
        elif name == "ead":
            attack = self.evasion.ElasticNet(
                estimator, binary_search_steps=6, max_iter=40, batch_size=n, verbose=False
            )
        else:
            self._no(f"attack {name!r}")
        return _generated(attack, task)

    def defended(self, task: Task, defense: Callable[[Tensor], Tensor], *, steps: int) -> Verdict:
        from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

        class Declared(PreprocessorPyTorch):
            """As its documentation says: `estimate_forward` is the differentiable estimate."""

            def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
                return defense(x), y

            def estimate_forward(self, x: Tensor, y: Any = None) -> Tensor:
                return x

        ready = Declared(device_type="cpu", is_fitted=True)
        estimator = self._estimator(task, preprocessing_defences=[ready])
        with heard() as said:
            z = _generated(self._pgd(estimator, task, steps=steps), task)
        answers = torch.from_numpy(estimator.predict(z.numpy())).argmax(1)
        return Verdict(answers == task.y, flag="; ".join(said) or None)

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        with heard() as said:
            z = self.pgd(task, steps=steps)
        return Verdict(standing(task, z), flag="; ".join(said) or None)

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        estimator = self._estimator(task, preprocessing=(mean, std))
        return _generated(self._pgd(estimator, task, steps=steps), task)

    def successes(self, task: Task, z: Tensor) -> Tensor:
        from art.utils import compute_success_array

        labels = np.eye(task.classes, dtype=np.float32)[task.y.numpy()]
        counted = compute_success_array(self._estimator(task), task.x.numpy(), labels, z.numpy())
        return torch.from_numpy(counted)

    def squeezed(self, task: Task, *, bits: int) -> Tensor:
        from art.defences.preprocessor import FeatureSqueezing

        squeezing = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=bits)
        estimator = self._estimator(task, preprocessing_defences=[squeezing])
        return torch.from_numpy(estimator.predict(task.x.numpy()))

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        from art.metrics import adversarial_accuracy

        estimator = self._estimator(task)
        kept: list[np.ndarray[Any, Any]] = []

        class Kept(self.evasion.ProjectedGradientDescent):  # type: ignore[name-defined,misc]
            """PGD whose points can be looked at, since the metric keeps them to itself."""

            def generate(self, x: Any, y: Any = None, **options: Any) -> Any:
                kept.append(super().generate(x, y, **options))
                return kept[-1]

        attack = Kept(estimator, eps=task.eps, eps_step=2.5 * task.eps / steps, max_iter=steps, verbose=False)
        figure = adversarial_accuracy(estimator, task.x.numpy(), task.y.numpy(), attack_crafter=attack)
        return float(figure), ~task.wrong(torch.from_numpy(kept[-1]))

    def default_budgets(self) -> dict[str, float]:
        found = {}
        for name, attack in vars(self.evasion).items():
            if not inspect.isclass(attack):
                continue
            known = inspect.signature(attack).parameters
            norm, eps = known.get("norm"), known.get("eps")
            if (
                eps is not None
                and isinstance(eps.default, float)
                and norm
                and norm.default in (np.inf, "inf")
            ):
                found[name] = eps.default
        return found


def _generated(attack: Any, task: Task) -> Tensor:
    return torch.from_numpy(np.asarray(attack.generate(task.x.numpy().copy(), task.y.numpy())))
