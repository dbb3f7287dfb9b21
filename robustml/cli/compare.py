"""`robustml compare`: two reports, paired sample by sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from .options import json_option, write_json

__all__ = ["compare"]


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    help="Fail (exit code 1) if a figure may have dropped by more points than this.",
)
@click.option(
    "--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True
)
@json_option
def compare(before: Path, after: Path, max_drop: float | None, confidence: float, as_json: bool) -> int:
    """Compare the reports BEFORE and AFTER (run folders or report.json files) on their common samples."""
    from ..report.compare import compare as compare_reports
    from ..report.model import Report

    first, second = Report.load(before), Report.load(after)
    rows = compare_reports(first, second, confidence=confidence)
    failed = [row for row in rows if max_drop is not None and 100 * row.difference.low < -max_drop]
    if as_json:
        write_json(
            {"figures": [dataclasses.asdict(row) for row in rows], "failed": [row.figure for row in failed]}
        )
        return 1 if failed else 0
    for name, report in (("before", first), ("after", second)):
        if not report.trusted:
            click.echo(f"{name} is NOT TRUSTED: {'; '.join(report.distrust)}")
    for row in rows:
        click.echo(str(row))
    for row in failed:
        click.echo(f"FAIL {row.figure} may have dropped by up to {-100 * row.difference.low:.1f} points")
    return 1 if failed else 0
