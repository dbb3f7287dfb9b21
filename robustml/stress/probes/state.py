"""Is the model still what it was, and does answering leave it alone?"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...classifier import Model, mode_dependent_layers
from ...losses import margin
from ...sampling import Streams
from ..attacking import Bench, Limits, Rows
from ..folder import Record
from ..plan import Stage
from ..randomized import Seeded

__all__ = ["probe_before", "probe_state"]

Values = np.ndarray[Any, Any]

# Another batch rounds differently; a model that has changed answers otherwise by more.
_SLACK = 1e-3
_DEEPEST = 3  # levels of containers that are looked into
_LONGEST = 64  # items of a container that are looked at
_GRADIENTS = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


def probe_before(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, None]:
    """D06: what the model answers at a random point of each ball before it has been attacked."""
    leads = _aside(bench, stage, rows, limits) if len(rows.correct) else np.empty(0)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.correct),
        forward=len(rows.correct) * bench.price,
        margins=[round(float(value), 6) for value in leads],
    )
    return record, None


def _aside(bench: Bench, stage: Stage, rows: Rows, limits: Limits) -> Values:
    x, y, ids = bench.batch(rows.correct)
    assert stage.threat is not None
    ball = stage.threat.around(x)
    point = ball.snap(ball.random(Streams.derive(bench.plan.seed, f"{stage.of}/aside", ids)))
    return _leads(bench, point, y, ids, limits)


def _leads(bench: Bench, x: Tensor, y: Tensor, ids: Tensor, limits: Limits) -> Values:
    if limits.on_pass is not None:
        limits.on_pass(len(x) * bench.price)
    leads: Values = -margin(bench.answers(x, y, ids, aimed=False), y).double().cpu().numpy()
    return leads


def probe_state(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> tuple[Record, None]:
    """D06: after all that was asked, does it answer as at first, and does answering leave it alone?"""
    x, y, ids = bench.batch(rows.correct)
    facts = {"probed": float(len(x))}
    if not len(x):
        return Record(stage=stage.key, chunk=chunk, facts=facts), None
    assert rows.lead is not None and rows.aside is not None
    moved = _differ(_leads(bench, x, y, ids, limits), rows.lead)
    moved |= _differ(_aside(bench, stage, rows, limits), rows.aside)
    facts["moved"] = float(moved.sum())
    # What a first call builds (caches, tables) is there by now; what still changes is state.
    module = _module(bench.model)
    calls = 0
    if module is not None:
        calls = 2
        facts |= _facts(module, lambda: bench.model(x))
        if limits.on_pass is not None:
            limits.on_pass(calls * len(x))
    passes = len(x) * (2 * bench.price + calls)
    return Record(stage=stage.key, chunk=chunk, attempted=len(x), forward=passes, facts=facts), None


def _differ(now: Values, then: Values) -> Values:
    """Whether two answers are not the same up to rounding; an earlier one that is missing says nothing."""
    differing: Values = np.abs(now - then) > _SLACK * np.maximum(1.0, np.abs(then))
    return differing


def _module(model: Model) -> nn.Module | None:
    inner = model.inner if isinstance(model, Seeded) else model
    return inner if isinstance(inner, nn.Module) else None


def _facts(module: nn.Module, call: Callable[[], Tensor]) -> dict[str, float]:
    with torch.no_grad():
        call()
    before, attributes = _tensors(module), _attributes(module)
    watch = _Gradients()
    with torch.no_grad(), watch:
        call()
    found = {f"training {name}": 1.0 for name in mode_dependent_layers(module)}
    found |= {f"changed {name}": 1.0 for name in _differing(before, _tensors(module))}
    found |= {f"attribute {name}": 1.0 for name in _differing(attributes, _attributes(module))}
    if watch.calls:
        found["gradients inside"] = 1.0
    return found


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _tensors(module: nn.Module) -> dict[str, str]:
    """A digest of each parameter and buffer, those included that a state dict leaves out."""
    return {name: _digest(value) for name, value in (*module.named_parameters(), *module.named_buffers())}


def _attributes(module: nn.Module) -> dict[str, str]:
    """A digest of what else the layers hold: numbers, texts, arrays, and containers of them."""
    found = {}
    for place, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name.startswith("_") and name in vars(nn.Module()):
                continue
            parts = list(_parts(value, _DEEPEST))
            if parts:
                key = f"{place}.{name}" if place else name
                found[key] = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return found


def _parts(value: Any, depth: int) -> Iterator[str]:
    """What of a value can be compared, in a fixed order."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield _digest(torch.as_tensor(value) if isinstance(value, np.ndarray) else value)
    elif isinstance(value, (str, bytes, numbers.Number)) or value is None:
        yield repr(value)
    elif depth and isinstance(value, Mapping):
        for key, item in list(value.items())[:_LONGEST]:
            yield repr(key)
            yield from _parts(item, depth - 1)
    elif depth and isinstance(value, Sequence):
        yield str(len(value))
        for item in value[-_LONGEST:]:
            yield from _parts(item, depth - 1)


def _digest(value: Tensor) -> str:
    if nn.parameter.is_lazy(value):
        return "not made yet"
    data = value.detach().cpu().contiguous()
    try:
        raw = data.flatten().view(torch.uint8).numpy().tobytes()
    except RuntimeError:  # sparse and quantized tensors have no bytes to look at
        raw = repr(data).encode()
    return hashlib.sha256(raw).hexdigest()


class _Gradients(TorchFunctionMode):
    """Notice gradients that are computed while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += func in _GRADIENTS
        return func(*args, **(kwargs or {}))
