"""Stress tests of a federation: attack by aggregator by heterogeneity, and the price when nobody attacks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..attacks.byzantine import Backdoor, Byzantine, byzantine
from ..classifier import Classifier
from ..data import Dataset
from ..defenses.federated.dividing import divided
from ..defenses.federated.environment import flower
from ..errors import InputError, brief
from ..sampling import seeded

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


@dataclass(frozen=True)
class Cell:
    """One federation.

    Attributes:
        attack: "none" where nobody attacks.
        aggregator, partition: As they are called in the matrix.
        seed: Of the run.
        right, total: Test samples that the final model has right, and all.
        caught, tried: Test samples of other classes that it answers with the backdoor's target under the
            trigger, and how many there are; 0 of 0 for an attack without one.
        quarantined: Replies that the guard did not let through.
        moved: Rounds that changed the model.
    """

    attack: str
    aggregator: str
    partition: str
    seed: int
    right: int
    total: int
    caught: int
    tried: int
    quarantined: int
    moved: int

    @property
    def accuracy(self) -> float:
        """Of the final model on the test data."""
        return self.right / self.total

    @property
    def success(self) -> float | None:
        """Of the backdoor; None without one."""
        return self.caught / self.tried if self.tried else None


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        value: The mean.
        low, high: Student's interval of the mean, which takes the figures for draws from a normal
            distribution; as wide as the unit interval for a single seed.
        count: Of seeds.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], confidence: float, low: float = 0.0) -> Spread:
        """That of figures between `low` and 1."""
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, low, 1.0, len(values))
        from scipy.special import stdtrit

        half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * float(np.std(values, ddof=1))
        half /= math.sqrt(len(values))
        return cls(mean, max(low, mean - half), min(1.0, mean + half), len(values))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class FederatedStress:
    """The matrix.

    Attributes:
        cells: One per federation.
        settings: What they have in common, as plain data.
        confidence: Of the intervals.
    """

    cells: tuple[Cell, ...]
    settings: dict[str, Any]
    confidence: float = 0.95

    def names(self, field: str) -> list[str]:
        """The attacks, aggregators or partitions, in the order in which they came."""
        return list(dict.fromkeys(getattr(cell, field) for cell in self.cells))

    def accuracy(self, attack: str, aggregator: str, partition: str) -> Spread:
        """Of the final model, over seeds."""
        return self._spread([c.accuracy for c in self._of(attack, aggregator, partition).values()])

    def success(self, attack: str, aggregator: str, partition: str) -> Spread | None:
        """Of the backdoor, over seeds; None for an attack without one."""
        found = [c.success for c in self._of(attack, aggregator, partition).values()]
        return self._spread([value for value in found if value is not None]) if None not in found else None

    def lost(self, attack: str, aggregator: str, partition: str) -> Spread:
        """By how much an attack lowers the accuracy, seed by seed."""
        before = self._of("none", aggregator, partition)
        after = self._of(attack, aggregator, partition)
        return self._spread([before[s].accuracy - after[s].accuracy for s in after if s in before], low=-1.0)

    def price(self, aggregator: str, partition: str) -> Spread:
        """By how much the accuracy is lower than that of the mean when nobody attacks, seed by seed."""
        mean, own = self._of("none", "mean", partition), self._of("none", aggregator, partition)
        return self._spread([mean[s].accuracy - own[s].accuracy for s in own if s in mean], low=-1.0)

    def worst(self, aggregator: str, partition: str) -> tuple[str, Spread]:
        """The attack that lowers the accuracy most, and by how much."""
        attacks = [name for name in self.names("attack") if name != "none"]
        found = {name: self.lost(name, aggregator, partition) for name in attacks}
        name = max(found, key=lambda key: found[key].value)
        return name, found[name]

    def table(self) -> str:
        """The matrix as a Markdown table per partition: accuracy, and a backdoor's success after a slash."""
        attacks = self.names("attack")
        parts = []
        for partition in self.names("partition"):
            head = ["aggregator", *attacks, "price", "worst loss"]
            rows = [head, ["---"] * len(head)]
            for name in self.names("aggregator"):
                attack, lost = self.worst(name, partition)
                rows.append(
                    [
                        name,
                        *(self._shown(attack_, name, partition) for attack_ in attacks),
                        f"{self.price(name, partition).value:+.3f}",
                        f"{lost.value:+.3f} ({attack})",
                    ]
                )
            lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            parts.append(f"{partition}\n\n{lines}")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "settings": self.settings,
            "confidence": self.confidence,
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FederatedStress:
        """What `to_dict` gave."""
        return cls(tuple(Cell(**cell) for cell in data["cells"]), data["settings"], data["confidence"])

    def _of(self, attack: str, aggregator: str, partition: str) -> dict[int, Cell]:
        """The cells of one place in the matrix, by seed."""
        want = (attack, aggregator, partition)
        found = {c.seed: c for c in self.cells if (c.attack, c.aggregator, c.partition) == want}
        if not found:
            raise InputError(f"the matrix has no cell for {attack}, {aggregator} and {partition}")
        return found

    def _spread(self, values: Sequence[float], low: float = 0.0) -> Spread:
        return Spread.of(values, self.confidence, low)

    def _shown(self, attack: str, aggregator: str, partition: str) -> str:
        figure = self.accuracy(attack, aggregator, partition)
        success = self.success(attack, aggregator, partition)
        half = f" ± {(figure.high - figure.low) / 2:.3f}" if figure.count > 1 else ""
        return f"{figure.value:.3f}{half}" + (f" / {success.value:.2f}" if success else "")


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
        net: Makes an untrained module; torch's global generator is seeded while it does.
        train, test: Labelled data, as `stress_test` takes them.
        attacks, aggregators: Names, pairs of a name and options, or such pairs by the names to show.
        partitions: Ways to split the training data among clients.
        clients, hostile, rounds: Of each federation.
        seeds: One federation each.
        confidence: Of the intervals over seeds.
        journal: A file of JSON lines that finished federations are written to, and are read from again.
        tell: Called with each cell when it is done.
        settings: Of the clients' training (see `robustml.defenses.training.Settings`).

    Raises:
        InputError: for something that cannot be used, or a missing Flower.
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
    done = _read(journal)
    cells = []
    for partition in partitions:
        for seed in seeds:
            work = _Work(net, train, test, partition, clients, hostile, rounds, seed, settings)
            for name, (kind, options) in _named(aggregators).items():
                for label, attack in made.items():
                    key = _key(common, label, name, partition, seed)
                    cell = done.get(key) or work.cell(label, attack, name, kind, options)
                    if key not in done:
                        _write(journal, key, cell)
                    if tell:
                        tell(cell)
                    cells.append(cell)
    return FederatedStress(tuple(cells), common, confidence)


