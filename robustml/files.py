"""Writing files so that a reader, or a killed run, never meets half of one; and reading them again."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError, RunError

__all__ = ["read_object", "write_atomic", "writing"]


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a whole file or leave what was there: temporary file beside it, fsync, rename.

    Text is written as UTF-8 with the line ends that it has; missing folders are created.

    Raises:
        RunError: if the file cannot be written (no permission, full disk, a folder in its place).
    """
    target = Path(path)
    # Lone surrogates cannot be encoded; shown as an escape, they do not cost the user the report.
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            # Pipes and devices (/dev/stdout, /dev/null) must be written to, never replaced.
            target.write_bytes(content)
        else:
            # A link keeps pointing where it did.
            _replace(target.resolve(), content)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a failed write in the block into one line that names the path.

    Raises:
        RunError: for an OSError in the block.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {str(path)!r}: {reason}") from None


def _replace(target: Path, content: bytes) -> None:
    # Not tempfile: its files are private to the owner, and so would be the report after the rename.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: if it cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} does not hold an object")
    return data
