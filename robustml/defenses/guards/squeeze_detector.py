"""Detection by feature squeezing: an input should be taken for what it is taken for when squeezed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from ...checks import share
from ...classifier import Model
from ...errors import InputError, brief
from ...guarded import Guarded
from ...guards import Answer, Guard, checked, find_guard, guard, through
from ...inputs import InputSpec
from ...surrogates import exact, graft
from .calibration import Calibration, batch_of, calibrated

__all__ = ["Rate", "SqueezeDetector", "default_squeezers", "distance"]

_CHUNK = 256
_LEAST = 1e-5
_STEEP = 6.0

Squeezers = Sequence[Mapping[str, Any] | Guard]


@dataclass(frozen=True)
class Rate:
    """How often clean inputs are rejected: `count` of the `total` that the threshold was chosen on.

    Attributes:
        value: Their share.
        low, high: An interval for the rate on fresh inputs of the same kind (`Calibration.interval`).
        confidence: How often such intervals hold the rate, at least.
        count, total: Of the inputs that it was fitted to, those that are rejected, and all.
    """

    value: float
    low: float
    high: float
    confidence: float
    count: int
    total: int


@guard("squeeze-detector", reference="Xu, Evans and Qi 2018, section 5")
class SqueezeDetector(Guard):
    """Reject an input if squeezing it changes the prediction by more than it does on clean data.

    The figure is the L1 distance between the probabilities for the input and for the squeezed input, from 0
    to 2, and the largest of several squeezers counts (the paper's joint detection). What passes is handed on
    as it came. Where a model gives labels only, the figure says whether the labels differ, so that the
    detector either rejects every change of the label, or, if that were too often, cannot be fitted.

    Attacks follow the derivative of the score through the surrogates of the squeezers. Where both predictions
    are so certain that this derivative vanishes in floating point, they follow that of a softer softmax.

    Args:
        squeezers: Guards that neither reject nor draw random numbers nor have to be fitted, as a table each:
            {"guard": name, option: value}.
        fpr: The share of clean inputs that may be rejected, on average over sets of clean data to fit to.

    Raises:
        InputError: for squeezers that are not such guards, and an `fpr` that is no rate.
    """

    rejects = True
    fits = True
    threshold: Tensor
    exceeded: Tensor
    samples: Tensor

    def __init__(
        self, squeezers: list[dict[str, Any]] | None = None, fpr: Annotated[float, Gt(0), Lt(1)] = 0.05
    ) -> None:
        super().__init__()
        made = [] if squeezers is None else _made(squeezers)
        self.fpr = share("fpr", fpr, zero=False, one=False)
        self.squeezers = (
            None if squeezers is None else [{"guard": each.name, **each.options} for each in made]
        )
        self.steps = nn.ModuleList(made)
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float64))
        self.register_buffer("exceeded", torch.zeros((), dtype=torch.int64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    @classmethod
    def fit(
        cls,
        model: Model,
        x: Any,
        *,
        fpr: Annotated[float, Gt(0), Lt(1)] = 0.05,
        squeezers: list[Any] | None = None,
    ) -> Self:
        """Choose the threshold on clean inputs: as low as keeps the expected rate of rejections at `fpr`.

        Args:
            model: What will be guarded.
            x: Clean inputs that the model was not trained on (n, *shape), as they come to this guard.
            fpr: The share of clean inputs that may be rejected.
            squeezers: Tables as above, or guards. If left out, for images the sets that the paper found best:
                "bit-depth" 1 and "median" 2 for one channel; "bit-depth" 5, "median" 2 and
                "non-local-means" 13-3-2 for more.

        Raises:
            InputError: for too few inputs, inputs that the model does not take, and squeezers that change the
                prediction so often that nothing could be rejected.
        """
        if not isinstance(model, Model) or isinstance(model, Guarded):
            raise InputError(
                f"model is {type(model).__name__}; give the Classifier or BlackBox to be guarded"
            )
        chosen = default_squeezers(model.inputs) if squeezers is None else _plain(squeezers)
        made = cls(chosen, fpr)
        made._place(model.inputs)
        distances = made._calibrated(model, x)
        threshold = calibrated(distances.numpy(), made.fpr).threshold
        least_label = 0.0 if model.outputs == "labels" else 2.0 - _LEAST
        if threshold > least_label:
            often = float((distances > least_label).double().mean())
            raise InputError(
                f"squeezers change the prediction altogether for {100 * often:.1f} % of the clean inputs: "
                f"with fpr={made.fpr:g} nothing could be rejected; choose weaker squeezers or a higher fpr"
            )
        # Lower, and what rounding leaves between equal predictions would be rejected by chance.
        made.threshold = torch.tensor(max(threshold, _LEAST), dtype=torch.float64)
        made.exceeded = (distances > made.threshold).sum()
        made.samples = torch.tensor(len(distances))
        return made

    def _calibrated(self, model: Model, x: Any) -> Tensor:
        """The distances of clean inputs, float64 (n,)."""
        clean = batch_of(x, model.inputs)
        with torch.no_grad(), model.ready(clean.device):
            parts = [self._distance(part, model) for part in torch.split(clean, _CHUNK)]
        return torch.cat(parts).cpu().double()

    def _place(self, inputs: InputSpec) -> None:
        for each in self._squeezers():
            each.attach(inputs)

    def attach(self, inputs: InputSpec) -> None:
        if not self.steps or self.threshold.isnan():
            raise InputError(
                f"guard {self.name} has not been fitted; SqueezeDetector.fit(model, x) does that"
            )
        self._place(inputs)
        super().attach(inputs)

    @property
    def calibration(self) -> Calibration:
        """The threshold, and how many of the clean inputs lie above it."""
        return Calibration(float(self.threshold), int(self.exceeded), int(self.samples))

    @property
    def rate(self) -> Rate:
        """How often clean inputs are rejected, from those it was fitted to."""
        known = self.calibration
        if not known.samples:
            raise InputError(f"guard {self.name} has no rate before it has been fitted")
        low, high = known.interval
        return Rate(known.exceeded / known.samples, low, high, 0.95, known.exceeded, known.samples)

    def score(self, x: Tensor, model: Answer) -> Tensor:
        ratio = self._distance(x, model) / self.threshold.to(x)
        # Models that are sure of themselves have tiny thresholds. A logarithm keeps what lies far above one
        # from becoming so large that it would be cut off, and the gradient with it.
        return torch.where(ratio > 1, ratio.clamp_min(1).log(), ratio - 1)

    def _distance(self, x: Tensor, model: Answer) -> Tensor:
        """The largest distance over the squeezers (n,)."""
        squeezed = [model(through(each, x)) for each in self._squeezers()]
        # Last, so that a model that remembers its last answer has it at hand for what comes after.
        plain = model(x)
        return torch.stack([distance(plain, each) for each in squeezed]).amax(0)

    def _squeezers(self) -> list[Guard]:
        return [each for each in self.steps if isinstance(each, Guard)]


def distance(plain: Tensor, squeezed: Tensor) -> Tensor:
    """The L1 distance between the probabilities of two sets of logits (n, classes): (n,).

    Where both predictions are so certain that the softmax is flat, the gradient is that of one at the
    temperature at which the less certain of them is `_STEEP` away from the other's class.
    """
    value = _apart(plain, squeezed)
    if not value.requires_grad:
        return value
    with exact(), torch.no_grad():
        gap = torch.minimum(_gap(plain, squeezed), _gap(squeezed, plain))
        heat = (gap / _STEEP).clamp_min(1)[:, None]
    return graft(value, _apart(plain / heat, squeezed / heat))


def _apart(left: Tensor, right: Tensor) -> Tensor:
    return (left.softmax(1) - right.softmax(1)).abs().sum(1)


def _gap(own: Tensor, other: Tensor) -> Tensor:
    """How far logits are from predicting what others do, or their second class if they already do."""
    best, second = own.topk(2, dim=1).values.unbind(1)
    rival = own.gather(1, other.argmax(1, keepdim=True))[:, 0]
    return best - torch.where(rival == best, second, rival)


def default_squeezers(inputs: InputSpec) -> list[dict[str, Any]]:
    """The best joint sets of the paper: that for MNIST where there is one channel, otherwise that for color.

    Raises:
        InputError: for inputs that are not images.
    """
    if len(inputs.shape) != 3:
        raise InputError(
            f"squeezers are missing: for inputs of shape {inputs.shape} there is no set that is known to be "
            f'good; name some, as in [{{"guard": "bit-depth", "bits": 3}}]'
        )
    if inputs.shape[0] == 1:
        return [{"guard": "bit-depth", "bits": 1}, {"guard": "median", "size": 2}]
    means = {"guard": "non-local-means", "search": 13, "patch": 3, "strength": 2.0}
    return [{"guard": "bit-depth", "bits": 5}, {"guard": "median", "size": 2}, means]


def _plain(squeezers: Squeezers) -> list[dict[str, Any]]:
    if isinstance(squeezers, (str, Mapping, Guard)) or not isinstance(squeezers, Sequence):
        raise InputError(f"squeezers={brief(squeezers)} is not a list of guards")
    return [
        {"guard": each.name, **each.options} if isinstance(each, Guard) else _table(each)
        for each in squeezers
    ]


def _table(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("guard"), str):
        raise InputError(
            f'squeezers holds {brief(entry)}; a table is wanted, as in {{"guard": "median", "size": 2}}'
        )
    return dict(entry)


def _made(squeezers: Squeezers) -> list[Guard]:
    made = []
    for entry in _plain(squeezers):
        kind = find_guard(entry.pop("guard"))
        if kind.rejects or kind.fits or kind.random:
            raise InputError(f"squeezers holds {kind.name}, which does more than change an input in one way")
        made.append(kind(**checked(kind, entry)))
    if not made:
        raise InputError("squeezers is empty; give at least one")
    return made
