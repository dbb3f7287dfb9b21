"""Guards: what stands between an input and a classifier when it is deployed, declared for attackers as well.

A guard changes inputs, rejects them, or both. It says once how an attack gets through it: with which
derivative (`surrogate`), whether it draws random numbers (`random`), and by which figure it rejects
(`score`).
`Guarded` puts guards and a model together to the model that is deployed, and that is what gets attacked.

A rejection is one more class: a `Guarded` whose guards reject returns logits (n, classes + 1), and an input
is rejected where the last one is the largest. A clean input that is rejected is an error; an adversarial one
is defended.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from .classifier import Classifier, Model
from .errors import InputError, brief, suggest
from .files import write_atomic
from .inputs import InputSpec
from .registry import Access
from .surrogates import exact, graft

__all__ = ["Guard", "Guarded", "all_guards", "find_guard", "guard"]

Kind = TypeVar("Kind", bound="type[Guard]")
Answer = Callable[[Tensor], Tensor]

_SCHEMA = "robustml.guarded/1"


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

        The identity unless a guard knows better; one that is differentiable as it is returns `forward(x)`.
        """
        return x

    def score(self, x: Tensor, model: Answer) -> Tensor:
        """Above 0 where an input is rejected: (n,); 1 is about as much as the threshold itself.

        Args:
            x: The inputs as they come to this guard (n, *shape).
            model: Gives the logits of the guarded model for inputs (n, classes).
        """
        return x.new_full((len(x),), -torch.inf)

    @property
    def options(self) -> dict[str, Any]:
        """What it was constructed with."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

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


def checked(kind: type[Guard], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a guard's constructor, validated and with the defaults filled in.

    Raises:
        InputError: listing every unknown option (with the nearest known one) and unacceptable value.
    """
    from .registry import options_model
    from .schema import validated

    return validated(options_model(kind, kind.name), options, where=kind.name).model_dump()


