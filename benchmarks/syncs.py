"""Counting how often an attack makes the host wait for the device, step by step.

A step is what lies between two forward passes. Where there is a CUDA device, torch itself reports every
operation that waits (`torch.cuda.set_sync_debug_mode`). Elsewhere robustml goes the ways that it goes on a
device (`robustml.balls.waiting`), and calls that would wait on one are counted by name: reading a number
(`item`, `bool`, `int`), `nonzero` and what contains it (indexing with a mask, `masked_select`, `unique`),
results whose size depends on the data (`bincount`, `repeat_interleave`), a tensor taken to the host (`cpu`,
`numpy`, `tolist`) and one made from numbers of the host (`tensor`, `as_tensor`, `from_numpy`). What torch
does below that level, such as a kernel that waits, cannot be seen there; nor can a copy between devices,
since there is only one.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import robustml
from robustml.balls.waiting import as_on_a_device

__all__ = ["Steps", "Ticking", "watching"]

_PACKAGE = str(Path(robustml.__file__).parent)
_CHECKS = {"prune", "restart"}
"""Where a `Search` looks who still stands; it does so every few steps."""


@dataclass
class Steps:
    """Synchronisations after each forward pass.

    What lies before the first pass and after the last is not part of the inner loop.

    Attributes:
        checks: By the check who still stands.
        others: By all the rest of the attack.
        places: How many of the others each line of robustml is behind.
    """

    checks: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    paused: bool = False

    def tick(self) -> None:
        for counts in (self.checks, self.others):
            counts.append(0)

    def note(self) -> None:
        """A synchronisation happens now."""
        if self.paused or not self.checks:
            return
        place, names = _whence()
        if names & _CHECKS:
            self.checks[-1] += 1
        else:
            self.others[-1] += 1
            self.places[place] = self.places.get(place, 0) + 1

    def finish(self) -> Steps:
        """Leave out what came after the last pass."""
        return Steps(self.checks[:-1], self.others[:-1], self.places)

    def __len__(self) -> int:
        return len(self.checks)

    def rate(self, counts: list[int]) -> float:
        """How many a step."""
        return sum(counts) / len(counts) if counts else 0.0

    @property
    def share(self) -> float:
        """The share of steps in which the attack synchronises for another reason than the check."""
        return sum(count > 0 for count in self.others) / len(self) if len(self) else 0.0


def _whence() -> tuple[str, set[str]]:
    """The line of robustml that is at work, and the names of its functions that are under way."""
    frame = sys._getframe(2)
    place, names = "", set()
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            place = place or f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            names.add(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return place, names


class Ticking(nn.Module):
    """A network that begins a step with each forward pass; what it does itself is not counted."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.steps: Steps | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.steps is None:
            return self.net(x)
        self.steps.paused = True
        logits: Tensor = self.net(x)
        self.steps.paused = False
        self.steps.tick()
        return logits


@contextlib.contextmanager
def watching(model: Ticking, device: torch.device) -> Iterator[Steps]:
    """Count the synchronisations of what runs within, by the means that the device allows."""
    model.steps = steps = Steps()
    try:
        with _reported(steps.note) if device.type == "cuda" else _guessed(steps.note):
            yield steps
    finally:
        model.steps = None


@contextlib.contextmanager
def _reported(note: Callable[[], None]) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()

    def show(message: Warning | str, *rest: Any) -> None:
        # torch warns where the operation was called, so that the stack shows whose it is.
        if "synchronizing CUDA operation" in str(message):
            note()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _guessed(note: Callable[[], None]) -> Iterator[None]:
    with as_on_a_device(), _Calls(note), _Operations(note):
        yield


_WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "argwhere",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "_linalg_check_errors",
}
_MASKABLE = {"index", "index_put", "index_put_", "_index_put_impl_"}


class _Operations(TorchDispatchMode):
    """Sees every operation, those of the backward pass included."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _waits(func, args, kwargs or {}):
            self._note()
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name = func.overloadpacket.__name__
    if name == "repeat_interleave":
        return func._overloadname == "Tensor" and kwargs.get("output_size") is None
    return name in _WAITING or (name in _MASKABLE and _by_mask(name, args))


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask whose true entries must be counted."""
    given = [index for index in args[1] if index is not None]
    if not any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return False
    # A single value goes in by masked_fill, which does not wait.
    return name == "index" or len(given) > 1 or args[2].numel() != 1


_TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
_FROM_HOST = {torch.tensor, torch.as_tensor, torch.from_numpy}


class _Calls(TorchFunctionMode):
    """Sees the calls that do not reach an operation on the CPU, or not as what they are."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _TO_HOST or func in _FROM_HOST:
            self._note()
        return func(*args, **(kwargs or {}))
