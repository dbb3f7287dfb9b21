"""Progress of a run: a live bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, Self, TextIO

from .report.text import plain
from .stress.folder import Record

__all__ = ["Display", "display_for"]

_EVERY = 30.0  # seconds between plain lines inside a stage


def display_for(stream: TextIO | None = None) -> Display:
    """The display that suits a stream (stderr by default); it is closed by leaving its context."""
    stream = stream or sys.stderr
    # A terminal that cannot move its cursor cannot show a bar.
    live = stream.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    return _Bar(stream) if live else _Lines(stream)


class Display:
    """What both forms know: whether the run has begun, the stage, how many samples stand, passes so far."""

    def __init__(self) -> None:
        self.units = self.finished = self.passes = self.standing = self.broken = 0
        self.begun = False
        self.key = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""

    def begin(self, units: int, done: int) -> None:
        self.units, self.begun = units, True

    def stage(self, key: str, standing: int) -> None:
        self.key, self.standing, self.broken = key, standing, 0

    def on_pass(self, samples: int) -> None:
        self.passes += samples

    def unit(self, record: Record | None) -> None:
        self.finished += 1
        if record is not None:
            self.broken += len(record.broken)

    def note(self, text: str) -> None:
        """Something the user should know."""

    @property
    def survivors(self) -> int:
        """Samples of the stage that no attack has broken yet."""
        return self.standing - self.broken


class _Lines(Display):
    """One line per stage, and one every half minute inside a long one."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._last = time.monotonic()

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        # Nobody may be reading any more, which is no reason to lose the run.
        with contextlib.suppress(OSError):
            print(plain(text), file=self._stream, flush=True)

    def begin(self, units: int, done: int) -> None:
        super().begin(units, done)
        if done:
            self._say(f"resuming: {done} of {units} units were finished before")

    def stage(self, key: str, standing: int) -> None:
        super().stage(key, standing)
        if standing:
            self._say(f"{key}: {standing} samples")

    def on_pass(self, samples: int) -> None:
        super().on_pass(samples)
        if time.monotonic() - self._last >= _EVERY:
            self._say(
                f"{self.key}: {self.survivors} still standing, {self.finished} of {self.units} units done"
            )

    def note(self, text: str) -> None:
        self._say(text)


class _Bar(Display):
    """A bar with the stage, the survivors, and the time left."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[survivors]} standing", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def begin(self, units: int, done: int) -> None:
        super().begin(units, done)
        self._task = self._progress.add_task("clean", total=units, survivors=0)
        self._progress.start()

    def _show(self) -> None:
        self._progress.update(
            self._task, completed=self.finished, description=plain(self.key), survivors=self.survivors
        )
        if self.finished >= self.units:
            self.close()

    def close(self) -> None:
        self._progress.stop()

    def stage(self, key: str, standing: int) -> None:
        super().stage(key, standing)
        self._show()

    def unit(self, record: Record | None) -> None:
        super().unit(record)
        self._show()

    def note(self, text: str) -> None:
        self._console.print(plain(text), markup=False, highlight=False)
