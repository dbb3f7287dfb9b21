"""Bringing data together: whatever holds samples and labels becomes two arrays, and few copies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset

from ..errors import InputError

__all__ = ["Array", "gather"]

Array: TypeAlias = np.ndarray[Any, Any]

_END = object()
_ACCEPTED = "a pair (x, y), a torch Dataset or DataLoader, or an iterable of batches (x, y)"


def gather(data: Any, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Turn data of any accepted form into arrays x (n, ...) and y (n, ...); only the form is checked.

    Args:
        data: See `as_dataset`.
        dtype: The floating type that batches of another floating type are brought to on arrival.

    Raises:
        InputError: if the data is of no accepted form, or raises while it is read.
    """
    if _is_pair(data):
        x, y = _array("x", data[0]), _array("y", data[1])
        if not x.ndim or not y.ndim:
            raise InputError("x or y is a single number; give one row per sample")
        return x, y
    if isinstance(data, (str, bytes)) or not (isinstance(data, (Iterable, TorchDataset))):
        raise InputError(f"{type(data).__name__} is not {_ACCEPTED}")
    if isinstance(data, torch.Tensor | np.ndarray):
        raise InputError(f"one array of shape {tuple(data.shape)} came without labels; give {_ACCEPTED}")
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
        raise InputError("the DataLoader shuffles, and no row keeps its number; make it with shuffle=False")
    xs, ys = _Rows(_length(data)), _Rows(_length(data))
    for number, (x, y) in enumerate(_batches(data)):
        for name, rows, batch in (("x", xs, _array("x", x)), ("y", ys, _array("y", y))):
            if not batch.ndim:
                raise InputError(f"{name} of batch {number} is a single number; give one row per sample")
            narrow = name == "x" and batch.dtype.kind == "f"
            rows.append(batch.astype(dtype, copy=False) if narrow else batch, f"{name} of batch {number}")
    return xs.finish(), ys.finish()


def _is_pair(data: Any) -> bool:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    # A list of two batches, each a tuple (x, y), looks like a pair too.
    return isinstance(data, tuple) or not all(isinstance(item, tuple) and len(item) == 2 for item in data)


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, TorchDataset):
        # Without a generator of its own, a loader draws its seed from the global one.
        data = DataLoader(data, batch_size=256, generator=torch.Generator())
    number = 0
    source = _reading(lambda: iter(data), number)
    while (batch := _reading(lambda: next(source, _END), number)) is not _END:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(f"batch {number} is {_form(batch)}, not a pair (x, y)")
        yield batch[0], batch[1]
        number += 1


def _reading(step: Any, number: int) -> Any:
    try:
        return step()
    except InputError:
        raise
    except Exception as error:  # whatever the user's own data set raises
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"reading batch {number} raised {type(error).__name__}: {reason}") from error


def _form(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return type(batch).__name__


def _length(data: Any) -> int | None:
    source = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(source, TorchDataset):
        return None
    try:
        return len(source)  # type: ignore[arg-type]
    except TypeError:
        return None


def _array(name: str, values: Any) -> Array:
    try:
        if isinstance(values, (list, tuple)) and values and all(isinstance(v, torch.Tensor) for v in values):
            values = torch.stack(list(values))
        if isinstance(values, torch.Tensor):
            tensor = values.detach().cpu()
            # NumPy has no bfloat16.
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        else:
            array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name} is {_form(values)} that does not make an array: {reason}") from None
    if array.dtype.kind == "O":
        raise InputError(
            f"{name} is an array of Python objects; it must hold numbers, in rows of the same length"
        )
    if array.dtype.kind in "USaV":
        raise InputError(f"{name} holds text or records ({array.dtype}); it must hold numbers")
    return array


class _Rows:
    """An array that grows at its end: a list of batches, joined later, would hold the data twice."""

    def __init__(self, expected: int | None) -> None:
        self._expected = expected
        self._rows: Array | None = None
        self._used = 0

    def append(self, batch: Array, what: str) -> None:
        if self._rows is None:
            self._rows = np.empty((max(self._expected or 0, len(batch)), *batch.shape[1:]), batch.dtype)
        if batch.shape[1:] != self._rows.shape[1:]:
            raise InputError(
                f"{what} has rows of shape {batch.shape[1:]}, earlier ones {self._rows.shape[1:]}"
            )
        if batch.dtype != self._rows.dtype:
            raise InputError(f"{what} holds {batch.dtype} values, earlier ones {self._rows.dtype}")
        end = self._used + len(batch)
        if end > len(self._rows):
            self._resize(max(end, math.ceil(1.25 * len(self._rows))))
        self._rows[self._used : end] = batch
        self._used = end

    def _resize(self, rows: int) -> None:
        assert self._rows is not None
        # In place, which the allocator does for large blocks without copying; no view of it exists yet.
        self._rows.resize((rows, *self._rows.shape[1:]), refcheck=False)

    def finish(self) -> Array:
        if self._rows is None:
            return np.empty(0)
        self._resize(self._used)
        return self._rows
