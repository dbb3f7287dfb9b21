"""Attacks on models that answer with a label: they ask about samples nearby."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...errors import InputError, brief
from ...inputs import InputSpec
from ...losses import is_wrong
from ...sampling import Streams
from ...threats import Linf

__all__ = ["kept_labels", "nearby"]

_LEVELS = (0.1, 0.2, 0.3, 0.4)  # of the width of the range of a feature
_SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


def kept_labels(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    inputs: InputSpec,
    streams: Streams,
    *,
    queries: int = 33,
) -> Tensor:
    """How often the answer is the true label, at a sample and at points near it (Choquette-Choo et al. 2021).

    What was trained on lies farther from the decision boundary as a rule, and so keeps its label more often.

    Args:
        model: Logits (n, classes), or anything whose highest entry is the label.
        x, y: Samples (n, *shape) and labels (n,).
        inputs: Their space: bounds, levels, features that cannot change.
        streams: One per sample.
        queries: Points that are asked about per sample, the sample itself included.

    Returns:
        int64 (n,), at most `queries`.
    """
    if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
        raise InputError(f"queries={brief(queries)} is not a whole number of at least 1")
    kept = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for z in itertools.islice(nearby(x, inputs, streams), queries):
        kept += ~is_wrong(model(z), y)
    return kept


def nearby(x: Tensor, inputs: InputSpec, streams: Streams) -> Iterator[Tensor]:
    """The samples, images shifted by a pixel each way, then uniform noise of four sizes in turn, without end.

    What cannot change stays, and whole numbers, levels and one-hot groups stay valid.
    """
    yield x
    if inputs.is_image and not inputs.immutable:
        yield from (_shifted(x, down, right) for down, right in _SHIFTS)
    for level in itertools.cycle(_LEVELS):
        ball = Linf(level * _width(inputs)).within(inputs).around(x)
        yield ball.snap(ball.random(streams))


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images moved by a pixel; the edge that comes in repeats the one that was there."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    height, width = x.shape[-2:]
    return padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _width(inputs: InputSpec) -> float:
    """The range of a feature, in units of its scale; the median where they differ."""
    low, high, scale = (torch.as_tensor(side, dtype=torch.float64) for side in (*inputs.bounds, inputs.scale))
    return float(((high - low) / scale).median())
