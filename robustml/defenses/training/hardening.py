"""`harden`: train a model on an objective, and give back what came out with how it came about."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import __version__
from ...classifier import Classifier
from ...data import Dataset, as_dataset
from ...errors import InputError, brief, suggest
from ...files import write_atomic, writing
from ...inputs import InputSpec
from ...wrapping import collected, pick_device, wrapped
from .loop import Epoch, Run
from .objective import Objective, Standard, Term
from .parallel import Team
from .settings import Settings
from .showing import Log
from .sources import Arrays, Source, source_of, split

if TYPE_CHECKING:
    from ..privacy import DifferentialPrivacy, Guarantee, Ledger
    from ..privacy.engine import Private

__all__ = ["Hardened", "harden"]

_CHECKPOINT, _LOG = "checkpoint.safetensors", "log.jsonl"


@dataclass(frozen=True)
class Hardened:
    """A trained model and how it came about.

    Attributes:
        model: In evaluation mode, with the weights of the epoch that was kept.
        history: One entry per epoch.
        chosen: The number of the epoch whose weights it has.
        seconds: Of the whole call.
        provenance: Objective, terms, settings, the digest of the data and the versions, as plain data.
        privacy: What a private run guarantees; None for a plain one.
    """

    model: Classifier
    history: tuple[Epoch, ...]
    chosen: int
    seconds: float
    provenance: dict[str, Any]
    privacy: Guarantee | None = None

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the provenance in their header.

        Raises:
            RunError: if the file cannot be written.
        """
        import safetensors.torch

        state = self.model.module.state_dict()
        tidy = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        write_atomic(path, safetensors.torch.save(tidy, {"robustml": json.dumps(self.provenance)}))


def harden(
    model: nn.Module | Classifier,
    train: Any,
    *,
    objective: Objective | None = None,
    terms: Sequence[Term] = (),
    validation: Any = "auto",
    inputs: InputSpec | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    privacy: DifferentialPrivacy | None = None,
    ledger: Ledger | None = None,
    partial: bool = False,
    **settings: Any,
) -> Hardened:
    """Train a model, in place, on an objective.

    On several processes (`torchrun`), each works on a part of every batch and all end with the same weights.

    A model that has been trained already is fine-tuned: training goes on from its weights and its running
    statistics. A learning rate below the usual one and a few epochs do (Jeddi et al. 2020), with the schedule
    as it is, which rises from nothing. Running statistics follow the views that are learned from, since
    views are what the model is to answer; parameters that require no gradient stay as they are.

    Args:
        model: A `Classifier`, or a module whose input space and classes are inferred from the data.
        train: A pair (x, y) of arrays or tensors; or a `DataLoader` or another iterable of batches that can
            be gone through again, whose order and augmentation are its own.
        objective: What to minimise; plain cross-entropy if None.
        terms: What is added to it, such as regularizers.
        validation: Data that is held out to choose the epoch: a share of `train` if that is arrays, a pair
            (x, y), or None. "auto" holds out a tenth, and nothing of private data: what chooses an epoch is
            not protected.
        inputs: The input space of a bare module.
        device: "auto", "cpu", "cuda", ...
        out: A folder for the checkpoint of each epoch and the log; nothing is written if None.
        resume: Go on from the checkpoint in `out`, or begin if no epoch was finished. The outcome is that of
            a run that was never interrupted, to the last bit on the same kind of device with as many threads.
        progress: Show it on stderr.
        privacy: Differential privacy for the samples of `train`, which must be arrays; the objective's
            samples must not depend on one another.
        ledger: What was spent on the same samples before; it is continued, in place.
        partial: Whether `train` is one part of what the model learns from, as a federated client's is; such a
            part may hold a single class.
        settings: Those of `Settings`: epochs, batch_size, optimizer, learning_rate, schedule, averaging and
            others.

    Raises:
        InputError: for something that cannot be used; nothing is trained then.
        RunError: if a loss is not finite, or the folder cannot be written.
    """
    begun = time.perf_counter()
    chosen = _settings(settings)
    place = pick_device(device)
    classifier, data = _model_and_data(model, train, inputs)
    bound = (objective or Standard()).within(classifier.inputs)
    bound.check(classifier)
    validation = _held_out(validation, privacy)
    source, held = _sources(classifier, data, validation, chosen, partial=partial)
    private = None
    if privacy is not None:
        source, private = _private(privacy, ledger, classifier, bound, terms, source, chosen, place)
    plan = _plan(bound, terms, chosen, source, classifier)
    if privacy is not None:
        plan["privacy"] = privacy.to_dict()
    folder = _folder(out, resume=resume)
    leads = Team().leads
    steps = len(source) * bound.replays * chosen.epochs
    with Log(steps, folder / _LOG if folder and leads else None, show=progress and leads) as log:
        run = Run(classifier, bound, tuple(terms), source, held, chosen, place, plan, log, private=private)
        try:
            run.go(folder, resume=resume)
        finally:
            if private is not None:
                private.close()
    provenance = {**plan, "chosen": run.chosen, "robustml": __version__, "torch": torch.__version__}
    guarantee = None
    if private is not None:
        guarantee = private.guarantee()
        # A digest of private data would let anybody check a guess at them.
        provenance |= {"privacy": guarantee.to_dict(), "data_sha256": None}
    seconds = round(time.perf_counter() - begun, 3)
    return Hardened(classifier.eval(), tuple(run.history), run.chosen, seconds, provenance, guarantee)


