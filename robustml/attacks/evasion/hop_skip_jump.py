from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat, per_row
from ..active import Columns
from ..decisions import WINDOWS, Questions, first_points, noise_row, noise_window, reduced

# How long the probes are, as a share of the perturbation that they start from. The paper takes a thousandth
# on large images; on a robust network long ones take a fifth off the median, and they do a plain one no harm.
_REACH = 0.7
_STARTS = 0.05  # share of the questions that are spent on where to start
_LINE = 14  # questions for a step and the way back to the boundary
_TINY = 1e-12


@dataclass
class _Walk(Columns):
    edge: Tensor
    """A misclassified point at the boundary (n, *shape)."""
    base: Tensor
    """The perturbation that leads to it (n, features), in units of the norm."""
    row: Tensor
    """Random numbers (n, more than features)."""
    risen: Tensor
    """The sum of the probes that were misclassified, and of all: (n, features) each."""
    gone: Tensor
    votes: Tensor
    """How many were misclassified (n,)."""
    direction: Tensor
    """The estimated direction away from the right class (n, features), of length 1 in the norm."""
    step: Tensor
    """How far to go along it (n,)."""
    reach: Tensor
    """By how much the probes had to be shortened (n,)."""
    low: Tensor
    """Lengths between which the boundary lies on the way back (n,); `high` is infinite before the step."""
    high: Tensor


@attack(
    "hop-skip-jump",
    access=Access.DECISION,
    norms={"linf", "l2"},
    reference="Chen, Jordan and Wainwright 2020, Algorithm 2",
    minimum=True,
)
def hop_skip_jump(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    queries: Annotated[int, Ge(1)] = 1000,
    probes: Annotated[int, Ge(2)] = 40,
    nearest: bool = False,
) -> Tensor:
    """HopSkipJump: walks along the decision boundary on gradients that are estimated from labels.

    Args:
        start: Adversarial points that are known (n, *shape); the input itself where there is none.
        queries: Evaluations of the model per sample, at most.
        probes: Queries for the first estimate of the gradient; the t-th takes sqrt(t) times as many.
        nearest: Go on within the budget, for the nearest adversarial point.
    """
    search = Questions(model, x, y, threat, streams, nearest=nearest, start=start, queries=queries)
    if search.left and first_points(search, max(10, round(_STARTS * queries))):
        _walk(search, probes)
    return search.finish()


def _walk(search: Questions, probes: int) -> None:
    edge = search.best.clone()
    state = _Walk(
        edge=edge,
        base=edge,
        row=edge,
        risen=edge,
        gone=edge,
        votes=search.reached,
        direction=edge,
        step=search.reached,
        reach=torch.ones_like(search.reached),
        low=search.reached,
        high=search.reached,
    )
    turn = 0
    while True:
        turn += 1
        state.edge = search.rejoin(state.edge)
        count = min(round(probes * math.sqrt(turn)), max(search.left - _LINE, 1))
        if not _estimate(search, state, count):
            return
        state.step = search.ball.length(state.edge) / math.sqrt(turn)
        if not _advance(search, state):
            return


def _estimate(search: Questions, state: _Walk, probes: int) -> bool:
    """Equations 11 and 16: which way the misclassified region lies, from probes around the boundary."""
    state.base = search.ball.delta(state.edge)
    features = state.base.shape[1]
    state.risen, state.gone = torch.zeros_like(state.base), torch.zeros_like(state.base)
    state.votes = torch.zeros_like(state.step)
    state.step = _REACH * state.reach * state.base.square().mean(1).sqrt()
    for number in range(probes):
        if number % WINDOWS == 0:
            state.row = noise_row(search)
        noise = noise_window(state.row, number % WINDOWS, features)
        z = search.ball.point(torch.addcmul(state.base, noise, state.step[:, None]))
        wrong = search.ask(z).to(z.dtype)
        # The range of the inputs may have cut the probe short.
        moved = search.ball.delta(z) - state.base
        state.risen.addcmul_(moved, wrong[:, None])
        state.gone += moved
        state.votes += wrong
        if not search.leave(state):
            return False
    share = state.votes / probes
    state.reach = _adapted(state.reach, share)
    rise = state.risen - share[:, None] * state.gone
    if search.ball.threat.norm == "linf":
        state.direction = rise.sign()
    else:
        state.direction = rise / rise.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return True


def _adapted(reach: Tensor, share: Tensor) -> Tensor:
    """Long probes see past kinks and flat stretches, but where nearly all answers agree they tell nothing."""
    lopsided = (share - 0.5).abs() > 0.4
    return torch.where(lopsided, reach / 2, (reach * 1.5).clamp_max(1.0))


def _advance(search: Questions, state: _Walk) -> bool:
    """A step in that direction, halved until it is misclassified, and back towards the input."""
    state.base = search.ball.delta(state.edge)
    state.low, state.high = torch.zeros_like(state.step), torch.full_like(state.step, torch.inf)
    for _ in range(_LINE):
        far = search.ball.point(torch.addcmul(state.base, state.direction, state.step[:, None]))
        there = state.high < torch.inf
        length = torch.where(there, search.middle(state.low, state.high), search.ball.length(far))
        wrong = search.ask(torch.where(per_row(there, far), reduced(search.ball, far, length), far))
        state.step = torch.where(there | wrong, state.step, state.step / 2)
        state.low = torch.where(there & ~wrong, length, state.low)
        state.high = torch.where(wrong, length, state.high)
        if not search.leave(state):
            return False
    there = per_row(state.high < torch.inf, state.edge)
    far = search.ball.point(torch.addcmul(state.base, state.direction, state.step[:, None]))
    length = torch.where(state.high < torch.inf, state.high, 0)
    state.edge = torch.where(there, reduced(search.ball, far, length), state.edge)
    return True
