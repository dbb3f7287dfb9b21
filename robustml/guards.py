"""Guards: what stands between an input and a classifier when it is deployed, declared for attackers as well.

A guard changes inputs, rejects them, or both. It says once how an attack gets through it: with which
derivative (`surrogate`), whether it draws random numbers (`random`), and by which figure it rejects
(`score`). `robustml.Guarded` makes one model of guards and a classifier: the one that is deployed.

A rejection is one more class: where a guard rejects, logits are (n, classes + 1), and an input is rejected if
the last one is the largest. A clean input that is rejected is an error; an adversarial one is defended.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from .errors import InputError, suggest
from .inputs import InputSpec
from .surrogates import exact, graft

__all__ = [
    "Answer",
    "Answers",
    "Guard",
    "all_guards",
    "checked",
    "find_guard",
    "guard",
    "reference_of",
    "summary_of",
    "through",
]

Kind = TypeVar("Kind", bound="type[Guard]")
Answer = Callable[[Tensor], Tensor]


class Answers:
    """What a model says of inputs, and what its layers say on the way: it runs once for the very same tensor.

    Args:
        model: Gives logits (n, classes) for a batch (n, *shape).
        layers: Submodules of the guarded module, by their names in `named_modules`, whose outputs `layer` may
            be asked for; a layer that runs several times gives what it returned last.

    Raises:
        InputError: for a layer that there is not, or a model that has none, such as a `BlackBox`.
    """

    def __init__(self, model: Answer, layers: Iterable[str] = ()) -> None:
        self._model = model
        self._layers = {name: _layer_of(model, name) for name in sorted(set(layers))}
        self._last: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes)."""
        return self._asked(x)[0]

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Return what a layer makes of inputs: (n, ...).

        Raises:
            InputError: if the layer does not run, or returns something else than a tensor with one row per
                input.
        """
        seen = self._asked(x)[1]
        if name not in seen:
            raise InputError(f"layer {name!r} was not seen to run; compiled modules do not show their layers")
        value = seen[name]
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(x):
            kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"layer {name!r} returned {kind} for {len(x)} inputs; a row for each is wanted")
        return value

    def _asked(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        if self._last is None or self._last[0] is not x:
            seen: dict[str, Any] = {}
            with _listening(self._layers, seen):
                logits = self._model(x)
            self._last = (x, logits, seen)
        return self._last[1:]


def _layer_of(model: Any, name: str) -> nn.Module:
    module = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        raise InputError(f"layer {name!r} cannot be seen in a {type(model).__name__}, which has no layers")
    known: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in known:
        # The whole module and what contains other modules are layers too, but not what people look for.
        ends = [key for key, part in known.items() if key and not any(True for _ in part.children())]
        raise InputError(f"layer {name!r} is not in the module{suggest(name, ends)}")
    return known[name]


@contextlib.contextmanager
def _listening(layers: Mapping[str, nn.Module], seen: dict[str, Any]) -> Iterator[None]:
    """Note what layers return in here, in this thread: others may be running the same module."""
    thread = threading.get_ident()

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _given: Any, value: Any) -> None:
            if threading.get_ident() == thread:
                seen[name] = value

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(note(name)).remove)
        yield


class Guard(nn.Module):
    """One step between an input and the model.

    Arguments of the constructor are options: plain data, kept as attributes of the same names. What `fit`
    learns of clean data are buffers, so that an option and a buffer are all there is to save.
    """

    name: ClassVar[str]
    """What target files and reports call it."""
    rejects: ClassVar[bool] = False
    """Whether it may reject an input."""
    random: ClassVar[bool] = False
    """Whether it draws random numbers, from torch's global generator: attacks then average over draws."""
    fits: ClassVar[bool] = False
    """Whether it has to be fitted on clean data before it can be used."""
    differentiable: ClassVar[bool] = False
    """Whether the derivative of `forward` itself is the one to attack through."""
    certifies: ClassVar[bool] = False
    """Whether it yields certified radii."""

    inputs: InputSpec | None = None
    """The space of the inputs that it stands before; set by `attach`."""

    def attach(self, inputs: InputSpec) -> None:
        """Learn what the inputs are, before the first of them comes.

        Raises:
            InputError: if such inputs mean nothing to this guard, or it has not been fitted.
        """
        if self.inputs is not None and self.inputs != inputs:
            raise InputError(f"guard {self.name} already stands before inputs of shape {self.inputs.shape}")
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        """What the model gets instead of a batch (n, *shape), of the same shape."""
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        """A differentiable relative of `forward`, whose derivative attacks use instead (BPDA).

        The identity unless a guard knows better; `forward` itself where that is `differentiable`.
        """
        same: Tensor = self(x) if self.differentiable else x
        return same

    def score(self, x: Tensor, model: Answer) -> Tensor:
        """Above 0 where an input is rejected: (n,); 1 is about as much as the threshold itself.

        Args:
            x: The inputs as they come to this guard (n, *shape).
            model: Gives the logits of the guarded model for inputs (n, classes); in a `Guarded` these are
                `Answers`, which also give what the guard's `layers` return: `model.layer(name, x)`.
        """
        return x.new_full((len(x),), -torch.inf)

    @property
    def layers(self) -> tuple[str, ...]:
        """The submodules of the guarded module that `score` looks into; a model without layers is refused."""
        return ()

    @property
    def options(self) -> dict[str, Any]:
        """What it was constructed with."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
        return {name: getattr(self, name) for name in named}

    @property
    def learned(self) -> dict[str, Tensor]:
        """What it was fitted to."""
        return dict(self.named_buffers())

    @classmethod
    def restored(cls, options: Mapping[str, Any], learned: Mapping[str, Tensor]) -> Self:
        """Build a guard again from its `options` and what it has `learned`.

        Raises:
            InputError: if they are not those of such a guard.
        """
        made = cls(**checked(cls, options))
        known = made.learned
        if set(known) != set(learned):
            raise InputError(f"guard {cls.name} keeps {sorted(known)}, but {sorted(learned)} came")
        for name, value in learned.items():
            if value.dtype != known[name].dtype or value.ndim != known[name].ndim:
                raise InputError(
                    f"guard {cls.name}: {name} is {value.dtype} with {value.ndim} axes; "
                    f"{known[name].dtype} with {known[name].ndim} is wanted"
                )
            setattr(made, name, value)
        return made


_GUARDS: dict[str, type[Guard]] = {}
_REFERENCES: dict[str, str] = {}


def guard(name: str, *, reference: str) -> Callable[[Kind], Kind]:
    """Register a guard; the first line of its docstring is what `robustml list guards` shows.

    Args:
        name: What target files call it.
        reference: Author, year, and the section or equation.
    """

    def register(kind: Kind) -> Kind:
        if name in _GUARDS:
            raise ValueError(f"guard {name!r} is registered twice")
        kind.name = name
        _GUARDS[name], _REFERENCES[name] = kind, reference
        return kind

    return register


@functools.cache
def _load() -> None:
    importlib.import_module("robustml.defenses.guards")


def all_guards() -> dict[str, type[Guard]]:
    """Every registered guard by name."""
    _load()
    return dict(sorted(_GUARDS.items()))


def find_guard(name: str) -> type[Guard]:
    """Look up a guard.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    known = all_guards()
    if name not in known:
        raise InputError(f"guard {name!r} is not known{suggest(name, known)}")
    return known[name]


def reference_of(kind: type[Guard]) -> str:
    """Where a guard is described."""
    return _REFERENCES[kind.name]


def summary_of(kind: type[Guard]) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def checked(kind: type[Guard], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a guard's constructor, validated and with the defaults filled in.

    Raises:
        InputError: listing every unknown option (with the nearest known one) and unacceptable value.
    """
    from .registry import options_model
    from .schema import validated

    return validated(options_model(kind, kind.name), options, where=kind.name).model_dump()


def through(each: Guard, x: Tensor) -> Tensor:
    """What a guard makes of inputs, with the derivative that it declares."""
    untouched = type(each).forward is Guard.forward or each.differentiable
    if untouched or not (torch.is_grad_enabled() and x.requires_grad):
        same: Tensor = each(x)
        return (
            same  # the very tensor that came, if it changes nothing, so that the model need not answer again
        )
    with exact(), torch.no_grad():
        value = each(x)
    return graft(value, each.surrogate(x))
