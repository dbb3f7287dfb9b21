"""Backward passes that an attack may prefer to the true one, for any module and without touching it.

Some operations hide the gradient from an attack: a ReLU that is off passes nothing back, rounding passes
nothing back at all, a cast to whole numbers cuts the graph. Inside `smoothed()` the forward pass stays what
it is, to the last bit, and such operations pass back the derivative of a smooth relative instead (the
straight-through estimator of Bengio, Leonard and Courville 2013, BPDA of Athalye, Carlini and Wagner 2018,
applied to the model's own layers). What an attack finds this way is judged by the model as it is.

The calls are intercepted with `torch.overrides.TorchFunctionMode`, which sees what Python code calls. What is
compiled (TorchScript, `torch.compile`), runs in `torch.inference_mode` or leaves torch is opaque to it: there
the true gradient remains.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["KINDS", "SLOPE", "Gradient", "exact", "graft", "smoothed"]

SLOPE = 10.0
"""How sharply a smooth step rises: a ReLU passes back sigmoid(SLOPE * z) of the gradient."""

Gradient = Literal["true", "smooth"]
"""The gradient that an attack follows: that of the model, or that of the surrogates."""

Rule = Callable[..., Any]

KINDS = ("relu", "max-pool", "clamp", "round", "sign", "compare", "cast", "detach")
"""The families of operations that have a surrogate, in the order in which a report names them."""


class _Relu(torch.autograd.Function):
    """ReLU that lets a little of the gradient through where it is off."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, leak: Tensor | float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.leak = leak
        return torch.where(z > 0, z, z * leak) if leak else z.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        # In place: feature maps are large, and fresh memory for them takes longer than the arithmetic.
        slope = torch.mul(z, SLOPE).sigmoid_()
        if ctx.leak:
            slope.mul_(1 - ctx.leak).add_(ctx.leak)
        return slope.mul_(gradients[0]), None


class _Graft(torch.autograd.Function):
    """The value of one tensor with the gradient of another of the same shape."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, relative: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def graft(exact: Tensor, relative: Tensor) -> Tensor:
    """Give a value the gradient of another; whole numbers get a shadow that carries it."""
    if not exact.is_floating_point():
        setattr(exact, _SHADOW, relative)
        return exact
    grafted: Tensor = _Graft.apply(exact.detach(), relative.to(exact.dtype))  # type: ignore[no-untyped-call]
    return grafted


def _relu(func: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor = _Relu.apply(z, 0.0)  # type: ignore[no-untyped-call]
    return out


def _leaky_relu(
    func: Callable[..., Any], z: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    out: Tensor = _Relu.apply(z, float(negative_slope))  # type: ignore[no-untyped-call]
    return out


def _step(z: Tensor) -> Tensor:
    """A function whose derivative is the smooth step sigmoid(SLOPE * z)."""
    return functional.softplus(z, beta=SLOPE)


def _range(z: Tensor, low: Any, high: Any) -> Tensor:
    """A function that rises with slope 1 between two limits and flattens beyond them."""
    out = z if low is None else _step(z - low)
    return out if high is None else out - _step(z - high)


def _clamp(func: Callable[..., Any], z: Tensor, min: Any = None, max: Any = None, **rest: Any) -> Tensor:
    if func in {torch.clamp_max, Tensor.clamp_max}:
        min, max = None, min if max is None else max
    exact = torch.clamp(_plain(z), _plain(min), _plain(max), **rest)
    return graft(exact, _range(_float(z), min, max))


def _hardtanh(
    func: Callable[..., Any],
    z: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    return graft(z.detach().clamp(min_val, max_val), _range(z, min_val, max_val))


def _relu6(func: Callable[..., Any], z: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(func, z, 0.0, 6.0)


def _straight(func: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return graft(func(_plain(z), *args, **kwargs), _float(z))


def _scaled_steps(func: Callable[..., Any], z: Tensor, other: Any, *args: Any, **kwargs: Any) -> Tensor:
    return graft(func(_plain(z), _plain(other), *args, **kwargs), _float(z) / _float(other))


def _max_pool(dimensions: int) -> Rule:
    def rule(
        func: Callable[..., Any],
        z: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        exact = func(z.detach(), kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        if return_indices or ceil_mode or z.ndim != dimensions + 2:
            raise ValueError("no surrogate for this form")
        forms = ((kernel_size, 1), (stride or kernel_size, 1), (padding, 0), (dilation, 1))
        sides = [_pair(value, dimensions, neutral) for value, neutral in forms]
        return graft(exact, _soft_pool(z, sides))

    return rule


def _pair(value: Any, dimensions: int, neutral: int) -> tuple[int, ...]:
    both = (value,) * dimensions if isinstance(value, int) else tuple(value)
    return both if dimensions == 2 else (neutral, *both)


def _soft_pool(z: Tensor, sides: list[tuple[int, ...]]) -> Tensor:
    """Windows averaged with the weights softmax(SLOPE * z) instead of their maximum."""
    kernel, stride, padding, dilation = sides
    flat = z if z.ndim == 4 else z.unsqueeze(2)
    if any(padding):
        # What lies outside must lose against every activation; minus infinity would make NaN of 0 * inf.
        beyond = flat.detach().amin() - 100.0 / SLOPE
        rim = (padding[1], padding[1], padding[0], padding[0])
        flat = functional.pad(flat - beyond, rim) + beyond
    n, channels = flat.shape[:2]
    places = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(flat.shape[2:], kernel, stride, dilation, strict=True)
    ]
    windows = functional.unfold(flat, kernel, dilation=dilation, stride=stride)
    windows = windows.view(n, channels, kernel[0] * kernel[1], *places)
    pooled = (windows * torch.softmax(windows.detach() * SLOPE, dim=2)).sum(2)
    return pooled if z.ndim == 4 else pooled.squeeze(2)


def _compare(sign: float) -> Rule:
    def rule(func: Callable[..., Any], left: Any, right: Any) -> Any:
        exact = func(_plain(left), _plain(right))
        relative = sign * (_float(left) - _float(right))
        return graft(exact, torch.sigmoid(relative))

    return rule


def _cast(func: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A cast to whole numbers cannot carry a gradient itself: a shadow of it goes along and carries it."""
    source = _float(z)
    exact = func(_plain(z), *args, **kwargs)
    if exact.is_floating_point():
        return graft(exact, source) if source is not z else func(z, *args, **kwargs)
    return graft(exact, source)


