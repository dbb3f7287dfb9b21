"""Data as everything else takes it: checked once, in input units, with a digest that names it.

Sets of images are large, so the checks walk over slices and at most one copy of the data is ever made.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import InputError, suggest
from ..inputs import InputSpec
from ..sampling import Streams
from .gathering import Array, gather
from .readers import read_folder, read_npz

__all__ = ["Dataset", "as_dataset", "choose", "read_folder", "read_npz"]

_SLICE_BYTES = 1 << 22
_SELECTIONS = ("first", "stratified")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled inputs that have passed every check.

    Attributes:
        x: Inputs (n, *shape) in the precision of the input specification, in input units.
        y: Labels int64 (n,), from 0 to classes - 1.
        name: What reports call it.
    """

    x: Array
    y: Array
    name: str = "data"

    def __len__(self) -> int:
        return len(self.x)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 over the values, their type and their shape; the name does not count."""
        digest = hashlib.sha256()
        for array in (self.x, self.y):
            digest.update(f"{array.dtype} {array.shape} ".encode())
            for part in _slices(array):
                digest.update(np.ascontiguousarray(array[part]).data)
        return digest.hexdigest()


def as_dataset(data: Any, inputs: InputSpec, classes: int, name: str = "data") -> Dataset:
    """Check labelled inputs and bring them into the form that attacks work on.

    Arrays that already have the right type are shared, not copied. Values of type uint8 are divided by 255
    where the bounds are (0, 1) and one of them is above 1. A missing channel axis is added where there is
    just one channel.

    Args:
        data: A pair (x, y) of NumPy arrays, tensors or lists, with x of shape (n, *shape) and y of shape
            (n,); or a torch `Dataset`, a `DataLoader` that does not shuffle, or any iterable of
            batches (x, y).
        inputs: The space that x must lie in.
        classes: The number of classes; labels run from 0 to classes - 1.
        name: What error messages and reports call the data.

    Raises:
        InputError: naming the first sample that cannot be used, and why.
    """
    if isinstance(data, Dataset):
        data, name = (data.x, data.y), data.name
    try:
        x, y = gather(data, np.dtype(inputs.dtype))
        if not len(x) and not len(y):
            raise InputError("x and y are empty; give at least one sample")
        x = _shaped(x, inputs.shape)
        if len(x) != len(y):
            raise InputError(f"x has {len(x)} samples and y has {len(y)} labels; they must be as many")
        labels = _labels(y, classes)
        return Dataset(_inputs(x, inputs), labels, name)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def choose(y: Array, samples: int | None, how: str, seed: int) -> Array:
    """Choose the samples of a stress test.

    Args:
        y: Labels int64 (n,).
        samples: How many; None for all of them.
        how: "first", or "stratified": every class in proportion (largest remainders), drawn within a class
            by each sample's own random number, so that the order of the file plays no part.
        seed: Decides the draw.

    Returns:
        Row numbers int64 (samples,) in ascending order.

    Raises:
        InputError: for more samples than there are, or an unknown way to choose.
    """
    if how not in _SELECTIONS:
        raise InputError(f"select={how!r} is not known{suggest(str(how), _SELECTIONS)}")
    rows = np.arange(len(y), dtype=np.int64)
    if samples is None:
        return rows
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)) or samples < 1:
        raise InputError(f"samples={samples!r} is not a whole number of at least 1")
    if samples > len(y):
        raise InputError(f"samples={samples} is more than the {len(y)} samples of the data")
    if how == "first" or samples == len(y):
        return rows[:samples]
    keys = Streams.derive(seed, "choose", torch.from_numpy(rows)).bits(1)[:, 0].numpy()
    labels, counts = np.unique(y, return_counts=True)
    chosen = [
        members[np.argsort(keys[members], kind="stable")[:quota]]
        for label, quota in zip(labels, _quotas(counts, int(samples)), strict=True)
        for members in [np.flatnonzero(y == label)]
    ]
    return np.sort(np.concatenate(chosen))


def _quotas(counts: Array, samples: int) -> Array:
    """Share out `samples` in proportion to `counts`: what is left over goes to the largest remainders."""
    shares, remainders = np.divmod(counts * samples, counts.sum())
    first = np.argsort(-remainders, kind="stable")[: samples - shares.sum()]
    shares[first] += 1
    return shares


def _slices(array: Array) -> Iterator[slice]:
    step = max(1, _SLICE_BYTES // max(1, array.nbytes // max(1, len(array))))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _labels(y: Array, classes: int) -> Array:
    if y.ndim != 1:
        hint = ""
        if y.ndim == 2 and y.shape[1] == classes:
            hint = "; are these one-hot? pass y.argmax(1)"
        elif y.ndim == 2 and y.shape[1] == 1:
            hint = "; pass y[:, 0]"
        raise InputError(f"y has shape {y.shape}; one label per sample is wanted, shape ({len(y)},){hint}")
    if y.dtype.kind not in "iub":
        raise InputError(f"y holds {y.dtype} values; labels are whole numbers from 0 to {classes - 1}")
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        others = f" ({len(wrong)} such labels)" if len(wrong) > 1 else ""
        one = "; labels start at 0" if y.min() == 1 and y.max() == classes else ""
        raise InputError(f"y[{wrong[0]}] is {y[wrong[0]]}, outside [0, {classes - 1}]{others}{one}")
    return np.ascontiguousarray(y, dtype=np.int64)


def _inputs(x: Array, inputs: InputSpec) -> Array:
    if x.dtype.kind not in "fiub":
        raise InputError(f"x holds {x.dtype} values; it must hold real numbers")
    # Values of 0 and 1 stored as bytes are already in range: features, or images in black and white.
    bytes_of_images = x.dtype == np.uint8 and inputs.bounds == (0.0, 1.0) and int(x.max()) > 1
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=inputs.dtype)
    if bytes_of_images:
        x /= 255
    _check_range(x, inputs)
    if inputs.is_discrete:
        _check_discrete(x, inputs)
    return x


def _shaped(x: Array, shape: tuple[int, ...]) -> Array:
    given = x.shape[1:]
    if given == shape:
        return x
    if shape[0] == 1 and len(shape) == 3 and given == shape[1:]:
        return x[:, None]
    hint = ""
    if x.shape == shape:
        hint = "; add the batch axis: x[None]"
    elif len(shape) == 3 and given == (*shape[1:], shape[0]):
        hint = '; the channels come last: use layout = "hwc", or x.transpose(0, 3, 1, 2)'
    elif math.prod(given) == math.prod(shape):
        hint = f"; if the order of the values is right: x.reshape({', '.join(map(str, (-1, *shape)))})"
    wanted = ", ".join(map(str, ("n", *shape)))
    raise InputError(f"x has shape {x.shape}; ({wanted}) is wanted{hint}")


def _check_range(x: Array, inputs: InputSpec) -> None:
    low, high = (_per_feature(side, inputs, x.dtype) for side in inputs.bounds)
    least, most = math.inf, -math.inf
    outside = None
    with np.errstate(invalid="ignore"):
        for part in _slices(x):
            floor, ceiling = x[part].min(0), x[part].max(0)
            if not (np.isfinite(floor).all() and np.isfinite(ceiling).all()):
                raise _not_finite(x)
            least, most = min(least, float(floor.min())), max(most, float(ceiling.max()))
            if outside is None and ((floor < low) | (ceiling > high)).any():
                outside = part
    if outside is not None:
        chunk = x[outside]
        row, *place = np.argwhere((chunk < low) | (chunk > high))[0]
        raise _out_of_bounds(x, outside.start + int(row), tuple(place), inputs, (least, most))
    if inputs.is_image and inputs.bounds == (0.0, 255.0) and 0 < most <= 1:
        raise InputError(f"x has no value above {most:g}; multiply by 255, or set bounds to (0, 1)")


def _not_finite(x: Array) -> InputError:
    bad = np.concatenate([~np.isfinite(x[part]).reshape(len(x[part]), -1).all(1) for part in _slices(x)])
    total = int(bad.sum())
    count = "1 sample" if total == 1 else f"{total} samples"
    return InputError(f"x has NaN or infinity in {count}, the first is x[{int(bad.argmax())}]")


def _out_of_bounds(
    x: Array, row: int, place: tuple[int, ...], inputs: InputSpec, span: tuple[float, float]
) -> InputError:
    low, high = inputs.bounds
    if isinstance(low, tuple) or isinstance(high, tuple):
        index = int(np.ravel_multi_index(place, inputs.shape))
        low, high = (side[index] if isinstance(side, tuple) else side for side in inputs.bounds)
        where = f"{_feature(index, inputs)} of x[{row}]"
        return InputError(f"{where} is {x[(row, *place)]:g}, outside its bounds [{low:g}, {high:g}]")
    least, most = span
    hint = ""
    if (low, high) == (0.0, 1.0):
        if least >= 0 and 1 < most <= 255:
            hint = "; are these 0..255 images? divide by 255"
        elif least >= -1 and most <= 1:
            hint = "; are these -1..1 images? use (x + 1) / 2"
        elif inputs.is_image:
            hint = "; is x normalized already? give raw values, and set mean and std"
    return InputError(
        f"x has values from {least:g} to {most:g}, outside the bounds [{low:g}, {high:g}], "
        f"first in x[{row}]{hint}"
    )


def _check_discrete(x: Array, inputs: InputSpec) -> None:
    for part in _slices(x):
        flat = x[part].reshape(len(x[part]), -1)
        whole = flat[:, list(inputs.integer)]
        if (places := np.argwhere(whole != np.rint(whole))).size:
            row, column = places[0]
            where = f"{_feature(inputs.integer[column], inputs)} of x[{part.start + int(row)}]"
            raise InputError(f"{where} is {whole[row, column]:g}, not a whole number as inputs.integer says")
        for group in inputs.one_hot:
            members = flat[:, list(group)]
            wrong = ((members != 0) & (members != 1)).any(1) | (members.sum(1) != 1)
            if wrong.any():
                row = int(wrong.argmax())
                names = _some(_feature(index, inputs) for index in group)
                values = _some(f"{value:g}" for value in members[row])
                raise InputError(
                    f"x[{part.start + row}] has {values} for {names}; inputs.one_hot wants one 1 and zeros"
                )


def _per_feature(values: float | tuple[float, ...], inputs: InputSpec, dtype: Any) -> Array:
    array = np.asarray(values, dtype=dtype)
    return array.reshape(inputs.shape) if array.ndim else array


def _some(words: Iterable[str]) -> str:
    shown = list(words)
    return ", ".join(shown[:5]) + (", ..." if shown[5:] else "")


def _feature(index: int, inputs: InputSpec) -> str:
    return f"feature {inputs.features[index]!r}" if inputs.features else f"feature {index}"
