"""Stress tests of a federation: attack by aggregator by heterogeneity, and the price when nobody attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks.byzantine import Backdoor, Byzantine, byzantine
from ..classifier import Classifier
from ..data import Dataset
from ..defenses.federated.dividing import divided
from ..defenses.federated.environment import flower
from ..defenses.federated.outcome import Unmoved
from ..errors import InputError, brief
from ..sampling import seeded
from ..wrapping import wrapped
from .federation_journal import Journal
from .federation_matrix import Cell, FederatedStress, Spread

__all__ = ["AGGREGATORS", "ATTACKS", "Cell", "FederatedStress", "Spread", "stress_federation"]

Options = Mapping[str, Any]
Chosen = Sequence[str | tuple[str, Options]] | Mapping[str, tuple[str, Options]]

ATTACKS: dict[str, tuple[str, Options]] = {
    "label-flip": ("label-flip", {}),
    "sign-flip": ("sign-flip", {}),
    "gaussian": ("gaussian", {}),
    "inner-product": ("inner-product", {}),
    "alie": ("alie", {}),
    "alie-1.5": ("alie", {"deviations": 1.5}),
    "min-max": ("min-max", {}),
    "backdoor": ("backdoor", {"scale": 1.0}),
    "replacement": ("backdoor", {}),
    "protocol": ("protocol", {"kind": "nan"}),
    "drop-out": ("drop-out", {}),
}
"""The attacks of the matrix: a name, that of a Byzantine attack, and its options."""

AGGREGATORS: dict[str, tuple[str, Options]] = {
    "mean": ("mean", {}),
    "norm-bounding": ("norm-bounding", {}),
    "median": ("median", {}),
    "trimmed-mean": ("trimmed-mean", {"hostile": 2}),
    "geometric-median": ("geometric-median", {}),
    "centered-clipping": ("centered-clipping", {}),
    "multi-krum": ("multi-krum", {"hostile": 2}),
    "bulyan": ("bulyan", {"hostile": 2}),
    "mixing": ("nearest-neighbor-mixing", {"hostile": 2}),
}
"""The aggregators of the matrix: a name, that of a rule or strategy, and its options."""


def stress_federation(
    net: Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    attacks: Chosen = ATTACKS,
    aggregators: Chosen = AGGREGATORS,
    partitions: Sequence[str] = ("iid", "dirichlet:0.3"),
    clients: int = 11,
    hostile: int = 2,
    rounds: int = 6,
    seeds: Sequence[int] = (0, 1, 2),
    confidence: float = 0.95,
    journal: str | Path | None = None,
    tell: Callable[[Cell], None] | None = None,
    **settings: Any,
) -> FederatedStress:
    """Train one federation for each attack, aggregator, partition and seed, with and without an attack.

    Aggregation is guarded throughout. The hostile clients are the last ones; they collude and know the honest
    updates of each round.

    Args:
        net: Makes an untrained module, or classifier; torch's global generator is seeded while it does.
        train, test: Labelled data, as `stress_test` takes them.
        attacks, aggregators: Names, pairs of a name and options, or such pairs by the names to show.
        partitions: Ways to split the training data among clients.
        clients, hostile, rounds: Of each federation.
        seeds: One federation each.
        confidence: Of the intervals over seeds.
        journal: A file of JSON lines that finished federations are written to, and are read from again if
            nothing is different (see `federation_journal.Journal`).
        tell: Called with each cell when it is done.
        settings: Of the clients' training (see `robustml.defenses.training.Settings`).

    Raises:
        InputError: for something that cannot be used, or a missing Flower.
        RunError: if the journal cannot be written.
    """
    flower()
    if not 0 <= hostile < clients:
        raise InputError(f"hostile={brief(hostile)} of clients={brief(clients)} leaves no honest one")
    made = {"none": Byzantine(), **{k: byzantine(n, **o) for k, (n, o) in _named(attacks).items()}}
    common = {
        "clients": clients,
        "hostile": hostile,
        "rounds": rounds,
        "settings": dict(settings),
        "attacks": {name: repr(attack) for name, attack in made.items()},
        "aggregators": {name: [kind, dict(o)] for name, (kind, o) in _named(aggregators).items()},
    }
    done = Journal(journal)
    cells, classes = [], 0
    for partition in partitions:
        for seed in seeds:
            work = _Work(net, train, test, partition, seed, common)
            classes = work.classes
            for name, (kind, options) in _named(aggregators).items():
                for label, attack in made.items():
                    # What a trigger does by itself is seen on the model that nobody attacks.
                    triggers = _triggers(made) if label == "none" else {}
                    key = _key(common, work, label, name, triggers)
                    cell = done.cells.get(key) or work.cell(label, attack, name, kind, options, triggers)
                    if key not in done.cells:
                        done.add(key, cell)
                    if tell:
                        tell(cell)
                    cells.append(cell)
    plain = json.loads(json.dumps({**common, "classes": classes}, default=repr))
    return FederatedStress(tuple(cells), plain, confidence)


class _Work:
    """What the federations of one partition and seed have in common."""

    def __init__(
        self,
        net: Callable[[], nn.Module],
        train: Any,
        test: Any,
        partition: str,
        seed: int,
        common: Mapping[str, Any],
    ) -> None:
        self.net, self.partition, self.seed = net, partition, seed
        self.rounds, self.settings, self.clients = common["rounds"], common["settings"], common["clients"]
        self.theirs = range(self.clients - common["hostile"], self.clients)
        with self._drawn():
            model, self.shards, held, _ = divided(net(), train, None, self.clients, partition, test, seed)
        assert held is not None
        self.held, self.classes = held, model.classes
        # A journal that was written for other data or another beginning is of no use.
        self.begun_with = [model.fingerprint(), held.sha256, *(shard.sha256 for shard in self.shards)]

    def cell(
        self,
        label: str,
        attack: Byzantine,
        name: str,
        kind: str,
        options: Options,
        triggers: Mapping[str, Backdoor],
    ) -> Cell:
        """One federation, from its first round to its figures; what triggers do, which it has not learned."""
        from ..defenses.federated import federate
        from ..defenses.federated.aggregation import aggregation
        from .hostile import Besieged

        with self._drawn():
            made = self.net()
        model = made if isinstance(made, Classifier) else wrapped(made, self.shards[0].x, None)
        parts = [
            self._spoiled(attack, shard, model.classes, number)
            if number in self.theirs
            else (shard.x, shard.y)
            for number, shard in enumerate(self.shards)
        ]
        guard = Besieged(aggregation(kind, **options), attack, self.theirs, seed=self.seed)
        common: dict[str, Any] = {"rounds": self.rounds, "seed": self.seed, "device": "cpu"}
        try:
            done = federate(model, parts, aggregation=guard, **common, **self.settings)
            moved = sum(entry.moved for entry in done.history)
        except Unmoved:
            # An attack that stops the federation is a result, and no reason to stop the others.
            moved = 0
        x, y = self.held.x, self.held.y
        right = int((_answers(model, x) == y).sum())
        caught, tried = _caught(model, attack, x, y) if isinstance(attack, Backdoor) else (0, 0)
        figures = (right, len(y), caught, tried, len(guard.quarantine), moved)
        before = {other: _caught(model, backdoor, x, y) for other, backdoor in triggers.items()}
        return Cell(label, name, self.partition, self.seed, *figures, baseline=before)

    def _drawn(self) -> AbstractContextManager[None]:
        return seeded(torch.device("cpu"), "federated-stress", self.seed)

    def _spoiled(self, attack: Byzantine, shard: Dataset, classes: int, number: int) -> tuple[Any, Any]:
        return attack.data(shard.x, shard.y, classes, self.seed * self.clients + number)


def _triggers(attacks: Mapping[str, Byzantine]) -> dict[str, Backdoor]:
    return {name: attack for name, attack in attacks.items() if isinstance(attack, Backdoor)}


def _caught(model: Classifier, backdoor: Backdoor, x: Any, y: Any) -> tuple[int, int]:
    """Samples of other classes that the trigger turns into the target, and how many there are."""
    marked = backdoor.trigger(torch.from_numpy(x[y != backdoor.target])).numpy()
    return int((_answers(model, marked) == backdoor.target).sum()), len(marked)


def _answers(model: Classifier, x: Any) -> Any:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(torch.from_numpy(x), 1024)]).argmax(1).numpy()


def _named(chosen: Chosen) -> dict[str, tuple[str, Options]]:
    if isinstance(chosen, Mapping):
        return dict(chosen)
    pairs: Iterable[tuple[str, Options]] = ((e, {}) if isinstance(e, str) else e for e in chosen)
    return {name: (name, options) for name, options in pairs}


def _key(
    common: Mapping[str, Any], work: _Work, attack: str, aggregator: str, triggers: Mapping[str, Backdoor]
) -> str:
    shared = {key: common[key] for key in ("clients", "hostile", "rounds", "settings")}
    own = [common["attacks"][attack], common["aggregators"][aggregator], work.partition, work.seed]
    if triggers:
        own.append({name: repr(backdoor) for name, backdoor in triggers.items()})
    text = json.dumps([shared, own, attack, aggregator, work.begun_with], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
