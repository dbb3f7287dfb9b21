"""Training the models of the built-in targets: in seconds, the same each time, once per machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...errors import InputError, RobustmlError
from ...files import write_atomic
from ...inputs import InputSpec
from ...sampling import Streams
from ..loading import load_weights

__all__ = ["Recipe", "cache_folder", "held_out", "trained"]


@dataclass(frozen=True)
class Recipe:
    """How a model is made; another `version` must be given whenever anything else changes.

    Attributes:
        name: Of the target.
        version: Part of the name of the cached file.
        build: Makes the untrained module.
        epochs: Passes over the training data.
        batch_size: Samples per step.
        learning_rate: Of Adam at the start; it falls to 0 along a half cosine.
        weight_decay: Of AdamW.
    """

    name: str
    version: int
    build: Callable[[], nn.Module]
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


def trained(recipe: Recipe, x: Tensor, y: Tensor, inputs: InputSpec, classes: int) -> Classifier:
    """Return the trained model, from the user's cache where it is there and whole.

    A cache that cannot be read or written costs the time of training, nothing else.

    Args:
        recipe: How to make it.
        x: Training inputs (n, *shape), in input units.
        y: Labels int64 (n,).
        inputs: The space of inputs, with the normalization that belongs to the model.
        classes: The number of classes.
    """
    folder = cache_folder()
    if folder is None:
        return _train(recipe, x, y, inputs, classes)
    file = folder / f"{recipe.name}-v{recipe.version}.safetensors"
    with contextlib.suppress(InputError, OSError):
        module = _empty(recipe.build)
        load_weights(module, file)
        return Classifier(module, inputs=inputs, classes=classes).eval()
    model = _train(recipe, x, y, inputs, classes)
    with contextlib.suppress(RobustmlError, OSError):
        import safetensors.torch

        write_atomic(file, safetensors.torch.save(model.module.state_dict()))
    return model


def cache_folder() -> Path | None:
    """Where trained models are kept: ROBUSTML_CACHE, or the platform's cache folder; None without a home."""
    if override := os.environ.get("ROBUSTML_CACHE"):
        return Path(override)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) / "robustml" / "cache" if local else None
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "robustml"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "robustml"


def held_out(total: int, test: int) -> tuple[Tensor, Tensor]:
    """Split rows for good: (training rows, test rows), the same on every machine and in every version."""
    order = Streams.derive(0, "split", torch.arange(total)).bits(1)[:, 0].argsort(stable=True)
    return order[test:], order[:test]


def _train(recipe: Recipe, x: Tensor, y: Tensor, inputs: InputSpec, classes: int) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    module = _empty(recipe.build)
    _initialize(module, generator)
    model = Classifier(module, inputs=inputs, classes=classes).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    with _one_thread():
        for _ in range(recipe.epochs):
            order = torch.randperm(len(x), generator=generator)
            for start in range(0, len(x), recipe.batch_size):
                rows = order[start : start + recipe.batch_size]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    model.zero_grad()
    return model.eval()


def _empty(build: Callable[[], nn.Module]) -> nn.Module:
    # Layers initialize themselves from the global generator; on the meta device there is nothing to fill.
    with torch.device("meta"):
        module = build()
    return module.to(torch.float32).to_empty(device="cpu")


def _initialize(module: nn.Module, generator: torch.Generator) -> None:
    """He et al. 2015, equation 10: weights normal with variance 2 / fan-in, biases zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, generator=generator)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Sums over several threads depend on how many there are.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
