"""Aggregation rules: pure functions of the updates of a round, without Flower."""

from __future__ import annotations

from .averages import Mean, Median, NormBounding, TrimmedMean
from .base import Rule, Tolerant
from .centers import CenteredClipping, GeometricMedian
from .mixing import NearestNeighborMixing
from .selection import Bulyan, Krum, MultiKrum

__all__ = [
    "RULES",
    "Bulyan",
    "CenteredClipping",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormBounding",
    "Rule",
    "Tolerant",
    "TrimmedMean",
]

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Mean,
        Median,
        TrimmedMean,
        NormBounding,
        GeometricMedian,
        CenteredClipping,
        Krum,
        MultiKrum,
        Bulyan,
        NearestNeighborMixing,
    )
}
