"""Where the model is asked for its gradient, and whether what it answers can be used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses import Loss, cross_entropy, margin
from ...registry import Logits
from ...sampling import Streams
from ...surrogates import smoothed
from ...threats import Ball, per_row
from ..attacking import Bench, Limits, Rows, metered
from ..folder import Evidence, Record
from ..meter import Meter
from ..plan import Stage
from ..probing import follows_surrogates

__all__ = ["probe_gradients"]

# Below this L1 norm a gradient points nowhere: float32 rounding decides its direction.
_NO_GRADIENT = 1e-12
_LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}
# Differences and roughness are looked at on this share of the probed samples, but on as many at least.
_SHARE, _FEWEST = 4, 16
_DIRECTIONS = 8
_OFF = 0.1
# A difference has to exceed what rounding makes of the logits by so much.
_ABOVE_ROUNDING = 2000.0
_SHORTEST, _LONGEST = 1e-6, 0.05
_ROUGH_DRAWS = 8
_STEP = 2.5 / 40  # of the budget: a usual step of an attack


def probe_gradients(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D01, D02, D20: is there a gradient, is it the derivative of the loss, and for how far does it hold?"""
    positions = rows.correct
    facts: dict[str, float] = {"probed": float(len(positions))}
    forward = backward = 0
    settings = bench.plan.suite.diagnostics
    closer = max(_FEWEST, settings.samples // _SHARE)
    for places, targets in bench.groups(positions):
        chosen = positions[places.cpu().numpy()]
        x, y, ids = bench.batch(chosen)
        if not len(x):
            continue
        assert stage.threat is not None
        ball = stage.threat.around(x)
        meter, labels = metered(bench, ball, y, targets, limits)
        asked = _Asked(meter, ball, labels, Streams.derive(bench.plan.seed, stage.key, ids))
        surrogates = follows_surrogates(bench.plan.suite, bench.model.access, stage.threat.norm)
        gradients = _usable(asked, facts, surrogates=surrogates)
        few = torch.from_numpy(chosen < closer).to(x.device).nonzero()[:, 0]
        if len(few) and bench.plan.randomness is None:
            _closely(asked.select(few), gradients[few], facts, surrogates=surrogates)
        forward, backward = forward + meter.forward, backward + meter.backward
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(positions),
        forward=forward,
        backward=backward,
        facts=facts,
    )
    return record, None


