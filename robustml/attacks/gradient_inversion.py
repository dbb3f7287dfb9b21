"""Gradient inversion: the data of a client, out of the update that it sends.

An update of one step of SGD is a gradient, which may say all about a single sample. What a defense is worth
is asked by `robustml.auditing.gradient_inversion`, which tells a failing attack from a working defense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import InputError, brief
from ..sampling import Streams

__all__ = [
    "Gradients",
    "Inverted",
    "closed_form",
    "gradients_of",
    "infer_labels",
    "invert",
    "psnr",
    "shared_gradients",
]

Gradients = tuple[Tensor, ...]
"""One tensor per parameter of the module that requires a gradient, in its order."""
Match = Literal["cosine", "euclidean"]

_RATE = 0.1  # of signed Adam, in units of the range of the input (Geiping et al. 2020)
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, where the rate falls to a tenth
_CLOSE = 1e-9  # a loss at which there is nothing left to match
_EXACT = 1e-12  # a squared error below which an input counts as found


@dataclass(frozen=True, eq=False)
class Inverted:
    """What came out of a gradient.

    Attributes:
        x: Inputs (n, *shape), in the units that the module sees.
        labels: Int64 (n,).
        loss: How far their gradient is from the one that was given; what the restart was chosen by.
        method: "closed form", or what was matched.
    """

    x: Tensor
    labels: Tensor
    loss: float
    method: str


def shared_gradients(net: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    """What a client gives away that trains with cross-entropy on a batch: the mean gradient.

    Args:
        net: The shared module, in the mode that it is trained in.
        x: Inputs (n, *shape), as the module sees them.
        y: Labels int64 (n,).
    """
    return tuple(g.detach() for g in torch.autograd.grad(cross_entropy(net(x), y), _trained(net)))


def gradients_of(before: nn.Module, after: nn.Module, learning_rate: float, steps: int = 1) -> Gradients:
    """The gradient of an update by SGD without momentum: exact for one step, a mean for several.

    Args:
        before: The module that the server sent.
        after: The one that the client returned.
        learning_rate: The client's.
        steps: How many it made.
    """
    pairs = zip(_trained(before), _trained(after), strict=True)
    return tuple((old - new).detach() / (learning_rate * steps) for old, new in pairs)


def closed_form(net: nn.Module, gradients: Gradients, shape: Sequence[int]) -> Tensor | None:
    """The input of a single sample, from the first linear layer (Geiping et al. 2020, proposition 3.1).

    The gradient of its weights is that of its biases times the input: one by the other is the input, exactly.

    Args:
        net: The shared module.
        gradients: Of one sample.
        shape: Of an input.

    Returns:
        Inputs (1, *shape); None if no linear layer with a bias sees the input itself, or no unit is active.
    """
    layer = _first_linear(net, shape)
    if layer is None:
        return None
    names = [id(parameter) for parameter in _trained(net)]
    if id(layer.weight) not in names or id(layer.bias) not in names:
        return None
    weight, bias = (gradients[names.index(id(p))].to(torch.float64) for p in (layer.weight, layer.bias))
    square = bias.square().sum()
    if not float(square) > 0:
        return None
    # The least-squares answer of all units: where there is noise, it is better than the best one's.
    found = (bias[:, None] * weight).sum(0) / square
    return found.to(layer.weight.dtype).view(1, *shape)


def infer_labels(net: nn.Module, gradients: Gradients, count: int = 1) -> Tensor:
    """The labels of a batch, from the gradient of the last biases (Zhao et al. 2020, iDLG; for one, exact).

    Each sample of a class pulls its bias down by 1 / count, and its probabilities push all up. For several
    samples the answer is a good guess as long as the module is not sure of anything yet.

    Returns:
        Int64 (count,), ascending.

    Raises:
        InputError: if the last layer has no bias.
    """
    last = [(name, g) for (name, _), g in zip(_named(net), gradients, strict=True)][-1]
    if last[1].ndim != 1:
        raise InputError(f"the last parameter, {last[0]}, is no bias, so that labels cannot be inferred")
    left, found = -last[1].clone(), []
    for _ in range(count):
        found.append(int(left.argmax()))
        left[found[-1]] -= 1 / count
    return torch.tensor(sorted(found))


def invert(
    net: nn.Module,
    gradients: Gradients,
    shape: Sequence[int],
    *,
    count: int = 1,
    labels: Tensor | None = None,
    match: Match = "cosine",
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 3000,
    restarts: int = 1,
    variation: float = 1e-2,
    seed: int = 0,
) -> Inverted:
    """Look for inputs whose gradient is the one that was sent.

    "cosine" is Inverting Gradients (Geiping et al. 2020, equation 4): one minus the cosine, with total
    variation, by Adam on the sign of the gradient. "euclidean" is DLG with inferred labels (Zhu et al. 2019;
    Zhao et al. 2020), by L-BFGS from normal noise; it wants a smooth module.

    Args:
        net: The shared module; twice differentiable where its gradient is to lead anywhere.
        gradients: What was sent (`shared_gradients`, `gradients_of`).
        shape: Of an input.
        count: Samples in the batch.
        labels: Int64 (count,); inferred if None.
        match: What is compared.
        bounds: Of inputs, as the module sees them.
        steps: Of Adam, or of L-BFGS, per restart.
        restarts: The one with the smallest loss is kept.
        variation: Weight of the total variation, for images.
        seed: Decides where restarts begin.

    Raises:
        InputError: for something that makes no sense.
    """
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"bounds={brief(bounds)} are no two finite numbers in order")
    if count < 1 or steps < 1 or restarts < 1:
        raise InputError(f"count={count}, steps={steps} and restarts={restarts} have to be 1 at least")
    known = infer_labels(net, gradients, count) if labels is None else labels
    search = {"cosine": _cosine_search, "euclidean": _euclidean_search}.get(match)
    if search is None:
        raise InputError(f"match={brief(match)} is not one of cosine, euclidean")
    best: Inverted | None = None
    for restart in range(restarts):
        streams = Streams.derive(seed, f"gradient-inversion/{restart}", torch.arange(count))
        z, loss = search(_Problem(net, gradients, known, low, high, variation), streams, tuple(shape), steps)
        if best is None or loss < best.loss or not math.isfinite(best.loss):
            best = Inverted(z, known, loss, match)
        if loss < _CLOSE:
            break
    assert best is not None
    return best


def psnr(found: Tensor, truth: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Peak signal-to-noise ratio of each true input, by its best match: float64 (n,), decibels, up to 120.

    Args:
        found, truth: Inputs (n, *shape); what was found may be in another order.
        bounds: Of inputs; what was found is cut to them.
    """
    from scipy.optimize import linear_sum_assignment

    a = truth.detach().flatten(1).to(torch.float64)
    b = found.detach().clamp(*bounds).flatten(1).to(torch.float64)
    errors = (a[:, None] - b[None]).square().mean(-1)
    rows, columns = linear_sum_assignment(errors.numpy())
    paired = errors[torch.from_numpy(rows), torch.from_numpy(columns)].clamp(min=_EXACT)
    return 10 * ((bounds[1] - bounds[0]) ** 2 / paired).log10()


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is to be matched."""

    net: nn.Module
    gradients: Gradients
    labels: Tensor
    low: float
    high: float
    variation: float

    def made(self, z: Tensor) -> Gradients:
        """The gradient that these inputs would have given, with the graph that leads back to them."""
        loss = cross_entropy(self.net(z), self.labels)
        return torch.autograd.grad(loss, _trained(self.net), create_graph=True)


_Searching = Callable[[_Problem, Streams, tuple[int, ...], int], tuple[Tensor, float]]


def _cosine_search(
    problem: _Problem, streams: Streams, shape: tuple[int, ...], steps: int
) -> tuple[Tensor, float]:
    kind = problem.gradients[0].dtype
    span = problem.high - problem.low
    z = (problem.low + span * streams.uniform(*shape, dtype=kind)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=_RATE * span)
    drops = [int(share * steps) for share in _DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    best, lowest = z.detach().clone(), torch.tensor(math.inf, dtype=kind)
    for _ in range(steps):
        far = _cosine_distance(problem.made(z), problem.gradients)
        loss = far + problem.variation * _variation(z)
        better = far.detach() < lowest
        best = torch.where(better, z.detach(), best)
        lowest = torch.where(better, far.detach(), lowest)
        (slope,) = torch.autograd.grad(loss, z)
        z.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            z.clamp_(problem.low, problem.high)
    return best, float(lowest)


def _euclidean_search(
    problem: _Problem, streams: Streams, shape: tuple[int, ...], steps: int
) -> tuple[Tensor, float]:
    kind = problem.gradients[0].dtype
    z = streams.normal(*shape, dtype=kind).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z], max_iter=steps, history_size=50, tolerance_grad=1e-12, tolerance_change=1e-14
    )
    optimizer.param_groups[0]["line_search_fn"] = "strong_wolfe"

    def closure() -> Tensor:
        pairs = zip(problem.made(z), problem.gradients, strict=True)
        loss = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return z.detach(), float(closure())


def _cosine_distance(made: Gradients, given: Gradients) -> Tensor:
    product = torch.stack([(a * b).sum() for a, b in zip(made, given, strict=True)]).sum()
    squares = [torch.stack([g.square().sum() for g in side]).sum() for side in (made, given)]
    return 1 - product / (squares[0] * squares[1]).sqrt().clamp(min=1e-30)


def _variation(z: Tensor) -> Tensor:
    if z.ndim < 4:
        return z.new_zeros(())
    down, right = z.diff(dim=-2).abs().mean(), z.diff(dim=-1).abs().mean()
    return down + right


def _named(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in _named(net)]


def _first_linear(net: nn.Module, shape: Sequence[int]) -> nn.Linear | None:
    """The linear layer with a bias that sees the flattened input as it is."""
    kind = next(iter(net.parameters())).dtype
    probe = Streams.derive(0, "gradient-inversion/probe", torch.arange(1)).uniform(*shape, dtype=kind)
    seen: list[nn.Linear] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        if layer.bias is not None and torch.equal(inputs[0].flatten(), probe.flatten()):
            seen.append(layer)

    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, nn.Linear)]
    training = {module: module.training for module in net.modules()}
    try:
        # A batch of one through batch normalization fails in training, and would move its statistics.
        net.eval()
        with torch.no_grad():
            net(probe)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    return seen[0] if seen else None
