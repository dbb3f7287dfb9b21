"""What a case is made of: a task for a library, what the library answers, and what is made of that."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Adapter", "Case", "Result", "Task", "Unsupported", "Verdict", "heard", "run_case", "standing"]

Status = Literal["passed", "failed", "unsupported"]
Figure = tuple[bool, str]
"""Whether the library did right, and the figure that shows it."""


class Unsupported(Exception):
    """The library has nothing that the case could be run against; the message says what is missing."""


@dataclass(frozen=True)
class Task:
    """One batch to attack.

    Attributes:
        model: In eval mode, with at least one parameter; takes float32 (n, 1, 8, 8), returns logits.
        x: Inputs in [0, 1], float32 (n, 1, 8, 8).
        y: Labels, int64 (n,).
        eps: The budget; minimum-norm attacks ignore it.
        norm: "linf", "l2" or "l1".
        ids: What names each sample when a batch is cut up (n,).
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    norm: str = "linf"
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not len(self.ids):
            object.__setattr__(self, "ids", torch.arange(len(self.x)))

    @property
    def classes(self) -> int:
        with torch.no_grad():
            return int(self.model(self.x[:1]).shape[1])

    def only(self, row: int) -> Task:
        """The task with one sample alone."""
        rows = slice(row, row + 1)
        return replace(self, x=self.x[rows], y=self.y[rows], ids=self.ids[rows])

    def distance(self, z: Tensor) -> Tensor:
        """How far each point is from its input, in the norm of the task: (n,)."""
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm]
        moved: Tensor = torch.linalg.vector_norm((z - self.x).flatten(1), ord=order, dim=1)
        return moved

    def wrong(self, z: Tensor) -> Tensor:
        """Which points the model gets wrong: bool (n,)."""
        with torch.no_grad():
            answer: Tensor = self.model(z).argmax(1) != self.y
        return answer


@dataclass(frozen=True)
class Verdict:
    """What a user is told at the end.

    Attributes:
        standing: Which samples are reported as robust: bool (n,).
        flag: What the library said against believing it, if anything.
        declared: Gradient passes per standing sample that the library promises, if it does.
    """

    standing: Tensor
    flag: str | None = None
    declared: float | None = None


def standing(task: Task, z: Tensor) -> Tensor:
    """Which samples a user counts as robust when a library returns these points: bool (n,).

    A point outside of the budget or of [0, 1] breaks nothing.
    """
    inside = task.distance(z) <= task.eps * (1 + 1e-4) + 1e-6
    inside &= ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
    return ~(task.wrong(z) & inside) & ~task.wrong(task.x)


class Adapter:
    """A library behind the capabilities that the cases ask for.

    Each method runs the library the way that its documentation says, and nothing else: no repair, no check.
    A method that is not overridden says that the library has no such thing. An exception other than
    `Unsupported` means that the library refused or crashed; the case decides what that is worth.
    """

    name = ""
    """What `--library` calls it."""
    title = ""
    """What the table calls it."""
    install = ""
    """The pip line that installs it beside robustml."""
    version = ""

    def _no(self, what: str) -> NoReturn:
        raise Unsupported(f"{self.title} has no {what}")

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        """PGD under Linf from random starts; candidates as returned."""
        self._no("PGD")

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        """Auto-PGD on cross-entropy under Linf."""
        self._no("Auto-PGD")

    def ensemble(self, task: Task) -> Verdict:
        """The ensemble that the library offers for a verdict, at its defaults."""
        self._no("ensemble of attacks")

    def square(self, task: Task, *, queries: int) -> Tensor:
        """Square attack."""
        self._no("Square attack")

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        """A minimum-norm attack: "cw" (L2), "ead" (L1), "ddn" or "fmn" (L2)."""
        self._no(f"attack {name!r}")

    def nearest_of(self, task: Task, points: list[Tensor]) -> Tensor:
        """What the library keeps of several minimum-norm attacks that return these points."""
        self._no("ensemble of minimum-norm attacks")

    def defended(self, task: Task, defense: Callable[[Tensor], Tensor], *, steps: int) -> Verdict:
        """PGD through a preprocessing defense whose backward pass is declared to be the identity."""
        self._no("preprocessing defense with a declared backward pass")

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        """What a user is told after PGD alone."""
        z = self.pgd(task, steps=steps)
        return Verdict(standing(task, z))

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        """PGD on inputs in [0, 1] where the model expects (x - mean) / std, told in the library's own way."""
        self._no("normalization of inputs")

    def successes(self, task: Task, z: Tensor) -> Tensor:
        """Which points the library counts as successes of an untargeted attack: bool (n,)."""
        self._no("success test of its own")

    def squeezed(self, task: Task, *, bits: int) -> Tensor:
        """Logits of the model behind the library's bit-depth squeezing: (n, classes)."""
        self._no("bit-depth squeezing")

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        """The figure that the library computes after PGD, in [0, 1], and which samples stand: bool (n,)."""
        self._no("robust accuracy of its own")

    def resumed(self, task: Task, interrupt: Callable[[], None]) -> tuple[float, float]:
        """Robust accuracy of an undisturbed evaluation, and of one that was cut off and went on.

        Call `interrupt` to have the model raise KeyboardInterrupt after some more passes.
        """
        self._no("evaluation that can be resumed")

    def default_budgets(self) -> dict[str, float]:
        """The Linf budget of each attack that has one by default, by name of the attack."""
        self._no("attack with a budget")


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    status: Status
    detail: str


@dataclass(frozen=True)
class Case:
    """One thing that a library can get wrong.

    Attributes:
        name: Short and stable.
        defect: Its number in the list that the suite is made from.
        meaning: What must hold, in one sentence.
        check: Runs it; returns whether the library did right and the figure seen.
        refusal: Whether an error is an acceptable answer.
    """

    name: str
    defect: int
    meaning: str
    check: Callable[[Adapter], Figure]
    refusal: bool = False


def run_case(case: Case, adapter: Adapter) -> Result:
    """Run a case; the same random numbers for every library that draws from the global state."""
    state = np.random.get_state()  # noqa: NPY002 - some libraries draw from it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            right, detail = case.check(adapter)
        except Unsupported as missing:
            return Result("unsupported", str(missing))
        except Exception as error:
            text = f"{type(error).__name__}: {error}".strip().rstrip(":").partition("\n")[0]
            return Result("passed" if case.refusal else "failed", f"raises {text}")
        finally:
            np.random.set_state(state)  # noqa: NPY002
    return Result("passed" if right else "failed", detail)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what is said in warnings and in the log; a deprecation says nothing about a verdict."""
    said: list[str] = []
    records = _Records()
    root = logging.getLogger()
    root.addHandler(records)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
    finally:
        root.removeHandler(records)
    ignored = (DeprecationWarning, FutureWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
    said += [str(w.message) for w in caught if not issubclass(w.category, ignored)]
    said += records.texts