def _where(func: Callable[..., Any], condition: Tensor, *branches: Any, **kwargs: Any) -> Any:
    soft = getattr(condition, _SHADOW, None)
    if soft is None or len(branches) != 2:
        return func(condition, *branches, **kwargs)
    yes, no = (_float(branch) for branch in branches)
    exact = func(condition, *(_plain(branch) for branch in branches))
    return graft(exact, yes * soft + no * (1 - soft))


def _detach(func: Callable[..., Any], z: Tensor, *args: Any) -> Tensor:
    # A copy, since what follows may write to it.
    return z.clone()


def _set_grad_enabled(func: Callable[..., Any], enabled: bool) -> None:
    """Code that switches gradients off is not obeyed: the attack wants them."""
    if enabled:
        func(enabled)


_SHADOW = "_robustml_shadow"


def _float(value: Any) -> Any:
    """The differentiable stand-in of a value: its shadow where it has one."""
    return getattr(value, _SHADOW, value)


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _flows(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.requires_grad or hasattr(value, _SHADOW))


_TABLE: dict[str, dict[Rule, list[Any]]] = {
    "relu": {
        _relu: [functional.relu, torch.relu, Tensor.relu, functional.relu_, torch.relu_, Tensor.relu_],
        _leaky_relu: [functional.leaky_relu, functional.leaky_relu_],
        _relu6: [functional.relu6],
    },
    "max-pool": {_max_pool(2): [functional.max_pool2d], _max_pool(1): [functional.max_pool1d]},
    "clamp": {
        _hardtanh: [functional.hardtanh, functional.hardtanh_],
        _clamp: [
            *(getattr(home, name) for home in (torch, Tensor) for name in ("clamp", "clip")),
            *(getattr(home, name) for home in (torch, Tensor) for name in ("clamp_min", "clamp_max")),
            *(getattr(Tensor, name) for name in ("clamp_", "clip_", "clamp_min_", "clamp_max_")),
        ],
    },
    "round": {
        _straight: [
            getattr(home, name + mark)
            for home, mark in ((torch, ""), (Tensor, ""), (Tensor, "_"))
            for name in ("round", "floor", "ceil", "trunc", "fix")
        ],
        _scaled_steps: [torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__],
    },
    "sign": {
        _straight: [
            *(getattr(home, name) for home in (torch, Tensor) for name in ("sign", "sgn", "heaviside")),
            *(getattr(Tensor, name) for name in ("sign_", "sgn_", "heaviside_")),
        ]
    },
    "compare": {
        _compare(1.0): [torch.gt, Tensor.gt, torch.ge, Tensor.ge],
        _compare(-1.0): [torch.lt, Tensor.lt, torch.le, Tensor.le],
        _where: [torch.where, Tensor.where],
    },
    "cast": {
        _cast: [
            getattr(Tensor, name)
            for name in ("to", "type", "int", "long", "short", "byte", "char", "bool", "float", "double")
        ]
    },
    "detach": {
        _detach: [Tensor.detach, torch.detach, Tensor.data.__get__],  # type: ignore[attr-defined]
        _set_grad_enabled: [torch._C._set_grad_enabled],
    },
}
_RULES: dict[Any, tuple[str, Rule]] = {
    func: (kind, rule) for kind, rules in _TABLE.items() for rule, funcs in rules.items() for func in funcs
}


