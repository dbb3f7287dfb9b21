"""Shares of the samples of a run, with their intervals."""

from __future__ import annotations

from ..estimates import clopper_pearson
from ..stress.plan import Plan
from .parts import Estimate

__all__ = ["share_of"]


def share_of(plan: Plan, count: int) -> Estimate:
    """So many of the samples of a plan."""
    low, high = clopper_pearson(count, plan.samples, plan.confidence)
    return Estimate(
        value=count / plan.samples,
        low=low,
        high=high,
        confidence=plan.confidence,
        count=count,
        total=plan.samples,
    )
