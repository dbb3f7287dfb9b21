"""What the command lines of the benchmarks have in common: errors of one line, and options that recur."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

__all__ = ["Parser", "line", "positive", "present"]


class Parser(argparse.ArgumentParser):
    """A parser whose help is the docstring as it stands, and whose errors are one line and exit status 2."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def present(parser: argparse.ArgumentParser, folder: Path, names: Iterable[str]) -> None:
    """End with one line if the data are not there."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        parser.error(f"{' and '.join(missing)} not found in {folder}; name their folder with --data")


def line(cells: Iterable[object]) -> None:
    """Print one row of a Markdown table, at once."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
