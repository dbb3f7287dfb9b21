"""Keeping the memory of a run as small as its chunks."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """Return freed memory to the system.

    Batches of many sizes leave glibc's heap scattered, and it keeps what lies between; without this the
    memory of a run grows with the number of its chunks. Elsewhere there is no such call, and no need.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
