"""The same network with weights that have seen nothing."""

from __future__ import annotations

import contextlib
import copy

import torch

from ...classifier import Classifier
from ...errors import InputError
from ...sampling import seeded

__all__ = ["renewed"]


def renewed(model: Classifier, seed: int | None = 0) -> Classifier:
    """A copy of a model whose weights and running statistics are drawn anew, as its layers do at first.

    Args:
        model: Stays as it is.
        seed: Decides the weights; None for the random numbers that torch is at.

    Raises:
        InputError: if a layer has weights, but no `reset_parameters` that would draw them.
    """
    fresh = copy.deepcopy(model)
    drawn = contextlib.nullcontext() if seed is None else seeded(torch.device("cpu"), seed, "renewed")
    with drawn:
        for name, layer in fresh.module.named_modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise InputError(
                    f"layer {name or 'of the model'!r} ({type(layer).__name__}) has weights but no "
                    "reset_parameters(), so they cannot be drawn anew"
                )
    return fresh
