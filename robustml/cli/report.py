"""`robustml report`: show a finished run again, in any format."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, load_report, note, show_report

__all__ = ["report"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Write a file: .html, .json, .md, .xml (JUnit) or .txt; may be repeated.",
)
@json_option
def report(run: Path, out: tuple[Path, ...], json: bool) -> None:
    """Show the report of RUN (a run folder or a report.json); nothing is computed again."""
    loaded = load_report(run)
    for path in out:
        loaded.save(path)
        note(f"wrote {path}")
    if json or not out:
        show_report(loaded, as_json=json)
