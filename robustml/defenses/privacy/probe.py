"""Which way to take gradients: the fastest that is right, found out on made-up inputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...errors import InputError, brief
from ...sampling import Coarse, Streams
from ..training.objective import Batch, Objective, Term
from .gradients import MODES, Each, Mode, Work, single

__all__ = ["activations", "made_up", "settled"]

_ROWS = 4
_TIMED, _ROUNDS = 64, 4
_WRONG = 1e-3  # relative; what is wrong is wrong by far more, and rounding is far below
_COUPLED = 0.1  # views may differ where a gradient is next to zero and its sign is rounding


def made_up(model: Classifier, n: int, device: torch.device) -> Batch:
    """Inputs that are no data: uniform within their bounds; and labels in turn."""
    inputs = model.inputs
    ids = torch.arange(n)
    streams = Streams.derive(0, "privacy/probe", ids)
    dtype = torch.float64 if inputs.dtype == "float64" else torch.float32
    low, high = (inputs.like(bound, torch.zeros(1, *inputs.shape, dtype=dtype)) for bound in inputs.bounds)
    x = low + (high - low) * streams.uniform(*inputs.shape, dtype=dtype)
    keys = Coarse(streams.keys.to(device))
    return Batch(x.to(device), (ids % model.classes).to(device), ids, keys, 1.0)


def settled(
    asked: str, model: Classifier, objective: Objective, terms: Sequence[Term], device: torch.device
) -> Mode:
    """The mode that is asked for, or for "auto" the fastest that is right.

    Right is what gives the clipped sum that one sample at a time gives, on a few made-up inputs.

    Raises:
        InputError: if the samples of a batch depend on one another, if the mode that is asked for is not
            right here, or if nothing is, since a part of the model has no gradient.
    """
    batch = made_up(model, _ROWS, device)
    with _still(model):
        z = _crafted(model, objective, batch)
        work = Work(model, objective, terms, batch, z)
        reference = _reference(model, work)
        _apart(model, objective, work)
        right = {}
        for name in MODES if asked == "auto" else [asked]:
            why = _wrong(name, model, work, reference)
            if why is None:
                right[name] = 0.0
            elif asked != "auto":
                raise InputError(
                    f"mode={asked!r} is not right for this model and objective: {why}; take 'auto'"
                )
        if len(right) > 1:
            # One at a time is there for what nothing else can do.
            del right[Each.name]
            right = _seconds(list(right), model, objective, terms, device)
    return MODES[min(right, key=lambda name: right[name])](model)


@contextlib.contextmanager
def _still(model: Classifier) -> Iterator[None]:
    """Training mode without what is random in it, which no two modes could agree about."""
    modes = [(layer, layer.training) for layer in model.modules()]
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.training = False
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _crafted(model: Classifier, objective: Objective, batch: Batch) -> Tensor:
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        return objective.craft(model, batch).detach()
    finally:
        for layer, training in modes:
            layer.training = training


def _clip(norms: Tensor) -> Tensor:
    """To half of the smallest norm or so: clipping at work, and every sample counted."""
    return 0.5 / (norms + 1e-6)


def _flat(sums: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in sums])


def _reference(model: Classifier, work: Work) -> Tensor:
    try:
        found = _flat(Each(model).summed(work, _clip)[0])
    except RuntimeError as error:
        raise InputError(f"the model has no gradient to clip: {brief(str(error))}") from None
    if not bool(torch.isfinite(found).all()):
        raise InputError("the gradients of the model are not finite on inputs within their bounds")
    return found


def _apart(model: Classifier, objective: Objective, work: Work) -> None:
    """Refuse losses, and views, of a sample that depend on which others are in its batch."""
    together = work.losses()[0].tolist()
    for row in range(len(work.batch)):
        batch, z = single(work.batch, work.z, row)
        alone = Work(model, work.objective, work.terms, batch, z).losses()[0].item()
        here = together[row]
        if abs(alone - here) > _WRONG * (1 + abs(here)):
            raise InputError(
                f"objective {objective.name!r} gives a sample another loss when others are in its batch "
                f"({here:.4g}, alone {alone:.4g}); privacy needs samples apart"
            )
        again = _crafted(model, objective, batch)
        moved = torch.linalg.vector_norm((again - z).double())
        if moved > _COUPLED * (1e-6 + torch.linalg.vector_norm((z - batch.x).double())):
            raise InputError(
                f"objective {objective.name!r} crafts another view of a sample when others are in its batch; "
                "privacy needs samples apart"
            )


def _wrong(name: str, model: Classifier, work: Work, reference: Tensor) -> str | None:
    """Why a mode is not right; None if it is."""
    mode = None
    try:
        mode = MODES[name](model)
        found = _flat(mode.summed(work, _clip)[0])
    except InputError:
        raise
    # Whatever a library stumbles over, the mode is not for this model.
    except Exception as error:
        return brief(f"{type(error).__name__}: {error}")
    finally:
        if mode is not None:
            mode.close()
    off = float(torch.linalg.vector_norm(found - reference) / (torch.linalg.vector_norm(reference) + 1e-12))
    return None if off <= _WRONG else f"it is off by {100 * off:.3g} %"


def _seconds(
    names: Sequence[str], model: Classifier, objective: Objective, terms: Sequence[Term], device: torch.device
) -> dict[str, float]:
    """The least time that each mode took for a batch, in turn with the others."""
    batch = made_up(model, _TIMED, device)
    work = Work(model, objective, terms, batch, _crafted(model, objective, batch))
    least = dict.fromkeys(names, float("inf"))
    # What else the machine does counts less in the time of the process.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(_ROUNDS):
        for name in names:
            mode = MODES[name](model)
            begun = clock()
            try:
                mode.summed(work, _clip)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                least[name] = min(least[name], clock() - begun)
            finally:
                mode.close()
    return least


def activations(model: Classifier, device: torch.device) -> int:
    """The bytes that autograd keeps of one sample in a forward pass."""
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(made_up(model, 1, device).x)
    return sum(kept.values())
