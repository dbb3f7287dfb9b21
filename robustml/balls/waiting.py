"""Where a number can be read from a tensor without making a device wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

__all__ = ["as_on_a_device", "reads_freely"]

_as_on_a_device: ContextVar[bool] = ContextVar("as_on_a_device", default=False)


def reads_freely(x: Tensor) -> bool:
    """Whether asking for a value, or for the rows that a mask chooses, costs next to nothing.

    On the CPU it does, and often saves work. A GPU would have to finish all that it was given before.
    """
    return x.device.type == "cpu" and not _as_on_a_device.get()


@contextlib.contextmanager
def as_on_a_device() -> Iterator[None]:
    """While this lasts, the CPU goes the ways that a device goes, so that they can be tested without one."""
    token = _as_on_a_device.set(True)
    try:
        yield
    finally:
        _as_on_a_device.reset(token)
