"""What several verbs share: options, and how results reach stdout."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..report.model import Report

__all__ = [
    "device_option",
    "json_option",
    "seconds_of",
    "set_threads",
    "show_report",
    "threads_option",
    "write_json",
]

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:1, … ; auto is a GPU if there is one.",
)
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads that torch may use.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str | None) -> float | None:
    """Read a duration such as "90", "90s", "10m" or "1.5h".

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"time budget {text!r} is not a duration above 0, as in 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def set_threads(threads: int | None) -> None:
    """Limit the CPU threads of torch for this process."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report: the card for people, JSON for programs."""
    if as_json:
        sys.stdout.write(report.to_json())
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(report)
    else:
        click.echo(str(report))


def write_json(data: Any) -> None:
    """Print plain data as JSON."""
    import json

    click.echo(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False))
