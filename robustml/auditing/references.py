"""Reference models for membership inference, trained as the target was and kept in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..attacks.membership.signals import Array
from ..classifier import Classifier
from ..data import Dataset, as_dataset
from ..defenses.training import harden
from ..errors import InputError, brief
from ..files import write_atomic
from ..inputs import InputSpec
from ..sampling import seeded
from ..wrapping import wrapped

__all__ = ["References", "train_references"]

_PLAN, _SCHEMA = "references.json", "robustml.references/1"
_OWN = {"out", "resume", "seed", "device", "inputs", "progress"}


@dataclass(frozen=True)
class References:
    """Models that were trained as the target was, on other choices of samples.

    Attributes:
        models: One classifier each, in evaluation mode.
        inside: Which model was trained on which sample, bool (models, samples): members first, then
            non-members. All False where the models have data of their own.
        design: "halves": each pair of models shares out all samples by halves; "apart": trained on data that
            holds none of the samples.
        seed: What decided halves, weights and the order of training.
    """

    models: tuple[Classifier, ...]
    inside: Array
    design: Literal["halves", "apart"]
    seed: int

    def __len__(self) -> int:
        return len(self.models)

    def first(self, count: int) -> References:
        """The first so many of them.

        Raises:
            InputError: for more than there are, and an odd number of halves.
        """
        _check_count(count, self.design)
        if count > len(self):
            raise InputError(f"count={count} is more than the {len(self)} reference models")
        return References(self.models[:count], self.inside[:count], self.design, self.seed)


def train_references(
    build: Callable[[], nn.Module],
    members: Any,
    non_members: Any,
    *,
    count: int,
    apart: Any = None,
    common: Any = None,
    inputs: InputSpec | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    on_model: Callable[[int, int], None] | None = None,
    **training: Any,
) -> References:
    """Train reference models with `harden`.

    Train them as the target was trained: the same network, objective, privacy, epochs. An attack with weaker
    references finds less, which flatters the target. The seed of `privacy` is replaced by one for each model.

    With a folder, each finished model is kept there. A call with the same arguments takes what is there and
    trains the rest, a model that was cut off goes on from its last epoch, and what comes out is the same; a
    higher count adds models to those that are there.

    Args:
        build: Makes a network with fresh weights, or a `Classifier`; its random numbers come from torch.
        members, non_members: What the target was trained on, and what it was not: pairs (x, y).
        count: How many; even, unless there is data apart. 2 to 8 are few, 64 and more are many.
        apart: Data of the same distribution that holds neither members nor non-members, (x, y), to train all
            of them on random halves of; if None they are trained on halves of members and non-members
            together, so that each sample is inside one of every two. Give as many non-members as members
            then, or they see fewer samples than the target did.
        common: Data (x, y) that all of them are trained on as well: the rest of the target's training data,
            where `members` are a part of it. Without it they would know less than the target.
        inputs: The input space, where `build` returns a bare module.
        out: The folder.
        seed: Decides halves, weights and order; the target must not have been trained with the same one.
        device: As in `harden`.
        on_model: Called with the number of finished models and the count.
        training: Whatever else `harden` takes; `validation` is None unless it is given.

    Raises:
        InputError: for something that cannot be used, or a folder that holds references of another kind.
        RunError: if training fails.
    """
    design: Literal["halves", "apart"] = "halves" if apart is None else "apart"
    _check_count(count, design)
    for name in sorted(_OWN & set(training)):
        raise InputError(f"{name} cannot be given to each reference model; it is decided for all of them")
    training = {"validation": None, **training}
    template = _made(build, members, inputs, seed, 0)
    named = {"members": members, "non_members": non_members, "apart": apart, "common": common}
    given = {
        name: as_dataset(side, template.inputs, template.classes, name)
        for name, side in named.items()
        if side is not None
    }
    subjects = [given["members"], given["non_members"]]
    pool = _joined(subjects if apart is None else [given["apart"]])
    rest = [given["common"]] if "common" in given else []
    plan = _plan(template, _joined([pool, *rest]), len(pool), design, seed, training)
    folder = None if out is None else _folder(Path(out), plan)
    models: list[Classifier] = []
    masks = []
    for number, rows in zip(range(count), _halves(len(pool), seed), strict=False):
        data = _joined([Dataset(pool.x[rows], pool.y[rows]), *rest])
        fresh = _made(build, members, inputs, seed, number)
        if any(fresh.module is other.module for other in (template, *models)):
            raise InputError("build returned the same module twice; it must make a new one at each call")
        models.append(_trained(fresh, data, folder, number, seed, device, training))
        masks.append(rows)
        if on_model is not None:
            on_model(number + 1, count)
    samples = sum(map(len, subjects))
    inside = np.zeros((count, samples), dtype=bool) if apart is not None else np.stack(masks)
    return References(tuple(models), inside, design, seed)


def _joined(parts: list[Dataset]) -> Dataset:
    x, y = (np.concatenate([getattr(part, side) for part in parts]) for side in ("x", "y"))
    return Dataset(x, y)


def _check_count(count: Any, design: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count={brief(count)} is not a whole number of at least 1")
    if design == "halves" and count % 2:
        raise InputError(
            f"count={count} is odd: models come in pairs, so that each sample is left out by half of them"
        )


def _halves(samples: int, seed: int) -> Iterator[Array]:
    """Masks (samples,): a random half, the other half, another random half, and so on without end.

    Pair by pair, so that a higher count changes nothing about the models that are there.
    """
    pair = 0
    while True:
        half = np.zeros(samples, dtype=bool)
        half[np.random.default_rng([seed & (2**64 - 1), pair]).permutation(samples)[: samples // 2]] = True
        yield half
        yield ~half
        pair += 1


def _made(
    build: Callable[[], nn.Module], members: Any, inputs: InputSpec | None, seed: int, number: int
) -> Classifier:
    """A network with the fresh weights of one model."""
    with seeded(torch.device("cpu"), seed, "reference", number):
        module = build()
    if isinstance(module, Classifier):
        return module
    if not isinstance(module, nn.Module):
        raise InputError(f"build returned {type(module).__name__}, not a torch.nn.Module")
    x = members.x if isinstance(members, Dataset) else np.asarray(members[0])
    return wrapped(module, x, inputs)


def _trained(
    model: Classifier,
    data: Dataset,
    folder: Path | None,
    number: int,
    seed: int,
    device: str,
    training: dict[str, Any],
) -> Classifier:
    """Train one model, or take it from the folder."""
    of_one = int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "little")
    privacy = training.get("privacy")
    if privacy is not None and privacy.seed is not None:
        # Noise that the target, too, was trained with would tell more than any attacker knows.
        training = {**training, "privacy": dataclasses.replace(privacy, seed=of_one)}
    if folder is None:
        return harden(model, data, seed=of_one, device=device, **training).model.cpu()
    kept, work = folder / f"{number:04d}.safetensors", folder / f"{number:04d}"
    if not kept.is_file():
        hardened = harden(model, data, seed=of_one, device=device, out=work, resume=work.is_dir(), **training)
        hardened.save(kept)
    # A kill between saving and this leaves the folder behind.
    shutil.rmtree(work, ignore_errors=True)
    # On the device one would do, all of them might not fit.
    return _loaded(model.cpu(), kept)


def _loaded(model: Classifier, path: Path) -> Classifier:
    import safetensors
    import safetensors.torch

    try:
        model.module.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{str(path)!r} does not hold the weights of this network: {reason}") from None
    return model.eval()


def _plan(
    model: Classifier, data: Dataset, halved: int, design: str, seed: int, training: dict[str, Any]
) -> dict[str, Any]:
    """What decides the reference models and can be written down."""
    return {
        "schema": _SCHEMA,
        "design": design,
        "seed": seed,
        "data_sha256": data.sha256,
        "halved": halved,
        "model": hashlib.sha256(
            f"{model.module} {model.inputs.to_dict()} {model.outputs}".encode()
        ).hexdigest(),
        # Where a function or an object lies in memory is no part of what it does.
        "training": {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in training.items()},
    }


def _folder(folder: Path, plan: dict[str, Any]) -> Path:
    """The folder, which belongs to this plan or is new."""
    path = folder / _PLAN
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = None
        if not isinstance(stored, dict):
            raise InputError(f"{str(path)!r} is damaged; choose another folder")
        for key in sorted({*stored, *plan}):
            if stored.get(key) != plan.get(key):
                raise InputError(
                    f"{str(folder)!r} holds other reference models: their {key} is "
                    f"{brief(stored.get(key))}, now it is {brief(plan.get(key))}"
                )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out={str(folder)!r} exists and holds no reference models; choose another")
    write_atomic(path, json.dumps(plan, indent=1))
    return folder
