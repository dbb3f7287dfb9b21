"""What a user gave as model and data, as a federation wants it: a classifier, and data for each member."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...checks import whole
from ...classifier import Classifier
from ...data import Dataset, as_dataset
from ...errors import InputError, brief
from ...inputs import InputSpec
from ...wrapping import collected, wrapped
from ..training.sources import split
from .partition import are_shards, as_shards, parse_partition, shard

__all__ = ["divided"]


def divided(
    model: Any, data: Any, inputs: InputSpec | None, clients: Any, partition: Any, validation: Any, seed: int
) -> tuple[Classifier, tuple[Dataset, ...], Dataset | None, str]:
    """The classifier, the data of each client, the data of the server, and how they were divided.

    The arguments are those of `federate`.

    Raises:
        InputError: for something that cannot be used.
    """
    if isinstance(model, Classifier) and inputs is not None and inputs != model.inputs:
        raise InputError("inputs differs from the specification that the model already has; give one of them")
    given = are_shards(data)
    auto = isinstance(validation, str) and validation == "auto"
    if given and partition != "iid":
        raise InputError(f"partition={brief(partition)} is for one data set; the clients' data are given")
    if given and clients is not None and clients != len(data):
        raise InputError(f"clients={brief(clients)} differs from the {len(data)} data sets that are given")
    dtype = np.dtype((model.inputs if isinstance(model, Classifier) else inputs or InputSpec((1,))).dtype)
    read = [collected(part, dtype) for part in (data if given else [data])]
    classifier = model if isinstance(model, Classifier) else wrapped(model, read[0][0], inputs)
    if given:
        shards = as_shards(read, classifier.inputs, classifier.classes)
        return classifier, shards, _held(None if auto else validation, classifier), "given"
    if clients is None:
        raise InputError("clients is missing; say into how many parts to split the data")
    whole("clients", clients, 1)
    chosen = parse_partition(partition)
    dataset = as_dataset(read[0], classifier.inputs, classifier.classes, "data")
    share = 0.1 if auto else validation
    if not isinstance(share, (int, float)) or isinstance(share, bool):
        return classifier, shard(dataset, chosen, clients, seed), _held(share, classifier), chosen.name
    if not 0 <= share < 1:
        raise InputError(f"validation={brief(share)} is not a share from 0 to 1")
    held = None
    if share:
        rest, kept = (rows.numpy() for rows in split(dataset, share, seed))
        held = Dataset(dataset.x[kept], dataset.y[kept], "validation")
        dataset = Dataset(dataset.x[rest], dataset.y[rest], dataset.name)
    return classifier, shard(dataset, chosen, clients, seed), held, chosen.name


def _held(validation: Any, model: Classifier) -> Dataset | None:
    if isinstance(validation, (int, float)):
        raise InputError(
            f"validation={brief(validation)} is a share; the clients' data are theirs, give a pair"
        )
    return None if validation is None else as_dataset(validation, model.inputs, model.classes, "validation")
