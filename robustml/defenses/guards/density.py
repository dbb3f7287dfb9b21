"""Rejecting what lies far from clean data, as some layer of the model sees it.

This is known not to stop an attacker who knows of it: the score has a gradient, and perturbations that keep
it low and change the answer exist (Carlini and Wagner 2017, "Adversarial examples are not easily detected").
It rejects what does not resemble the training data for other reasons, and it hinders attacks that do not know
of it. Measure it as part of the model.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ...checks import share, whole
from ...classifier import Classifier, Model
from ...errors import InputError, brief, suggest
from ...guarded import Guarded
from ...guards import Answer, Answers, Guard, guard
from ...inputs import InputSpec
from .calibration import Calibration, batch_of, calibrated, needed, shuffled

__all__ = ["DensityDetector"]

Method = Literal["mahalanobis", "knn"]

_METHODS = typing.get_args(Method)
_WHOLE = ("input", "logits")  # what is not a submodule
_WIDEST = 4096  # features of a layer: the covariance has as many rows and columns


@guard("density", reference="Lee et al. 2018, section 2.1; nearest neighbors: Angiulli and Pizzuti 2002")
class DensityDetector(Guard):
    """Reject inputs whose activations at a layer lie far from those of clean data.

    "mahalanobis" takes the squared distance to the nearest class mean, in units of a covariance that all
    classes share and that is shrunk (Ledoit and Wolf 2004). "knn" takes the mean distance to the `k` nearest
    activations of clean data. The score is that statistic divided by its threshold, minus 1.

    Args:
        layer: A submodule by its name in `named_modules`, or "logits", or "input" for the input itself.
        method: The statistic.
        k: How many neighbors "knn" takes.
        keep: How many activations "knn" keeps at most.
        pool: Whether each channel of a feature map (n, channels, ...) is averaged, as in the paper; otherwise
            every value counts. The input is never averaged.
        fpr: The false-positive rate that the threshold was chosen for.

    Raises:
        InputError: for unacceptable options.
    """

    rejects = True
    fits = True

    center: Tensor
    whitening: Tensor
    reference: Tensor
    threshold: Tensor
    exceeded: Tensor
    samples: Tensor

    def __init__(
        self,
        layer: str = "logits",
        method: Method = "mahalanobis",
        k: Annotated[int, Ge(1)] = 10,
        keep: Annotated[int, Ge(1)] = 5000,
        pool: bool = True,
        fpr: Annotated[float, Gt(0), Lt(1)] = 0.05,
    ) -> None:
        super().__init__()
        if not isinstance(layer, str) or not layer:
            raise InputError(f'layer={brief(layer)} is not the name of a submodule, "logits" or "input"')
        if method not in _METHODS:
            raise InputError(f"method={brief(method)} is not known{suggest(str(method), _METHODS)}")
        if not isinstance(pool, bool):
            raise InputError(f"pool={brief(pool)} is not true or false")
        self.layer, self.method, self.pool = layer, method, pool
        self.k, self.keep = whole("k", k, 1), whole("keep", keep, 1)
        self.fpr = share("fpr", fpr, zero=False, one=False)
        # An activation f becomes (f - center) @ whitening, and is compared with the rows of the reference.
        self.register_buffer("center", torch.zeros(0))
        self.register_buffer("whitening", torch.zeros(0, 0))
        self.register_buffer("reference", torch.zeros(0, 0))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("exceeded", torch.zeros((), dtype=torch.int64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    @classmethod
    def fit(
        cls,
        model: Model,
        x: np.ndarray[Any, Any] | Tensor,
        y: Any = None,
        *,
        batch: int = 256,
        **options: Any,
    ) -> Self:
        """Learn what clean data looks like.

        A half of the data, drawn in an order that is always the same, gives the means and the covariance or
        the neighbors; the other half sets the threshold. A sample and its copies must not be in both, so give
        distinct samples, and none that the model was trained on if there are others: what it was trained on
        looks more typical to it than fresh data does, and fresh data is then rejected more often than stated.

        Args:
            model: What will be guarded: a `Classifier`, or a `BlackBox` for the layers "logits" and "input".
            x: Clean inputs in input units (n, *shape), as they come to this guard.
            y: Their labels (n,), for "mahalanobis"; what the model answers if None.
            batch: How many inputs go through the model at once.
            options: Those of the constructor.

        Raises:
            InputError: for unacceptable arguments, or too few samples for `fpr`.
        """
        made = cls(**options)
        if not isinstance(model, Model) or isinstance(model, Guarded):
            raise InputError(
                f"model is {type(model).__name__}; give the Classifier or BlackBox to be guarded"
            )
        if model.outputs == "labels" and made.layer == "logits":
            raise InputError('layer="logits" of a model that gives labels says nothing; take "input"')
        clean = batch_of(x, model.inputs)
        if len(clean) < 2 * needed(made.fpr):
            raise InputError(
                f"fpr={made.fpr:g} needs {2 * needed(made.fpr)} inputs, a half of them for the threshold; "
                f"{len(clean)} came"
            )
        features, answers = made._gathered(model, clean, whole("batch", batch, 1))
        if features.shape[1] > _WIDEST and made.method == "mahalanobis":
            raise InputError(
                f"layer {made.layer!r} has {features.shape[1]} features; mahalanobis takes at most {_WIDEST}"
            )
        labels = answers if y is None else _labels(y, len(clean), model.classes)
        order = shuffled(len(clean))
        own, rest = order[: len(order) // 2], order[len(order) // 2 :]
        if made.method == "knn":
            made._learn_neighbors(features[own])
        else:
            made._learn_covariance(features[own], labels[own])
        statistics = torch.cat([made._statistic(part) for part in torch.split(features[rest], 256)])
        found = calibrated(statistics.double().numpy(), made.fpr)
        if not 0 < found.threshold < torch.inf:
            raise InputError(f"layer {made.layer!r} tells clean inputs not apart: their distance is 0")
        made.threshold = torch.tensor(found.threshold, dtype=torch.float32)
        if float(made.threshold) < found.threshold:
            made.threshold = made.threshold.nextafter(torch.tensor(torch.inf))
        made.exceeded, made.samples = torch.tensor(found.exceeded), torch.tensor(found.samples)
        return made

    @property
    def calibration(self) -> Calibration:
        """The threshold and the interval of the false-positive rate on fresh data."""
        return Calibration(float(self.threshold), int(self.exceeded), int(self.samples))

    @property
    def layers(self) -> tuple[str, ...]:
        return () if self.layer in _WHOLE else (self.layer,)

    def attach(self, inputs: InputSpec) -> None:
        if not int(self.samples):
            raise InputError("guard density has not been fitted; DensityDetector.fit does that")
        super().attach(inputs)

    def score(self, x: Tensor, model: Answer) -> Tensor:
        features = self._features(x, model)
        if features.shape[1] != len(self.center):
            raise InputError(
                f"guard density was fitted to {len(self.center)} features of layer {self.layer!r}, but "
                f"{features.shape[1]} came"
            )
        return self._statistic(features) / self.threshold.to(features.dtype) - 1

    def _features(self, x: Tensor, model: Answer) -> Tensor:
        """The activations (n, features) of inputs (n, *shape)."""
        if self.layer == "input":
            return x.flatten(1)
        if self.layer == "logits":
            return model(x)
        if not isinstance(model, Answers):
            raise InputError(f"guard density sees layer {self.layer!r} only as a part of a Guarded")
        found = model.layer(self.layer, x)
        if not found.is_floating_point():
            raise InputError(f"layer {self.layer!r} returned {found.dtype}, not floating-point numbers")
        found = found.flatten(2).mean(2) if self.pool and found.ndim > 2 else found.flatten(1)
        # In half precision squares of distances overflow.
        return found.to(x.dtype)

    def _statistic(self, features: Tensor) -> Tensor:
        spread = features - self.center.to(features.dtype)
        reference = self.reference.to(features.dtype)
        if self.method == "mahalanobis":
            whitened = spread @ self.whitening.to(features.dtype)
            # Without matrix products, which lose the digits of small distances.
            return (
                torch.cdist(whitened, reference, compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)
            )
        nearest = torch.cdist(spread.detach(), reference).topk(self.k, largest=False).indices
        apart: Tensor = torch.linalg.vector_norm(spread[:, None] - reference[nearest], dim=2)
        return apart.mean(1)

    def _gathered(self, model: Model, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The activations (n, features) and the answers (n,) of a model."""
        device = torch.device("cpu")
        if isinstance(model, Classifier):
            device = next((p.device for p in model.module.parameters()), device)
        features, answers = [], []
        ask = Answers(model, self.layers)
        with model.ready(device), torch.no_grad():
            for part in torch.split(x, batch):
                here = part.to(device)
                answers.append(ask(here).argmax(1).cpu())
                features.append(self._features(here, ask).cpu())
        found = torch.cat(features)
        if not torch.isfinite(found).all():
            raise InputError(f"layer {self.layer!r} gives numbers that are not finite for clean inputs")
        return found, torch.cat(answers)

    def _learn_neighbors(self, features: Tensor) -> None:
        if len(features) < self.k:
            raise InputError(f"k={self.k} needs {2 * self.k} inputs, of which a half are neighbors")
        center = features.double().mean(0)
        # What is far from the origin would lose its digits where distances are taken.
        self.center = center.float()
        self.reference = (features.double() - self.center.double())[: self.keep].float()
        self.whitening = torch.zeros(0, 0)

    def _learn_covariance(self, features: Tensor, labels: Tensor) -> None:
        from sklearn.covariance import ledoit_wolf

        if len(features) < 2:
            raise InputError(f"x holds {2 * len(features)} inputs; mahalanobis needs at least 4")
        rows = features.double()
        known = torch.unique(labels)
        means = torch.stack([rows[labels == label].mean(0) for label in known.tolist()])
        residuals = rows - means[torch.searchsorted(known, labels)]
        covariance, _ = ledoit_wolf(residuals.numpy(), assume_centered=True)
        values, vectors = torch.linalg.eigh(torch.from_numpy(np.atleast_2d(covariance)))
        if float(values[-1]) <= 0:
            raise InputError(f"layer {self.layer!r} is the same for all clean inputs of a class")
        # What never varies would count without limit, and so would rounding errors in it.
        values = values.clamp_min(float(values[-1]) * 1e-10)
        center = rows.mean(0)
        # Laid out as a file has it: matrix products of another layout have other rounding errors.
        whitening = (vectors / values.sqrt()).contiguous()
        self.center, self.whitening = center.float(), whitening.float()
        self.reference = ((means - self.center.double()) @ self.whitening.double()).float()


def _labels(y: Any, n: int, classes: int) -> Tensor:
    labels = torch.as_tensor(np.asarray(y))
    if (
        labels.shape != (n,)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise InputError(f"y has {labels.dtype} of shape {tuple(labels.shape)}; {n} whole numbers are wanted")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"y holds a label outside [0, {classes - 1}]")
    return labels.to(torch.int64)
