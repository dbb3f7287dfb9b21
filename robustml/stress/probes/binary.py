"""The binarization test: does the suite find adversarial inputs where they exist for certain?

Zimmermann, Brendel, Tramer and Carlini 2022, "Increasing confidence in adversarial robustness evaluations".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...guarded import Guarded
from ...losses import is_wrong
from ...registry import find_attack
from ...sampling import Streams
from ...threats import Ball
from ..attacking import Bench, Limits, Rows
from ..folder import Record
from ..meter import Meter
from ..plan import Stage
from ..suite import unusable

__all__ = ["probe_binary"]

_SAMPLES = 20
_INSIDE = 96  # random points of the ball that the head has to keep on the sample's side
_TRIED = 32  # further ones, to see that the test is not won at random
_RIDGE = 1e-2
_PLACE = 0.5  # where the boundary lies between the random points and the one at the edge


def probe_binary(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, None]:
    """D17: attack new binary heads on the penultimate features, each with an adversarial input by design."""
    assert stage.threat is not None
    few = rows.first(_SAMPLES).correct
    record = Record(stage=stage.key, chunk=chunk)
    if not len(few) or not isinstance(bench.model, Classifier):
        return record, None
    x, _, ids = bench.batch(few)
    ball = stage.threat.around(x)
    streams = Streams.derive(bench.plan.seed, stage.key, ids)
    facts: dict[str, float] = {}
    # The heads are about features; what rejects inputs has none, and asks the model on its own account.
    model = bench.model.passing if isinstance(bench.model, Guarded) else bench.model
    asked = _Asked(model, limits)
    backward = 0
    with _features(asked, x) as features:
        if features is None:
            facts["no_layer"] = 1.0
        else:
            heads = _heads(features, ball, streams)
            made = heads.made.nonzero()[:, 0]
            facts["made"] = float(len(made))
            facts["by_chance"] = float(_by_chance(heads, ball, streams)[made].sum())
            found, backward = _attacked(bench, stage, heads.select(made), ball.select(made), ids[made])
            facts["found"] = float(found.sum())
    update = {"attempted": len(few), "forward": asked.forward, "backward": backward, "facts": facts}
    return record.model_copy(update=update), None


class _Asked:
    """The model, with a count of what goes through it."""

    def __init__(self, model: Classifier, limits: Limits) -> None:
        self.model = model
        self._limits = limits
        self.forward = 0

    def __call__(self, x: Tensor, /) -> Tensor:
        self.forward += len(x)
        if self._limits.on_pass is not None:
            self._limits.on_pass(len(x))
        return self.model(x)


class _Features:
    """The input of the model's last linear layer, flattened: (n, features)."""

    def __init__(self, model: _Asked) -> None:
        self._model = model
        self.last: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.last = None
        self._model(x)
        assert self.last is not None
        return self.last.flatten(1)