def _settings(given: dict[str, Any]) -> Settings:
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            raise InputError(f"{name} is not a setting of harden{suggest(name, known)}")
    return Settings(**given)


def _model_and_data(model: Any, train: Any, inputs: InputSpec | None) -> tuple[Classifier, Any]:
    if isinstance(model, Classifier) and inputs is not None and inputs != model.inputs:
        raise InputError("inputs differs from the specification that the model already has; give one of them")
    arrays = isinstance(train, Dataset) or (isinstance(train, (tuple, list)) and len(train) == 2)
    if not isinstance(model, Classifier):
        first = collected(train if arrays else _first(train), np.dtype(inputs.dtype if inputs else "float32"))
        model = wrapped(model, first[0], inputs)
    return model, as_dataset(train, model.inputs, model.classes, "train") if arrays else train


def _first(loader: Any) -> Any:
    try:
        return next(iter(loader))
    except TypeError:
        raise InputError(
            f"train is {type(loader).__name__}; give a pair (x, y) or a loader of such batches"
        ) from None
    except StopIteration:
        raise InputError("train is a loader without batches; give at least one sample") from None


def _sources(
    model: Classifier, data: Any, validation: Any, settings: Settings, *, partial: bool
) -> tuple[Source, tuple[Tensor, Tensor] | None]:
    rows, held = None, None
    if isinstance(validation, (int, float)) and not isinstance(validation, bool):
        if not 0 <= validation < 1:
            raise InputError(f"validation={brief(validation)} is not a share from 0 to 1")
        if validation and isinstance(data, Dataset):
            rows, kept = split(data, validation, settings.seed)
            held = torch.from_numpy(data.x)[kept], torch.from_numpy(data.y)[kept]
    elif validation is not None:
        given = as_dataset(validation, model.inputs, model.classes, "validation")
        held = torch.from_numpy(given.x), torch.from_numpy(given.y)
    if isinstance(data, Dataset) and not partial:
        classes = np.unique(data.y)
        if len(classes) < 2:
            raise InputError(f"train has labels of class {classes[0]} only; a classifier needs two at least")
    return source_of(data, model, rows=rows, batch_size=settings.batch_size, seed=settings.seed), held


def _held_out(validation: Any, privacy: DifferentialPrivacy | None) -> Any:
    auto = isinstance(validation, str) and validation == "auto"
    if privacy is None:
        return 0.1 if auto else validation
    share = isinstance(validation, (int, float)) and not isinstance(validation, bool) and validation
    if share:
        raise InputError(
            f"validation={brief(validation)} would hold out private samples, and an epoch chosen by them "
            "does not protect them; give a public pair (x, y), or None"
        )
    return None if auto else validation


def _private(
    privacy: DifferentialPrivacy,
    ledger: Ledger | None,
    model: Classifier,
    objective: Objective,
    terms: Sequence[Term],
    source: Source,
    settings: Settings,
    device: torch.device,
) -> tuple[Source, Private]:
    """The batches and the engine of a private run."""
    from ..privacy.engine import Poisson, Private, refuse

    if not isinstance(source, Arrays):
        raise InputError(
            "train is a loader, whose batches nobody can vouch for; privacy draws its own, from arrays (x, y)"
        )
    refuse(objective, terms, settings, privacy)
    drawn = Poisson(source, privacy, settings.batch_size)
    model.to(device)
    return drawn, Private(
        privacy, model, objective, terms, drawn, settings=settings, device=device, ledger=ledger
    )


def _plan(
    objective: Objective, terms: Sequence[Term], settings: Settings, source: Source, model: Classifier
) -> dict[str, Any]:
    """Everything that decides the outcome and can be written down."""
    return {
        "objective": _described(objective),
        "terms": [_described(term) for term in terms],
        "settings": settings.to_dict(),
        "data_sha256": source.digest,
        "samples": source.samples,
        "inputs": model.inputs.to_dict(),
        "classes": model.classes,
        "processes": Team().size,
    }


def _described(thing: Any) -> dict[str, Any]:
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return {"name": thing.name, **{name: _plain(value) for name, value in fields.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, (Objective, Term)):
        return _described(value)
    if isinstance(value, Classifier):
        return value.fingerprint()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "name", None) or repr(value)


def _folder(out: str | Path | None, *, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise InputError("resume needs the folder of the run to resume; name it with out")
        return None
    folder = Path(out)
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if resume and _CHECKPOINT not in inside and inside - {_LOG}:
        raise InputError(f"out={str(out)!r} holds no {_CHECKPOINT}, so there is nothing to resume")
    if not resume and inside:
        raise InputError(f"out={str(out)!r} already exists and is not empty; choose another or resume it")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={str(out)!r} is a file; name a folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
