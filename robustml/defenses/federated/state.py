"""What a strategy and the clients keep from round to round, as tensors and plain data, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ...errors import InputError

__all__ = ["packed", "packed_contexts", "packed_strategy", "unpack_contexts", "unpack_strategy", "unpacked"]

_RECORDS: dict[str, type[Any]] = {"metrics": MetricRecord, "config": ConfigRecord, "records": RecordDict}


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Take a value apart into plain data and tensors.

    Args:
        value: Numbers, text, bytes, arrays, Flower's records, and mappings and lists of those.
        name: What the first tensor found is called; others have longer names.
        tensors: Where tensors are put.

    Raises:
        InputError: for a value that holds something else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return {"scalar": packed(np.asarray(value), name, tensors)}
    if isinstance(value, (np.ndarray, Tensor, Array)):
        return _put(value, name, tensors)
    if isinstance(value, ArrayRecord):
        return {"arrays": [[key, packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    for kind, type_ in _RECORDS.items():
        if isinstance(value, type_):
            return {kind: [[key, packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Mapping):
        return {"map": [[key, packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [packed(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    raise InputError(f"{name} is {type(value).__name__}, which cannot be written to a checkpoint")


def _put(value: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    kind = "tensor" if isinstance(value, Tensor) else "array"
    if isinstance(value, Array):
        kind, value = "flower", value.numpy()
    tensors[name] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return {kind: name}


def unpacked(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what `packed` took apart."""
    if not isinstance(plain, dict):
        return plain
    ((kind, inside),) = plain.items()
    if kind == "bytes":
        return base64.b64decode(inside)
    if kind == "scalar":
        return unpacked(inside, tensors)[()]
    if kind == "tensor":
        return tensors[inside]
    if kind in {"array", "flower"}:
        array = tensors[inside].numpy()
        return array if kind == "array" else Array(array)
    if kind in {"list", "tuple"}:
        items = [unpacked(item, tensors) for item in inside]
        return items if kind == "list" else tuple(items)
    pairs = {key: unpacked(item, tensors) for key, item in inside}
    if kind == "map":
        return pairs
    return ArrayRecord(pairs) if kind == "arrays" else _RECORDS[kind](pairs)


def packed_strategy(strategy: Strategy, tensors: dict[str, Tensor], name: str = "strategy") -> dict[str, Any]:
    """What a strategy remembers from round to round, and what a strategy within it does.

    One that has `state_dict` and `load_state_dict` is asked; of any other, the attributes that are data.
    """
    if hasattr(strategy, "state_dict"):
        return {"state": packed(strategy.state_dict(), name, tensors)}
    stored: dict[str, Any] = {}
    for key, value in vars(strategy).items():
        if isinstance(value, Strategy):
            stored[key] = {"strategy": packed_strategy(value, tensors, f"{name}.{key}")}
            continue
        own: dict[str, Tensor] = {}
        try:
            stored[key] = {"value": packed(value, f"{name}.{key}", own)}
        except InputError:
            continue  # functions and the like, which the strategy was made with
        tensors |= own
    return {"attributes": stored}


def unpack_strategy(strategy: Strategy, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give a strategy, made anew, what another one remembered."""
    if "state" in stored:
        strategy.load_state_dict(unpacked(stored["state"], tensors))  # type: ignore[attr-defined]
        return
    for key, entry in stored["attributes"].items():
        if "strategy" in entry:
            unpack_strategy(getattr(strategy, key), entry["strategy"], tensors)
        else:
            setattr(strategy, key, unpacked(entry["value"], tensors))


def packed_contexts(contexts: Mapping[int, Context], tensors: dict[str, Tensor]) -> Any:
    """What the clients keep to themselves, where they live in this process."""
    return [[node, packed(context.state, f"client.{node}", tensors)] for node, context in contexts.items()]


def unpack_contexts(contexts: Mapping[int, Context], stored: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give the clients back what they kept."""
    for node, state in stored:
        contexts[node].state = unpacked(state, tensors)
