"""What an audit that trains takes: a model as a classifier, its data, and settings that are not its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..data import Dataset, as_dataset
from ..errors import InputError
from ..inputs import InputSpec
from ..wrapping import collected, wrapped

__all__ = ["admitted"]

_OWN = {"out", "resume", "ledger", "validation", "partial"}


def admitted(
    model: Any, data: Any, inputs: InputSpec | None, settings: Collection[str]
) -> tuple[Classifier, Dataset]:
    """The model as a classifier, and the data.

    Raises:
        InputError: for a setting that an audit decides itself, or data that do not suit the model.
    """
    for name in sorted(_OWN & set(settings)):
        raise InputError(f"{name} is not for an audit, which trains a model of its own")
    if not isinstance(model, Classifier):
        x, _ = collected(data, np.dtype(inputs.dtype if inputs else "float32"))
        model = wrapped(model, x, inputs)
    return model, as_dataset(data, model.inputs, model.classes)
