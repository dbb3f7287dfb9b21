"""What is wrong with a reply: looked for before anything is made of it, since a stranger wrote it.

This file needs Flower; see `robustml.defenses.federated.guarding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from ...errors import brief
from .layout import Layout
from .rules.base import lengths

__all__ = ["Limits", "Rejected", "Reply", "compared", "read", "read_metrics", "settled"]

_LONGEST = 160  # of what a stranger says about an error
_HEADER = 4096  # bytes that an array may take beside its numbers


class Rejected(Exception):
    """A reply is not used; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What replies may be like.

    Attributes:
        examples: The largest number of examples that a client may claim; None for no fixed one.
        examples_ratio: The same as a multiple of the median of the round's claims. Honest clients with very
            unequal shares (Dirichlet with 0.05, 50 clients) reach 16.
        norm_ratio: The longest update, as a multiple of the median length of the round's updates; the same
            for the change of running statistics, and of counters.
    """

    examples: float | None = None
    examples_ratio: float = 30.0
    norm_ratio: float = 100.0


@dataclass(frozen=True, eq=False)
class Reply:
    """A reply that is right by itself.

    Attributes:
        message: As it came.
        weight: The number of examples that is claimed.
        norm: The length of the update; 0 if it was not looked at.
        drifts: By how much running statistics and counters have changed, as lengths.
        metrics: What else is reported, by name.
        arrays: The record that holds the weights; None for an evaluation.
    """

    message: Message
    weight: float
    norm: float
    metrics: dict[str, Any]
    arrays: ArrayRecord | None = None
    drifts: tuple[float, ...] = ()

    @property
    def node(self) -> int:
        """Who sent it."""
        return int(self.message.metadata.src_node_id)

    def rewritten(self, names: tuple[str, str, str], metrics: Sequence[str]) -> Message:
        """The same with nothing but what a strategy needs.

        Args:
            names: Of the weights' record, of the metrics' record, and of the number of examples.
            metrics: The names of the others that are passed on.
        """
        figures = MetricRecord({names[2]: self.weight, **{key: self.metrics[key] for key in metrics}})
        content = RecordDict({names[1]: figures})
        if self.arrays is not None:
            content[names[0]] = ArrayRecord(dict(self.arrays))
        return Message(content, metadata=self.message.metadata)  # type: ignore[call-overload, no-any-return]


def read(message: Message, sent: Mapping[str, Any], layout: Layout, key: str, limits: Limits) -> Reply:
    """Read a reply to a training message.

    Args:
        message: The reply.
        sent: The arrays that were sent out, by name.
        layout: Theirs.
        key: The name of the number of examples.
        limits: What it may be like.

    Raises:
        Rejected: if it is not as it ought to be.
    """
    weight, metrics = read_metrics(message, key, limits)
    records = message.content.array_records
    if len(records) != 1:
        raise Rejected(f"it has {len(records)} records of arrays, not one")
    record = next(iter(records.values()))
    arrays = {name: _decoded(name, array, layout) for name, array in record.items()}
    fault = layout.fault(arrays)
    if fault:
        raise Rejected(fault)
    norm = float(lengths((layout.flat(arrays) - layout.flat(sent))[None])[0])
    if norm == 0:
        raise Rejected("its update is zero")
    if not math.isfinite(norm):
        raise Rejected("its update is too large for a length")
    whole = ArrayRecord({name: record[name] for name in layout.shapes})
    return Reply(message, weight, norm, metrics, whole, layout.drifts(sent, arrays))


def read_metrics(message: Message, key: str, limits: Limits) -> tuple[float, dict[str, Any]]:
    """The number of examples and the other metrics of a reply.

    Raises:
        Rejected: if they are not as they ought to be.
    """
    if message.has_error():
        raise Rejected(f"error: {brief(str(message.error.reason), _LONGEST)}")
    if not message.has_content():
        raise Rejected("it is empty")
    records = message.content.metric_records
    if len(records) != 1:
        raise Rejected(f"it has {len(records)} records of metrics, not one")
    found: dict[str, Any] = dict(next(iter(records.values())))
    if key not in found:
        raise Rejected(f"{key} is missing")
    weight = found.pop(key)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise Rejected(f"{key}={brief(weight)} is not a number")
    if not (math.isfinite(weight) and weight > 0):
        raise Rejected(f"{key}={weight} is not a finite number above 0")
    if limits.examples is not None and weight > limits.examples:
        raise Rejected(f"{key}={weight} is above the limit of {limits.examples:g}")
    for name, value in found.items():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise Rejected(f"the metric {brief(name)} is not finite")
    return float(weight), found


def compared(replies: Sequence[Reply], limits: Limits) -> tuple[list[Reply], dict[int, str], list[str]]:
    """Compare replies with each other.

    Returns:
        Those that are not out of line, the reasons for the others by node, and the names of the metrics that
        all of those that are left have.
    """
    if not replies:
        return [], {}, []
    weights, norms = (np.median([getattr(reply, name) for reply in replies]) for name in ("weight", "norm"))
    kinds = {name: _kind(replies, name) for reply in replies for name in reply.metrics}
    common = [name for name, (_, count) in kinds.items() if 2 * count > len(replies)]
    usual = [float(np.median(column)) for column in zip(*(reply.drifts for reply in replies), strict=True)]
    kept, reasons = [], {}
    for reply in replies:
        strange = [name for name in common if _shape(reply.metrics.get(name)) != kinds[name][0]]
        if reply.weight > limits.examples_ratio * weights:
            reasons[reply.node] = f"it claims {reply.weight:g} examples, and half of them at most {weights:g}"
        elif reply.norm > limits.norm_ratio * norms:
            reasons[reply.node] = f"its update is {reply.norm:.3g} long, and half of them at most {norms:.3g}"
        elif any(own > limits.norm_ratio * most for own, most in zip(reply.drifts, usual, strict=True)):
            reasons[reply.node] = "its running statistics or counters are far from those of the others"
        elif strange:
            reasons[reply.node] = f"the metric {brief(strange[0])} is not what the others report"
        else:
            kept.append(reply)
    return kept, reasons, sorted(common)


def settled(arrays: ArrayRecord, layout: Layout) -> tuple[ArrayRecord | None, str]:
    """The model that a strategy made, in the types that it was sent in; None and what is wrong with it."""
    found = {}
    for key, value in ((key, array.numpy()) for key, array in arrays.items()):
        dtype = layout.dtypes.get(key, value.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.issubdtype(dtype, np.integer) and np.isfinite(value).all()
            found[key] = np.asarray(np.rint(value) if whole else value).astype(dtype)
    fault = layout.fault(found)
    if fault:
        return None, f"the aggregate is no model: {fault}"
    return ArrayRecord({key: Array(found[key]) for key in layout.shapes}), ""


def _shape(value: Any) -> int | None:
    """The length of a list, 0 for a number, None for nothing."""
    return None if value is None else len(value) + 1 if isinstance(value, list) else 0


def _kind(replies: Sequence[Reply], name: str) -> tuple[int, int]:
    """The form that most of those who report a metric give it, and how many do."""
    shapes = [_shape(reply.metrics[name]) or 0 for reply in replies if name in reply.metrics]
    best = max(sorted(set(shapes)), key=shapes.count)
    return best, shapes.count(best)


def _decoded(name: str, array: Any, layout: Layout) -> Any:
    """The numbers of an array.

    Raises:
        Rejected: if they cannot be read.
    """
    if name not in layout.shapes:
        return np.zeros(0)  # its name is what is wrong with it
    room = int(np.prod(layout.shapes[name], dtype=np.int64)) * layout.dtypes[name].itemsize + _HEADER
    if len(array.data) > room:
        raise Rejected(f"{name} takes {len(array.data)} bytes, and {room} are enough")
    try:
        value = array.numpy()
    except Exception as error:  # bytes of a stranger, which may claim any size
        raise Rejected(f"{name} cannot be read: {type(error).__name__}") from None
    if not isinstance(value, np.ndarray):
        raise Rejected(f"{name} is an archive, not an array")
    return value
