"""What a run says while it goes: a bar on a terminal, lines elsewhere, and JSON lines in its folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from ...files import write_atomic, writing

if TYPE_CHECKING:
    from .loop import Epoch

__all__ = ["Log"]


class Log:
    """Shows progress on stderr and appends one line per epoch to a file.

    Args:
        steps: Of the whole run.
        path: The file; None for none.
        show: Whether to show anything.
        stream: Where; stderr if not given.
    """

    def __init__(
        self, steps: int, path: Path | None = None, *, show: bool = False, stream: TextIO | None = None
    ) -> None:
        self._path = path
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._show = show
        self._steps = steps

    def __enter__(self) -> Self:
        if self._show and self._stream.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("training", total=self._steps)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rewind(self, history: Sequence[Epoch]) -> None:
        """Leave in the file what belongs to these epochs."""
        if self._path is not None and (history or self._path.exists()):
            write_atomic(self._path, "".join(_line(epoch) for epoch in history))

    def skip(self, steps: int) -> None:
        """So many steps were made before."""
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def step(self) -> None:
        """One step is made."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, epoch: Epoch) -> None:
        """One epoch is finished."""
        if self._path is not None:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(_line(epoch))
        if not self._show:
            return
        figures = {"train": epoch.accuracy, "clean": epoch.clean, "robust": epoch.robust}
        shown = ", ".join(
            f"{name} {100 * value:.1f} %" for name, value in figures.items() if value is not None
        )
        line = f"epoch {epoch.number}: loss {epoch.loss:.4f}, {shown}, {epoch.seconds:.1f} s"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)


def _line(epoch: Epoch) -> str:
    return json.dumps(dataclasses.asdict(epoch)) + "\n"
