"""Before the first attack: is this a model whose figures would mean anything?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifier import Classifier, Model, mode_dependent_layers
from ..data import Dataset
from ..errors import InputError, RobustmlError
from ..inputs import InputSpec
from ..registry import Access
from ..sampling import seeded
from .randomized import Randomness

__all__ = ["Admitted", "Finding", "admit", "probe"]

_PROBED = 16
_ASKED = 5
_COPIES = 16
# By how much the means of calls vary beyond what independent rows allow before rows are taken to share draws.
_SHARING = 3.0

Finding = tuple[str, str]
"""What was looked at, and what was found."""


@dataclass(frozen=True)
class Admitted:
    """What a model is, as far as a few samples tell.

    Attributes:
        findings: What was checked and found, for `robustml doctor`.
        randomness: How a model that answers at random has to be treated; None if it does not.
    """

    findings: list[Finding]
    randomness: Randomness | None


def check_mode(model: Model) -> None:
    """Refuse a model in training mode where that changes its answers.

    Raises:
        InputError: naming the layers.
    """
    if isinstance(model, Classifier) and (layers := mode_dependent_layers(model.module)):
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        raise InputError(
            f"the model is in training mode, which matters for {layers[0]}{more}; "
            "call model.eval() on it first"
        )


def admit(model: Model, data: Dataset, device: torch.device) -> Admitted:
    """Check a model, made ready for attack, on a few samples; global random numbers stay as they were.

    Raises:
        InputError: if its outputs have the wrong form or are not numbers.
    """
    with seeded(device, "admission"):
        return _admit(model, data, device)


def _admit(model: Model, data: Dataset, device: torch.device) -> Admitted:
    x = torch.from_numpy(data.x[:_PROBED]).to(device)
    raw = probe(model, x)
    # A model that rejects says so in a column of its own.
    n, classes = len(x), model.classes + model.rejects
    if raw.ndim != 2 or raw.shape != (n, classes):
        binary = model.classes == 2 and raw.numel() == n
        hint = '; declare outputs = "binary-logit" if it is the log-odds of class 1' if binary else ""
        raise InputError(
            f"the model returns shape {tuple(raw.shape)} for {n} inputs and {classes} classes; "
            f"({n}, {classes}) is wanted{hint}"
        )
    if not bool(raw.isfinite().all()):
        raise InputError("the model returns NaN or infinity for clean inputs; it must return numbers")
    _check_form(model, raw[:, : model.classes])
    randomness = _randomness(model, x, raw)
    findings = [
        ("output", f"{model.outputs} for {model.classes} classes{_rejections(model, raw)}"),
        ("range of the logits", f"{float(raw.min()):.3g} to {float(raw.max()):.3g}"),
        ("determinism", _repeatability(randomness)),
        *_gradient(model, x, torch.from_numpy(data.y[:_PROBED]).to(device)),
    ]
    return Admitted(findings, randomness)


def _rejections(model: Model, raw: Tensor) -> str:
    if not model.rejects:
        return ""
    return f" and a rejection ({int((raw.argmax(1) == model.classes).sum())} of {len(raw)} clean inputs)"


def _randomness(model: Model, x: Tensor, raw: Tensor) -> Randomness | None:
    def differ(one: Tensor, other: Tensor) -> bool:
        return float((one - other).abs().max()) > 1e-4 * max(1.0, float(raw.abs().max()))

    random = any(differ(raw, probe(model, x)) for _ in range(_ASKED - 1))
    aside = _between(model.inputs, x)
    if not random and (aside is None or not differ(probe(model, aside), probe(model, aside))):
        return None
    answers = []
    for _ in range(2):
        with seeded(x.device, "again"):
            answers.append(probe(model, x))
    return Randomness(shared=_share(lambda z: probe(model, z), x), foreign=differ(*answers))


def _between(spec: InputSpec, x: Tensor) -> Tensor | None:
    """Inputs that are not in the data, as attacks ask about; noise may start there only."""
    if spec.integer or spec.one_hot:
        return None
    return (x + x.roll(1, 0)) / 2


def _share(ask: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the copies of an input in one call share random numbers, by an analysis of variance."""
    few = x[:4]
    copies = few.repeat(_COPIES, *[1] * (few.ndim - 1))
    drawn = torch.stack([ask(copies).double().view(_COPIES, len(few), -1) for _ in range(_ASKED)])
    within = float(drawn.var(1).mean(0).sum())
    between = float(drawn.mean(1).var(0).sum())
    return _COPIES * between > _SHARING * within or within == 0.0


def _repeatability(randomness: Randomness | None) -> str:
    if randomness is None:
        return f"{_ASKED} calls agree"
    source = "with random numbers from outside of torch" if randomness.foreign else "at random"
    return f"none: the model answers {source}, so points are judged by the vote of several draws"


def probe(model: Model, x: Tensor) -> Tensor:
    """Ask the model once.

    Raises:
        InputError: if it raises.
    """
    try:
        with torch.no_grad():
            answer = model(x)
    except RobustmlError:
        raise
    except Exception as error:  # user code can raise anything
        message = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model fails on a batch of shape {tuple(x.shape)} and type {x.dtype}: "
            f"{type(error).__name__}: {message}"
        ) from error
    if not isinstance(answer, Tensor):
        raise InputError(f"the model returns {type(answer).__name__}; it must return one tensor of outputs")
    return answer


def _check_form(model: Model, logits: Tensor) -> None:
    sums = logits.double().sum(1)
    looks_like_shares = bool(((logits >= 0) & (logits <= 1)).all()) and bool(((sums - 1).abs() < 1e-4).all())
    if model.outputs == "logits" and looks_like_shares:
        raise InputError(
            "the model returns probabilities (each row is within [0, 1] and sums to 1); remove the softmax, "
            'or declare outputs = "probabilities"'
        )
    if model.outputs == "probabilities":
        totals = logits.double().exp().sum(1)
        if not bool(((totals - 1).abs() < 1e-3).all()):
            raise InputError(
                f'the model declares outputs = "probabilities", but its rows sum to '
                f"{float(totals.min()):.3g} to {float(totals.max()):.3g}"
            )


def _gradient(model: Model, x: Tensor, y: Tensor) -> list[Finding]:
    if model.access is not Access.GRADIENT:
        return [("gradient", f"none: {model.access.label} access only")]
    point = x.clone().requires_grad_()
    value = torch.nn.functional.cross_entropy(model(point), y)
    if not value.requires_grad:
        return [("gradient", "none: the model cuts the graph, so gradient attacks are blind (D01 will fail)")]
    (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
    if gradient is None or not bool(gradient.abs().sum() > 0):
        return [("gradient", "zero everywhere: gradient attacks are blind (D01 will fail)")]
    return [("gradient", f"reaches the input, largest entry {float(gradient.abs().max()):.3g}")]
