"""`robustml compare`: two reports, paired sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Number, confidence_option, emit, json_option, load_report, write_json

if TYPE_CHECKING:
    from ..report.compare import Comparison
    from ..report.model import Report

__all__ = ["compare"]


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--max-drop",
    type=Number(0, 100),
    help="Fail (exit code 1) if a figure may have dropped by more points than this, or cannot be judged.",
)
@confidence_option
@json_option
def compare(before: Path, after: Path, max_drop: float | None, confidence: float, json: bool) -> int:
    """Compare the reports BEFORE and AFTER (run folders or report.json files) on their common samples."""
    from ..report.compare import compare as compare_reports

    first, second = load_report(before), load_report(after)
    rows = compare_reports(first, second, confidence=confidence)
    distrust = _distrust(first, second)
    failed = [] if max_drop is None else [*distrust, *_dropped(rows, max_drop), *_lost(first, second)]
    if json:
        figures = [dataclasses.asdict(row) for row in rows]
        write_json({"figures": figures, "distrust": distrust, "failed": failed})
    else:
        emit(*distrust, *map(str, rows), *(f"FAIL {reason}" for reason in failed))
    return 1 if failed else 0


def _distrust(before: Report, after: Report) -> list[str]:
    return [
        f"{name} is NOT TRUSTED: {'; '.join(report.distrust)}"
        for name, report in (("before", before), ("after", after))
        if not report.trusted
    ]


def _dropped(rows: list[Comparison], most: float) -> Iterator[str]:
    for row in rows:
        drop = -100 * row.difference.low
        if drop > most:
            yield f"{row.figure} may have dropped by up to {drop:.1f} points"


def _lost(before: Report, after: Report) -> Iterator[str]:
    """Threat models that only the report before has: a figure that is no longer measured may have dropped."""
    measured = {threat.name for threat in after.threats}
    for threat in before.threats:
        if threat.name not in measured:
            yield f"{threat.name} was not measured after"
