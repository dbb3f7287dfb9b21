"""Searching in bfloat16: cheaper passes where the device has them, verdicts in full precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attacking import Limits, Outcome
from .folder import Evidence
from .meter import Meter

__all__ = ["Lowered", "searched"]

Array = np.ndarray[Any, Any]
Work = Callable[[Array, Limits, bool], Outcome]


class Lowered:
    """A metered model whose matrix products and convolutions are computed in bfloat16.

    Args:
        meter: What counts the passes of an attack; a model in float64 stays as it is.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def focus(self, rows: Tensor) -> None:
        """Pass on which rows of the batch the next calls hold."""
        self._meter.focus(rows)

    def __call__(self, x: Tensor, /) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits = self._meter(x)
        return logits.to(x.dtype)


def searched(work: Work, positions: Array, limits: Limits) -> Outcome:
    """Search in bfloat16, then again in full precision for the samples whose success did not hold there.

    Those had left the search early, so that without the second one they would count as robust for nothing.

    Args:
        work: Runs the attack on some positions within limits, in bfloat16 if the third argument is set.
        positions: Of the plan.
        limits: For both searches together.
    """
    first = work(positions, limits, True)
    doubted = (first.meter.hit & ~first.broken).nonzero()[:, 0]
    settled = dataclasses.replace(first, unconfirmed=0, claims=int(first.broken.sum()))
    if first.status != "complete" or not len(doubted):
        return settled
    spent = first.meter.forward + 2 * first.meter.backward
    left = None if limits.max_passes is None else limits.max_passes - spent
    rest = dataclasses.replace(limits, max_passes=left)
    second = work(positions[doubted.cpu().numpy()], rest, False)
    return _together(settled, second, doubted)


def _together(first: Outcome, second: Outcome, places: Tensor) -> Outcome:
    broken = first.broken.clone()
    broken[places] = second.broken
    columns = {
        name: np.concatenate([getattr(first.evidence, name), getattr(second.evidence, name)])
        for name in vars(first.evidence)
    }
    order = np.argsort(columns["position"], kind="stable")
    first.meter.forward += second.meter.forward
    first.meter.backward += second.meter.backward
    return dataclasses.replace(
        first,
        broken=broken,
        rescued=first.rescued + second.rescued,
        unconfirmed=second.unconfirmed,
        claims=first.claims + second.claims,
        evidence=Evidence(**{name: column[order] for name, column in columns.items()}),
        grid_survivors=first.grid_survivors + second.grid_survivors,
        status=second.status,
        checks=first.checks + second.checks,
        queries=[],
    )
