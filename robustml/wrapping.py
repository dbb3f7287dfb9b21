"""A bare module, its data and a device, as people name them: what was not said is found out."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .classifier import Classifier
from .data import Dataset
from .data.gathering import Array, gather
from .errors import InputError
from .inputs import InputSpec
from .sampling import seeded

__all__ = ["collected", "environment", "infer_classes", "pick_device", "wrapped"]


def collected(data: Any, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The data as arrays, read once: an iterator has nothing left for a second look."""
    if isinstance(data, Dataset):
        return data.x, data.y
    with torch.random.fork_rng(devices=[]):
        return gather(data, dtype)


def wrapped(model: Any, x: Array, inputs: InputSpec | None) -> Classifier:
    """Make a classifier of a bare module, inferring its inputs from data and its classes from its output.

    Raises:
        InputError: if something cannot be inferred or used.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"model is {type(model).__name__}; give a torch.nn.Module, a Classifier or a BlackBox"
        )
    if not x.size or x.ndim < 2 or x.dtype.kind not in "fiub":
        raise InputError(
            f"x has shape {x.shape} and type {x.dtype}; one row of real numbers per sample is wanted"
        )
    if inputs is None:
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = ~np.isfinite(x).reshape(len(x), -1).all(1)
            raise InputError(
                f"x has NaN or infinity in {int(bad.sum())} samples, the first is x[{int(bad.argmax())}]"
            )
        if x.dtype != np.uint8 and not (low >= 0 and high <= 1):
            raise InputError(
                f"x has values from {low:g} to {high:g}; say what is valid with "
                f"inputs=InputSpec(shape={x.shape[1:]}, bounds=(lowest, highest))"
            )
        inputs = InputSpec(shape=x.shape[1:])
    probe = (x[:2] / (255 if x.dtype == np.uint8 else 1)).astype(inputs.dtype)
    if probe.size != len(probe) * inputs.size:
        raise InputError(f"x has shape {x.shape}; (n, {', '.join(map(str, inputs.shape))}) is wanted")
    return Classifier(model, inputs=inputs, classes=infer_classes(model, probe.reshape(-1, *inputs.shape)))


def infer_classes(module: torch.nn.Module, x: np.ndarray[Any, Any]) -> int:
    """The number of classes of a bare module, from the width of its output on two samples.

    Raises:
        InputError: if the output is not one row of numbers per sample.
    """
    answer: Any
    modes = [(layer, layer.training) for layer in module.modules()]
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        module.eval()
        with seeded(home, "admission"), torch.no_grad():
            answer = module(torch.from_numpy(x[:2]).to(home))
    except Exception as error:  # user code can raise anything
        message = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model fails on a batch of shape {x[:2].shape} and type {x.dtype}: {message}"
        ) from error
    finally:
        for layer, training in modes:
            layer.training = training
    if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[1] < 2:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"the model returns {shape} for {len(x[:2])} inputs; "
            "wrap it in rml.Classifier(..., classes=..., outputs=...)"
        )
    return int(answer.shape[1])


def pick_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is a GPU where there is one.

    Raises:
        InputError: for a name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={name!r} cannot be used: {str(error).splitlines()[0][:120]}") from None
    return device


def environment(device: torch.device) -> dict[str, str]:
    """What a report says of where it was made: the device and the versions."""
    return {
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "robustml": __version__,
        "torch": torch.__version__,
    }