class _Remembered:
    """A model that does not answer twice for the very same tensor, which detectors and the end ask about."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._model(x))
        return self._last[1]


class Guarded(Classifier):
    """A classifier behind guards, as it is deployed; attacks, reports and files take it as one model.

    Args:
        model: What is guarded: a `Classifier`, or a `BlackBox` of scores or labels.
        guards: In the order in which an input meets them.

    Attributes:
        model: What is guarded.
        guards: The guards.
        classes: The number of classes, without the one that stands for a rejection.
        rejects: Whether any guard rejects: then logits are (n, classes + 1), and an input is rejected where
            the last of them is the largest.

    Raises:
        InputError: for unacceptable arguments, or a guard that does not suit the inputs.
    """

    def __init__(self, model: Model, guards: Sequence[Guard]) -> None:
        nn.Module.__init__(self)
        if not isinstance(model, Model) or isinstance(model, Guarded):
            raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
        if isinstance(guards, Guard) or not isinstance(guards, Sequence):
            raise InputError(f"guards={brief(guards)} is not a list of guards")
        for given in guards:
            if not isinstance(given, Guard):
                raise InputError(f"guards holds {brief(given)}, which is not a Guard")
            given.attach(model.inputs)
        self.model = model
        self.guards = nn.ModuleList(guards)
        self.inputs, self.classes, self.outputs = model.inputs, model.classes, model.outputs
        self.rejects = any(given.rejects for given in guards)

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """Everything with a state: the guarded module and the guards."""
        return self

    @property
    def bare(self) -> Model:
        """The model without its guards, as an attacker who does not know of them has it."""
        return self.model

    @property
    def access(self) -> Access:
        return self.model.access

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes), or (n, classes + 1) if it `rejects`, for a batch (n, *shape)."""
        ask = _Remembered(self.model)
        scores = []
        for each in self._guards():
            if each.rejects:
                scores.append(each.score(x, ask))
            x = _through(each, x)
        logits = ask(x)
        if not self.rejects:
            return logits
        # A score that is no number says that something is wrong with the input: it does not pass.
        worst = torch.stack(scores).nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf).amax(0)
        best = logits.amax(1)
        # Far from its threshold a score says no more; an infinite logit would be no number for a loss.
        return torch.cat([logits, (best + worst.clamp(-_FAR, _FAR).to(best.dtype))[:, None]], dim=1)

    def _guards(self) -> Iterator[Guard]:
        for each in self.guards:
            assert isinstance(each, Guard)
            yield each

    def rejections(self, x: Tensor) -> dict[str, Tensor]:
        """The score of each guard that rejects, above 0 where it does: (n,) by the place and name of it."""
        ask, found = _Remembered(self.model), {}
        with torch.no_grad():
            for place, each in enumerate(self._guards()):
                if each.rejects:
                    found[f"{place}:{each.name}"] = each.score(x, ask)
                x = _through(each, x)
        return found

    @contextlib.contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        with super().ready(device), self.model.ready(device):
            yield

    def fingerprint(self) -> str | None:
        """SHA-256 over the guarded model, the guards, their options and what they have learned."""
        inner = self.model.fingerprint()
        if inner is None:
            return None
        digest = hashlib.sha256(inner.encode())
        for each in self._guards():
            digest.update(f"{each.name} {json.dumps(each.options, sort_keys=True)}".encode())
            for name, value in sorted(each.learned.items()):
                data = value.detach().cpu().contiguous()
                digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
                digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def size(self) -> int | None:
        return self.model.size

    def describe(self) -> list[dict[str, Any]]:
        """The guards in order: name and options, as a target file would have them."""
        return [{"guard": each.name, **each.options} for each in self._guards()]

    def save(self, path: str | Path) -> None:
        """Write weights, guards and what they have learned to one safetensors file.

        Raises:
            InputError: for a black box, which has no weights to write.
            RunError: if the file cannot be written.
        """
        import safetensors.torch

        if not isinstance(self.model, Classifier):
            raise InputError("a guarded black box cannot be saved: its model is a function")
        tensors = {f"model.{key}": value for key, value in self.model.module.state_dict().items()}
        for place, each in enumerate(self._guards()):
            tensors |= {f"guards.{place}.{key}": value for key, value in each.learned.items()}
        about = {
            "schema": _SCHEMA,
            "inputs": self.inputs.to_dict(),
            "classes": self.classes,
            "outputs": self.outputs,
            "guards": [{"guard": each.name, "options": each.options} for each in self._guards()],
        }
        tidy = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        write_atomic(path, safetensors.torch.save(tidy, {"robustml": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path, module: nn.Module) -> Self:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            module: The network, built anew: the file holds its weights and not its code. It receives them.

        Raises:
            InputError: if the file is something else, damaged, or does not fit the module.
        """
        from .targets.loading import check_fit, read_safetensors

        source = Path(path)
        if not source.is_file():
            raise InputError(f"path={str(path)!r} is not a file")
        about = _about(source)
        state = read_safetensors(source)
        weights, learned = _split(state)
        check_fit(module, weights, source)
        module.load_state_dict(weights, strict=False)
        try:
            inputs = InputSpec.from_dict(about["inputs"])
            model = Classifier(module, inputs=inputs, classes=about["classes"], outputs=about["outputs"])
            guards = [
                find_guard(entry["guard"]).restored(entry["options"], learned.get(str(place), {}))
                for place, entry in enumerate(about["guards"])
            ]
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{source} is damaged: its description of the guards is incomplete") from None
        return cls(model, guards)


_FAR = 1e4


def _through(each: Guard, x: Tensor) -> Tensor:
    """What a guard makes of inputs, with the derivative that it declares."""
    if type(each).forward is Guard.forward or not (torch.is_grad_enabled() and x.requires_grad):
        same: Tensor = each(x)
        return (
            same  # the very tensor that came, if it changes nothing, so that the model need not answer again
        )
    with exact(), torch.no_grad():
        value = each(x)
    return graft(value, each.surrogate(x))


def _about(path: Path) -> dict[str, Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("robustml", "null"))
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a safetensors file: {brief(str(error))}") from None
    if not isinstance(about, dict) or about.get("schema") != _SCHEMA:
        raise InputError(f"{path} is no guarded model; Guarded.save writes one")
    return about


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The weights of the model, and what each guard has learned by its place."""
    weights: dict[str, Tensor] = {}
    learned: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head == "model":
            weights[rest] = value
        else:
            place, _, name = rest.partition(".")
            learned.setdefault(place, {})[name] = value
    return weights, learned
