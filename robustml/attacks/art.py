"""Any evasion attack of the Adversarial Robustness Toolbox (ART), behind the protocol of our own.

Nothing of the toolbox is imported before one of its attacks is looked up. Black-box attacks run one
sample at a time, so that a verdict does not depend on the batch, and stop at the first query that is
adversarial and inside the ball; white-box ones run on the batch. Whatever an attack returns is projected
onto the ball.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, suggest
from ..losses import is_wrong
from ..registry import Access, Attack, Logits, family
from ..sampling import Streams
from ..threats import Threat
from .active import Watched
from .toolbox import Found, Lens, Oracle, classifier_for

_REFERENCE = "Nicolae et al. 2018, Adversarial Robustness Toolbox"
_LABELS_ONLY = {"BoundaryAttack", "GeoDA", "HopSkipJump", "SignOPTAttack", "SpatialTransformation"}
_SCORES_ONLY = {"PixelAttack", "SimBA", "SquareAttack", "ThresholdAttack", "ZooAttack"}
# The mixins of ART that a plain classifier has.
_OFFERED = {
    "BaseEstimator",
    "ClassifierMixin",
    "NeuralNetworkMixin",
    "LossGradientsMixin",
    "ClassGradientsMixin",
}
_UNSUITED = {
    "AdversarialPatch": "it returns a patch, not a perturbed input",
    "AdversarialPatchNumpy": "it returns a patch, not a perturbed input",
    "AdversarialPatchPyTorch": "it returns a patch, not a perturbed input",
    "AdversarialPatchTensorFlowV2": "it needs TensorFlow",
    "CompositeAdversarialAttackPyTorch": "it rotates and recolors inputs, which no norm bounds",
    "FeatureAdversariesNumpy": "it needs the inputs of a guide",
    "FeatureAdversariesTensorFlowV2": "it needs TensorFlow",
    "GRAPHITEBlackbox": "it needs a target class and a noised start",
    "GRAPHITEWhiteboxPyTorch": "it needs a target class and a noised start",
    "LowProFool": "it needs a target class and fitted importances",
    "MalwareGDTensorFlow": "it needs TensorFlow",
    "OverTheAirFlickeringPyTorch": "it attacks videos",
    "ProjectedGradientDescentTensorFlowV2": "it needs TensorFlow",
    "TargetedUniversalPerturbation": "it needs a target class",
    "UniversalPerturbation": "it makes one perturbation for all inputs",
}
_NORMS = {"linf": np.inf, "l2": 2, "l1": 1}
_ALL_NORMS = frozenset({"linf", "l2", "l1", "l0"})
# ART takes norm=1 in its Square attack and returns the input unchanged.
_ACCEPTED_NORMS = {"HopSkipJump": frozenset({"linf", "l2"}), "SquareAttack": frozenset({"linf", "l2"})}
# Here `norm` is not the norm of the threat model.
_OTHER_NORM = {"Wasserstein"}
# Without labels these draw a class to aim at; with labels they would aim at the label itself.
_AIMS_AT_LABELS = {"SaliencyMapMethod"}
_NEEDS_PROBABILITIES = {"SimBA", "VirtualAdversarialMethod"}
_ONE_SAMPLE = {"ShadowAttack"}
_NOT_OPTIONS = {"targeted", "verbose", "verbose_es", "summary_writer", "estimator_orig", "parallel_pool_size"}


@family("art")
@functools.cache
def make(member: str) -> Attack:
    """The attack for a class of `art.attacks.evasion`.

    Raises:
        InputError: for an unknown class, or one that does not attack plain classifiers.
    """
    kind = _find(member)
    name = f"art:{member}"
    parameters = _parameters(kind)
    takes_norm = "norm" in parameters and member not in _OTHER_NORM
    norms = _ACCEPTED_NORMS.get(member, frozenset(_NORMS)) if takes_norm else _ALL_NORMS
    summary = " ".join((inspect.getdoc(kind) or member).split("\n\n")[0].split())
    return Attack(name, _function(kind, name, parameters), _access(kind), norms, _REFERENCE, summary)


def _find(member: str) -> type:
    attacks = importlib.import_module("art.attacks.evasion")
    base = importlib.import_module("art.attacks.attack").EvasionAttack
    known = {n: c for n, c in vars(attacks).items() if inspect.isclass(c) and issubclass(c, base)}
    if member not in known:
        raise InputError(f"attack 'art:{member[:60]}' is not known{suggest(member, known)}")
    kind = known[member]
    if member in _UNSUITED:
        raise InputError(f"attack 'art:{member}' cannot be used here: {_UNSUITED[member]}")
    required = _requirements(kind)
    if not required or (missing := required - _OFFERED):
        wanted = ", ".join(sorted(missing)) if required else "another kind of model"
        raise InputError(
            f"attack 'art:{member}' cannot be used here: it does not attack classifiers but {wanted}"
        )
    compulsory = [p.name for p in _parameters(kind).values() if p.default is p.empty]
    if compulsory:
        raise InputError(f"attack 'art:{member}' cannot be used here: it needs {', '.join(compulsory)}")
    return kind


def _requirements(kind: Any) -> set[str]:
    return {
        choice.__name__
        for requirement in kind._estimator_requirements
        for choice in (requirement if isinstance(requirement, tuple) else (requirement,))
    }


def _access(kind: Any) -> Access:
    if kind.__name__ in _LABELS_ONLY:
        return Access.DECISION
    return Access.SCORE if kind.__name__ in _SCORES_ONLY else Access.GRADIENT


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """The options of a class: the arguments of its constructor after `self` and the estimator."""
    arguments = list(inspect.signature(kind.__init__).parameters.values())[2:]
    return {p.name: p for p in arguments if p.name not in _NOT_OPTIONS and p.kind is not p.VAR_KEYWORD}


def _function(kind: Any, name: str, parameters: dict[str, inspect.Parameter]) -> Callable[..., Tensor]:
    """An attack function whose signature shows the options of the class, so that they can be checked."""

    def function(
        model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams, **options: Any
    ) -> Tensor:
        for key in options:
            if key not in parameters:
                raise InputError(f"{name}: {key} is not known{suggest(key, parameters)}")
        return _run(kind, name, model, x, y, threat, streams, options)

    shared = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    chosen = [_option(parameter) for parameter in parameters.values()]
    function.__signature__ = inspect.Signature([*shared, *chosen])  # type: ignore[attr-defined]
    function.__annotations__ |= {parameter.name: parameter.annotation for parameter in chosen}
    function.__doc__ = inspect.getdoc(kind)
    return function


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    if parameter.name in {"norm", "eps", "eps_step", "batch_size"}:
        # None: follow the threat model and the batch.
        kind, default = (str | float | None if parameter.name == "norm" else float | None), None
        if parameter.name == "batch_size":
            kind = int | None
    elif isinstance(default, (bool, str)):
        kind = type(default)
    elif isinstance(default, (int, float)):
        kind = float if isinstance(default, float) or "float" in str(parameter.annotation) else int
    else:
        kind = Any
    return parameter.replace(annotation=kind, default=default, kind=parameter.KEYWORD_ONLY)


def _settings(kind: Any, threat: Threat, options: dict[str, Any], batch: int | None) -> dict[str, Any]:
    """The arguments of the constructor: what the user gave, then what the threat model says."""
    parameters = _parameters(kind)
    settings = {key: value for key, value in options.items() if value is not None}
    if "norm" in parameters and kind.__name__ not in _OTHER_NORM:
        settings.setdefault("norm", _NORMS.get(threat.norm))
    if "eps" in parameters and kind.__name__ not in _OTHER_NORM:
        eps = settings.setdefault("eps", threat.eps)
        if "eps_step" in parameters:
            # ART's own step is meant for its own budget; the proportion is what carries over.
            step, budget = parameters["eps_step"].default, parameters["eps"].default
            settings.setdefault("eps_step", eps * (step / budget if step else 0.25))
    if "batch_size" in parameters and batch is not None:
        settings.setdefault("batch_size", batch)
    if "verbose" in inspect.signature(kind.__init__).parameters:
        settings["verbose"] = False
    return settings


def _run(
    kind: Any,
    name: str,
    model: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    streams: Streams,
    options: dict[str, Any],
) -> Tensor:
    if len(x) == 0:
        return x.clone()
    watched = model if isinstance(model, Watched) else None
    if watched is not None:
        watched.focus(torch.arange(len(x), device=x.device))
    with torch.no_grad():
        logits = model(x)
    # ART takes the clean prediction for the label and would "succeed" by repairing a mistake.
    standing = (~is_wrong(logits, y)).nonzero()[:, 0]
    access = _access(kind)
    together = access is Access.GRADIENT and kind.__name__ not in _ONE_SAMPLE
    groups = standing[None] if together else standing[:, None]
    seeds = streams.bits(1)[:, 0]
    found = x.clone()
    for rows in groups:
        if len(rows) == 0:
            continue
        if watched is not None:
            watched.focus(rows)
        lens = Lens(threat.around(x).select(rows))
        oracle = Oracle(model, lens, y[rows], access, watch=access is not Access.GRADIENT)
        settings = _settings(kind, threat, options, len(rows) if together else None)
        with _isolated(int(seeds[rows].sum()), x.device, kind.__name__):
            found[rows] = _attack(kind, name, oracle, logits.shape[1], settings)
    return found


def _attack(kind: Any, name: str, oracle: Oracle, classes: int, settings: dict[str, Any]) -> Tensor:
    """Run ART on some samples; its complaints about parameters and shapes become one line."""
    lens = oracle.lens
    try:
        attack = kind(
            classifier_for(oracle, classes, probabilities=kind.__name__ in _NEEDS_PROBABILITIES), **settings
        )
        labels = None if kind.__name__ in _AIMS_AT_LABELS else oracle.one_hot_labels(classes)
        result = attack.generate(lens.to_art(lens.ball.x), labels)
    except Found as success:
        return success.point
    except ImportError as error:
        raise InputError(f"{name} needs {error.name or 'a package'}, which is not installed") from error
    except Exception as error:
        if error is oracle.failure:  # the model's own, or the end of a budget
            raise
        shape = tuple(lens.ball.x.shape[1:])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot run on inputs of shape {shape}: {reason}") from error
    point = lens.from_art(result).nan_to_num(0.0)
    return lens.ball.snap(lens.ball.project(point))


@contextlib.contextmanager
def _isolated(seed: int, device: torch.device, name: str) -> Iterator[None]:
    """Give the toolbox random states of its own and put the process's back afterwards.

    Some of its attacks draw from `np.random.RandomState()`, which asks the operating system for a seed; in
    here it takes one from the seeded state. GeoDA leaves files in the working directory.
    """
    fresh = np.random.RandomState

    class Seeded(fresh):  # type: ignore[valid-type, misc]
        def __init__(self, seed: Any = None) -> None:
            super().__init__(np.random.randint(2**31) if seed is None else seed)

    numpy_state, python_state = np.random.get_state(), random.getstate()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if name == "GeoDA":
            stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        try:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            np.random.RandomState = Seeded  # type: ignore[misc]
            yield
        finally:
            np.random.RandomState = fresh  # type: ignore[misc]
            np.random.set_state(numpy_state)
            random.setstate(python_state)
