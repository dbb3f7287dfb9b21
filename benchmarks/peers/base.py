"""What is asked of every library: the attacks, their budgets, and the form of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["JOBS", "Attack", "Batch", "Entry", "Job", "Library", "by_name"]


@dataclass(frozen=True)
class Batch:
    """What an attack is given.

    Attributes:
        net: Takes float32 (n, 1, 28, 28) in [0, 1] and returns logits; in evaluation mode, and an ordinary
            module that is called as a whole (some libraries take a `Sequential` apart).
        x, y: Inputs (n, 1, 28, 28), all of them classified correctly, and labels int64 (n,).
        ids: What names each sample (n,).
        eps: The budget of the norm.
        seed: For libraries that take one; those that draw from global random states find them seeded.
    """

    net: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor
    eps: float
    seed: int


Attack = Callable[[Any, Batch], Tensor]
"""From the imported library and a batch to one point for each sample, adversarial or not."""


@dataclass(frozen=True)
class Job:
    """An attack that several libraries have.

    Attributes:
        norm: Of the threat model, "linf" or "l2".
        eps: The budget; for a minimum-norm attack only the level at which its points are counted.
        minimum: It looks for the nearest adversarial point.
        samples: How many images it is run on unless the command line says otherwise: slow ones on fewer.
        strict: A point beyond the budget is a fault. Where some libraries return the nearest point that they
            found, it is just no success.
    """

    title: str
    norm: str
    eps: float
    minimum: bool = False
    samples: int = 256
    strict: bool = True


@dataclass(frozen=True)
class Entry:
    """How a library runs a job, and what has to be known to read its row."""

    run: Attack
    note: str = ""


@dataclass(frozen=True)
class Library:
    """One library.

    Attributes:
        distribution: What the package index calls it.
        install: The line that installs it.
        load: Imports it, and returns what the entries are given.
        entries: The jobs that it has an attack for.
    """

    name: str
    title: str
    distribution: str
    install: str
    load: Callable[[], Any]
    entries: dict[str, Entry]


JOBS: dict[str, Job] = {
    "pgd": Job("PGD-40", "linf", 0.3, samples=1000),
    "apgd-ce": Job("APGD-CE 100", "linf", 0.3, samples=1000),
    "apgd-dlr": Job("APGD-DLR 100", "linf", 0.3, samples=1000),
    "apgd-t": Job("APGD-T 9x100", "linf", 0.3),
    "fab-t": Job("FAB-T 9x100", "linf", 0.3, strict=False),
    "square": Job("Square 1000", "linf", 0.3),
    "relay": Job("relay", "linf", 0.3, samples=1000),
    "fmn-l2": Job("FMN L2 100", "l2", 1.5, minimum=True, samples=1000),
    "fmn-linf": Job("FMN Linf 100", "linf", 0.3, minimum=True, samples=1000),
    "ddn": Job("DDN 100", "l2", 1.5, minimum=True, samples=1000),
    "deepfool": Job("DeepFool L2 50", "l2", 1.5, minimum=True),
    "carlini-wagner": Job("C&W L2 5x100", "l2", 1.5, minimum=True, samples=64),
    "hop-skip-jump": Job("HopSkipJump L2 6,500 queries", "l2", 1.5, minimum=True, samples=50),
}
"""The jobs by name. PGD takes steps of 2.5 eps / 40 everywhere."""


def by_name(dotted: str) -> Callable[[], Any]:
    """A loader that imports a module."""
    import importlib

    return lambda: importlib.import_module(dotted)
