"""Breast cancer in Wisconsin (Street, Wolberg and Mangasarian 1993, as scikit-learn has it), and an MLP.

Thirty measurements of the cell nuclei in one image: for each of ten properties the mean over the nuclei, its
standard error, and the mean of the three largest ("worst"). A perturbation is measured in standard deviations
of its feature. The ten standard errors are immutable here: they tell how much the nuclei of one image differ,
which comes out of the measurement and is not something that the attacker of this example can steer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ...data import as_dataset
from ...inputs import InputSpec
from . import Parts
from .training import Recipe, held_out, trained

__all__ = ["build"]

_TEST = 200
# The share of a feature's range by which its bounds reach past the largest value that was seen.
_MARGIN = 0.1


def build() -> Parts:
    """The breast-cancer target: the model, and the 200 samples that it was not trained on."""
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    values = source.data
    train, test = held_out(len(values), _TEST)
    inputs = _specification(values, values[train.numpy()], [str(name) for name in source.feature_names])
    x = torch.from_numpy(values.astype(np.float32))
    y = torch.from_numpy(source.target.astype(np.int64))
    recipe = Recipe("breast-cancer", version=1, build=_network, epochs=40, batch_size=32)
    return Parts(
        model=trained(recipe, x[train], y[train], inputs, classes=2),
        data=as_dataset((x[test], y[test]), inputs, classes=2, name="breast-cancer"),
        train=as_dataset((x[train], y[train]), inputs, classes=2, name="breast-cancer, training part"),
        class_names=tuple(str(name) for name in source.target_names),
        threats=("linf:0.25",),
    )


def _specification(
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    training: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    names: list[str],
) -> InputSpec:
    low, high = values.min(0), values.max(0)
    margin = _MARGIN * (high - low)
    # All of them are lengths, areas or ratios, so nothing is below 0.
    bounds = (_tuple(np.maximum(low - margin, 0)), _tuple(high + margin))
    mean, std = training.mean(0), training.std(0)
    return InputSpec(
        shape=(len(names),),
        bounds=bounds,
        mean=_tuple(mean),
        std=_tuple(std),
        scale=_tuple(std),
        features=tuple(names),
        immutable=tuple(index for index, name in enumerate(names) if name.endswith(" error")),
    )


def _tuple(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
