"""Private steps for the training loop: sampled, clipped, noised, and entered in the ledger."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...classifier import Classifier
from ...errors import InputError
from ...sampling import seeded
from ..training.objective import Batch, Objective, Term
from ..training.parallel import Team
from ..training.settings import Settings
from ..training.sources import Arrays, Rows
from .gradients import Mode, Work
from .ledger import Ledger, noise_for
from .prepare import check, in_place
from .probe import activations, settled
from .settings import DifferentialPrivacy

__all__ = ["Guarantee", "Poisson", "Private", "refuse"]

_NEIGHBORS = "add or remove one sample"


@dataclass(frozen=True)
class Guarantee:
    """What a private run guarantees.

    Attributes:
        epsilon: Spent so far, an upper bound, earlier runs of the same ledger included; None for none at all,
            as without noise.
        delta: The probability that it does not cover.
        accountant: What computed it: "prv" or "rdp".
        noise_multiplier: Standard deviation of the noise in units of the clipping norm.
        sampling_rate: The probability with which each sample is in a step.
        steps: Steps of this run.
        clipping_norm: The largest norm of what one sample contributes.
        expected_batch: What sums are divided by.
        neighbors: For which change of the data it holds.
        randomness: Where noise and sampling come from.
        mode: How gradients were taken.
        physical_batch: How many samples were worked on at once.
    """

    epsilon: float | None
    delta: float
    accountant: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clipping_norm: float
    expected_batch: int
    neighbors: str
    randomness: str
    mode: str
    physical_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


class Poisson:
    """Batches that a sampler draws from data in memory.

    An epoch has as many steps as batches of the expected size would need. A batch may be empty.

    Args:
        data: The data.
        privacy: What is asked for.
        batch_size: The expected size.
    """

    def __init__(self, data: Arrays, privacy: DifferentialPrivacy, batch_size: int) -> None:
        if batch_size > data.samples:
            raise InputError(f"batch_size={batch_size} is more than the {data.samples} samples of train")
        self._data = data
        self.digest = data.digest
        self.rate = batch_size / data.samples
        self._sampler = privacy.sampler(data.samples, self.rate)
        self._steps = math.ceil(data.samples / batch_size)
        self.limit: int | None = None
        """How many steps the whole run may make; None for any number."""

    def __len__(self) -> int:
        return self._steps

    @property
    def samples(self) -> int:
        return self._data.samples

    def batches(self, epoch: int) -> Iterator[Rows]:
        first = (epoch - 1) * self._steps
        for step in range(first, first + self._steps):
            if self.limit is not None and step >= self.limit:
                return
            ids = self._data.rows[self._sampler.draw(step)]
            yield self._data.x[ids], self._data.y[ids], ids


def refuse(
    objective: Objective, terms: Sequence[Term], settings: Settings, privacy: DifferentialPrivacy
) -> None:
    """Refuse what would break the guarantee, or what private steps cannot do.

    Raises:
        InputError: saying how.
    """
    if Team().size > 1:
        raise InputError(
            "privacy works on one process; several would each need a part of one sampler and noise"
        )
    if settings.precision != "float32":
        raise InputError(
            f"precision={settings.precision!r} rounds gradients before they are clipped; take 'float32'"
        )
    if settings.accumulate > 1:
        raise InputError(
            "accumulate has no use with privacy; physical_batch bounds what is worked on at once"
        )
    for each in _all_of(objective):
        if each.replays > 1 or each.follows:
            raise InputError(
                f"objective {each.name!r} makes several steps on one batch and carries views over, so that a "
                "sample counts more than once; privacy cannot be accounted for it"
            )
        if type(each).perturbed is not Objective.perturbed:
            raise InputError(
                f"objective {each.name!r} takes gradients at weights that were moved along the unclipped "
                "gradient of the whole batch, so that samples are not apart"
            )
        if getattr(each, "teacher", None) is not None and not privacy.teacher_is_public:
            raise InputError(
                f"objective {each.name!r} learns from a teacher, which tells what it has learned; if it "
                "has not seen the data, or is accounted elsewhere, say so with teacher_is_public=True"
            )


def _all_of(objective: Objective) -> Iterator[Objective]:
    yield objective
    for field in dataclasses.fields(objective):  # type: ignore[arg-type]
        value = getattr(objective, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Objective):
                yield from _all_of(inner)


class Private:
    """The private part of a run.

    Args:
        privacy: What is asked for.
        model, objective, terms: What is trained, and on what.
        source: The batches.
        settings: Epochs, and the batch size, which sums are divided by.
        device: Where the model is.
        ledger: What was spent on this data before; it is continued.
    """

    def __init__(
        self,
        privacy: DifferentialPrivacy,
        model: Classifier,
        objective: Objective,
        terms: Sequence[Term],
        source: Poisson,
        *,
        settings: Settings,
        device: torch.device,
        ledger: Ledger | None = None,
    ) -> None:
        self.privacy = privacy
        self._work = (model, objective, tuple(terms), device)
        self.model, self.source, self.batch_size = model, source, settings.batch_size
        self.ledger = Ledger() if ledger is None else ledger
        self.before = Ledger(self.ledger.history)
        if privacy.delta >= 1 / source.samples:
            raise InputError(
                f"delta={privacy.delta:g} is not below one over the {source.samples} samples: publishing "
                "one of them keeps to it"
            )
        steps = settings.epochs * len(source)
        self.noise_multiplier = self._noise(steps)
        self.mechanism = privacy.mechanism(self.noise_multiplier)
        source.limit = self._limit(steps)
        self.steps = 0
        self._mode: Mode | None = None
        self._chosen = privacy.mode
        self._sums: list[Tensor] | None = None
        self._real = 0

    def _noise(self, steps: int) -> float:
        privacy = self.privacy
        if privacy.noise_multiplier is not None:
            return float(privacy.noise_multiplier)
        assert privacy.epsilon is not None
        return noise_for(
            self.before, epsilon=privacy.epsilon, delta=privacy.delta, rate=self.source.rate, steps=steps
        )

    def _limit(self, steps: int) -> int | None:
        privacy = self.privacy
        if privacy.max_epsilon is None:
            return None
        room = self.before.room(
            self.noise_multiplier, self.source.rate, privacy.delta, privacy.max_epsilon, steps
        )
        if not room:
            spent = self.before.spent(privacy.delta).epsilon
            raise InputError(
                f"max_epsilon={privacy.max_epsilon:g} leaves no room for one step with noise multiplier "
                f"{self.noise_multiplier:.3g} at a sampling rate of {self.source.rate:.3g}"
                + (f"; {spent:.3g} is spent already" if spent else "")
            )
        return room

    @property
    def spent(self) -> bool:
        """Whether no further step may be made."""
        return self.source.limit is not None and self.steps >= self.source.limit

    @property
    def mode(self) -> Mode:
        """How gradients are taken; settled when it is asked for first."""
        if self._mode is None:
            model, objective, terms, device = self._work
            in_place(model)
            check(model)
            # Layers that draw random numbers do so in the probe, too; the run's own numbers stay as they are.
            with seeded(device, "privacy/probe"):
                chosen = settled(self._chosen, model, objective, terms, device)
                taken = chosen.weight() + 2 * activations(model, device)
            self._mode = chosen
            self.physical = self.privacy.physical_batch or max(
                1, self.privacy.memory * 2**20 // max(taken, 1)
            )
        return self._mode

    def parts(self, rows: Rows) -> Iterator[Rows]:
        """A batch in parts that there is memory for, filled up to one of a few sizes.

        Libraries compile a kernel for every size that they meet, and keep it: with sizes that are drawn, that
        costs more time than some rows that do not count, and memory that grows and grows.
        """
        assert self.mode is not None
        step = max(1, math.isqrt(self.batch_size) // 2)
        for part in zip(*(torch.split(column, self.physical) for column in rows), strict=True):
            self._real = n = len(part[1])
            size = min(-(-n // step) * step, max(self.physical, n))
            filled = torch.arange(size).clamp(max=n - 1) if n else torch.arange(0)
            yield tuple(column[filled] for column in part) if size > n else part

    def add(
        self, model: Classifier, objective: Objective, terms: Sequence[Term], batch: Batch, z: Tensor
    ) -> Tensor:
        """Add some samples' clipped gradients to this step; the sum of losses, and how many were right."""
        work = Work(model, objective, terms, batch, z, self._real)
        sums, facts = self.mode.summed(work, self.mechanism.factors)
        self._sums = sums if self._sums is None else [a + b for a, b in zip(self._sums, sums, strict=True)]
        return facts

    def release(self) -> None:
        """End a step: the noised mean becomes the gradient of the parameters, and the ledger has one more."""
        parameters = self.mode.parameters
        sums = self._sums or [torch.zeros_like(p) for p in parameters]
        self._sums = None
        noised = self.mechanism.noised(self.steps, sums)
        if self.privacy.observer is not None:
            names = [name for name, p in self.model.named_parameters() if p.requires_grad]
            self.privacy.observer({name: each.clone() for name, each in zip(names, noised, strict=True)})
        for parameter, each in zip(parameters, noised, strict=True):
            parameter.grad = each.div_(self.batch_size)
        self.ledger.step(self.noise_multiplier, self.source.rate)
        self.steps += 1

    def close(self) -> None:
        """Take hooks off the model."""
        if self._mode is not None:
            self._mode.close()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "ledger": self.ledger.to_dict(),
            "before": self.before.to_dict(),
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
            "mode": self.mode.name,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written, with its noise and its ledger."""
        self.ledger.history[:] = Ledger.from_dict(state["ledger"]).history
        self.before = Ledger.from_dict(state["before"])
        self.noise_multiplier = state["noise_multiplier"]
        self.mechanism = self.privacy.mechanism(self.noise_multiplier)
        self.steps = state["steps"]
        self._chosen = state["mode"]

    def guarantee(self) -> Guarantee:
        """What holds now."""
        spent = self.ledger.spent(self.privacy.delta)
        return Guarantee(
            epsilon=spent.epsilon if math.isfinite(spent.epsilon) else None,
            delta=self.privacy.delta,
            accountant=spent.accountant,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.source.rate,
            steps=self.steps,
            clipping_norm=self.privacy.clipping_norm,
            expected_batch=self.batch_size,
            neighbors=_NEIGHBORS,
            randomness=self.mechanism.randomness.name,
            mode=self.mode.name,
            physical_batch=self.physical,
        )
