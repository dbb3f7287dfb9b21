"""What a stress test of a federation has finished, kept so that it can go on after an interruption."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from ..errors import InputError
from ..files import writing
from .federation_matrix import Cell

__all__ = ["Journal"]


class Journal:
    """Finished federations by a key that says all that decides about them.

    Args:
        path: A file of JSON lines, read if it exists, made with the first federation; None to keep nothing.

    Raises:
        InputError: if there is a file that is no such journal.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.cells: dict[str, Cell] = {}
        self._whole = 0
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def add(self, key: str, cell: Cell) -> None:
        """Remember a federation, on disk before this returns.

        Raises:
            RunError: if it cannot be written.
        """
        self.cells[key] = cell
        if self.path is None:
            return
        line = json.dumps({"key": key, "cell": dataclasses.asdict(cell)}).encode() + b"\n"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # A kill in the middle of a line has left a part of it.
                file.truncate(self._whole)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._whole += len(line)

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"journal {str(path)!r} cannot be read: {error.strerror or error}") from None
        self._whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: self._whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                self.cells[str(entry["key"])] = Cell.from_dict(entry["cell"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InputError(f"journal {str(path)!r} is damaged in line {number}") from None
