"""The arrays of a model as one vector: which of them are learned, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Layout"]

Array = np.ndarray[Any, Any]

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Layout:
    """How the entries of a model's state are treated.

    Attributes:
        shapes, dtypes: By name, in the order of the model.
        learned: Names of the parameters, and of other floating-point arrays: what updates are made of.
        statistics: Names of the running statistics of batch normalization. They are no directions to go in:
            their size would drown every distance and every norm.
        counters: Names of the arrays of whole numbers.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    learned: tuple[str, ...]
    statistics: tuple[str, ...]
    counters: tuple[str, ...]

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Layout:
        """That of a model's state."""
        floating = [key for key, value in arrays.items() if np.issubdtype(value.dtype, np.floating)]
        statistics = tuple(key for key in floating if key.rpartition(".")[2] in _STATISTICS)
        return cls(
            {key: value.shape for key, value in arrays.items()},
            {key: value.dtype for key, value in arrays.items()},
            tuple(key for key in floating if key not in statistics),
            statistics,
            tuple(key for key in arrays if key not in floating),
        )

    def flat(self, arrays: Mapping[str, Array]) -> Array:
        """The learned arrays as one vector: float64 (parameters,)."""
        parts = [np.asarray(arrays[key], dtype=np.float64).ravel() for key in self.learned]
        return np.concatenate(parts) if parts else np.zeros(0)

    def drifts(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> tuple[float, float]:
        """How far statistics, and counters, have gone: two lengths, infinite where one is too large."""
        lengths = []
        for names in (self.statistics, self.counters):
            parts = [
                (np.asarray(after[key], dtype=np.float64) - np.asarray(before[key], dtype=np.float64)).ravel()
                for key in names
            ]
            with np.errstate(over="ignore"):
                lengths.append(float(np.linalg.norm(np.concatenate(parts))) if parts else 0.0)
        return lengths[0], lengths[1]

    def shaped(self, flat: Array) -> dict[str, Array]:
        """The learned arrays, in their own precision, of one vector."""
        found, start = {}, 0
        for key in self.learned:
            size = int(np.prod(self.shapes[key], dtype=np.int64))
            part = flat[start : start + size].reshape(self.shapes[key])
            with np.errstate(over="ignore"):  # what is out of range is seen to be infinite afterwards
                found[key] = part.astype(self.dtypes[key])
            start += size
        return found

    def rest(self, states: Sequence[Mapping[str, Array]], weights: Array | None) -> dict[str, Array]:
        """The arrays that are not learned, of all clients' together.

        Args:
            states: One per client.
            weights: Float64 (clients,) for the mean of statistics; None for their median, which a minority
                cannot move out of the range of the others.

        Returns:
            Statistics, and the median of each counter, the lower one of two.
        """
        found = {}
        for key in self.statistics:
            stack = np.stack([np.asarray(state[key], dtype=np.float64) for state in states])
            middle = (
                np.median(stack, axis=0)
                if weights is None
                else np.tensordot(weights / weights.sum(), stack, axes=1)
            )
            found[key] = np.asarray(middle).astype(self.dtypes[key])
        for key in self.counters:
            stack = np.sort(np.stack([state[key] for state in states]), axis=0)
            found[key] = np.asarray(stack[(len(stack) - 1) // 2])
        return found

    def fault(self, arrays: Mapping[str, Array]) -> str:
        """What is wrong with arrays that ought to be like those of the model; empty if nothing is."""
        if set(arrays) != set(self.shapes):
            strange = sorted(set(arrays) - set(self.shapes))
            missing = sorted(set(self.shapes) - set(arrays))
            return f"its arrays have other names: {strange[:3]} unknown, {missing[:3]} missing"
        for key, shape in self.shapes.items():
            value = arrays[key]
            if value.shape != shape or value.dtype != self.dtypes[key]:
                return f"{key} is {value.dtype} {value.shape}, not {self.dtypes[key]} {shape}"
            if not np.isfinite(value).all():
                return f"{key} is not finite"
            if key in self.statistics and key.endswith("running_var") and (value < 0).any():
                return f"{key} is a negative variance"
        return ""
