from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Attack, Batch, Entry, Library, by_name


class _Cast(nn.Module):
    """Takes inputs of any precision: what some attacks hand over is float64."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.float())
        return logits


def _attack(
    name: str, *, cast: bool = False, relative: dict[str, float] | None = None, **options: Any
) -> Attack:
    """An attack by the name of its class; `relative` options are multiples of the budget."""

    def run(evasion: Any, batch: Batch) -> Tensor:
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model=_Cast(batch.net) if cast else batch.net,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(batch.x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        scaled = {key: factor * batch.eps for key, factor in (relative or {}).items()}
        attack = getattr(evasion, name)(
            estimator, batch_size=len(batch.x), verbose=False, **options, **scaled
        )
        found = attack.generate(batch.x.numpy().copy(), batch.y.numpy())
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    return run


def _apgd(loss: str) -> Attack:
    return _attack(
        "AutoProjectedGradientDescent",
        norm=np.inf,
        max_iter=100,
        nb_random_init=1,
        loss_type=loss,
        relative={"eps": 1, "eps_step": 2},
    )


_LAST = "returns the last iterate, not the best"

ART = Library(
    name="art",
    title="ART",
    distribution="adversarial-robustness-toolbox",
    install="pip install adversarial-robustness-toolbox==1.20.1",
    load=by_name("art.attacks.evasion"),
    entries={
        "pgd": Entry(
            _attack(
                "ProjectedGradientDescent",
                norm=np.inf,
                max_iter=40,
                num_random_init=1,
                relative={"eps": 1, "eps_step": 2.5 / 40},
            ),
            _LAST,
        ),
        "apgd-ce": Entry(_apgd("cross_entropy"), _LAST),
        "apgd-dlr": Entry(_apgd("difference_logits_ratio"), _LAST),
        "square": Entry(
            _attack("SquareAttack", norm=np.inf, max_iter=1000, nb_restarts=1, relative={"eps": 1}),
            "one window for the whole batch, several forward passes a query",
        ),
        "deepfool": Entry(_attack("DeepFool", max_iter=50, nb_grads=10, epsilon=0.02)),
        "carlini-wagner": Entry(
            _attack(
                "CarliniL2Method", binary_search_steps=5, max_iter=100, learning_rate=0.05, initial_const=1.0
            ),
            "step 0.05, first weight 1: its defaults reach fewer",
        ),
        "hop-skip-jump": Entry(
            _attack("HopSkipJump", cast=True, norm=2, max_iter=20, max_eval=10000, init_eval=100),
            "20 steps; image by image; input cast to float32 inside the network, it stops otherwise",
        ),
    },
)
