"""What gets attacked: a torch classifier with its gradients, or any callable that predicts."""

from __future__ import annotations

import contextlib
import hashlib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError, brief, suggest
from .inputs import InputSpec
from .registry import Access

__all__ = ["BlackBox", "Classifier", "Model", "Outputs", "enter", "mode_dependent_layers"]

Outputs = Literal["logits", "probabilities", "binary-logit", "labels"]

_OUTPUTS = ("logits", "probabilities", "binary-logit", "labels")
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_SLACK = 1e-3  # by how much rounding may push a probability out of [0, 1]


class Model(ABC):
    """Anything that can be stress-tested: a callable from inputs (n, *shape) to logits (n, classes)."""

    inputs: InputSpec
    classes: int
    outputs: Outputs
    rejects: bool = False
    """Whether it may reject an input: then logits are (n, classes + 1), and the last one stands for that."""

    @property
    @abstractmethod
    def access(self) -> Access:
        """The most that an attacker can get out of it."""

    @abstractmethod
    def __call__(self, x: Tensor, /) -> Tensor:
        """Return logits (n, classes)."""

    @abstractmethod
    def ready(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Prepare for attack on a device, and put everything back afterwards."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """SHA-256 of everything that decides the predictions, or None where it cannot be seen."""

    @property
    def size(self) -> int | None:
        """The number of parameters, or None where it cannot be seen."""
        return None


class Classifier(nn.Module, Model):
    """A torch classifier together with the space its inputs live in.

    The normalisation of `inputs` happens inside, so attacks and `eps` are always in input units.

    Args:
        module: Maps a normalised batch (n, *shape) to its outputs.
        inputs: The space of inputs.
        classes: The number of classes.
        outputs: What the module returns: "logits" (n, classes), "probabilities" (n, classes), or
            "binary-logit" (n,) or (n, 1), the log-odds of class 1 of two.

    Raises:
        InputError: for unacceptable arguments.
    """

    def __init__(
        self, module: nn.Module, *, inputs: InputSpec, classes: int, outputs: Outputs = "logits"
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(
                f"module is {type(module).__name__}, not a torch.nn.Module; wrap functions in BlackBox"
            )
        _check_interface(inputs, classes, outputs)
        if outputs == "labels":
            raise InputError('outputs="labels" has no gradient; wrap the model in BlackBox')
        self.module = module
        self.inputs = inputs
        self.classes = int(classes)
        self.outputs = outputs

    @property
    def access(self) -> Access:
        return Access.GRADIENT

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) for a batch in input units (n, *shape).

        Raises:
            InputError: for a batch of another shape or of whole numbers, and for a module that returns
                something else than `outputs` says.
        """
        _check_batch(x, self.inputs)
        raw = self.module(self.inputs.normalize(x))
        if not isinstance(raw, Tensor) or not raw.is_floating_point():
            kind = raw.dtype if isinstance(raw, Tensor) else type(raw).__name__
            raise InputError(
                f"module returned {kind}; it must return one tensor of floating-point {self.outputs}"
            )
        return _as_logits(raw, self.outputs, (x.shape[0], self.classes), "module")

    def __call__(self, x: Tensor, /) -> Tensor:
        logits: Tensor = super().__call__(x)
        return logits

    @contextlib.contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """Move to a device with parameters frozen and in evaluation mode; undo it all on leaving."""
        modes = [(module, module.training) for module in self.modules()]
        frozen = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        home = next((p.device for p in (*self.parameters(), *self.buffers())), device)
        try:
            self.to(device)
            self.eval()
            for parameter, _ in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            self.to(home)
            for parameter, wanted in frozen:
                parameter.requires_grad_(wanted)
            for module, training in modes:
                module.training = training

    def fingerprint(self) -> str | None:
        """SHA-256 of the weights, buffers, input space and outputs; the module's code is not covered."""
        digest = hashlib.sha256(f"{self.inputs.to_dict()} {self.outputs}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            if not isinstance(tensor, Tensor):
                continue
            enter(digest, name, tensor)
        return digest.hexdigest()

    @property
    def size(self) -> int | None:
        return sum(parameter.numel() for parameter in self.module.parameters())


def enter(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor to a digest of `hashlib`: its name, type, shape and values."""
    data = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
    digest.update(data.flatten().view(torch.uint8).numpy().tobytes())


class BlackBox(Model):
    """Any function that predicts: it gives scores or labels, never gradients.

    Args:
        predict: Maps a NumPy batch (n, *shape) of `inputs.dtype` to scores (n, classes) or labels (n,).
        inputs: The space of inputs.
        classes: The number of classes.
        outputs: What `predict` returns: "probabilities", "logits", "binary-logit" or "labels" (whole numbers
            from 0 to classes - 1).
        digest: SHA-256 of what decides the predictions, where the caller knows it.

    Raises:
        InputError: for unacceptable arguments, and later for predictions of the wrong form.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray[Any, Any]], Any],
        *,
        inputs: InputSpec,
        classes: int,
        outputs: Outputs = "probabilities",
        digest: str | None = None,
    ) -> None:
        if not callable(predict):
            raise InputError(f"predict is {type(predict).__name__}, which cannot be called")
        _check_interface(inputs, classes, outputs)
        self.predict = predict
        self.inputs = inputs
        self.classes = int(classes)
        self.outputs = outputs
        self._digest = digest

    @classmethod
    def from_sklearn(cls, estimator: Any, *, inputs: InputSpec, labels_only: bool = False) -> BlackBox:
        """Wrap a fitted scikit-learn classifier whose labels are 0 to classes - 1.

        Args:
            estimator: Anything with `predict`, `classes_` and, unless `labels_only`, `predict_proba`.
            inputs: The space of inputs; features are flattened to (n, features) for the estimator.
            labels_only: Hide the scores, as a service that answers with a label does.
        """
        known = np.asarray(getattr(estimator, "classes_", ())).tolist()
        if known != list(range(len(known))) or len(known) < 2:
            raise InputError(
                f"estimator.classes_ is {brief(known)}; the labels must be 0 to classes - 1, after fitting"
            )
        if not labels_only and not hasattr(estimator, "predict_proba"):
            raise InputError(f"{type(estimator).__name__} has no predict_proba; pass labels_only=True")

        def predict(x: np.ndarray[Any, Any]) -> Any:
            rows = x.reshape(len(x), -1)
            # An estimator that was fitted with labels 0.0, 1.0 answers with them.
            return estimator.predict(rows).astype(np.int64) if labels_only else estimator.predict_proba(rows)

        outputs: Outputs = "labels" if labels_only else "probabilities"
        return cls(predict, inputs=inputs, classes=len(known), outputs=outputs)

    @classmethod
    def from_onnx(
        cls, session: Any, *, inputs: InputSpec, classes: int, outputs: Outputs = "logits"
    ) -> BlackBox:
        """Wrap an ONNX Runtime session with one input; its first output is taken.

        Raises:
            InputError: for a session with several inputs, of another type than `inputs.dtype`, or that
                was exported for batches of one fixed size.
        """
        given = session.get_inputs()
        if len(given) != 1:
            raise InputError(f"the ONNX model has {len(given)} inputs; it must have 1")
        (only,) = given
        if _ONNX_TYPES.get(only.type) != inputs.dtype:
            raise InputError(f"the ONNX model takes {only.type}, but inputs.dtype is {inputs.dtype!r}")
        if only.shape and isinstance(only.shape[0], int):
            raise InputError(
                f"the ONNX model takes batches of {only.shape[0]} only; export it with a dynamic first axis"
            )
        first = session.get_outputs()[0].name
        return cls(
            lambda x: session.run([first], {only.name: x})[0], inputs=inputs, classes=classes, outputs=outputs
        )

    @property
    def access(self) -> Access:
        return Access.DECISION if self.outputs == "labels" else Access.SCORE

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return logits (n, classes); with labels only, 1 for the predicted class and 0 elsewhere.

        Raises:
            InputError: for a batch of another shape or of whole numbers, and for predictions that are
                something else than `outputs` says.
        """
        _check_batch(x, self.inputs)
        batch = x.detach().cpu().to(self.inputs.torch_dtype).numpy()
        predicted = self.predict(batch)
        try:
            raw = np.asarray(predicted)
        except ValueError:
            raise InputError(f"predict returned rows of different lengths: {brief(predicted)}") from None
        if self.outputs == "labels":
            return self._one_hot(raw, len(batch)).to(x.device, x.dtype)
        if raw.dtype.kind not in "fiub":
            raise InputError(f"predict returned {raw.dtype} values; it must return numbers")
        if self.outputs == "probabilities" and ((raw < -_SLACK) | (raw > 1 + _SLACK)).any():
            raise InputError(
                f"predict returned values from {raw.min():g} to {raw.max():g}, which are not probabilities; "
                f'for unnormalized scores pass outputs="logits"'
            )
        scores = torch.from_numpy(raw.astype(batch.dtype))
        return _as_logits(scores, self.outputs, (len(batch), self.classes), "predict").to(x.device)

    def _one_hot(self, raw: np.ndarray[Any, Any], n: int) -> Tensor:
        if raw.shape != (n,) or raw.dtype.kind not in "iub":
            raise InputError(
                f"predict returned {raw.dtype} of shape {raw.shape} for {n} inputs; "
                f'with outputs="labels" it must return one whole number each'
            )
        if n and not (raw.min() >= 0 and raw.max() < self.classes):
            raise InputError(f"predict returned a label outside [0, {self.classes - 1}]")
        return torch.nn.functional.one_hot(torch.from_numpy(raw.astype(np.int64)), self.classes)

    @contextlib.contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """A black box stays where it is."""
        yield

    def fingerprint(self) -> str | None:
        return self._digest


def _check_interface(inputs: InputSpec, classes: int, outputs: str) -> None:
    if not isinstance(inputs, InputSpec):
        raise InputError(f"inputs is {type(inputs).__name__}, not an InputSpec")
    if isinstance(classes, bool) or not isinstance(classes, numbers.Integral) or int(classes) < 2:
        raise InputError(f"classes={brief(classes)} is not a whole number of at least 2")
    if outputs not in _OUTPUTS:
        raise InputError(f"outputs={brief(outputs)} is not known{suggest(brief(outputs), _OUTPUTS)}")
    if outputs == "binary-logit" and classes != 2:
        raise InputError(f'outputs="binary-logit" stands for 2 classes, not {classes}')


def _check_batch(x: Tensor, inputs: InputSpec) -> None:
    if tuple(x.shape[1:]) != inputs.shape or x.ndim == 0:
        raise InputError(
            f"x has shape {tuple(x.shape)}; the model takes (n, {', '.join(map(str, inputs.shape))})"
        )
    if not x.is_floating_point():
        raise InputError(f"x holds {x.dtype}; the model takes floating-point numbers in input units")


def _as_logits(raw: Tensor, outputs: str, wanted: tuple[int, int], source: str) -> Tensor:
    n, classes = wanted
    accepted = [(n,), (n, 1)] if outputs == "binary-logit" else [(n, classes)]
    if tuple(raw.shape) not in accepted:
        raise InputError(
            f'{source} returned shape {tuple(raw.shape)} for {n} inputs; with outputs="{outputs}" and '
            f"classes={classes} it must return {' or '.join(map(str, accepted))}"
        )
    if outputs == "probabilities":
        # The inverse of softmax up to a constant; the floor keeps exact zeros finite.
        return raw.clamp_min(torch.finfo(raw.dtype).tiny).log()
    if outputs == "binary-logit":
        odds = raw.reshape(n, 1)
        return torch.cat([torch.zeros_like(odds), odds], dim=1)
    return raw


def mode_dependent_layers(module: nn.Module) -> list[str]:
    """Names of the layers that are in training mode and behave differently there."""
    kinds = (
        nn.modules.dropout._DropoutNd,
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
        nn.RReLU,
        nn.MultiheadAttention,
    )
    return [
        f"{type(layer).__name__} at {name or 'the top'!r}"
        for name, layer in module.named_modules()
        if layer.training and isinstance(layer, kinds)
    ]
