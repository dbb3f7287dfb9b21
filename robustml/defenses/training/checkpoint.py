"""What a run needs to go on after it was killed, as tensors and plain data: nothing in it can be executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, brief
from ...files import write_atomic

__all__ = ["Checkpoint", "load", "plain_state", "save", "state_from"]

_SCHEMA = "robustml.training/1"


@dataclass
class Checkpoint:
    """A run after so many epochs.

    Attributes:
        plan: Everything that decides the outcome; a run resumes only under the same one.
        facts: Plain data: the epoch, the history, the state of the schedule.
        tensors: Weights and the state of the optimizer, by name.
    """

    plan: dict[str, Any]
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, or leave the one before.

    Raises:
        RunError: if the file cannot be written.
    """
    import safetensors.torch

    about = {"schema": _SCHEMA, "plan": checkpoint.plan, "facts": checkpoint.facts}
    tidy = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.tensors.items()}
    write_atomic(path, safetensors.torch.save(tidy, {"robustml": json.dumps(about)}))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: if there is none, or it is something else or damaged.
    """
    import safetensors

    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist, so there is nothing to resume")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("robustml", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"{str(path)!r} is not a checkpoint: {brief(str(error))}") from None
    if not isinstance(about, dict) or about.get("schema") != _SCHEMA:
        raise InputError(f"{str(path)!r} is not a checkpoint of a training run")
    return Checkpoint(about["plan"], about["facts"], tensors)


def plain_state(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Take the state of an optimizer or a schedule apart into tensors and plain data.

    Raises:
        InputError: for a state that holds something else.
    """
    tensors: dict[str, Tensor] = {}

    def taken(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"map": [[key, taken(item, f"{name}.{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return [taken(item, f"{name}.{place}") for place, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise InputError(f"{name} is {type(value).__name__}, which cannot be written to a checkpoint")

    return tensors, taken(state, prefix)


def state_from(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Put a state together again."""
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        return {key: state_from(tensors, item) for key, item in plain["map"]}
    if isinstance(plain, list):
        return [state_from(tensors, item) for item in plain]
    return plain


def same_plan(stored: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        InputError: naming the first that differs.
    """
    plain = json.loads(json.dumps(now))
    for key in sorted({*stored, *plain}):
        if stored.get(key) != plain.get(key):
            raise InputError(
                f"{str(where)!r} cannot be resumed: its {key} is {brief(stored.get(key))}, now it is "
                f"{brief(plain.get(key))}"
            )


def to_device(state: Any, device: torch.device) -> Any:
    """The tensors of a state on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: to_device(value, device) for key, value in state.items()}
    if isinstance(state, list):
        return [to_device(value, device) for value in state]
    return state
