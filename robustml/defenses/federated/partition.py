"""Who holds which samples: split at random, by class in unequal shares, or as given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data import Dataset, as_dataset
from ...data.gathering import Array
from ...errors import InputError, brief, suggest
from ...inputs import InputSpec
from ...sampling import Streams

__all__ = ["Partition", "are_shards", "as_shards", "parse_partition", "shard"]

_ATTEMPTS = 1000


@dataclass(frozen=True)
class Partition:
    """How a set of data is split among clients.

    Attributes:
        alpha: Of the Dirichlet distribution that shares out each class (Hsu, Qi and Brown 2019): the smaller,
            the less alike the clients. None splits at random, in equal parts.
        least: The fewest samples that a client may have; a draw that leaves one with fewer is made again.
    """

    alpha: float | None = None
    least: int = 2

    @property
    def name(self) -> str:
        """As `parse_partition` reads it."""
        return "iid" if self.alpha is None else f"dirichlet:{self.alpha:g}"

    def rows(self, y: Array, clients: int, seed: int) -> list[Array]:
        """The rows of each client, in rising order: every row belongs to one client.

        Args:
            y: Labels int64 (n,).
            clients: How many.
            seed: Decides who gets what.

        Raises:
            InputError: if there are too few samples, or the shares are too unequal for `least`.
        """
        if len(y) < clients * self.least:
            raise InputError(
                f"{len(y)} samples are too few for clients={clients} with {self.least} samples at least"
            )
        if self.alpha is None:
            order = _order(np.arange(len(y)), "partition", seed)
            return [np.sort(part) for part in np.array_split(order, clients)]
        for attempt in range(_ATTEMPTS):
            parts = _unequal(y, clients, self.alpha, f"partition/{attempt}", seed)
            if min(map(len, parts)) >= self.least:
                return parts
        raise InputError(
            f"partition={self.name} leaves some of {clients} clients with fewer than {self.least} of "
            f"{len(y)} samples in {_ATTEMPTS} draws; take a larger alpha or fewer clients"
        )


def parse_partition(text: Any) -> Partition:
    """Read "iid" or "dirichlet:0.3".

    Raises:
        InputError: for anything else.
    """
    if isinstance(text, Partition):
        return text
    name, _, rest = str(text).partition(":")
    if name == "iid" and not rest:
        return Partition()
    if name != "dirichlet":
        raise InputError(f"partition={brief(text)} is not known{suggest(name, ('iid', 'dirichlet:0.3'))}")
    try:
        alpha = float(rest)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise InputError(f"partition={brief(text)} needs a finite number above 0, as in dirichlet:0.3")
    return Partition(alpha)


def shard(data: Dataset, partition: Partition, clients: int, seed: int) -> tuple[Dataset, ...]:
    """Split data among clients.

    Raises:
        InputError: as `Partition.rows`.
    """
    parts = partition.rows(data.y, clients, seed)
    return tuple(
        Dataset(data.x[rows], data.y[rows], f"{data.name}/{number}") for number, rows in enumerate(parts)
    )


def are_shards(data: Any) -> bool:
    """Whether this is a sequence of data sets, one for each client, and not one data set."""
    if isinstance(data, Dataset) or not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        return False
    return bool(data) and all(isinstance(item, Dataset) or _is_pair(item) for item in data)


def _is_pair(item: Any) -> bool:
    # A pair (x, y) of nested lists is no sequence of pairs: there, items are rows.
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(hasattr(part, "shape") for part in item)


def as_shards(given: Sequence[Any], inputs: InputSpec, classes: int) -> tuple[Dataset, ...]:
    """Check the data of each client.

    Raises:
        InputError: naming the client.
    """
    return tuple(as_dataset(item, inputs, classes, f"shards[{place}]") for place, item in enumerate(given))


def _order(rows: Array, purpose: str, seed: int) -> Array:
    keys = Streams.derive(seed, purpose, torch.from_numpy(rows)).bits(1)[:, 0].numpy()
    return rows[np.argsort(keys, kind="stable")]


def _unequal(y: Array, clients: int, alpha: float, purpose: str, seed: int) -> list[Array]:
    held: list[list[Array]] = [[] for _ in range(clients)]
    for label in np.unique(y):
        members = _order(np.flatnonzero(y == label), purpose, seed)
        shares = _dirichlet(clients, alpha, f"{purpose}/{label}", seed)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for own, part in zip(held, np.split(members, cuts), strict=True):
            own.append(part)
    return [np.sort(np.concatenate(parts)) for parts in held]


def _dirichlet(count: int, alpha: float, purpose: str, seed: int) -> Array:
    """One draw from the symmetric Dirichlet distribution: (count,), adding up to 1.

    Gamma(alpha) is Gamma(alpha + 1) times U ** (1 / alpha) (Marsaglia and Tsang 2000, section 6); in
    logarithms, a small alpha does not underflow.
    """
    from scipy.special import gammaincinv

    uniform = Streams.derive(seed, purpose, torch.arange(count)).uniform(2, dtype=torch.float64).numpy()
    uniform = np.clip(uniform, 2.0**-54, None)
    logs = np.log(gammaincinv(alpha + 1, uniform[:, 0])) + np.log(uniform[:, 1]) / alpha
    shares = np.exp(logs - logs.max())
    total: Array = shares / shares.sum()
    return total
