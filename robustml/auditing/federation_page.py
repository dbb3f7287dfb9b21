"""The stress matrix of a federation for people: a table for a terminal, and a page with a heat map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..report.html import rendered
from .federation_chart import heat_map
from .federation_matrix import FederatedStress, Place, Spread

__all__ = ["HTML", "JSON", "keep_matrix", "matrix_page", "matrix_table"]

HTML, JSON = "matrix.html", "matrix.json"
_HEAD = ("partition", "aggregator", "attack", "accuracy", "loss", "price", "backdoor", "baseline", "refused")


def matrix_table(found: FederatedStress) -> str:
    """The matrix as text: a line for each place, with the interval of each figure."""
    rows = [
        (place.partition, place.aggregator, place.attack, *map(_shown, _figures(place)), _refused(place))
        for place in found.places()
    ]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    lines = [_HEAD, *rows]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def matrix_page(found: FederatedStress, about: Mapping[str, Any]) -> str:
    """The matrix as one HTML page: no script, nothing loaded, every text escaped.

    Args:
        found: The matrix.
        about: What else to say, by name; "target" is what the heading calls it.
    """
    from markupsafe import Markup

    parts = []
    for index, partition in enumerate(found.names("partition")):
        svg = heat_map(found, partition, f"matrix{index}")
        chart = Markup(svg)  # noqa: S704 - drawn from numbers, its words escaped there
        parts.append(_Part(partition, chart, _rows(found, partition)))
    return rendered(
        "matrix.html.j2",
        target=str(about.get("target", "a model")),
        parts=parts,
        attacks=found.names("attack"),
        verdict=found.verdict().splitlines(),
        distrust=found.distrust(),
        stuck=sum(place.unmoved for place in found.places()),
        seeds=sorted({cell.seed for cell in found.cells}),
        tested=max(cell.total for cell in found.cells),
        priced="mean" in found.names("aggregator"),
        confidence=found.confidence,
        facts={**about, **found.settings},
    )


def keep_matrix(folder: str | Path, found: FederatedStress, about: Mapping[str, Any]) -> None:
    """Write the matrix into a folder, as `matrix.json` and as `matrix.html`.

    Raises:
        RunError: if they cannot be written.
    """
    data = {**found.to_dict(), "about": dict(about)}
    write_atomic(Path(folder) / JSON, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write_atomic(Path(folder) / HTML, matrix_page(found, about))


@dataclass(frozen=True)
class _Row:
    aggregator: str
    places: list[Place]
    price: Spread | None
    worst: tuple[str, Spread] | None


@dataclass(frozen=True)
class _Part:
    partition: str
    chart: Any
    rows: list[_Row]


def _rows(found: FederatedStress, partition: str) -> list[_Row]:
    places = [place for place in found.places() if place.partition == partition]
    return [
        _Row(
            name,
            [place for place in places if place.aggregator == name],
            found.price(name, partition),
            found.worst(name, partition),
        )
        for name in found.names("aggregator")
    ]


def _figures(place: Place) -> tuple[Spread | None, ...]:
    return place.accuracy, place.lost, place.price, place.success, place.baseline


def _shown(figure: Spread | None) -> str:
    return "-" if figure is None else str(figure)


def _refused(place: Place) -> str:
    stuck = f", {place.unmoved} of {place.accuracy.count} never moved" if place.unmoved else ""
    return f"{place.quarantined}{stuck}"
