"""Where the model is asked for its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...losses import cross_entropy, margin
from ...sampling import Streams
from ..attacking import Bench, Limits, Rows
from ..folder import Record
from ..meter import Meter
from ..plan import Stage

__all__ = ["probe_gradients"]

# Below this L1 norm a gradient points nowhere: float32 rounding decides its direction.
_NO_GRADIENT = 1e-12


def probe_gradients(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, None]:
    """D01: is there a gradient to follow, at the input and at a random start, under each loss?"""
    assert stage.threat is not None
    x, y, ids = bench.batch(rows.correct)
    ball = stage.threat.around(x)
    start = ball.random(Streams.derive(bench.plan.seed, stage.key, ids))
    meter = Meter(bench.model, ball, y, on_pass=limits.on_pass)
    unusable = {
        name: _no_gradient(meter, x, y, loss) | _no_gradient(meter, start, y, loss)
        for name, loss in (("ce", cross_entropy), ("margin", margin))
    }
    facts = {
        "probed": float(len(x)),
        "ce": float(unusable["ce"].sum()),
        "margin": float(unusable["margin"].sum()),
        "every": float((unusable["ce"] & unusable["margin"]).sum()),
    }
    return (
        Record(
            stage=stage.key,
            chunk=chunk,
            attempted=len(x),
            forward=meter.forward,
            backward=meter.backward,
            facts=facts,
        ),
        None,
    )


def _no_gradient(model: Meter, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    point = x.detach().clone().requires_grad_()
    values = loss(model(point), y)
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
    if gradient is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    size = gradient.double().abs().flatten(1).sum(1)
    return ~(size.isfinite() & (size >= _NO_GRADIENT))
