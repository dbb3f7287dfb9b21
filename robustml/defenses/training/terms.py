"""Terms that add to any objective: penalties of weights, of the slope at the input, of confidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ...checks import real, share, whole
from ...errors import RunError
from ...inputs import InputSpec
from ...losses import cross_entropy
from .objective import Answers, Batch, Term

__all__ = ["InputGradient", "Jacobian", "L1Weights", "L2Weights", "LabelSmoothing", "SpectralNorm"]


@dataclass(frozen=True)
class _Weighted(Term):
    """A term with a weight.

    Args:
        weight: What it is multiplied by before it is added.
    """

    weight: float

    def __post_init__(self) -> None:
        real("weight", self.weight, closed=True)


@dataclass(frozen=True)
class _Penalty(_Weighted):
    """A sum over the parameters that are trained.

    Args:
        weight: As for every term.
        biases: Whether vectors count too: biases, and the scales and shifts of normalization. Tables and
            kernels always do.
    """

    biases: bool = False

    def penalty(self, module: nn.Module) -> Tensor | None:
        counted = [p for p in module.parameters() if p.requires_grad and (self.biases or p.ndim > 1)]
        return torch.stack([self.of(p) for p in counted]).sum() if counted else None

    def of(self, parameter: Tensor) -> Tensor:
        """What one parameter adds."""
        raise AssertionError("a penalty says what a parameter adds")


@dataclass(frozen=True)
class L1Weights(_Penalty):
    """The sum of the absolute weights (Tibshirani 1996), which drives weights that do little to 0."""

    name = "l1-weights"

    def of(self, parameter: Tensor) -> Tensor:
        return parameter.abs().sum()


@dataclass(frozen=True)
class L2Weights(_Penalty):
    """Half of the sum of the squared weights, as a penalty whose gradient the optimizer adapts.

    With SGD that is weight decay. With AdamW it is not (Loshchilov and Hutter 2019): the decoupled decay is
    the setting `weight_decay` of `harden`, which costs nothing and is usually the better choice there.
    """

    name = "l2-weights"

    def of(self, parameter: Tensor) -> Tensor:
        return parameter.square().sum() / 2


def _felt(gradient: Tensor, inputs: InputSpec) -> Tensor:
    """Gradients (n, *shape) as attackers feel them (n, features): per unit of `eps`, of what can change."""
    if inputs.scale != 1.0:
        gradient = gradient * inputs.like(inputs.scale, gradient)
    flat = gradient.flatten(1)
    if not inputs.immutable:
        return flat
    free = torch.ones(flat.shape[1], dtype=flat.dtype, device=flat.device)
    free[list(inputs.immutable)] = 0
    return flat * free


@dataclass(frozen=True)
class InputGradient(_Weighted):
    """The squared length of the input gradient of the cross-entropy (Ross and Doshi-Velez 2018).

    It is taken at the input as it is and differentiated again (double backpropagation), which costs a forward
    and two backward passes. Immutable features do not count, and features count in units of
    `InputSpec.scale`. A layer that normalises over the batch in training couples the samples of a batch.
    """

    name = "input-gradient"

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        x = batch.x.detach().requires_grad_()
        loss = cross_entropy(ask.model(x), batch.y).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return _felt(gradient, ask.model.inputs).square().sum(1)


@dataclass(frozen=True)
class Jacobian(_Weighted):
    """Half of the squared Frobenius norm of the Jacobian of the logits (Hoffman et al. 2019, Algorithm 1).

    Estimated without bias from the gradients of random combinations of the logits, each on the unit sphere
    and multiplied by the number of classes. What is said of `InputGradient` holds here too.

    Args:
        weight: As for every term.
        projections: Random combinations per sample, each of which costs a backward pass and its derivative.
    """

    projections: int = 1

    name = "jacobian"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("projections", self.projections, 1)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        x = batch.x.detach().requires_grad_()
        logits = ask.model(x)
        classes = logits.shape[1]
        total = torch.zeros(len(x), dtype=logits.dtype, device=x.device)
        for _ in range(self.projections):
            drawn = batch.streams.normal(classes, dtype=logits.dtype)
            chosen = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
            (gradient,) = torch.autograd.grad((logits * chosen).sum(), x, create_graph=True)
            total = total + _felt(gradient, ask.model.inputs).square().sum(1)
        return total * (classes / (2 * self.projections))


@dataclass(frozen=True)
class LabelSmoothing(_Weighted):
    """The cross-entropy of the uniform distribution, on the views that are learned from.

    Cross-entropy with labels smoothed by s (Szegedy et al. 2016, section 7) is (1 - s) times the plain one
    plus s times this. The objective plus this with a weight of s / (1 - s) is that, divided by 1 - s:
    `LabelSmoothing.by(s)` has that weight. It holds of objectives that are a cross-entropy of the views
    (`Standard`, `PGD`); to others it adds the same reluctance. Smoothing lowers confidence and with it the
    gradient that naive attacks follow: judge it by the standard suite.
    """

    name = "label-smoothing"

    @classmethod
    def by(cls, smoothing: float) -> Self:
        """The term that smooths labels by a share of at least 0 and below 1.

        Raises:
            InputError: for another number.
        """
        share("smoothing", smoothing, one=False)
        return cls(smoothing / (1 - smoothing))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return -torch.log_softmax(ask(z), 1).mean(1)


@dataclass(frozen=True)
class SpectralNorm(_Weighted):
    """Half of the sum of the squared spectral norms of the layers (Yoshida and Miyato 2017).

    Linear and convolution layers count. The kernel of a convolution is taken as a matrix with one row per
    output channel, as in the paper; the norm of the convolution as an operator is up to the square root of
    the kernel's area larger (Tsuzuku et al. 2018). The norms are exact, from the smaller Gram matrix of each
    weight: the cost grows with the cube of the number of channels, and is paid once per step.
    """

    name = "spectral-norm"

    def penalty(self, module: nn.Module) -> Tensor | None:
        try:
            squares = [torch.linalg.eigvalsh(gram)[-1] for gram in _grams(module)]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise RunError("a spectral norm is not finite: lower the learning rate, or the weight") from None
        return torch.stack(squares).sum() / 2 if squares else None


def _grams(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) or not layer.weight.requires_grad:
            continue
        weight = layer.weight
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)
        matrix = weight.flatten(1)
        yield matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
