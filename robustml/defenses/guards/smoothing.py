"""Randomized smoothing: a classifier that answers under Gaussian noise, and the radius that this proves.

The smoothed classifier answers with the class that wins most often when noise is added to the input. Where it
wins with a probability above p > 1/2, no perturbation shorter than sigma * Phi^-1(p) can change the answer
(Cohen et al. 2019, Theorem 1). Probabilities are estimated, so every statement holds with a confidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from ...certificates import ABSTAINED, Certificate, Source, behind_first, certificate, uncertified
from ...checks import real, whole
from ...errors import InputError
from ...estimates import clopper_pearson
from ...guarded import Guarded
from ...guards import Answer, Guard, guard
from ...sampling import Streams

__all__ = ["ABSTAINED", "Certificate", "Prediction", "Smoothing", "certify", "predict"]

_ELEMENTS = 2**20  # numbers in the inputs of one call of the model, unless one input alone has more
_ASKED = 8


@guard("smoothing", reference="Cohen, Rosenfeld and Kolter 2019, section 3")
class Smoothing(Guard):
    """Gaussian noise on the input: the vote of many draws is the smoothed classifier, and has a certificate.

    What comes out is not cut to the bounds of the inputs, since the certificate is that of plain noise. The
    derivative is that of a sum, so the default surrogate is exact; it draws no random numbers of its own.

    Args:
        sigma: Standard deviation of the noise on each feature, in the unit of `eps`: that of the input, or of
            `InputSpec.scale` where there is one, so that radii are in the unit of an L2 threat.

    Raises:
        InputError: if sigma is not a finite number above 0.
    """

    random = True
    certifies = True

    def __init__(self, sigma: Annotated[float, Gt(0)]) -> None:
        super().__init__()
        self.sigma = real("sigma", sigma)

    def forward(self, x: Tensor) -> Tensor:
        """The inputs (n, *shape) with fresh noise from torch's global generator."""
        return x + self._scaled(torch.randn_like(x))

    def _scaled(self, noise: Tensor) -> Tensor:
        """Standard normal numbers (..., *shape) as noise on inputs."""
        if self.inputs is None or self.inputs.scale == 1.0:
            return noise * self.sigma
        return noise * (self.sigma * self.inputs.like(self.inputs.scale, noise))

    def certify(
        self,
        answer: Answer,
        x: Tensor,
        *,
        classes: int,
        select: int,
        draws: int,
        confidence: float,
        source: Source,
    ) -> Certificate:
        """Cohen et al. 2019, Certify: `select` draws choose a class, `draws` others bound its probability."""
        _check(draws=draws, select=select, confidence=confidence)
        least = math.floor(math.log(1 - confidence) / math.log(0.5)) + 1
        if draws < least:
            raise InputError(
                f"draws={draws} can certify nothing at confidence {confidence:g}; at least {least} are needed"
            )
        label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        hits = torch.zeros_like(label)
        for rows, own in self._parts(answer, x, draws, source):
            first = self._tally(answer, x[rows], classes, select, own)[:, :classes].argmax(1)
            counts = self._tally(answer, x[rows], classes, draws, own)
            label[rows], hits[rows] = first, counts.gather(1, first[:, None])[:, 0]
        from scipy.special import ndtri

        tallied = hits.tolist()
        bound = {count: clopper_pearson(count, draws, 2 * confidence - 1)[0] for count in set(tallied)}
        share = np.array([bound[count] for count in tallied], dtype=np.float64)
        abstained = share <= 0.5
        radius = np.where(abstained, 0.0, self.sigma * ndtri(share))
        silent = torch.from_numpy(abstained).to(x.device)
        return Certificate(
            label=torch.where(silent, ABSTAINED, label),
            radius=torch.from_numpy(radius).to(x.device),
            abstained=silent,
        )

    def answers(self, answer: Answer, x: Tensor, *, classes: int, draws: int, source: Source) -> Tensor:
        """How often each class wins under noise: int64 (n, classes + 1), the last for answers of NaN."""
        counts = torch.zeros(len(x), classes + 1, dtype=torch.int64, device=x.device)
        for rows, own in self._parts(answer, x, draws, source):
            counts[rows] = self._tally(answer, x[rows], classes, draws, own)
        return counts

    def _parts(self, answer: Answer, x: Tensor, draws: int, source: Source) -> Iterator[tuple[slice, Source]]:
        """So many rows at a time as memory is to hold, each with its random numbers."""
        if len(x):
            self._check_repeats(answer, x)
        rows = max(1, _ELEMENTS // (_block(x, draws) * math.prod(x.shape[1:])))
        for start in range(0, len(x), rows):
            part = slice(start, min(start + rows, len(x)))
            if isinstance(source, Streams):
                yield part, source.select(torch.arange(part.start, part.stop, device=x.device))
            else:
                yield part, source

    def _tally(self, answer: Answer, x: Tensor, classes: int, draws: int, source: Source) -> Tensor:
        counts = torch.zeros(len(x), classes + 1, dtype=torch.int64, device=x.device)
        # The size of a block is a matter of the shape alone, so no batch changes the numbers of a sample.
        block = _block(x, draws)
        for start in range(0, draws, block):
            count = min(block, draws - start)
            z = x[:, None] + self._scaled(_normal(x, count, source))
            with torch.no_grad():
                logits = answer(z.flatten(0, 1))
            said = torch.where(logits.isnan().any(1), classes, logits.argmax(1)).view(len(x), count)
            counts.scatter_add_(1, said, torch.ones_like(said))
        return counts

    def _check_repeats(self, answer: Answer, x: Tensor) -> None:
        """The theorem is about the noise alone: what is behind it has to be a function."""
        few = x[:_ASKED]
        with torch.no_grad():
            one, other = answer(few), answer(few)
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise InputError("the model behind the noise answers at random, so no radius can be certified")


def _block(x: Tensor, draws: int) -> int:
    return max(1, min(draws, _ELEMENTS // math.prod(x.shape[1:])))


def _normal(x: Tensor, count: int, source: Source) -> Tensor:
    """Standard normal numbers (n, count, *shape)."""
    shape = (count, *x.shape[1:])
    if isinstance(source, Streams):
        return source.normal(*shape, dtype=x.dtype)
    return torch.randn(len(x), *shape, generator=source, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Prediction:
    """What a smoothed classifier answers.

    Attributes:
        label: The class, `ABSTAINED` (-1) where the draws do not decide: int64 (n,).
        abstained: Where that is: bool (n,).
    """

    label: Tensor
    abstained: Tensor


def predict(
    guarded: Guarded,
    x: Any,
    *,
    draws: int = 1000,
    confidence: float = 0.999,
    generator: Source = None,
) -> Prediction:
    """Answer as the smoothed classifier, or abstain (Cohen et al. 2019, Predict).

    Of the two most frequent classes among the draws the first is the answer, unless an even coin would favor
    one as much with probability 1 - confidence or more (two-sided binomial test, Hung and Fithian 2019).

    Args:
        guarded: A model whose first guard is `Smoothing`; see `certify`.
        x: Inputs (n, *shape), array or tensor.
        draws: Noisy copies of each input: its cost in forward passes.
        confidence: How often, for each input, an answer that is given is that of the smoothed classifier.
        generator: Where the noise comes from. By default it is torch's global generator, so that nobody who
            knows the model knows the noise; `Streams` give each sample its own, in any batch.

    Raises:
        InputError: if the model has no certificate (see `certify`), or for unacceptable arguments.
    """
    _check(draws=draws, confidence=confidence)
    first, x = _smoothed(guarded, x)
    answer = behind_first(guarded)
    counts = first.answers(answer, x, classes=guarded.classes, draws=draws, source=generator)
    top, labels = counts.topk(2, dim=1)
    from scipy.special import bdtr

    winner, second = (side.cpu().numpy() for side in top.unbind(1))
    p_value = np.minimum(1.0, 2 * bdtr(second, winner + second, 0.5))
    undecided = torch.from_numpy(np.asarray(p_value > 1 - confidence)).to(x.device)
    abstained = undecided | (labels[:, 0] == guarded.classes)  # more often NaN than anything
    return Prediction(torch.where(abstained, ABSTAINED, labels[:, 0]), abstained)


def certify(
    guarded: Guarded,
    x: Any,
    *,
    select: int = 100,
    draws: int = 10_000,
    confidence: float = 0.999,
    generator: Source = None,
) -> Certificate:
    """The radius within which the smoothed classifier answers as it does (Cohen et al. 2019, Certify).

    The cost of a sample is select + draws forward passes, and for a whole call twice 8 more that show whether
    the model repeats itself. They go through the model in calls of about a million input values, whatever the
    number of samples and draws.

    The lower bound of the probability is exact (Clopper and Pearson 1934, one-sided). `confidence` is that of
    each sample on its own: of 1,000 certificates at 0.999 one may be wrong. For all n to hold at once with
    confidence c, ask for 1 - (1 - c) / n (Bonferroni), as a stress test does; the price is small, since the
    radius depends on the logarithm of the error.

    The radius is that of exact arithmetic; nobody has shown how floating-point noise changes it.

    Args:
        guarded: A model whose first guard is `Smoothing`, with no guard behind it that rejects or draws
            random numbers, in front of a model that answers alike when asked again.
        x: Inputs (n, *shape), array or tensor.
        select: Draws that choose the class.
        draws: Other draws that bound its probability. The radius cannot exceed what they all agreeing show:
            2.46 sigma with 1,000 and 3.20 sigma with 10,000, at 0.999.
        confidence: How often a certificate that is given holds.
        generator: As for `predict`.

    Raises:
        InputError: if there is no certificate for such a model, or for unacceptable arguments.
    """
    _, x = _smoothed(guarded, x)
    return certificate(guarded, x, select=select, draws=draws, confidence=confidence, source=generator)


def _smoothed(guarded: Any, x: Any) -> tuple[Smoothing, Tensor]:
    if not isinstance(guarded, Guarded):
        raise InputError(f"guarded is {type(guarded).__name__}; give Guarded(model, [Smoothing(sigma), ...])")
    if reason := uncertified(guarded):
        raise InputError(f"no certificate: {reason}")
    first = guarded.guards[0]
    if not isinstance(first, Smoothing):
        raise InputError(f"the first guard is {first.name}, which is not smoothing")
    return first, _tensor(guarded, x)


def _tensor(guarded: Guarded, x: Any) -> Tensor:
    given = torch.as_tensor(x)
    shape = guarded.inputs.shape
    if tuple(given.shape[1:]) != shape or given.ndim == 0:
        wanted = ", ".join(map(str, shape))
        raise InputError(f"x has shape {tuple(given.shape)}; the model takes (n, {wanted})")
    if not given.is_floating_point():
        raise InputError(f"x holds {given.dtype}; the model takes floating-point numbers in input units")
    return given.to(guarded.inputs.torch_dtype)


def _check(*, confidence: Any, **counts: Any) -> None:
    for name, value in counts.items():
        whole(name, value, 1)
    real("confidence", confidence, 0.5, 1.0)
