"""The stress matrix of a federation: what each attack does to each aggregator, over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, brief

__all__ = ["SCHEMA", "Cell", "FederatedStress", "Place", "Spread"]

SCHEMA = "robustml.federation/1"


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
        baseline: Where nobody attacks: by the name of each attack with a backdoor, the pair `caught`, `tried`
            of this model, which has never seen the trigger. Some samples are taken for the target anyhow.
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
    baseline: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def accuracy(self) -> float:
        """Of the final model on the test data."""
        return self.right / self.total

    @property
    def success(self) -> float | None:
        """Of the backdoor; None without one."""
        return self.caught / self.tried if self.tried else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """What `dataclasses.asdict` gave.

        Raises:
            TypeError: for anything else.
            ValueError: for counts that cannot be.
        """
        read = {name: tuple(pair) for name, pair in dict(data.get("baseline") or {}).items()}
        cell = cls(**{**data, "baseline": read})
        names = (cell.attack, cell.aggregator, cell.partition)
        counts = (cell.right, cell.total, cell.caught, cell.tried, cell.quarantined, cell.moved)
        if not all(isinstance(name, str) for name in names) or any(type(n) is not int for n in counts):
            raise TypeError("a cell has three names, a seed and six counts")
        if not (0 <= cell.right <= cell.total > 0 and 0 <= cell.caught <= cell.tried) or min(counts) < 0:
            raise ValueError("more samples are right, or caught, than there are")
        for pair in read.values():
            if len(pair) != 2 or any(type(n) is not int for n in pair):
                raise TypeError("a baseline has two counts")
            if not 0 <= pair[0] <= pair[1]:
                raise ValueError("more samples are caught without an attack than there are")
        return cell

    def __str__(self) -> str:
        success = "" if self.success is None else f", backdoor {self.success:.3f}"
        place = f"{self.partition}, seed {self.seed}, {self.aggregator}, {self.attack}"
        return f"{place}: accuracy {self.accuracy:.4f}{success}"


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
class Place:
    """One place in the matrix: an attack on an aggregator under a partition, over seeds.

    Attributes:
        attack, aggregator, partition: Which.
        accuracy: Of the final model.
        lost: By how much the attack lowers it; None where nobody attacks.
        price: By how much it is lower than that of the mean; None under attack, or without the mean.
        success: Of the backdoor; None without one.
        baseline: What the same trigger does to the model that nobody has attacked; None without one.
        quarantined: Replies that the guard did not let through, of all seeds.
        unmoved: Of how many seeds no round has changed the model.
    """

    attack: str
    aggregator: str
    partition: str
    accuracy: Spread
    lost: Spread | None
    price: Spread | None
    success: Spread | None
    baseline: Spread | None
    quarantined: int
    unmoved: int


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

    def baseline(self, attack: str, aggregator: str, partition: str) -> Spread | None:
        """What a backdoor's trigger does where nobody attacks, over seeds; None if it was not measured."""
        calm = self._of("none", aggregator, partition)
        pairs = [cell.baseline.get(attack, (0, 0)) for cell in calm.values()]
        found = [caught / tried for caught, tried in pairs if tried]
        return self._spread(found) if len(found) == len(pairs) else None

    def lost(self, attack: str, aggregator: str, partition: str) -> Spread:
        """By how much an attack lowers the accuracy, seed by seed."""
        before = self._of("none", aggregator, partition)
        after = self._of(attack, aggregator, partition)
        return self._spread([before[s].accuracy - after[s].accuracy for s in after if s in before], low=-1.0)

    def price(self, aggregator: str, partition: str) -> Spread | None:
        """By how much the accuracy is lower than that of the mean when nobody attacks, seed by seed.

        None in a matrix without the mean.
        """
        if "mean" not in self.names("aggregator"):
            return None
        mean, own = self._of("none", "mean", partition), self._of("none", aggregator, partition)
        return self._spread([mean[s].accuracy - own[s].accuracy for s in own if s in mean], low=-1.0)

    def worst(self, aggregator: str, partition: str) -> tuple[str, Spread] | None:
        """The attack that lowers the accuracy most, and by how much; None in a matrix without attacks."""
        attacks = [name for name in self.names("attack") if name != "none"]
        found = {name: self.lost(name, aggregator, partition) for name in attacks}
        name = max(found, key=lambda key: found[key].value, default=None)
        return None if name is None else (name, found[name])

    def places(self) -> list[Place]:
        """Every place in the matrix, partition by partition and aggregator by aggregator."""
        return [
            self._place(attack, aggregator, partition)
            for partition in self.names("partition")
            for aggregator in self.names("aggregator")
            for attack in self.names("attack")
        ]

    def untrained(self) -> list[Place]:
        """Where nobody attacks, and the model is nearer to guessing than to being right."""
        classes = self.settings.get("classes")
        enough = 0.0 if classes is None else (1 + 1 / classes) / 2
        return [p for p in self.places() if p.attack == "none" and p.accuracy.value < enough]

    def verdict(self) -> str:
        """A line per aggregator and partition: its price, and what the worst attack takes."""
        lines = []
        for name in self.names("aggregator"):
            for partition in self.names("partition"):
                price, worst = self.price(name, partition), self.worst(name, partition)
                told = [f"price {price}"] if price else []
                told += [f"worst loss {worst[1]} ({worst[0]})"] if worst else []
                lines.append(f"{name}, {partition}: {', '.join(told) or 'nothing to compare'}")
        return "\n".join(lines)

    def distrust(self) -> list[str]:
        """Why small losses say nothing: an attack cannot take what is not there."""
        return [
            f"{place.aggregator}, {place.partition}: when nobody attacks, its accuracy of "
            f"{place.accuracy.value:.3f} is nearer to guessing than to 1, so that an attack cannot take much"
            for place in self.untrained()
        ]

    def table(self) -> str:
        """The matrix as a Markdown table per partition.

        A cell has the accuracy; after a slash, a backdoor's success, and in brackets that of its trigger
        where nobody attacks.
        """
        attacks = self.names("attack")
        parts = []
        for partition in self.names("partition"):
            head = ["aggregator", *attacks, "price", "worst loss"]
            rows = [head, ["---"] * len(head)]
            for name in self.names("aggregator"):
                price, worst = self.price(name, partition), self.worst(name, partition)
                rows.append(
                    [
                        name,
                        *(self._shown(attack_, name, partition) for attack_ in attacks),
                        f"{price.value:+.3f}" if price else "-",
                        f"{worst[1].value:+.3f} ({worst[0]})" if worst else "-",
                    ]
                )
            lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            parts.append(f"{partition}\n\n{lines}")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "settings": self.settings,
            "confidence": self.confidence,
            "distrust": self.distrust(),
            "figures": [dataclasses.asdict(place) for place in self.places()],
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FederatedStress:
        """What `to_dict` gave; figures are computed anew.

        Raises:
            InputError: for anything else.
        """
        if data.get("schema") != SCHEMA:
            raise InputError(f"schema={brief(data.get('schema'))} is not {SCHEMA!r}")
        try:
            cells = tuple(Cell.from_dict(cell) for cell in data["cells"])
            return cls(cells, dict(data["settings"]), float(data["confidence"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no stress matrix of a federation: {error}") from None

    def _of(self, attack: str, aggregator: str, partition: str) -> dict[int, Cell]:
        """The cells of one place in the matrix, by seed."""
        want = (attack, aggregator, partition)
        found = {c.seed: c for c in self.cells if (c.attack, c.aggregator, c.partition) == want}
        if not found:
            raise InputError(f"the matrix has no cell for {attack}, {aggregator} and {partition}")
        return found

    def _place(self, attack: str, aggregator: str, partition: str) -> Place:
        where, calm = (attack, aggregator, partition), attack == "none"
        cells = self._of(*where).values()
        return Place(
            *where,
            accuracy=self.accuracy(*where),
            lost=None if calm else self.lost(*where),
            price=self.price(aggregator, partition) if calm else None,
            success=self.success(*where),
            baseline=None if calm else self.baseline(*where),
            quarantined=sum(cell.quarantined for cell in cells),
            unmoved=sum(cell.moved == 0 for cell in cells),
        )

    def _spread(self, values: Sequence[float], low: float = 0.0) -> Spread:
        return Spread.of(values, self.confidence, low)

    def _shown(self, attack: str, aggregator: str, partition: str) -> str:
        figure = self.accuracy(attack, aggregator, partition)
        success = self.success(attack, aggregator, partition)
        half = f" ± {(figure.high - figure.low) / 2:.3f}" if figure.count > 1 else ""
        baseline = self.baseline(attack, aggregator, partition)
        before = f" ({baseline.value:.2f})" if baseline else ""
        return f"{figure.value:.3f}{half}" + (f" / {success.value:.2f}{before}" if success else "")