@contextlib.contextmanager
def _features(model: _Asked, x: Tensor) -> Iterator[_Features | None]:
    """Listen to the last linear layer that a forward pass goes through; None if there is none."""
    features = _Features(model)
    order: list[nn.Module] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        order.append(layer)

    def keep(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features.last = arguments[0]

    linear = [layer for layer in model.model.modules() if isinstance(layer, nn.Linear)]
    listening = [layer.register_forward_pre_hook(note) for layer in linear]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in listening:
            handle.remove()
    if not order:
        yield None
        return
    handle = order[-1].register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            # A layer that sees another number of rows, such as patches, has no features of the sample.
            fits = len(features(x)) == len(x)
        yield features if fits else None
    finally:
        handle.remove()


@dataclass
class _Heads:
    """A binary classifier for each sample: 0 around it, 1 beyond a hyperplane in the space of features."""

    features: _Features
    weight: Tensor
    bias: Tensor
    made: Tensor
    """Whether the point at the edge could be separated from the others, bool (n,)."""
    rows: Tensor

    def select(self, rows: Tensor) -> _Heads:
        return _Heads(
            self.features, self.weight[rows], self.bias[rows], self.made[rows], torch.arange(len(rows))
        )

    def focus(self, rows: Tensor) -> None:
        """Announce which samples the next calls hold."""
        self.rows = rows

    def __call__(self, x: Tensor, /) -> Tensor:
        seen = self.features(x)
        if len(seen) != len(self.rows):
            raise _Unmatched
        score = (seen * self.weight[self.rows]).sum(1) + self.bias[self.rows]
        return torch.stack([torch.zeros_like(score), score], dim=1)


class _Unmatched(Exception):
    """A call whose rows cannot be matched with the heads."""


def _heads(features: _Features, ball: Ball, streams: Streams) -> _Heads:
    """Separate one point at the edge of each ball from random ones within, by a linear discriminant."""
    edge = ball.snap(_at_edge(ball, streams))
    with torch.no_grad():
        outside = features(edge).double()
        inside = [features(ball.x).double()]
        inside += [features(ball.snap(ball.random(streams))).double() for _ in range(_INSIDE)]
    cloud = torch.stack(inside, dim=1)
    middle = cloud.mean(1)
    away = outside - middle
    # The discriminant (covariance + ridge)^-1 away, through the small side of the matrix of differences.
    spread = (cloud - middle[:, None]) / len(inside) ** 0.5
    ridge = _RIDGE * spread.square().sum((1, 2)) / spread.shape[1] + 1e-30
    small = spread @ spread.mT + ridge[:, None, None] * torch.eye(spread.shape[1]).to(spread)
    inner = torch.linalg.solve(small, (spread @ away[:, :, None]))
    weight = (away - (spread.mT @ inner)[:, :, 0]) / ridge[:, None]
    weight = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-300)
    scores, target = (cloud @ weight[:, :, None])[:, :, 0], (outside * weight).sum(1)
    highest = scores.amax(1)
    limit = highest + _PLACE * (target - highest)
    # The score at the sample becomes -1, so that no loss depends on the scale of the features.
    scale = (limit - scores[:, 0]).clamp_min(1e-300)
    kind = ball.x.dtype
    weight, bias = (weight / scale[:, None]).to(kind), (-limit / scale).to(kind)
    heads = _Heads(features, weight, bias, target > highest, torch.arange(len(edge), device=edge.device))
    # Rounding to the model's precision must not take the promised point away.
    with torch.no_grad():
        holds = is_wrong(heads(edge), torch.zeros_like(heads.rows)) & ball.contains(edge)
        stays = ~is_wrong(heads(ball.x), torch.zeros_like(heads.rows))
    heads.made = heads.made & holds & stays
    return heads


def _at_edge(ball: Ball, streams: Streams) -> Tensor:
    """A random point as far out as the ball and the range of inputs allow."""
    farthest, length = ball.x, torch.zeros_like(ball.length(ball.x))
    for _ in range(4):
        point = ball.project(ball.x + 1e3 * (ball.random(streams) - ball.x))
        reached = ball.length(point)
        farther = reached > length
        farthest = torch.where(farther.view(-1, *[1] * (point.ndim - 1)), point, farthest)
        length = torch.maximum(length, reached)
    return farthest


def _by_chance(heads: _Heads, ball: Ball, streams: Streams) -> Tensor:
    found = torch.zeros_like(heads.made)
    with torch.no_grad():
        for _ in range(_TRIED):
            logits = heads(ball.snap(ball.random(streams)))
            found |= is_wrong(logits, torch.zeros_like(heads.rows))
    return found


def _attacked(bench: Bench, stage: Stage, heads: _Heads, ball: Ball, ids: Tensor) -> tuple[Tensor, int]:
    """Which heads the suite fools, each attack on those that the ones before did not; and backward passes."""
    assert stage.threat is not None
    found = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    backward = 0
    for entry in bench.plan.suite.attack:
        left = (~found).nonzero()[:, 0]
        if not len(left):
            break
        if unusable(entry, bench.model.access, stage.threat.norm) is not None:
            continue
        part, around = heads.select(left), ball.select(left)
        zeros = torch.zeros_like(left)
        meter = Meter(part, around, zeros, follow=part.focus)
        streams = Streams.derive(bench.plan.seed, f"{stage.key}/{entry.id}", ids[left])
        # An attack may not be made for two classes, or call with rows that nobody can tell whose they are.
        with contextlib.suppress(Exception):
            find_attack(entry.use).function(
                meter, around.x.clone(), zeros, threat=stage.threat, streams=streams, **entry.options
            )
        backward += meter.backward
        found[left] = meter.hit
    return found, backward
