"""The gradient of each sample, clipped and summed: several ways, one answer."""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...extras import need
from ...sampling import Coarse
from ..training.objective import Answers, Batch, Objective, Term, total

__all__ = ["MODES", "Clip", "Each", "Functional", "Ghost", "Hooks", "Mode", "Work", "single"]

_HELD = 2  # gradients are there twice while a layer hands over what it has computed

Clip = Callable[[Tensor], Tensor]
"""Norms (n,) to the factors (n,) that gradients are multiplied by."""


class _Apart(Answers):
    """Answers that take the views of a sample one after the other, so that a row is always a sample."""

    def __init__(self, model: Classifier, n: int) -> None:
        super().__init__(model)
        self._n = n

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) == self._n or not self._n:
            return super().__call__(x)
        return torch.cat([super(_Apart, self).__call__(view) for view in self.views(x, self._n)])


@dataclass
class Work:
    """The losses of a batch of which each sample's gradient is wanted.

    Attributes:
        model: What is trained.
        objective, terms: What gives one loss per sample.
        batch: The samples.
        z: Their views, (views * n, *shape).
        real: How many of them count, None for all: those behind fill the batch up.
    """

    model: Classifier
    objective: Objective
    terms: Sequence[Term]
    batch: Batch
    z: Tensor
    real: int | None = None

    def factors(self, clip: Clip, norms: Tensor) -> Tensor:
        """What gradients with these norms (n,) are multiplied by: 0 for those that do not count."""
        factors = clip(norms)
        if self.real is not None:
            factors[self.real :] = 0
        return factors

    def facts(self, losses: Tensor, right: Tensor) -> Tensor:
        """The sum of the losses that count, and how many were right."""
        return torch.stack([losses[: self.real].detach().double().sum(), right.double()])

    def losses(self) -> tuple[Tensor, Tensor]:
        """Losses (n,) with their graph, and how many of those that count were right."""
        ask = _Apart(self.model, len(self.batch))
        losses = total(self.objective, self.terms, ask, self.batch, self.z)
        return losses, ask.right(self.batch.y[: self.real])


def single(batch: Batch, z: Tensor, row: int) -> tuple[Batch, Tensor]:
    """One sample of a batch, with all of its views."""
    n = len(batch)
    only = torch.tensor([row], device=batch.x.device)
    one = Batch(
        batch.x[only],
        batch.y[only],
        batch.ids[only.to(batch.ids.device)],
        Coarse(batch.streams.keys[only]),
        batch.progress,
        batch.memory,
    )
    return one, z[row::n]


class Mode(ABC):
    """A way to take the gradient of each sample.

    Args:
        model: What is trained; hooks go on it until `close`.
    """

    name: ClassVar[str]

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    @abstractmethod
    def summed(self, work: Work, clip: Clip) -> tuple[list[Tensor], Tensor]:
        """The sum over the samples of their clipped gradients, and the losses and how many were right.

        Returns:
            One tensor per trained parameter, and a tensor of two numbers.
        """

    def weight(self) -> int:
        """The bytes of gradients that one sample takes."""
        return _HELD * sum(p.numel() * p.element_size() for p in self.parameters)

    def close(self) -> None:  # noqa: B027
        """Take everything off the model again."""


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each sample's gradient (n,), over all parameters (n, *shape)."""
    parts = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms


def _weighted(factors: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    return [(factors @ each.flatten(1)).view(each.shape[1:]) for each in gradients]


class Each(Mode):
    """One sample at a time: slow, and right for every model and objective."""

    name = "each"

    def summed(self, work: Work, clip: Clip) -> tuple[list[Tensor], Tensor]:
        sums = [torch.zeros_like(p) for p in self.parameters]
        facts = torch.zeros(2, dtype=torch.float64, device=work.batch.x.device)
        for row in range(len(work.batch) if work.real is None else work.real):
            batch, z = single(work.batch, work.z, row)
            one = Work(work.model, work.objective, work.terms, batch, z)
            losses, right = one.losses()
            found = torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(p)[None] if g is None else g[None]
                for p, g in zip(self.parameters, found, strict=True)
            ]
            for held, part in zip(sums, _weighted(clip(_norms(gradients)), gradients), strict=True):
                held += part
            facts += one.facts(losses, right)
        return sums, facts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inputs of the first layer have no gradient and need none, of which torch warns where a hook is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


