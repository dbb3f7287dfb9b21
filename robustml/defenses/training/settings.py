"""How a run goes: epochs, batches, optimizer, schedule, averaging; checked before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...checks import real, whole
from ...classifier import Classifier
from ...errors import InputError, brief, suggest

__all__ = ["MakeOptimizer", "MakeSchedule", "Settings"]

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


# The devices where a step can be one pass over the weights, in place of one for each of its operations.
_FUSED = {"cpu", "cuda"}


def _lay_out(optimizer: Optimizer, *_: Any) -> None:
    """Fused steps are blind to strides, and gradients that were set by hand may have others than weights."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()


def _sgd(parameters: list[nn.Parameter], **more: Any) -> Optimizer:
    optimizer = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **more)
    for parameter in parameters:
        # The first gradient comes to the same with a momentum of zeros as with none; the fused step cannot
        # do with momenta of which some are there and others, of parameters without a gradient yet, are not.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


_OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "adamw": (torch.optim.AdamW, 2e-3),
    "sgd": (_sgd, 0.05),
}
_WARM = 0.25  # the share of the steps in which the one-cycle schedule rises
_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": tuple(_OPTIMIZERS),
    "schedule": ("one-cycle", "cosine", "constant"),
    "averaging": ("none", "ema", "swa"),
    "precision": ("float32", "bfloat16"),
    "keep": ("robust", "clean", "last"),
}


@dataclass(frozen=True)
class Settings:
    """Everything about a run but the model, the data and the objective.

    Attributes:
        epochs: Passes over the data.
        batch_size: Samples per step; a loader has its own.
        optimizer: "adamw", "sgd" (with Nesterov momentum 0.9), or a function that makes one of a list of
            parameters.
        learning_rate: The highest one; None for 2e-3 with AdamW and 0.05 with SGD.
        weight_decay: Decoupled with AdamW, an L2 penalty with SGD.
        schedule: "one-cycle" (a linear rise over a quarter of the steps, then a linear fall to 0), "cosine",
            "constant", or a function that makes one of the optimizer and the number of steps, stepped after
            each step.
        averaging: "none", "ema" over steps, or "swa" over epochs; what is averaged is validated and kept.
        decay: Of the moving average, per step.
        average_from: The share of the epochs after which "swa" begins.
        accumulate: Parts that a batch is cut into, to save memory.
        clip: The largest norm of a gradient; None for any.
        precision: "float32", or "bfloat16" for products and convolutions, on devices that gain from it.
        keep: Which epoch's weights to end with: the one with the highest "robust" or "clean" validation
            accuracy, or the "last".
        patience: Stop after so many epochs without a better one; None to go on.
        seed: Decides every random number of the run.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str | MakeOptimizer = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str | MakeSchedule = "one-cycle"
    averaging: Literal["none", "ema", "swa"] = "none"
    decay: float = 0.995
    average_from: float = 0.5
    accumulate: int = 1
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["robust", "clean", "last"] = "robust"
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            if name != "patience" or self.patience is not None:
                # What NumPy counts with cannot be written to a checkpoint.
                object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", whole("seed", self.seed))
        for name in ("learning_rate", "clip"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name))
        real("weight_decay", self.weight_decay, closed=True)
        real("decay", self.decay, high=1.0)
        real("average_from", self.average_from, high=1.0, closed=True)
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if not (name in {"optimizer", "schedule"} and callable(value)) and value not in known:
                raise InputError(f"{name}={brief(value)} is not known{suggest(str(value), known)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a function is named, since its code cannot be compared."""
        return {name: _named(value) for name, value in vars(self).items()}

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters.

        Raises:
            InputError: if there is none to train, or the user's function returns something else.
        """
        if not parameters:
            raise InputError("the model has no parameter that requires a gradient, so nothing can be trained")
        if callable(self.optimizer):
            made = self.optimizer(parameters)
            if not isinstance(made, Optimizer):
                raise InputError(f"optimizer returned {type(made).__name__}, not a torch.optim.Optimizer")
            return made
        make, usual = _OPTIMIZERS[self.optimizer]
        rate = usual if self.learning_rate is None else self.learning_rate
        fused = all(
            p.is_floating_point() and p.is_contiguous() and p.device.type in _FUSED for p in parameters
        )
        optimizer = make(parameters, lr=rate, weight_decay=self.weight_decay, fused=fused)
        if fused:
            optimizer.register_step_pre_hook(_lay_out)
        return optimizer

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule of a run of so many steps; None for a constant rate."""
        if callable(self.schedule):
            return self.schedule(optimizer, steps)
        if self.schedule == "constant":
            return None
        if self.schedule == "cosine":
            return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))
        rise = max(1.0, _WARM * steps)
        return LambdaLR(
            optimizer,
            lambda step: (
                (step + 1) / rise if step + 1 < rise else max(0.0, (steps - step) / (steps - rise + 1))
            ),
        )

    def make_average(self, model: Classifier) -> AveragedModel | None:
        """What averages the weights, if anything does."""
        if self.averaging == "none":
            return None
        ema: Any = get_ema_multi_avg_fn
        function = ema(self.decay) if self.averaging == "ema" else None
        return AveragedModel(model, multi_avg_fn=function, use_buffers=True)

    @property
    def averages_steps(self) -> bool:
        """Whether the average takes in every step, and not every epoch."""
        return self.averaging == "ema"


def _named(value: Any) -> Any:
    return value if not callable(value) else getattr(value, "__qualname__", type(value).__qualname__)
