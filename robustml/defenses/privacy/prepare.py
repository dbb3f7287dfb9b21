"""Make a network one that can be trained privately, and check that it still tells inputs apart."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...errors import InputError, brief
from ...extras import need
from .probe import made_up

__all__ = ["check", "in_place", "prepare"]

_LEAST = 4  # values that a group is normalised over
_ERASED = 1e-3  # spread of a normalised output, where 1 is usual
_PROBED = 16


def prepare(model: Classifier) -> Classifier:
    """A copy of a classifier with everything replaced that couples samples or that Opacus cannot train.

    Batch normalization becomes group normalization, whose groups are as many as leave four values or more in
    each, up to 32; its scale and shift are kept, its running statistics have no successor, so the model is to
    be trained anew. Activations no longer work in place. Other layers that Opacus replaces, it replaces.

    Args:
        model: It is left as it is.

    Raises:
        InputError: if something remains that cannot be trained privately, or a replaced layer erases what it
            is given.
    """
    made = copy.deepcopy(model)
    sizes = _sizes(made)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            _put(made, name, _grouped(layer, sizes.get(name, 1), name))
    validators = need("opacus.validators", extra="privacy", why="private training")
    fixed = validators.ModuleValidator.fix(made)
    assert isinstance(fixed, Classifier)
    in_place(fixed)
    check(fixed)
    _tells_apart(fixed)
    return fixed


def in_place(model: nn.Module) -> None:
    """Activations no longer overwrite what hooks must see; what they compute stays the same."""
    for layer in model.modules():
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False  # type: ignore[assignment]


def check(model: Classifier) -> None:
    """Refuse a model with layers that cannot be trained privately.

    Raises:
        InputError: naming the first.
    """
    validators = need("opacus.validators", extra="privacy", why="private training")
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"layer {name or 'module'!r} normalises over the batch, so samples depend on one another; "
                "train what robustml.defenses.privacy.prepare(model) gives"
            )
    training = model.training
    model.train()
    try:
        errors = validators.ModuleValidator.validate(model, strict=False)
    finally:
        model.train(training)
    if errors:
        raise InputError(
            f"the model cannot be trained privately: {brief(str(errors[0]))}; "
            "robustml.defenses.privacy.prepare(model) may replace the layer"
        )


def _sizes(model: Classifier) -> dict[str, int]:
    """How many values each channel of a normalising layer has in one sample."""
    found: dict[str, int] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):

            def seen(_: nn.Module, given: tuple[Tensor, ...], __: Tensor, name: str = name) -> None:
                found[name] = max(given[0][0, 0].numel(), 1)

            handles.append(layer.register_forward_hook(seen))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(made_up(model, 2, _home(model)).x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def _home(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _grouped(layer: nn.modules.batchnorm._BatchNorm, size: int, name: str) -> nn.GroupNorm:
    channels = layer.num_features
    if channels * size < _LEAST:
        raise InputError(
            f"layer {name!r} normalises {channels * size} values of a sample, which is too few: remove it"
        )
    fitting = [
        g for g in range(1, min(32, channels) + 1) if channels % g == 0 and channels // g * size >= _LEAST
    ]
    made = nn.GroupNorm(max(fitting), channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        made.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    return made.to(next((p for p in layer.parameters()), torch.zeros(1)))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _tells_apart(model: Classifier) -> None:
    """Refuse a normalising layer whose output is the same for all inputs."""
    spread: dict[str, float] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):

            def seen(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                spread[name] = float(out.detach().double().std(0).max())

            handles.append(layer.register_forward_hook(seen))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(made_up(model, _PROBED, _home(model)).x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for name, found in spread.items():
        if found < _ERASED:
            raise InputError(
                f"layer {name!r} erases its data: over {_PROBED} different inputs its output varies by "
                f"{found:.1g}; normalise over more values, or remove it"
            )