class _Hooked(Mode):
    """Gradients that hooks of Opacus take from the activations and gradients of each layer."""

    def __init__(self, model: Classifier) -> None:
        super().__init__(model)
        # What it takes to go through every layer: hooks see the gradients that are wanted, and products that
        # would give those of whole weights are left out.
        own = [[p for p in layer.parameters(recurse=False) if p.requires_grad] for layer in model.modules()]
        self._ends = [min(found, key=Tensor.numel) for found in own if found]
        self._hooks = self._attach(model)
        self._hooks.disable_hooks()

    def _attach(self, model: Classifier) -> Any:
        raise AssertionError("a mode says which hooks it takes")

    def _passed(self, work: Work, *, again: bool = False) -> tuple[Tensor, Tensor]:
        """The losses, after a backward pass that hooks have watched; it may be gone through again."""
        self._forget()
        self._hooks.enable_hooks()
        try:
            with _quiet():
                losses, right = work.losses()
                torch.autograd.grad(losses.sum(), self._ends, retain_graph=again, allow_unused=True)
        finally:
            self._hooks.disable_hooks()
        return losses, right

    def _forget(self) -> None:
        """What a pass that was not followed to its end has left behind."""
        for layer in self.model.modules():
            for name in ("activations", "max_batch_len"):
                if name in layer.__dict__:
                    delattr(layer, name)
        for parameter in self.parameters:
            for name in ("grad_sample", "_norm_sample"):
                setattr(parameter, name, None)
            parameter.grad = None
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample

    def close(self) -> None:
        self._hooks.remove_hooks()
        for parameter in self.parameters:
            for name in ("grad_sample", "_norm_sample", "_forward_counter", "_current_grad_sample"):
                if name in parameter.__dict__:
                    delattr(parameter, name)


class Hooks(_Hooked):
    """Opacus's gradient of each sample, held in memory for all parameters at once."""

    name = "hooks"

    def _attach(self, model: Classifier) -> Any:
        module = need("opacus.grad_sample.grad_sample_module", extra="privacy", why="private training")
        return module.GradSampleHooks(model, loss_reduction="sum", strict=False)

    def summed(self, work: Work, clip: Clip) -> tuple[list[Tensor], Tensor]:
        losses, right = self._passed(work)
        n = len(work.batch)
        gradients = [_one(p, n) for p in self.parameters]
        sums = _weighted(work.factors(clip, _norms(gradients)), gradients)
        self._forget()
        return sums, work.facts(losses, right)


def _one(parameter: nn.Parameter, n: int) -> Tensor:
    """What hooks have found for a parameter: (n, *shape)."""
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        return parameter.new_zeros(n, *parameter.shape)
    if isinstance(found, list):
        return torch.stack(found).sum(0)
    gradient: Tensor = found
    return gradient


class Ghost(_Hooked):
    """Opacus's ghost clipping: norms without gradients, then one weighted pass (Li et al. 2022).

    It takes a second backward pass, and no memory for the gradients of linear layers.
    """

    name = "ghost"

    def _attach(self, model: Classifier) -> Any:
        path = "opacus.grad_sample.grad_sample_module_fast_gradient_clipping"
        module = need(path, extra="privacy", why="private training")
        return module.GradSampleHooksFastGradientClipping(model, loss_reduction="sum", strict=False)

    def weight(self) -> int:
        known = self._hooks.NORM_SAMPLERS
        layers = [layer for layer in self.model.modules() if type(layer) not in known]
        sizes = [
            sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False) if p.requires_grad)
            for layer in layers
        ]
        return _HELD * max(sizes, default=0)

    def summed(self, work: Work, clip: Clip) -> tuple[list[Tensor], Tensor]:
        losses, right = self._passed(work, again=True)
        parts = [getattr(p, "_norm_sample", None) for p in self.parameters]
        norms = torch.linalg.vector_norm(torch.stack([part for part in parts if part is not None]), dim=0)
        weighted = (work.factors(clip, norms) * losses).sum()
        with _quiet():
            found = torch.autograd.grad(weighted, self.parameters, allow_unused=True)
        sums = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
        self._forget()
        return sums, work.facts(losses, right)


class _Loss(nn.Module):
    """The loss of one sample as a module, so that its parameters can be swapped for others."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model = work.model
        self._work = (work,)

    def forward(self, x: Tensor, y: Tensor, keys: Tensor, ids: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        (work,) = self._work
        given = work.batch
        batch = Batch(x[None], y[None], ids[None], Coarse(keys[None]), given.progress, given.memory)
        ask = _Apart(self.model, 1)
        losses = total(work.objective, work.terms, ask, batch, z)
        return losses.sum(), ask.right(batch.y).to(losses.dtype)


class Functional(Mode):
    """The gradient function of one sample, vectorised over the batch (`torch.func`)."""

    name = "functional"

    def summed(self, work: Work, clip: Clip) -> tuple[list[Tensor], Tensor]:
        loss = _Loss(work)
        names = [name for name, p in loss.named_parameters() if p.requires_grad]
        given = dict(zip(names, self.parameters, strict=True))
        batch, n = work.batch, len(work.batch)
        views = work.z.view(-1, n, *work.z.shape[1:]).transpose(0, 1)

        def one(weights: dict[str, Tensor], *row: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            value, right = torch.func.functional_call(loss, weights, row)
            return value, (value.detach(), right)

        gradient = torch.func.grad(one, has_aux=True)
        rows = (batch.x, batch.y, batch.streams.keys, batch.ids.to(batch.x.device), views)
        across = torch.func.vmap(gradient, in_dims=(None, 0, 0, 0, 0, 0), randomness="different")
        weights = {name: p.detach() for name, p in given.items()}
        found, (losses, right) = across(weights, *rows)
        gradients = [found[name] for name in names]
        factors = work.factors(clip, _norms(gradients))
        return _weighted(factors, gradients), work.facts(losses, right[: work.real].sum())


MODES: dict[str, type[Mode]] = {mode.name: mode for mode in (Hooks, Ghost, Functional, Each)}