@dataclass(frozen=True, eq=False)
class _Work:
    """What the federations of one partition and seed have in common."""

    net: Callable[[], nn.Module]
    train: Any
    test: Any
    partition: str
    clients: int
    hostile: int
    rounds: int
    seed: int
    settings: Options

    def cell(self, label: str, attack: Byzantine, name: str, kind: str, options: Options) -> Cell:
        from ..defenses.federated import federate
        from ..defenses.federated.aggregation import aggregation
        from .hostile import Besieged

        with seeded(torch.device("cpu"), "federated-stress", self.seed):
            module = self.net()
        model, shards, held, _ = divided(
            module, self.train, None, self.clients, self.partition, self.test, self.seed
        )
        assert held is not None
        theirs = range(self.clients - self.hostile, self.clients)
        parts = [
            self._spoiled(attack, shard, model.classes, number) if number in theirs else (shard.x, shard.y)
            for number, shard in enumerate(shards)
        ]
        guard = Besieged(aggregation(kind, **options), attack, theirs, seed=self.seed)
        done = federate(
            model, parts, rounds=self.rounds, aggregation=guard, seed=self.seed, device="cpu", **self.settings
        )
        right = int((_answers(done.model, held.x) == held.y).sum())
        caught = tried = 0
        if isinstance(attack, Backdoor):
            others = held.x[held.y != attack.target]
            marked = attack.trigger(torch.from_numpy(others)).numpy()
            caught, tried = int((_answers(done.model, marked) == attack.target).sum()), len(others)
        moved = sum(entry.moved for entry in done.history)
        refused = len(guard.quarantine)
        return Cell(label, name, self.partition, self.seed, right, len(held.y), caught, tried, refused, moved)

    def _spoiled(self, attack: Byzantine, shard: Dataset, classes: int, number: int) -> tuple[Any, Any]:
        return attack.data(shard.x, shard.y, classes, self.seed * self.clients + number)


def _answers(model: Classifier, x: Any) -> Any:
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(torch.from_numpy(x), 1024)]).argmax(1).numpy()


def _named(chosen: Chosen) -> dict[str, tuple[str, Options]]:
    if isinstance(chosen, Mapping):
        return dict(chosen)
    pairs: Iterable[tuple[str, Options]] = ((e, {}) if isinstance(e, str) else e for e in chosen)
    return {name: (name, options) for name, options in pairs}


def _key(common: Mapping[str, Any], attack: str, aggregator: str, partition: str, seed: int) -> str:
    shared = {key: common[key] for key in ("clients", "hostile", "rounds", "settings")}
    own = [common["attacks"][attack], common["aggregators"][aggregator], partition, seed, attack, aggregator]
    return json.dumps([shared, own], sort_keys=True, default=str)


def _read(journal: str | Path | None) -> dict[str, Cell]:
    if journal is None or not Path(journal).exists():
        return {}
    lines = Path(journal).read_text(encoding="utf-8").splitlines()
    return {entry["key"]: Cell(**entry["cell"]) for entry in map(json.loads, lines)}


def _write(journal: str | Path | None, key: str, cell: Cell) -> None:
    if journal is not None:
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "cell": dataclasses.asdict(cell)}) + "\n")
