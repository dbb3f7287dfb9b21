"""The training loop: one for every objective."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...classifier import Classifier
from ...errors import RunError
from ...memory import hold_memory
from ...sampling import Coarse, Streams, seeded
from . import checkpoint
from .checkpoint import Checkpoint
from .objective import Answers, Batch, Objective, Term, total
from .parallel import Team
from .settings import Settings
from .showing import Log
from .sources import Rows, Source
from .validation import accuracies

if TYPE_CHECKING:
    from ..privacy.engine import Private

__all__ = ["Epoch", "Run"]

_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        number: From 1.
        loss: Mean over the samples, terms about samples included.
        accuracy: Share of the views learned from that were classified correctly at that time.
        clean: Accuracy on the validation data, None without any.
        robust: Of that, what withstands a short attack within each threat model of the objective; None for
            one without any.
        learning_rate: At the end.
        seconds: Training alone.
    """

    number: int
    loss: float
    accuracy: float
    clean: float | None
    robust: float | None
    learning_rate: float
    seconds: float


@dataclass
class Run:
    """A run of training, from its first epoch or from a checkpoint to its last.

    Attributes:
        model: What is trained, in place.
        source: The batches.
        held: Validation inputs and labels, or None.
        best: The weights of the epoch that was best so far, by name.
        private: What makes the gradients private, None for plain ones.
    """

    model: Classifier
    objective: Objective
    terms: Sequence[Term]
    source: Source
    held: tuple[Tensor, Tensor] | None
    settings: Settings
    device: torch.device
    plan: dict[str, Any]
    log: Log
    history: list[Epoch] = dataclasses.field(default_factory=list)
    best: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    chosen: int = 0
    private: Private | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        hold_memory()
        self.team = Team()
        self.model.to(self.device)
        self.optimizer = settings.make_optimizer([p for p in self.model.parameters() if p.requires_grad])
        steps = len(self.source) * self.objective.replays * settings.epochs
        self.schedule = settings.make_schedule(self.optimizer, steps)
        self.average: AveragedModel | None = settings.make_average(self.model)
        self._steps = 0

    def go(self, out: Path | None, *, resume: bool) -> None:
        """Train, with a checkpoint after each epoch if there is a folder for it.

        Raises:
            RunError: if a loss is not finite.
        """
        if resume and out is not None and (out / _FILE).is_file():
            self._restore(out / _FILE)
            self._steps = len(self.history) * len(self.source) * self.objective.replays
            self.log.skip(self._steps)
        # An epoch may have been logged and not saved.
        self.log.rewind(self.history)
        for number in range(len(self.history) + 1, self.settings.epochs + 1):
            if self._is_patient() or (self.private is not None and self.private.spent):
                break
            # Dropout, loaders and user code draw from the global generator: each epoch has its numbers.
            with seeded(self.device, self.settings.seed, "epoch", number):
                epoch = self._epoch(number)
            self.history.append(epoch)
            self._judge(epoch)
            self.log.epoch(epoch)
            if out is not None and self.team.leads:
                checkpoint.save(out / _FILE, self._checkpoint())
        self.model.module.load_state_dict(self.best)

    def _is_patient(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.history) - self.chosen >= patience > 0

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        begun = time.perf_counter()
        # Read once at the end: asking at each step would make the device wait.
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        memory: dict[str, Any] = {}
        seen = 0
        for place, rows in enumerate(self.source.batches(number)):
            for replay in range(self.objective.replays):
                # A private sample may come several times in an epoch, and gets new random numbers each time.
                sums += self._step(rows, number, replay if self.private is None else place, memory)
                seen += len(rows[1])
                self.log.step()
        loss, right = (self.team.sum(sums) / max(seen, 1)).tolist()
        if not (loss < float("inf")):
            raise RunError(
                f"the loss of epoch {number} is {loss}: lower the learning rate, or look at data and model"
            )
        seconds = time.perf_counter() - begun
        if self.average is not None and not self.settings.averages_steps:
            self._averaged(number)
        clean, robust = self._validated()
        rate = float(self.optimizer.param_groups[0]["lr"])
        return Epoch(number, loss, right, clean, robust, rate, round(seconds, 6))

    def _step(self, rows: Rows, number: int, replay: int, memory: dict[str, Any]) -> Tensor:
        count = len(rows[1])
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        parts = self._parts(rows)
        for part in parts:
            batch = self._batch(part, number, replay, memory)
            if len(batch):
                sums += self._backward(batch, count)
        if self.private is not None:
            self.private.release()
        self._penalties()
        self.team.add_up(self.model.parameters())
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self._steps += 1
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None and self.settings.averages_steps:
            self.average.update_parameters(self.model)
        return sums

    def _parts(self, rows: Rows) -> Iterator[Rows]:
        """The micro-batches of this process, whose gradients are added up."""
        if self.private is not None:
            yield from self.private.parts(rows)
            return
        x, y, ids = self.team.part(*rows)
        if self.settings.accumulate == 1:
            yield x, y, ids
            return
        size = max(1, -(-len(y) // self.settings.accumulate))
        yield from zip(*(torch.split(column, size) for column in (x, y, ids)), strict=True)

    def _batch(self, part: Rows, number: int, replay: int, memory: dict[str, Any]) -> Batch:
        x, y, ids = part
        purpose = f"train/{number}/{replay}"
        streams = Coarse(lambda: Streams.derive(self.settings.seed, purpose, ids).keys.to(self.device))
        progress = self._steps / max(len(self.source) * self.objective.replays * self.settings.epochs, 1)
        return Batch(x.to(self.device), y.to(self.device), ids, streams, progress, memory)

    def _backward(self, batch: Batch, count: int) -> Tensor:
        """Add the gradients of one micro-batch; the sum of its losses, and how many it got right."""
        objective = self.objective
        z = batch.x
        if type(objective).craft is not Objective.craft:
            with self._evaluating(), self._precision():
                z = objective.craft(self.model, batch)
        if self.private is not None:
            return self.private.add(self.model, objective, self.terms, batch, z)
        if objective.follows:
            z = z.detach().requires_grad_()
        with objective.perturbed(self.model, batch, z):
            ask = Answers(self.model)
            with self._precision():
                losses = total(objective, self.terms, ask, batch, z)
            (losses.sum() / count).backward()  # type: ignore[no-untyped-call]
        if objective.follows:
            assert z.grad is not None
            objective.absorb(batch, z.grad)
        right = ask.right(batch.y)
        return torch.stack([losses.detach().sum(dtype=torch.float64), right.double()])

    def _penalties(self) -> None:
        """Terms about the weights alone count once, whoever has worked on the batch."""
        if not self.team.leads:
            return
        values = [(term.weight, term.penalty(self.model.module)) for term in self.terms]
        found = [weight * value for weight, value in values if value is not None]
        if found:
            torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _averaged(self, number: int) -> None:
        assert self.average is not None
        if number > self.settings.epochs * self.settings.average_from:
            self.average.update_parameters(self.model)

    @property
    def deployed(self) -> Classifier:
        """What would be used if training ended now: the averaged weights, once there are any."""
        average = self.average
        if average is None or not int(average.n_averaged):
            return self.model
        assert isinstance(average.module, Classifier)
        return average.module

    def _validated(self) -> tuple[float | None, float | None]:
        if self.held is None:
            return None, None
        model = self.deployed
        model.eval()
        try:
            return accuracies(model, *self.held, self.objective.threats, self.settings.seed, self.device)
        finally:
            model.train()

    def _judge(self, epoch: Epoch) -> None:
        """Keep the weights of the best epoch; without validation data, of the last."""
        figures = [self._figure(other) for other in self.history]
        if self.settings.keep == "last" or figures[-1] is None or not self.best:
            better = True
        else:
            kept = figures[self.chosen - 1]
            better = kept is None or figures[-1] > kept
        if better:
            self.chosen = epoch.number
            state = self.deployed.module.state_dict()
            self.best = {key: value.detach().clone() for key, value in state.items()}

    def _figure(self, epoch: Epoch) -> float | None:
        if self.settings.keep == "clean" or epoch.robust is None:
            return epoch.clean
        return epoch.robust

    def _checkpoint(self) -> Checkpoint:
        tensors = {f"model.{key}": value for key, value in self.model.module.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        facts: dict[str, Any] = {
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "chosen": self.chosen,
        }
        if self.private is not None:
            facts["privacy"] = self.private.state()
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "average": self.average}
        for name, part in parts.items():
            if part is not None:
                found, facts[name] = checkpoint.plain_state(name, part.state_dict())
                tensors |= found
        return Checkpoint(self.plan, facts, tensors)

    def _restore(self, path: Path) -> None:
        stored = checkpoint.load(path)
        checkpoint.same_plan(stored.plan, self.plan, path)
        self.history = [Epoch(**facts) for facts in stored.facts["history"]]
        self.chosen = stored.facts["chosen"]
        if self.private is not None:
            self.private.restore(stored.facts["privacy"])
        for key, value in stored.tensors.items():
            head, _, name = key.partition(".")
            if head == "best":
                self.best[name] = value.to(self.device)
        weights = {
            key.removeprefix("model."): value
            for key, value in stored.tensors.items()
            if key.startswith("model.")
        }
        self.model.module.load_state_dict(weights)
        for name, part in (
            ("optimizer", self.optimizer),
            ("schedule", self.schedule),
            ("average", self.average),
        ):
            if part is not None:
                state = checkpoint.state_from(stored.tensors, stored.facts[name])
                part.load_state_dict(checkpoint.to_device(state, self.device))
