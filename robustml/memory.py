"""Memory that is freed: kept while the same amount is asked for again and again, given back afterwards."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back", "hold_memory"]

_TRIM, _MAP = -1, -3  # numbers of malloc's options in glibc
_HELD, _MAPPED = 1 << 26, 1 << 25  # bytes; to hold more saves no time and was not needed


def hold_memory() -> None:
    """Let the allocator keep what a step frees until the next one asks for it again.

    By default glibc hands memory back to the system as soon as some megabytes are free, at the end of a
    backward pass as a rule, and to fault it in again takes as long as half of a pass of a small network.
    `give_back` still returns all of it. Elsewhere there is no such option.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        # The first option alone would freeze the second at a value so small that every tensor is mapped anew.
        library.mallopt(_TRIM, _HELD)
        library.mallopt(_MAP, _MAPPED)


def give_back() -> None:
    """Return freed memory to the system.

    Batches of many sizes leave glibc's heap scattered, and it keeps what lies between; without this the
    memory of a run grows with the number of its chunks. Elsewhere there is no such call, and no need.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
