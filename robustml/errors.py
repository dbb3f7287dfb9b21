"""The errors that robustml raises on purpose, and the exit code that each one means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["InputError", "RobustmlError", "RunError", "brief", "suggest"]


class RobustmlError(Exception):
    """Base of every error raised on purpose; the message is one line that says how to go on."""

    exit_code = 3

    def __init__(self, message: str) -> None:
        # Messages quote what strangers wrote: no line break and no terminal escape may come through.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class InputError(RobustmlError, ValueError):
    """Something the user gave cannot be used: it names the argument, what came, what is accepted."""

    exit_code = 2


class RunError(RobustmlError, RuntimeError):
    """The run itself failed after its inputs were accepted; what was finished is kept on disk."""

    exit_code = 3


def brief(value: Any, width: int = 60) -> str:
    """Show a value in an error message: its repr, cut to `width` characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):
        # Python refuses to print integers of thousands of digits and lists nested a thousand deep.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which of `known` the user may have meant, ready to be appended to an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}"
