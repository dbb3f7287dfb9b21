"""The guards of a target file: built, fitted on clean data where they have to be, put before the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..classifier import Classifier, Model
from ..data import as_dataset, read_npz
from ..errors import InputError, brief
from ..guarded import Guarded
from ..guards import Guard, checked, find_guard
from ..registry import options_model
from ..schema import validated

if TYPE_CHECKING:
    from .file import GuardsTable

__all__ = ["guarded", "guarded_from", "made"]

_BATCH = 256


def made(name: str, options: Mapping[str, Any], *, model: Model, x: Any = None, y: Any = None) -> Guard:
    """Build a guard by its name, fitted where it can be and clean data is given.

    Args:
        name: As `robustml list guards` shows it.
        options: Plain data; what `fit` takes beside the data, and what the constructor takes.
        model: What will be guarded.
        x: Clean inputs as they come to this guard (n, *shape), or None.
        y: Their labels (n,), or None.

    Raises:
        InputError: for an unknown guard, an unacceptable option, or a guard that must be fitted without data.
    """
    kind = find_guard(name)
    fit = getattr(kind, "fit", None)
    if kind.fits and (x is None or fit is None):
        raise InputError(f"guard {name} is fitted on clean data; name a file of it in guards.fit")
    if fit is None or x is None:
        return kind(**checked(kind, options))
    parameters = inspect.signature(fit).parameters
    own = {key: value for key, value in options.items() if key in parameters}
    rest = {key: value for key, value in options.items() if key not in parameters}
    cleaned = validated(options_model(fit, name), own, where=name).model_dump()
    # Of the constructor's options only those that were given are passed on.
    full = checked(kind, rest) if rest else {}
    data = {"model": model, "x": x, "y": y}
    given = {key: value for key, value in data.items() if key in parameters}
    fitted: Guard = fit(**given, **cleaned, **{key: full[key] for key in rest})
    return fitted


def guarded(model: Model, table: GuardsTable, base: Path) -> Guarded:
    """The model of a target file behind its guards.

    Args:
        model: Without them.
        table: The [guards] table.
        base: The folder that its paths are relative to.

    Raises:
        InputError: naming the guard.
    """
    x = y = None
    if table.fit is not None:
        arrays = read_npz(base / table.fit, x=table.x, y=table.y)
        clean = as_dataset(arrays, model.inputs, model.classes, name=table.fit)
        x, y = torch.from_numpy(clean.x), torch.from_numpy(clean.y)
    guards: list[Guard] = []
    for place, entry in enumerate(table.use):
        options = dict(entry)
        name = options.pop("guard", None)
        if not isinstance(name, str):
            raise InputError(
                f"guards.use[{place}]={brief(entry)} has no guard; it takes {{ guard = NAME, ... }}"
            )
        try:
            each = made(name, options, model=model, x=x, y=y)
            each.attach(model.inputs)
        except InputError as error:
            raise InputError(f"guards.use[{place}]: {error}") from None
        guards.append(each)
        # The next one is fitted on what will come to it.
        x = x if x is None else _passed(each, x)
    return Guarded(model, guards)


def _passed(each: Guard, x: torch.Tensor) -> torch.Tensor:
    if type(each).forward is Guard.forward:
        return x
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return torch.cat([each(part) for part in torch.split(x, _BATCH)])


def guarded_from(path: Path, model: Model) -> Guarded:
    """The guarded model that `Guarded.save` wrote, with the network of a target file.

    Raises:
        InputError: if the file is something else, or about other inputs or classes than the target file.
    """
    if not isinstance(model, Classifier):
        raise InputError("guards.saved holds the weights of a network; it goes with model.factory")
    loaded = Guarded.load(path, model.module)
    for what in ("inputs", "classes", "outputs"):
        if getattr(loaded, what) != getattr(model, what):
            raise InputError(
                f"guards.saved={str(path)!r} was saved with other {what} than the target file has"
            )
    return loaded
