"""What an input is: its shape, its range, its normalisation and what may change about each feature."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, brief, suggest

__all__ = ["InputSpec"]

Numbers = float | tuple[float, ...]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LARGEST = 2**31  # features of one input
_MOST_LEVELS = 2**16


@dataclass(frozen=True)
class InputSpec:
    """The space that inputs live in, in the user's own units.

    Attributes:
        shape: Shape of one input, without the batch axis; images are (channels, height, width).
        bounds: Lowest and highest valid value; each a number, or one number per feature.
        dtype: "float32" or "float64": the precision that the model computes in.
        mean, std: The normalisation that happens inside the model, after an attack has had its say: numbers,
            or one per channel. `eps` is always in units of the input before normalisation.
        scale: The unit in which a perturbation of a feature is measured: a number, or one per feature. A
            change of `scale` counts as 1, so that features of different ranges share one budget.
        features: A name for each feature (flattened index), used in reports.
        immutable: Flattened indices of the features that an attacker cannot change.
        integer: Flattened indices of the features that hold whole numbers.
        one_hot: Groups of flattened indices of which exactly one is 1 and the others are 0.
        levels: How many values a feature can take, evenly spaced from its lowest to its highest: 256 for
            images that are stored with 8 bits. It covers every feature, so it excludes `integer` and
            `one_hot`. An input that lies between the levels may keep its own values.

    Raises:
        InputError: naming the attribute, what came and what is accepted.
    """

    shape: tuple[int, ...]
    bounds: tuple[Numbers, Numbers] = (0.0, 1.0)
    dtype: str = "float32"
    mean: Numbers = 0.0
    std: Numbers = 1.0
    scale: Numbers = 1.0
    features: tuple[str, ...] = ()
    immutable: tuple[int, ...] = ()
    integer: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()
    levels: int | None = None

    def __post_init__(self) -> None:
        freeze = object.__setattr__  # the way a frozen dataclass stores what it has cleaned
        freeze(self, "shape", _whole_numbers("shape", self.shape, low=1, high=_LARGEST))
        if not self.shape:
            raise InputError("shape=() is empty; give the shape of one input, as in (1, 28, 28)")
        if self.size > _LARGEST:
            raise InputError(f"shape={brief(self.shape)} has more than {_LARGEST} features")
        if not isinstance(self.dtype, str) or self.dtype not in _DTYPES:
            raise InputError(
                f"dtype={brief(self.dtype)} is not accepted{suggest(brief(self.dtype), _DTYPES)}"
            )
        self._clean_numbers(freeze)
        self._clean_features(freeze)
        if self.levels is not None:
            freeze(self, "levels", self._clean_levels())

    def _clean_numbers(self, freeze: Any) -> None:
        size = self.size
        if isinstance(self.bounds, str) or not isinstance(self.bounds, Sequence) or len(self.bounds) != 2:
            raise InputError(f"bounds={brief(self.bounds)} is not a pair (lowest, highest)")
        low, high = (_floats("bounds", side, (size,)) for side in self.bounds)
        if any(a >= b for a, b in _side_by_side(low, high)):
            raise InputError("bounds has a lowest value that is not below its highest value")
        freeze(self, "bounds", (low, high))
        channels = (self.shape[0], size)
        freeze(self, "mean", _floats("mean", self.mean, channels))
        for name, lengths in (("std", channels), ("scale", (size,))):
            value = _floats(name, getattr(self, name), lengths)
            if min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise InputError(f"{name}={brief(value)} has a value that is not above 0")
            freeze(self, name, value)

    def _clean_features(self, freeze: Any) -> None:
        size = self.size
        if isinstance(self.features, (str, bytes)) or not isinstance(self.features, Sequence):
            raise InputError(f"features={brief(self.features)} is not a list of names")
        for name in self.features:
            if not isinstance(name, str):
                raise InputError(f"features holds {brief(name)}, which is not a name")
        if self.features and len(self.features) != size:
            raise InputError(f"features has {len(self.features)} names for {size} features")
        freeze(self, "features", tuple(self.features))
        for name in ("immutable", "integer"):
            freeze(self, name, _whole_numbers(name, getattr(self, name), low=0, high=size))
        if isinstance(self.one_hot, str) or not isinstance(self.one_hot, Sequence):
            raise InputError(f"one_hot={brief(self.one_hot)} is not a list of groups of feature indices")
        groups = tuple(_whole_numbers("one_hot", group, low=0, high=size) for group in self.one_hot)
        members = [index for group in groups for index in group]
        if len(members) != len(set(members)):
            raise InputError("one_hot names a feature twice; the groups must not overlap")
        if any(len(group) < 2 for group in groups):
            raise InputError("one_hot has a group of fewer than 2 features")
        freeze(self, "one_hot", groups)

    def _clean_levels(self) -> int:
        (levels,) = _whole_numbers("levels", (self.levels,), low=2, high=_MOST_LEVELS + 1)
        for name in ("integer", "one_hot"):
            if getattr(self, name):
                raise InputError(f"levels={levels} says what every feature can be; drop it or {name}")
        finest = 64 * torch.finfo(self.torch_dtype).eps
        if any((b - a) / (levels - 1) < finest * max(abs(a), abs(b)) for a, b in _side_by_side(*self.bounds)):
            raise InputError(f"levels={levels} is finer than {self.dtype} can tell apart within bounds")
        return levels

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Build a spec from plain data, as found in TOML or JSON.

        Raises:
            InputError: for an unknown key (with the nearest known one) or an unacceptable value.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"inputs={brief(data)} is not a table of settings")
        known = {field.name for field in fields(cls)}
        for key in data:
            if key not in known:
                raise InputError(f"inputs.{key} is not known{suggest(str(key), known)}")
        if "shape" not in data:
            raise InputError("inputs.shape is missing; give the shape of one input, as in [1, 28, 28]")
        return cls(**{str(key): value for key, value in data.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` turns back into an equal spec."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @property
    def size(self) -> int:
        """The number of features of one input."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of `dtype`."""
        return _DTYPES[self.dtype]

    @property
    def is_image(self) -> bool:
        """Whether an input can be shown as a picture: one, three or four channels by height by width."""
        return len(self.shape) == 3 and self.shape[0] in {1, 3, 4} and min(self.shape[1:]) > 1

    @property
    def is_discrete(self) -> bool:
        """Whether some features may only take some of the values between their bounds."""
        return bool(self.integer or self.one_hot or self.levels)

    @property
    def span(self) -> float:
        """The widest range of a feature, in units of `scale`."""
        return max((b - a) / s for a, b, s in _side_by_side(*self.bounds, self.scale))

    @property
    def level(self) -> float:
        """The narrowest gap between neighboring levels, in units of `scale`; 0 where there are none."""
        if self.levels is None:
            return 0.0
        return min((b - a) / s for a, b, s in _side_by_side(*self.bounds, self.scale)) / (self.levels - 1)

    def level_of(self, z: Tensor) -> Tensor:
        """Which level each value of a batch is at: from 0 to levels - 1, a fraction between two of them."""
        assert self.levels is not None
        low, high = (self.like(side, z) for side in self.bounds)
        return (z - low) * ((self.levels - 1) / (high - low))

    def at_level(self, number: Tensor) -> Tensor:
        """The values of whole-numbered levels, which are cut to those that exist."""
        assert self.levels is not None
        low, high = (self.like(side, number) for side in self.bounds)
        last = self.levels - 1
        # In this order k / 255 comes out as the nearest float, as it does where images are loaded.
        return torch.minimum(low + number.clamp(0, last) * (high - low) / last, high)

    def like(self, values: Numbers, reference: Tensor) -> Tensor:
        """Turn per-feature numbers into a tensor that broadcasts over a batch like `reference`."""
        tensor = torch.tensor(values, dtype=reference.dtype, device=reference.device)
        return tensor.view(self.shape) if tensor.ndim else tensor

    def normalize(self, x: Tensor) -> Tensor:
        """Apply the normalisation to a batch (n, *shape); differentiable."""
        if self.mean == 0.0 and self.std == 1.0:
            return x
        mean, std = (self._per_channel(value, x) for value in (self.mean, self.std))
        return (x - mean) / std

    def to_unit(self, x: Tensor) -> Tensor:
        """Map a batch (n, *shape) from its bounds to [0, 1], in float64."""
        x = x.double()
        low, high = (self.like(side, x) for side in self.bounds)
        return (x - low) / (high - low)

    def from_unit(self, z: Tensor, x: Tensor) -> Tensor:
        """Map a batch (n, *shape) from [0, 1] back to valid inputs of the precision of `x`.

        Whole numbers and levels are rounded, and what is immutable is as in `x`. One-hot groups are left to
        the caller.
        """
        low, high = (self.like(side, z) for side in self.bounds)
        if self.levels is not None:
            z = (z * (self.levels - 1)).round() / (self.levels - 1)
        back = (low + z.clamp(0, 1) * (high - low)).flatten(1)
        if self.integer:
            back[:, list(self.integer)] = back[:, list(self.integer)].round()
        back = back.to(x.dtype)
        if self.immutable:
            back[:, list(self.immutable)] = x.flatten(1)[:, list(self.immutable)]
        # Rounding to a lower precision may have left the bounds.
        low, high = (self.like(side, back) for side in self.bounds)
        return torch.minimum(torch.maximum(back.view_as(x), low), high)

    def _per_channel(self, values: Numbers, reference: Tensor) -> Tensor:
        tensor = torch.tensor(values, dtype=reference.dtype, device=reference.device)
        if not tensor.ndim:
            return tensor
        if len(tensor) == self.size:
            return tensor.view(self.shape)
        return tensor.view(-1, *[1] * (len(self.shape) - 1))