class _Smoothed(TorchFunctionMode):
    def __init__(self, kinds: frozenset[str] | None, seen: Counter[str] | None) -> None:
        super().__init__()
        self._kinds = kinds
        self._seen = seen
        self._silent = False  # whether the model has switched gradients off

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind, rule = _RULES.get(func, (None, None))
        if rule is _set_grad_enabled:
            self._silent = not args[0]
        if rule is None or not (self._kinds is None or kind in self._kinds):
            return self._carry(func, args, kwargs)
        if rule is not _set_grad_enabled and not any(_flows(value) for value in args):
            return func(*args, **kwargs)
        try:
            out = self._apply(func, rule, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            # A form of the operation that has no surrogate keeps its true gradient.
            return func(*args, **kwargs)
        if self._seen is not None and _replaces(rule, args, out):
            self._seen[str(kind)] += 1
        return out

    @staticmethod
    def _apply(func: Any, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if not (name.endswith("_") and not name.endswith("__")) and not kwargs.get("inplace"):
            return rule(func, *args, **kwargs)
        target = args[0]
        before = target.clone()
        out = rule(_out_of_place(func), before, *args[1:], **kwargs)
        return target.copy_(out)

    def _carry(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any other operation on whole numbers whose gradient travels beside them."""
        if not any(hasattr(value, _SHADOW) for value in args):
            try:
                return func(*args, **kwargs)
            except RuntimeError:
                # Some things can be done without gradients only, such as filling a new parameter.
                if not self._silent:
                    raise
                with torch.no_grad():
                    return func(*args, **kwargs)
        exact = func(*args, **kwargs)
        if not isinstance(exact, Tensor):
            return exact
        try:
            return graft(exact, func(*(_float(value) for value in args), **kwargs))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return exact


def _replaces(rule: Rule, args: tuple[Any, ...], out: Any) -> bool:
    """Whether an operation would have hidden the gradient, instead of only passing it on."""
    if rule is _set_grad_enabled:
        return not args[0]
    # A cast among floating-point numbers has a gradient already.
    return rule is not _where and (rule is not _cast or hasattr(out, _SHADOW))


def _out_of_place(func: Any) -> Any:
    """The variant of an in-place operation that leaves its argument alone."""
    name = getattr(func, "__name__", "")
    return getattr(Tensor, name.removesuffix("_"), func)


@contextlib.contextmanager
def smoothed(kinds: frozenset[str] | None = None, seen: Counter[str] | None = None) -> Iterator[None]:
    """Build graphs in here whose backward passes use the surrogates; forward values do not change.

    Args:
        kinds: The families of operations to replace, from `KINDS`; all if None.
        seen: Counts the operations that were replaced, by family.
    """
    with _Smoothed(kinds, seen):
        yield


def exact() -> contextlib.AbstractContextManager[object]:
    """What happens in here uses the true operations, even within `smoothed`."""
    return torch._C.DisableTorchFunction()
