"""One feature as an attribute with a few values: as it is, cut into ranges, or a one-hot group."""

from __future__ import annotations

import itertools
import numbers
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, brief, suggest
from ...inputs import InputSpec
from .asking import Array

__all__ = ["Attribute", "attribute_of"]

_CATEGORIES = 10  # a feature of more values than this is cut into ranges
_STANDS = 5  # values that stand for a range when the model is asked about it


@dataclass(frozen=True, eq=False)
class Attribute:
    """An attribute of a record.

    Attributes:
        name: Of the feature; of a group, those of its features.
        columns: Indices of the flattened features that it covers.
        values: What it can be.
        candidates: For each value, what the columns can hold then: arrays (columns,).
        cuts: Where ranges begin, of a feature that is cut; None of categories.
    """

    name: str
    columns: tuple[int, ...]
    values: tuple[str, ...]
    candidates: tuple[tuple[Array, ...], ...]
    cuts: Array | None

    def codes(self, x: Array) -> Array:
        """The number of the value of each record, int64 (n,); the nearest one of a value never seen."""
        held = x.reshape(len(x), -1)[:, list(self.columns)].astype(np.float64)
        if self.cuts is not None:
            found: Array = np.searchsorted(self.cuts, held[:, 0], side="right").astype(np.int64)
            return found
        known = np.stack([value[0] for value in self.candidates]).astype(np.float64)
        nearest: Array = np.abs(held[:, None] - known).sum(2).argmin(1).astype(np.int64)
        return nearest

    def rest(self, x: Array) -> Array:
        """All other features, float64 (n, features)."""
        return np.delete(x.reshape(len(x), -1), list(self.columns), axis=1).astype(np.float64)

    def put(self, x: Array, value: Array) -> Array:
        """Records with another value of the attribute."""
        flat = x.reshape(len(x), -1).copy()
        flat[:, list(self.columns)] = value
        return flat.reshape(x.shape)


def attribute_of(spec: InputSpec, x: Array, feature: int | str, bins: int) -> Attribute:
    """Make an attribute of a feature, from the records that the attacker has.

    Args:
        spec: The space of inputs.
        x: The attacker's records.
        feature: Its name, or its index among the flattened features.
        bins: Ranges for a feature of many values.

    Raises:
        InputError: for an unknown feature, or one that has a single value in x.
    """
    index = _index(spec, feature)
    group = next((group for group in spec.one_hot if index in group), None)
    flat = x.reshape(len(x), -1)
    if group is not None:
        units = np.eye(len(group), dtype=x.dtype)
        names = tuple(_name(spec, member) for member in group)
        return Attribute(" / ".join(names), group, names, tuple((unit,) for unit in units), None)
    found = np.unique(flat[:, index])
    name = _name(spec, index)
    if len(found) < 2:
        raise InputError(f"feature {name!r} has the same value in all records that the attack learns from")
    if len(found) <= _CATEGORIES:
        held = tuple((value[None],) for value in found)
        return Attribute(name, (index,), tuple(f"{value:g}" for value in found), held, None)
    held_values = flat[:, index].astype(np.float64)
    # Cuts that are values of the feature leave no range empty, but for the lowest where the lowest value is
    # that of many.
    cuts = np.unique(np.quantile(held_values, np.arange(1, bins) / bins, method="higher"))
    cuts = cuts[cuts > found[0]]
    if not len(cuts):
        raise InputError(f"feature {name!r} is nearly constant: it cannot be cut into {bins} ranges")
    codes = np.searchsorted(cuts, held_values, side="right")
    edges = ["", *(f"{cut:.4g}" for cut in cuts), ""]
    shares = (np.arange(_STANDS) + 0.5) / _STANDS
    held = tuple(
        tuple(
            np.quantile(flat[codes == code, index], shares, method="closest_observation")[:, None].astype(
                x.dtype
            )
        )
        for code in range(len(cuts) + 1)
    )
    return Attribute(name, (index,), _ranges(edges), held, cuts)


def _ranges(edges: list[str]) -> tuple[str, ...]:
    return tuple(
        f"from {low} to {high}" if low and high else f"from {low}" if low else f"below {high}"
        for low, high in itertools.pairwise(edges)
    )


def _index(spec: InputSpec, feature: int | str) -> int:
    if isinstance(feature, str):
        if feature not in spec.features:
            known = suggest(feature, spec.features) if spec.features else "; the inputs have no names"
            raise InputError(f"feature={brief(feature)} is not known{known}")
        return spec.features.index(feature)
    if isinstance(feature, bool) or not isinstance(feature, numbers.Integral) or not 0 <= feature < spec.size:
        raise InputError(f"feature={brief(feature)} is not an index from 0 to {spec.size - 1}")
    return int(feature)


def _name(spec: InputSpec, index: int) -> str:
    return spec.features[index] if spec.features else f"feature {index}"
