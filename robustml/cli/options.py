"""What several verbs share: options, and how results reach stdout."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, RunError, suggest

if TYPE_CHECKING:
    from ..report.model import Report

__all__ = [
    "Choice",
    "Number",
    "confidence_option",
    "device_option",
    "discard_stdout",
    "emit",
    "finish",
    "json_option",
    "load_report",
    "note",
    "seconds_of",
    "set_threads",
    "show_report",
    "stdout_for_results",
    "threads_option",
    "write_json",
]


class Choice(click.Choice[str]):
    """A choice that says which of the words may have been meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.Choice`."""
        if value not in self.choices:
            self.fail(f"{str(value)!r} is not known{suggest(str(value), self.choices)}", param, ctx)
        return str(value)


class Number(click.FloatRange):
    """A range of numbers that holds neither infinity nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.FloatRange`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:1, … ; auto is a GPU if there is one.",
)
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads that torch may use.")
# Named like its flag, because its environment variable is named like it.
json_option = click.option("--json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
confidence_option = click.option(
    "--confidence",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of every interval.",
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str | None) -> float | None:
    """Read a duration such as "90", "90s", "10m" or "1.5h".

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"time budget {text!r} is not a duration above 0, as in 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def set_threads(threads: int | None) -> None:
    """Limit the CPU threads of torch for this process."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def load_report(path: Path) -> Report:
    """Read the report of a run.

    Raises:
        InputError: if there is none, with the way to get it where a run was only begun.
    """
    from ..report.model import Report

    if path.is_dir() and not (path / "report.json").exists():
        begun = (path / "plan.json").exists()
        resume = f"go on with robustml stress TARGET --resume {shlex.quote(str(path))}"
        hint = resume if begun else "is it a run folder?"
        raise InputError(f"{str(path)!r} holds no report.json; {hint}")
    return Report.load(path)


def emit(*lines: str) -> None:
    """Print lines of a result on stdout, whatever strangers put in them."""
    from ..report.text import plain

    _write("".join(f"{plain(line)}\n" for line in lines))


def note(line: str) -> None:
    """Print a line that is not part of the result, on stderr."""
    from ..report.text import plain

    with contextlib.suppress(OSError):
        print(plain(line), file=sys.stderr, flush=True)


def stdout_for_results() -> contextlib.AbstractContextManager[object]:
    """While this lasts, what the model under test prints goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


def finish(report: Report, out: Path, *, as_json: bool) -> int:
    """Show a report and say where it lies; the exit code that its gate asks for."""
    show_report(report, as_json=as_json)
    where = f"report: {out / 'report.html'}"
    if as_json:
        note(where)
    else:
        emit("", where)
    return 1 if report.gate.passed is False else 0


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report: the card for people, JSON for programs."""
    if as_json:
        _write(report.to_json())
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(report)
    else:
        _write(f"{str(report).rstrip()}\n")


def write_json(data: Any) -> None:
    """Print plain data as JSON."""
    import json

    _write(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away, as `head` does; the verdict, and so the exit code, stays what it is.
        discard_stdout()
    except OSError as error:
        discard_stdout()
        raise RunError(f"cannot write the result to stdout: {error.strerror or error}") from None


def discard_stdout() -> None:
    """Send what is still to be written nowhere, so that Python's own flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