@dataclass
class _Asked:
    """Samples whose model is asked for gradients and values."""

    model: Meter
    ball: Ball
    y: Tensor
    streams: Streams

    def select(self, rows: Tensor) -> _Asked:
        self.model.focus(rows)
        return _Asked(self.model, self.ball.select(rows), self.y[rows], self.streams.select(rows))

    def values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The margin at points (n, *shape), and the size of the largest logit: (n,) each."""
        with torch.no_grad():
            logits = self.model(z)
        return margin(logits, self.y).double(), logits.double().abs().amax(1)


def _usable(asked: _Asked, facts: dict[str, float], *, surrogates: bool) -> Tensor:
    """Count samples without a gradient (D01); return the gradient of the margin at the input."""
    x, start = asked.ball.x, asked.ball.random(asked.streams)
    at_x, at_start = _gradients(asked, x, smooth=False), _gradients(asked, start, smooth=False)
    missing = {name: _unusable(at_x[name]) | _unusable(at_start[name]) for name in _LOSSES}
    every = missing["ce"] & missing["margin"]
    for name, where in (*missing.items(), ("every", every)):
        facts[name] = facts.get(name, 0.0) + float(where.sum())
    if surrogates and bool(every.any()):
        around: dict[str, Tensor] = {}
        for point in (x, start):
            for name, gradient in _gradients(asked, point, smooth=True).items():
                around[name] = around.get(name, torch.zeros_like(every)) | _unusable(gradient)
        every = every & around["ce"] & around["margin"]
    facts["even_so"] = facts.get("even_so", 0.0) + float(every.sum())
    return at_x["margin"]


def _gradients(asked: _Asked, z: Tensor, *, smooth: bool) -> dict[str, Tensor]:
    """The gradient of each loss at the same points, 0 where the model cuts the graph."""
    point = z.detach().clone().requires_grad_()
    logits = _ask(asked.model, point, smooth=smooth)
    found = {}
    for name, loss in _LOSSES.items():
        values = loss(logits, asked.y)
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), point, retain_graph=True, allow_unused=True)
        found[name] = torch.zeros_like(z) if gradient is None else gradient
    return found


def _ask(model: Logits, point: Tensor, *, smooth: bool) -> Tensor:
    if not smooth:
        return model(point)
    with smoothed():
        return model(point)


def _unusable(gradient: Tensor) -> Tensor:
    size = gradient.double().abs().flatten(1).sum(1)
    return ~(size.isfinite() & (size >= _NO_GRADIENT))


def _closely(asked: _Asked, gradient: Tensor, facts: dict[str, float], *, surrogates: bool) -> None:
    """D02 and D20 on a few samples; each adds its counts."""
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    off = _off_by(asked, gradient)
    rises = _rises(asked, gradient)
    if surrogates and not bool(rises.all()):
        around = _gradients(asked, asked.ball.x, smooth=True)["margin"]
        rises |= _rises(asked, around.nan_to_num(0.0, 0.0, 0.0))
    rough = _roughness(asked)
    found = {
        "close": float(len(off)),
        "off": float((off > _OFF).sum()),
        "astray": float((~rises).sum()),
        "rough": float(rough.sum()),
    }
    for name, value in found.items():
        facts[name] = facts.get(name, 0.0) + value


def _rises(asked: _Asked, gradient: Tensor) -> Tensor:
    """Whether the margin is higher a whole budget ahead along a gradient than a whole budget back: (n,)."""
    ball = asked.ball
    up, down = (ball.advance(ball.x, sign * ball.ascent(gradient), ball.eps) for sign in (1.0, -1.0))
    return asked.values(ball.snap(up))[0] > asked.values(ball.snap(down))[0]


def _off_by(asked: _Asked, at_x: Tensor) -> Tensor:
    """The median relative error of the gradient against central differences: (n,).

    Half of each direction is the gradient's own, so that the slope along it is not lost in the rounding; the
    points are pulled so far inside of the box that both ends of a difference are valid inputs.
    """
    ball = asked.ball
    _, size = asked.values(ball.x)
    machine = torch.finfo(at_x.dtype).eps
    width = _width(ball)
    steepness = ball.slope(at_x).double().norm(dim=1)
    h = (_ABOVE_ROUNDING * machine * size.clamp_min(1e-6) / steepness.clamp_min(1e-30)).clamp(
        _SHORTEST * width, _LONGEST * width
    )[:, None]
    low, high = (side.double() for side in ball.room())
    h = h.to(at_x.dtype)
    free = (high - low) > 4 * h
    centre = torch.where(free, ball.delta(ball.random(asked.streams)), 0.0)
    inside = torch.maximum(torch.minimum(centre, (high - h).to(h)), (low + h).to(h))
    middle = torch.where(free, inside, centre)
    z = ball.point(middle)
    point = z.detach().clone().requires_grad_()
    values = margin(asked.model(point), asked.y)
    slope = torch.zeros_like(middle)
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
        if gradient is not None:
            slope = ball.slope(gradient.nan_to_num(0.0, 0.0, 0.0))
    errors = []
    for _ in range(_DIRECTIONS):
        noise = torch.where(free, asked.streams.normal(middle.shape[1], dtype=middle.dtype), 0.0)
        direction = _unit(_unit(torch.where(free, slope, 0.0)) + _unit(noise))
        ahead, behind = ball.point(middle + h * direction), ball.point(middle - h * direction)
        # What the model is asked about is rounded, so the slope is taken along what really was the step.
        taken = (ball.delta(ahead) - ball.delta(behind)).double()
        expected = (slope.double() * taken).sum(1)
        difference = asked.values(ahead)[0] - asked.values(behind)[0]
        noise_floor = 100 * machine * size
        errors.append((difference - expected).abs() / (expected.abs() + noise_floor + 1e-30))
    return torch.stack(errors).median(0).values


def _width(ball: Ball) -> float:
    """The Euclidean length of a perturbation that uses the budget up, roughly."""
    if ball.threat.norm == "l0":
        return 1.0
    features = ball.x[0].numel()
    return float(ball.threat.eps) * (features**0.5 if ball.threat.norm == "linf" else 1.0)


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return vector / length.clamp_min(1e-30)


def _roughness(asked: _Asked) -> Tensor:
    """By what share the margin changes, on average, within two steps around the input: (n,)."""
    ball = asked.ball
    at_x, _ = asked.values(ball.x)
    total = torch.zeros_like(at_x)
    for _ in range(_ROUGH_DRAWS):
        reach = torch.full_like(at_x, _STEP).to(ball.x.dtype)
        nearby = ball.x + per_row(reach, ball.x) * (ball.random(asked.streams) - ball.x)
        total += (asked.values(ball.snap(nearby))[0] - at_x).abs()
    return (total / _ROUGH_DRAWS / at_x.abs().clamp_min(1e-12)).clamp_max(1.0)
