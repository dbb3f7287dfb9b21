"""`federate`: train one model on data that many clients keep to themselves."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...checks import whole
from ...classifier import Classifier
from ...data import Dataset
from ...errors import InputError, brief, suggest
from ...extras import need
from ...files import writing
from ...inputs import InputSpec
from ...wrapping import pick_device
from ..training.hardening import _described, _settings
from ..training.objective import Objective, Standard, Term
from .dividing import divided
from .environment import flower, quiet
from .outcome import Federated, outcome

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from ..privacy.settings import DifferentialPrivacy
    from .guarding import Guarded

__all__ = ["RUNTIMES", "federate"]

RUNTIMES = ("in-process", "ray")
_KEEP = ("last", "clean", "robust")
_OWN = {"keep": "give keep to federate", "seed": "give seed to federate", "patience": "rounds have none"}
_DEFAULTS = {"schedule": "constant", "optimizer": "sgd", "epochs": 1}


def federate(
    model: nn.Module | Classifier,
    data: Any,
    *,
    rounds: int = 10,
    clients: int | None = None,
    partition: Any = "iid",
    objective: Objective | None = None,
    terms: Sequence[Term] = (),
    privacy: DifferentialPrivacy | None = None,
    aggregation: str | Strategy = "mean",
    validation: Any = "auto",
    keep: str = "last",
    hostile: Mapping[int, Callable[[Any], Any]] | None = None,
    runtime: str = "in-process",
    deadline: float = 3600.0,
    inputs: InputSpec | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Federated:
    """Train a model, in place, on data that stay with their owners (McMahan et al. 2017).

    In each round the server sends the weights to the clients, each trains them on its own data by the loop
    of `harden`, and the server aggregates what comes back, without clients that failed.

    Args:
        model: A `Classifier`, or a module whose input space and classes are inferred from the data.
        data: The data of each client, as a sequence of pairs (x, y); or one data set to be split.
        rounds: How many.
        clients: Into how many parts to split one data set.
        partition: How: "iid", or "dirichlet:0.3" for shares of the classes that differ between clients.
        objective: What clients minimise; plain cross-entropy if None.
        terms: What is added to it, such as regularizers.
        privacy: Differential privacy for each client's samples, over all rounds together.
        aggregation: The name of a rule (see `aggregation`), or any `flwr.serverapp.strategy.Strategy`; it is
            put behind a guard, unless it is `Guarded` already.
        validation: What the server judges each round by: a pair (x, y), a share of one data set, or None.
            "auto" is a tenth of one data set, and None if the clients' data are given.
        keep: Which round's weights to end with: the "last", or those with the best "clean" or "robust"
            accuracy on the validation data.
        hostile: For a stress test: by the number of a client, what makes another app of its honest one.
        runtime: "in-process" (one client after the other, the same bits each time) or "ray" (in parallel).
        deadline: Seconds that a round waits for replies; in this process, for that of each client. A client
            that is still at work then is interrupted, in the main thread of a system with alarms (POSIX).
        inputs: The input space of a bare module.
        device: "auto", "cpu", "cuda", ...; on Ray, "auto" is what each client's process sees.
        seed: Decides every random number of the run.
        out: A folder for the checkpoint of each round, the log and the model; nothing is written if None.
        resume: Go on from the checkpoint in `out`, or begin if no round was finished. In this process, the
            outcome is that of a run that was never interrupted, to the last bit.
        progress: Show it on stderr.
        settings: Those of `robustml.defenses.training.Settings`, for the training between two rounds. Without
            any, it is one epoch with SGD at a constant rate.

    Raises:
        InputError: for something that cannot be used, or if Flower is missing; nothing is trained then.
        RunError: if no round changed the model, too few clients came, or the folder cannot be written.
    """
    begun = time.perf_counter()
    flower()
    _check(rounds=rounds, deadline=deadline, keep=keep, runtime=runtime, seed=seed, settings=settings)
    classifier, shards, held, how = divided(model, data, inputs, clients, partition, validation, seed)
    corrupted = dict(hostile or {})
    _check_parts(corrupted, len(shards), keep, held)
    settings = {**_DEFAULTS, **settings}
    bound = (objective or Standard()).within(classifier.inputs)
    bound.check(classifier)
    strategy = _strategy(aggregation, len(shards), seed)
    plan = {
        **_who(classifier, shards, held, how),
        **_trained_how(classifier, bound, terms, {**settings, "seed": seed}, privacy, rounds),
        "aggregation": _named(strategy),
        "hostile": {str(number): _called(made) for number, made in sorted(corrupted.items())},
        "keep": keep,
    }
    from .runtimes import Client, Server, serve

    place = str(pick_device(device))
    judged = {"keep": keep, "seed": seed, "device": place, "deadline": float(deadline), "show": progress}
    kept = {"out": _folder(out, resume=resume), "resume": resume, "plan": {"kind": "federation", **plan}}
    given: dict[str, Any] = {**judged, **kept}
    server = Server(classifier, strategy, rounds, _tensors(held), bound.threats, **given)
    more = (bound, tuple(terms), settings, seed, device, privacy, rounds)
    parts = [Client(classifier, part, *more) for part in shards]
    serve(server, parts, corrupted, runtime)
    return outcome(server, plan, time.perf_counter() - begun)


def _who(classifier: Classifier, shards: Sequence[Dataset], held: Dataset | None, how: str) -> dict[str, Any]:
    """The model and the data, as plain data."""
    return {
        "partition": how,
        "clients": [part.sha256 for part in shards],
        "samples": [len(part) for part in shards],
        "validation": None if held is None else held.sha256,
        "inputs": classifier.inputs.to_dict(),
        "classes": classifier.classes,
        "begun_with": classifier.fingerprint(),
    }


def _trained_how(
    model: Classifier,
    objective: Objective,
    terms: Sequence[Term],
    settings: Mapping[str, Any],
    privacy: DifferentialPrivacy | None,
    rounds: int,
) -> dict[str, Any]:
    """What a client does between two rounds, as plain data.

    Raises:
        InputError: for a combination that privacy cannot do: it would be refused by every client in turn.
    """
    chosen = _settings(dict(settings))
    if privacy is not None:
        need("opacus", extra="privacy", why="private training")
        from ..privacy.engine import refuse
        from ..privacy.prepare import check, in_place

        refuse(objective, terms, chosen, privacy)
        trial = copy.deepcopy(model)
        in_place(trial)
        check(trial)
    return {
        "objective": _described(objective),
        "terms": [_described(term) for term in terms],
        "settings": chosen.to_dict(),
        "privacy": None if privacy is None else _promised(privacy, rounds),
    }


def _tensors(held: Dataset | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if held is None else (torch.from_numpy(held.x), torch.from_numpy(held.y))


def _promised(privacy: DifferentialPrivacy, rounds: int) -> dict[str, Any]:
    # How much noise makes a budget last depends on for how many rounds.
    return {**privacy.to_dict(), **({"rounds": rounds} if privacy.epsilon is not None else {})}


def _check(
    *, rounds: Any, deadline: Any, keep: Any, runtime: Any, seed: Any, settings: Mapping[str, Any]
) -> None:
    whole("rounds", rounds, 1)
    number = isinstance(deadline, (int, float)) and not isinstance(deadline, bool)
    if not number or not 0 < deadline < float("inf"):
        raise InputError(f"deadline={brief(deadline)} is not a finite number of seconds above 0")
    for name, value, known in (("keep", keep, _KEEP), ("runtime", runtime, RUNTIMES)):
        if value not in known:
            raise InputError(f"{name}={brief(value)} is not known{suggest(str(value), known)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed={brief(seed)} is not a whole number")
    if "patience" in settings:
        raise InputError("patience is a setting of harden; a federation goes through all of its rounds")
    _settings(dict(settings))


def _check_parts(hostile: Mapping[Any, Any], clients: int, keep: str, held: Dataset | None) -> None:
    if keep != "last" and held is None:
        raise InputError(f"keep={keep!r} needs validation data to judge rounds by")
    for number in hostile:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < clients:
            raise InputError(f"hostile names client {brief(number)}; clients are numbered 0 to {clients - 1}")


def _strategy(chosen: Any, clients: int, seed: int) -> Guarded:
    """What aggregates, behind a guard."""
    from flwr.serverapp.strategy import Strategy

    from .aggregation import aggregation
    from .guarding import Guarded

    with quiet():
        strategy = chosen if isinstance(chosen, Strategy) else aggregation(chosen)
    needed = max(getattr(strategy, name, 0) for name in ("min_available_nodes", "min_train_nodes", "nodes"))
    if needed > clients:
        raise InputError(f"the strategy waits for {needed} clients, and there are {clients}")
    return strategy if isinstance(strategy, Guarded) else Guarded(strategy, seed=seed)


def _named(thing: Any) -> Any:
    """A strategy as plain data: what it is, and the options that can be written down."""
    from flwr.serverapp.strategy import Strategy

    from .dp import ClientPrivacy
    from .rules import Rule

    if isinstance(thing, ClientPrivacy):
        return {"is": type(thing).__name__, **thing.to_dict()}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    kept = {
        name: _named(value)
        for name, value in sorted(vars(thing).items())
        if not name.startswith("_")
        and (value is None or isinstance(value, (bool, int, float, str, Strategy, Rule, ClientPrivacy)))
    }
    return {"is": type(thing).__name__, **kept}


def _called(made: Any) -> str:
    return str(getattr(made, "__qualname__", type(made).__qualname__))


def _folder(out: str | Path | None, *, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise InputError("resume needs the folder of the run to resume; name it with out")
        return None
    from .server import CHECKPOINT, LOG

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={str(out)!r} is a file; name a folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if resume and CHECKPOINT not in inside and inside - {LOG}:
        raise InputError(f"out={str(out)!r} holds no {CHECKPOINT}, so there is nothing to resume")
    if not resume and inside:
        raise InputError(f"out={str(out)!r} already exists and is not empty; choose another or resume it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