def _floats(name: str, value: Any, lengths: tuple[int, ...]) -> Numbers:
    """Clean a number or a sequence of numbers, of one of the given lengths."""
    single = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        values = [value] if single else list(value)
    except TypeError:
        values = None
    if values is None or isinstance(value, (str, bytes, Mapping)):
        raise InputError(f"{name}={brief(value)} is not a number or a list of numbers")
    try:
        cleaned = tuple(float(v) for v in values if not isinstance(v, (bool, str, bytes)))
    except (TypeError, ValueError, OverflowError):
        cleaned = ()
    if len(cleaned) != len(values) or not all(map(math.isfinite, cleaned)):
        raise InputError(f"{name}={brief(value)} holds something that is not a finite number")
    if single:
        return cleaned[0]
    if len(cleaned) not in lengths:
        accepted = " or ".join(str(n) for n in dict.fromkeys(lengths))
        raise InputError(f"{name} has {len(cleaned)} values; it takes one number, or {accepted} of them")
    return cleaned


def _whole_numbers(name: str, values: Any, *, low: int, high: int) -> tuple[int, ...]:
    """Clean a sequence of integers in [low, high)."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{name}={brief(values)} is not a list of whole numbers")
    cleaned = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{name} holds {brief(value)}, which is not a whole number")
        number = int(value)
        if not low <= number < high:
            raise InputError(f"{name} holds {brief(number)}, which is outside [{low}, {high - 1}]")
        cleaned.append(number)
    return tuple(cleaned)


def _side_by_side(*values: Numbers) -> Iterator[tuple[float, ...]]:
    """One row per feature, or a single row where all values are plain numbers."""
    size = max(len(value) if isinstance(value, tuple) else 1 for value in values)
    columns = (value if isinstance(value, tuple) else itertools.repeat(value, size) for value in values)
    return zip(*columns, strict=True)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
