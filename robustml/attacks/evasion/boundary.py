from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat, overwrite_
from ..active import Columns
from ..decisions import WINDOWS, Questions, first_points, noise_row, noise_window

_STARTS = 0.05  # share of the questions that are spent on where to start
_TURN, _STEP = 0.1, 0.01  # first sizes of the step along the sphere and of the one towards the input
_FACTOR = 1.5  # by how much a step grows or shrinks
_TINY = 1e-12
# After so many steps of a kind their sizes are judged: more than half of the turns should succeed and about a
# fifth of the steps towards the input (Brendel et al. 2018, section 2.2).
_TURNS, _STEPS = 10, 20
_SPHERE = 5  # one question in so many is about a turn alone


@dataclass
class _Walk(Columns):
    base: Tensor
    """The perturbation (n, features), in units of the norm."""
    row: Tensor
    """Random numbers (n, more than features)."""
    turn: Tensor
    """Length of a step along the sphere, as a share of the perturbation's (n, 1)."""
    step: Tensor
    """The same for one towards the input (n, 1)."""
    turned: Tensor
    """How many turns succeeded since they were last judged (n, 1)."""
    stepped: Tensor


@attack(
    "boundary",
    access=Access.DECISION,
    norms={"l2"},
    reference="Brendel, Rauber and Bethge 2018, Algorithm 1",
    minimum=True,
)
def boundary(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    queries: Annotated[int, Ge(1)] = 5000,
    nearest: bool = False,
) -> Tensor:
    """Boundary attack: a random walk on the far side of the decision boundary that draws nearer.

    Args:
        start: Adversarial points that are known (n, *shape); the input itself where there is none.
        queries: Evaluations of the model per sample, at most.
        nearest: Go on within the budget, for the nearest adversarial point.
    """
    search = Questions(model, x, y, threat, streams, nearest=nearest, start=start, queries=queries)
    if search.left and first_points(search, max(10, round(_STARTS * queries))):
        _walk(search)
    return search.finish()


def _walk(search: Questions) -> None:
    base = search.ball.delta(search.rejoin(search.best))
    column = search.reached[:, None]
    state = _Walk(
        base=base,
        row=base,
        turn=torch.full_like(column, _TURN),
        step=torch.full_like(column, _STEP),
        turned=torch.zeros_like(column),
        stepped=torch.zeros_like(column),
    )
    turns = steps = number = 0
    while search.leave(state):
        if number % WINDOWS == 0:
            state.row = noise_row(search)
            state.base = search.ball.delta(search.rejoin(search.ball.point(state.base)))
        alone = number % _SPHERE == 0
        _wander(search, state, number, alone=alone)
        turns, steps, number = turns + alone, steps + (not alone), number + 1
        if turns == _TURNS:
            state.turn = _judged(state.turn, state.turned / turns, 0.3, 0.6).clamp_max(1.0)
            state.turned, turns = torch.zeros_like(state.turned), 0
        if steps == _STEPS:
            state.step = _judged(state.step, state.stepped / steps, 0.1, 0.3).clamp_max(0.5)
            state.stepped, steps = torch.zeros_like(state.stepped), 0


def _wander(search: Questions, state: _Walk, number: int, *, alone: bool) -> None:
    """Ask about a random point on the sphere around the input, or on a slightly smaller one."""
    base, features = state.base, state.base.shape[1]
    length = base.norm(dim=1, keepdim=True).clamp_min(_TINY)
    noise = noise_window(state.row, number % WINDOWS, features)
    along = (noise * base).sum(1, keepdim=True) / length.square()
    aside = torch.addcmul(noise, base, along, value=-1)
    aside = aside * (state.turn * length / aside.norm(dim=1, keepdim=True).clamp_min(_TINY))
    size = (1 + state.turn.square()).rsqrt()
    z = search.ball.point((base + aside) * (size if alone else size * (1 - state.step)))
    wrong = search.ask(z)[:, None]
    moved = search.ball.delta(z)
    # The range of the inputs only ever shortens a perturbation.
    overwrite_(state.base, wrong[:, 0], moved)
    if alone:
        state.turned += wrong
    else:
        state.stepped += wrong


def _judged(size: Tensor, share: Tensor, few: float, many: float) -> Tensor:
    return torch.where(share > many, size * _FACTOR, torch.where(share < few, size / _FACTOR, size))
