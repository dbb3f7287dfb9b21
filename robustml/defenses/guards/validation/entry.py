"""Where raw inputs come in: whatever it is becomes rows of numbers, or a reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....inputs import InputSpec
from .images import ImageRules, in_units
from .reasons import Code, Refusal
from .tabular import Columns, Entry, from_objects, is_frame, unmasked

__all__ = ["Door"]

Array = np.ndarray[Any, Any]

_IMAGES = (bytes, bytearray, memoryview, Image.Image)
_KINDS = (
    "arrays, tensors, lists of numbers, tables with named columns, image files and PIL images are accepted"
)


@dataclass(frozen=True)
class Door:
    """What comes in, in which form.

    Attributes:
        inputs: The space of inputs.
        images: What an image has to be.
        extra: What to do about columns that no feature is called after.
        layout: How arrays of images are laid out.
        max_rows: How many inputs may come at once.
    """

    inputs: InputSpec
    images: ImageRules
    extra: Literal["refuse", "ignore"]
    layout: Literal["chw", "hwc"]
    max_rows: int

    def enter(self, raw: Any) -> Entry:
        """Bring raw inputs to rows; raises nothing whatever comes."""
        try:
            return self._enter(raw)
        except Exception as error:  # objects of strangers can fail wherever they are touched
            said = f"{type(raw).__name__} ({type(error).__name__} on reading it)"
            return self._nothing("kind", said, _KINDS)

    def _enter(self, raw: Any) -> Entry:
        if isinstance(raw, _IMAGES):
            return self._pictures([raw])
        if isinstance(raw, Tensor):
            return self._array(_from_tensor(raw))
        if is_frame(raw):
            return Columns(self.inputs, self.extra).read(raw, self.max_rows)
        if isinstance(raw, (list, tuple)):
            if any(isinstance(item, _IMAGES) for item in raw):
                return self._pictures(raw)
            return self._array(_from_list(raw))
        if isinstance(raw, (np.ndarray, np.generic)) or hasattr(raw, "__array__"):
            return self._array(unmasked(raw))
        return self._nothing("kind", type(raw).__name__, _KINDS)

    def _pictures(self, items: list[Any] | tuple[Any, ...]) -> Entry:
        if len(items) > self.max_rows:
            return self._too_many(len(items))
        pixels, rows, wrong = [], [], []
        for row, item in enumerate(items):
            read = self.images.read(item, row)
            if isinstance(read, Refusal):
                wrong.append(read)
            else:
                pixels.append(read)
                rows.append(row)
        if not pixels:
            return Entry.nothing(self.inputs, tuple(wrong), len(items))
        x = in_units(np.stack(pixels), self.inputs)
        return Entry(x, np.array(rows, np.int64), len(items), tuple(wrong))

    def _array(self, values: Array) -> Entry:
        if values.shape == (0,):
            return Entry.nothing(self.inputs, ())
        if values.dtype.kind not in "fiubO":
            return self._nothing("dtype", str(values.dtype), "numbers are accepted")
        shape = self.inputs.shape
        if self.layout == "hwc" and len(shape) == 3:
            if values.ndim not in {3, 4}:
                return self._wrong_shape(values)
            values = np.moveaxis(values, -1, -3)
        if values.shape == shape:
            values = values[None]
        if values.shape[1:] != shape or values.ndim != len(shape) + 1:
            return self._wrong_shape(values)
        if len(values) > self.max_rows:
            return self._too_many(len(values))
        if values.dtype.kind == "O":
            return from_objects(values, self.inputs)
        return Entry(values, np.arange(len(values), dtype=np.int64), len(values))

    def _wrong_shape(self, values: Array) -> Entry:
        wanted = self.inputs.shape
        hint = ""
        if self.layout == "chw" and len(wanted) == 3 and values.shape[-3:] == (*wanted[1:], wanted[0]):
            hint = '; for height, width, channels, pass layout="hwc"'
        elif self.layout == "hwc" and len(wanted) == 3:
            wanted = (*wanted[1:], wanted[0])
        sizes = ", ".join(map(str, wanted))
        return self._nothing("shape", str(values.shape), f"(n, {sizes}) or ({sizes}) is accepted{hint}")

    def _too_many(self, count: int) -> Entry:
        refusal = Refusal(
            "rows", None, None, None, float(count), f"at most {self.max_rows} rows are accepted"
        )
        return Entry.nothing(self.inputs, (refusal,), count)

    def _nothing(self, code: Code, value: str, accepted: str) -> Entry:
        return Entry.nothing(self.inputs, (Refusal(code, None, None, None, value, accepted),))


def _from_tensor(raw: Tensor) -> Array:
    values = raw.detach().cpu()
    # NumPy has no bfloat16, nor the smaller ones.
    if values.is_floating_point() and values.dtype not in {torch.float16, torch.float32, torch.float64}:
        values = values.float()
    return values.numpy()


def _from_list(raw: list[Any] | tuple[Any, ...]) -> Array:
    if raw and all(isinstance(item, Tensor) for item in raw):
        return np.stack([_from_tensor(item) for item in raw])
    array = np.asarray(raw)
    # Text beside numbers would turn all of them into text.
    return np.asarray(raw, dtype=object) if array.dtype.kind in "US" else array
