"""Targets that come with the library: small models, trained on first use on data already installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...classifier import Classifier
    from ...data import Dataset

__all__ = ["BUILTIN_TARGETS", "Parts", "build"]

BUILTIN_TARGETS: dict[str, str] = {
    "digits": "8x8 images of handwritten digits and a small convolutional network (500 test images)",
    "breast-cancer": "30 measurements of cell nuclei, 10 of them out of reach, and a small network",
}


@dataclass(frozen=True)
class Parts:
    """What a built-in target consists of; `threats` are its default threat models, as text."""

    model: Classifier
    data: Dataset
    train: Dataset
    class_names: tuple[str, ...]
    threats: tuple[str, ...]


def build(name: str) -> Parts:
    """Make a built-in target, training its model unless an earlier call on this machine has done so."""
    import torch

    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    # A caller without gradients would get a model that can neither be trained nor attacked.
    with torch.inference_mode(mode=False), torch.enable_grad():
        parts: Parts = module.build()
    return parts
