"""Comparing two reports sample by sample, on the samples that both of them tested."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..estimates import PairedDifference, paired_difference
from .model import Report

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """How one figure differs between two reports.

    Attributes:
        figure: "clean", or the name of a threat model.
        before, after: The share of the common samples in each report.
        difference: After minus before, paired per sample.
    """

    figure: str
    before: float
    after: float
    difference: PairedDifference

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{self.figure}: {100 * self.before:.1f} % -> {100 * self.after:.1f} % "
            f"({100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] points; "
            f"{d.gained} gained, {d.lost} lost of {d.total}; McNemar p = {d.p_value:.2g})"
        )


def compare(before: Report, after: Report, *, confidence: float = 0.95) -> list[Comparison]:
    """Compare clean accuracy, and robust accuracy under every threat model that both reports have.

    Args:
        before, after: Reports on the same data; the models may differ.
        confidence: Of the interval of each difference (see `PairedDifference`).

    Raises:
        InputError: if the data differ, or no sample or no threat model was measured in both reports.
    """
    if before.target.data.sha256 != after.target.data.sha256:
        raise InputError("the reports are about different data, so their samples cannot be paired")
    shared = sorted(set(before.samples.ids) & set(after.samples.ids))
    if not shared:
        raise InputError("the reports have no sample in common")
    # Without outcomes nothing was measured: there is nothing to compare, least of all as robust.
    measured = {threat.name for threat in after.threats if threat.outcomes}
    names = [threat.name for threat in before.threats if threat.outcomes and threat.name in measured]
    if not names:
        raise InputError("the reports have no measured threat model in common")
    first = names[0]
    rows = [_compare("clean", _outcomes(before, first), _outcomes(after, first), "sb", shared, confidence)]
    return rows + [
        _compare(name, _outcomes(before, name), _outcomes(after, name), "s", shared, confidence)
        for name in names
    ]


def _outcomes(report: Report, threat: str) -> dict[int, str]:
    chosen = next(t for t in report.threats if t.name == threat)
    return dict(zip(report.samples.ids, chosen.outcomes, strict=True))


def _compare(
    figure: str,
    before: dict[int, str],
    after: dict[int, str],
    good: str,
    shared: list[int],
    confidence: float,
) -> Comparison:
    held = [(before[sample] in good, after[sample] in good) for sample in shared]
    gained = sum(new and not old for old, new in held)
    lost = sum(old and not new for old, new in held)
    difference = paired_difference(gained, lost, len(shared), confidence)
    return Comparison(
        figure=figure,
        before=sum(old for old, _ in held) / len(shared),
        after=sum(new for _, new in held) / len(shared),
        difference=difference,
    )
