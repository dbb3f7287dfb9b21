"""Our models as estimators of the Adversarial Robustness Toolbox (ART), which speaks NumPy.

ART works in float32, hands float64 arrays to float32 models, lets gradients run into the weights and
switches the model's mode; the adapters here keep all of that away from the model.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..losses import is_wrong
from ..registry import Access, Logits
from ..threats import Ball

__all__ = ["Found", "Lens", "Oracle", "classifier_for"]

Array = np.ndarray[Any, Any]


class Found(Exception):
    """Raised inside an attack on one sample by the query that settles it.

    Attributes:
        point: The adversarial point, inside the ball: (1, *shape).
    """

    def __init__(self, point: Tensor) -> None:
        super().__init__("an adversarial point was found")
        self.point = point


class Lens:
    """Between the units of the inputs and those of ART, where every feature has the same budget.

    Args:
        ball: The ball around the samples under attack.
    """

    def __init__(self, ball: Ball) -> None:
        self.ball = ball
        inputs = ball.threat.inputs
        self._scale: Tensor | None = None
        self._held: Tensor | None = None
        self.range: tuple[Any, Any] | None = None
        if inputs is None:
            return
        low, high = (inputs.like(side, ball.x) for side in inputs.bounds)
        if inputs.scale != 1.0:
            self._scale = inputs.like(inputs.scale, ball.x)
            low, high = low / self._scale, high / self._scale
        # ART reads plain numbers as the range of all features, arrays as one range for each.
        flat = low.ndim == high.ndim == 0
        self.range = (low.item(), high.item()) if flat else (self._full(low), self._full(high))
        if inputs.immutable:
            held = torch.zeros(inputs.size, dtype=torch.bool, device=ball.x.device)
            held[list(inputs.immutable)] = True
            self._held = held.view(inputs.shape)

    def _full(self, side: Tensor) -> Array:
        array: Array = side.expand(self.ball.x.shape[1:]).cpu().numpy().astype(np.float32)
        return array

    def to_art(self, z: Tensor) -> Array:
        """Inputs as the float32 array that ART works on."""
        scaled = z if self._scale is None else z / self._scale
        array: Array = scaled.detach().cpu().numpy().astype(np.float32)
        return array

    def from_art(self, array: Array) -> Tensor:
        """What ART made of them, as inputs."""
        x = self.ball.x
        return self.enter(torch.from_numpy(np.ascontiguousarray(array)).to(x.device, x.dtype))

    def enter(self, z: Tensor) -> Tensor:
        """Points of ART as inputs, with the features that cannot change put back."""
        z = z.to(self.ball.x.device, self.ball.x.dtype)
        if self._scale is not None:
            z = z * self._scale
        # A batch that ART has cut down cannot be matched with its inputs; the final projection mends it.
        if self._held is not None and len(self.ball.x) in {1, len(z)}:
            z = torch.where(self._held, self.ball.x, z)
        return z


class Oracle:
    """The model as ART may query it.

    Args:
        model: The callable under attack.
        lens: Of the samples under attack.
        y: Their labels int64 (n,).
        access: With DECISION, answers are one-hot labels.
        watch: Whether to raise `Found` at the first adversarial point inside the ball; for one sample.

    Attributes:
        failure: The exception that came out of the model, if any did.
    """

    def __init__(self, model: Logits, lens: Lens, y: Tensor, access: Access, *, watch: bool) -> None:
        self.model = model
        self.lens = lens
        self.y = y
        self.access = access
        self.failure: Exception | None = None
        self._watch = watch

    def one_hot_labels(self, classes: int) -> Array:
        """The labels in the form that every attack of ART takes: float32 (n, classes)."""
        array: Array = nn.functional.one_hot(self.y, classes).cpu().numpy().astype(np.float32)
        return array

    def ask(self, z: Tensor) -> Tensor:
        """Logits of points in input units; what goes wrong inside the model is remembered as such."""
        try:
            return self.model(z)
        except Exception as error:
            self.failure = error
            raise

    def answer(self, array: Array, *, probabilities: bool) -> Array:
        """What a black box replies to a batch of queries: float32 (k, classes)."""
        z = self.lens.from_art(array)
        with torch.no_grad():
            logits = self.ask(z)
        if self._watch:
            self._stop_if_found(z, logits)
        if self.access is Access.DECISION:
            reply = nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        else:
            reply = logits.softmax(1) if probabilities else logits
        array = reply.cpu().numpy().astype(np.float32)
        return array

    def _stop_if_found(self, z: Tensor, logits: Tensor) -> None:
        wrong = is_wrong(logits, self.y.expand(len(z))).nonzero()[:, 0]
        if len(wrong) == 0:
            return
        inside = self.lens.ball.select(torch.zeros_like(wrong)).contains(z[wrong])
        if inside.any():
            raise Found(z[wrong][inside][:1])


class _InputGradient(torch.autograd.Function):
    """The model with a backward pass that ends at its input and leaves the weights alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, oracle: Oracle) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            logits = oracle.ask(oracle.lens.enter(point))
        ctx.point, ctx.logits = point, logits
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.point), None
        # Attacks that ask for the gradient of each class come back for the same graph.
        (gradient,) = torch.autograd.grad(
            ctx.logits, ctx.point, gradients[0], allow_unused=True, retain_graph=True
        )
        return torch.zeros_like(ctx.point) if gradient is None else gradient, None


class _Module(nn.Module):
    def __init__(self, oracle: Oracle, *, probabilities: bool) -> None:
        super().__init__()
        self.oracle = oracle
        self.probabilities = probabilities

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = _InputGradient.apply(z, self.oracle)  # type: ignore[no-untyped-call]
        return (logits.softmax(1) if self.probabilities else logits).to(torch.float32)


def classifier_for(oracle: Oracle, classes: int, *, probabilities: bool) -> Any:
    """An estimator of ART with the access that the oracle gives.

    Args:
        oracle: The model.
        classes: The number of classes.
        probabilities: Whether scores are probabilities instead of logits.
    """
    shape = tuple(oracle.lens.ball.x.shape[1:])
    if oracle.access is not Access.GRADIENT:
        black_box = importlib.import_module("art.estimators.classification")
        return black_box.BlackBoxClassifierNeuralNetwork(
            functools.partial(oracle.answer, probabilities=probabilities),
            shape,
            classes,
            clip_values=oracle.lens.range,
        )
    pytorch = importlib.import_module("art.estimators.classification.pytorch")
    return pytorch.PyTorchClassifier(
        _Module(oracle, probabilities=probabilities),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        clip_values=oracle.lens.range,
        device_type="gpu" if oracle.y.is_cuda else "cpu",
    )
