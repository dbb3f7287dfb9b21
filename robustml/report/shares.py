"""Shares of the samples of a run, with their intervals."""

from __future__ import annotations

from ..estimates import clopper_pearson
from ..stress.plan import Plan
from .parts import Estimate

__all__ = ["share_of"]


def share_of(plan: Plan, count: int, *, risk: float = 0.0) -> Estimate:
    """So many of the samples of a plan, with an interval of its confidence.

    Args:
        plan: Of the run.
        count: How many.
        risk: The part of the risk of being wrong that something else takes up, so that the interval and that
            together hold with the confidence of the plan.
    """
    low, high = clopper_pearson(count, plan.samples, plan.confidence + risk)
    return Estimate(
        value=count / plan.samples,
        low=low,
        high=high,
        confidence=plan.confidence,
        count=count,
        total=plan.samples,
    )
