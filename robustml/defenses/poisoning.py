"""Finding suspicious training samples by what a model that has learned from them makes of them.

Both methods look at the input of the last layer, class by class, for a part that the model recognizes by
something else than the rest. They find backdoors that a model has learned, and a part of flipped labels. An
attacker who knows of them can stay below (Tan and Shokri 2020): an empty list proves nothing.

The toolbox (ART 1.20) has both, and is not used: its spectral scores project features that are not centered,
it looks at what the last layer answers, and its clusters change from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import whole
from ..classifier import Classifier
from ..errors import InputError, brief
from ..estimates import Proportion, proportion

__all__ = ["Detection", "Suspects", "activation_clusters", "detection", "features", "spectral_signatures"]

Array = np.ndarray[Any, Any]

_BATCH = 512
_CUT = 1.5  # of the poison expected, what is removed (Tran et al. 2018, Algorithm 1)
_FEWEST = 10  # samples of a class that can be clustered


@dataclass(frozen=True, eq=False)
class Suspects:
    """Training samples to look at.

    Attributes:
        scores: How far each one stands out, (n,); comparable within a class.
        rows: Those that stand out too far, int64, ascending.
    """

    scores: Array
    rows: Array


@dataclass(frozen=True)
class Detection:
    """How well suspects match the poison that is known to be there.

    Attributes:
        precision: Poison among the suspects.
        recall: Suspects among the poison.
        false_positives: Suspects among what is not poison.
    """

    precision: Proportion
    recall: Proportion
    false_positives: Proportion

    def __str__(self) -> str:
        return f"precision {self.precision}, recall {self.recall}, false positives {self.false_positives}"


def features(model: Classifier, x: Any, *, layer: str | None = None) -> Array:
    """What a layer of the model gets as its input, in float64: (n, d).

    Args:
        model: Trained on the data.
        x: Inputs (n, *shape), array or tensor.
        layer: The name of a layer of `model.module`, which may be called once per batch; None for the last
            linear one.

    Raises:
        InputError: if there is no such layer, or it has not been called.
    """
    found = _layer(model.module, layer)
    caught: list[Tensor] = []
    inputs = torch.as_tensor(x, dtype=model.inputs.torch_dtype)
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = []
    handle = found.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        with model.ready(home), torch.no_grad():
            for part in torch.split(inputs, _BATCH):
                caught.clear()
                model(part.to(home))
                if len(caught) != 1 or len(caught[0]) != len(part):
                    raise InputError(f"layer {layer or 'last'!r} is not called once per batch; name another")
                rows.append(caught[0].flatten(1).cpu().double().numpy())
    finally:
        handle.remove()
    return np.concatenate(rows)


def _layer(module: nn.Module, name: str | None) -> nn.Module:
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if name is not None:
        if name not in layers:
            raise InputError(f"layer={brief(name)} is not a layer of the model")
        return layers[name]
    linear = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
    if not linear:
        raise InputError("the model has no linear layer; name the layer whose input is to be looked at")
    return linear[-1]


def spectral_signatures(
    learned: Array, y: Any, *, expected: int, classes: Sequence[int] | None = None
) -> Suspects:
    """Spectral signatures (Tran et al. 2018, Algorithm 1): outliers along the widest direction of a class.

    From every class that is looked at, 1.5 times the expected poison is taken, whether there is any or not:
    of K clean classes beside the poisoned one, precision is at most 1 / (1.5 (K + 1)). Scores say more.

    Args:
        learned: What `features` returns (n, d).
        y: Labels (n,), as trained on.
        expected: The most poison that a class may hold, in samples.
        classes: Which classes to look at; None for all.

    Raises:
        InputError: for unacceptable arguments.
    """
    whole("expected", expected, 1)
    scores = np.zeros(len(learned))
    suspicious = np.zeros(len(learned), dtype=bool)
    for rows in _by_class(learned, y, classes):
        centered = learned[rows] - learned[rows].mean(0)
        direction = np.linalg.svd(centered, full_matrices=False)[2][0]
        scores[rows] = (centered @ direction) ** 2
        count = min(math.floor(_CUT * expected), len(rows))
        suspicious[rows[np.argsort(-scores[rows], kind="stable")[:count]]] = True
    return Suspects(scores, np.flatnonzero(suspicious))


def activation_clusters(
    learned: Array,
    y: Any,
    *,
    dimensions: int = 10,
    silhouette: float = 0.15,
    share: float = 0.35,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> Suspects:
    """Activation clustering (Chen et al. 2018): a class that falls into two, one of them small.

    Each class is projected on its principal components (the authors take independent ones) and cut in two by
    k-means. The smaller part is suspicious if both lie apart and it is small enough. A sample's score is the
    silhouette of its class, if it is in the smaller part: where many classes are suspicious, begin with the
    highest, since classes of natural data fall into two as well. Time and memory grow with the square of the
    largest class.

    Args:
        learned, y, classes: As for `spectral_signatures`.
        dimensions: Components to keep.
        silhouette: The mean silhouette from which two parts count as apart; the authors advise 0.10 to 0.15.
        share: The most that the smaller part may hold of its class.
        seed: Of k-means.

    Raises:
        InputError: for unacceptable arguments.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    whole("dimensions", dimensions, 1)
    scores = np.zeros(len(learned))
    suspicious = np.zeros(len(learned), dtype=bool)
    for rows in _by_class(learned, y, classes):
        if len(rows) < _FEWEST or not np.ptp(learned[rows], axis=0).any():
            continue
        kept = min(int(dimensions), learned.shape[1], len(rows) - 1)
        reduced = PCA(kept, svd_solver="full").fit_transform(learned[rows])
        parts = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced)
        smaller = parts == int(parts.mean() < 0.5)
        if not smaller.any() or smaller.all():
            continue
        apart = float(silhouette_score(reduced, parts))
        scores[rows[smaller]] = apart
        if apart >= silhouette and smaller.mean() <= share:
            suspicious[rows[smaller]] = True
    return Suspects(scores, np.flatnonzero(suspicious))


def _by_class(learned: Array, y: Any, classes: Sequence[int] | None) -> Iterator[Array]:
    labels = np.asarray(y)
    if learned.ndim != 2 or labels.shape != (len(learned),):
        raise InputError(f"features of shape {learned.shape} do not go with labels of shape {labels.shape}")
    if not np.isfinite(learned).all():
        raise InputError("features hold NaN or infinity; look at the model and the data")
    for wanted in np.unique(labels) if classes is None else classes:
        rows = np.flatnonzero(labels == wanted)
        if not len(rows):
            raise InputError(f"classes names {brief(wanted)}, and no label is that")
        yield rows


def detection(suspects: Suspects, poison: Any, *, confidence: float = 0.95) -> Detection:
    """Hold suspects against the rows that are known to be poisoned, with exact intervals."""
    n = len(suspects.scores)
    truth, said = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    truth[np.asarray(poison, dtype=np.int64)] = True
    said[suspects.rows] = True
    hits = int((truth & said).sum())
    return Detection(
        proportion(hits, int(said.sum()), confidence),
        proportion(hits, int(truth.sum()), confidence),
        proportion(int((said & ~truth).sum()), int((~truth).sum()), confidence),
    )
