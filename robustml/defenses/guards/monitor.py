"""A deployed model as its operator sees it: what it answers, what it rejects and why, and what changes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checks import whole
from ...classifier import Model, mode_dependent_layers
from ...errors import InputError, brief
from ...guarded import Guarded
from .calibration import shuffled
from .drift import REFUSED, REJECTED, Drift, Seen, compare_windows
from .validation import Checked, RefusedInput, Validate

__all__ = ["Answers", "Monitor", "Rejection"]

Array = np.ndarray[Any, Any]

_MOST_FEATURES = 1024  # of an input that are watched; evenly chosen where there are more
_MOST_REFERENCE = 10_000
_LARGEST = 1e300  # beyond it lies nothing that a test could not tell from an input


@dataclass(frozen=True)
class Rejection:
    """Why there is no label.

    Attributes:
        row: The position of the input in what came; None where the whole was refused.
        guard: Which guard did it, by its place and name; "entry" where what came is no input at all.
        reason: The code of a refusal, or "score" for a guard that rejects by its score.
        text: One line for a log.
    """

    row: int | None
    guard: str
    reason: str
    text: str


@dataclass(frozen=True)
class Answers:
    """What a model says about raw inputs.

    Attributes:
        labels: The class of each, -1 where it was rejected: int64 (n,); of something that has no rows there
            is one.
        rejections: Why, for those.
    """

    labels: Array
    rejections: tuple[Rejection, ...]


class Monitor:
    """Answers raw inputs with a guarded model, counts, and compares what comes with what is clean.

    Several threads may use it at once. Raw inputs come in through the model's own `Validate` if that is its
    first guard, or else through one that refuses only what is no input of the model at all.

    Args:
        model: A `Guarded`, or any other model, in evaluation mode.
        reference: Clean inputs (n, *shape) in input units which neither the model nor its guards were fitted
            to: on what they were fitted to they do better than on anything that comes later. Up to 10,000 of
            them are used.
        keep: How many recent inputs are kept for `drift`.
        batch: How many inputs the model gets at a time.

    Raises:
        InputError: for unacceptable arguments.
    """

    def __init__(
        self, model: Model, reference: Array | Tensor, *, keep: int = 1000, batch: int = 256
    ) -> None:
        if not isinstance(model, Model):
            raise InputError(f"model is {type(model).__name__}; give a Guarded, a Classifier or a BlackBox")
        for name, value in (("keep", keep), ("batch", batch)):
            whole(name, value, 1)
        if isinstance(model, nn.Module) and (layers := mode_dependent_layers(model)):
            raise InputError(f"model is in training mode ({layers[0]}); call model.eval() first")
        self.model, self._batch = model, batch
        self._place, self._door = _door_of(model)
        step = -(-model.inputs.size // _MOST_FEATURES)
        self._features = np.arange(0, model.inputs.size, step)
        self._lock = threading.Lock()
        self._labels: Counter[int] = Counter()
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._calls = 0
        self._recent = Seen(np.full((keep, len(self._features)), np.nan), np.full(keep, REFUSED))
        self._came = 0
        self._reference = self._look_at(reference)

    def _look_at(self, reference: Array | Tensor) -> Seen:
        if not isinstance(reference, (np.ndarray, Tensor)) or len(reference) == 0:
            raise InputError(f"reference={brief(reference)} is not an array or a tensor of clean inputs")
        order = shuffled(len(reference))[:_MOST_REFERENCE].sort().values
        checked = self._door.examine(reference[order.numpy() if isinstance(reference, np.ndarray) else order])
        if not len(checked.rows):
            raise InputError(f"reference holds no input that is accepted: {checked.refusals[0]}")
        return self._seen(checked, self._labels_of(checked.x)[0])

    def predict(self, raw: Any) -> Answers:
        """Answer raw inputs, of whatever `Validate.check` takes; nothing but the model itself can raise.

        Raises:
            RefusedInput: if the model's `Validate` has the mode "raise" and refuses something; the counters
                and the window know of it all the same.
        """
        checked = self._door.examine(raw)
        found, rejections = self._labels_of(checked.x)
        seen = self._seen(checked, found)
        refused = [
            Rejection(refusal.row, self._place, refusal.code, str(refusal)) for refusal in checked.refusals
        ]
        rejected = [
            Rejection(
                int(checked.rows[row]), guard, "score", f"row {checked.rows[row]}, {guard}: score {score:.4g}"
            )
            for row, guard, score in rejections
        ]
        self._record(seen, [*refused, *rejected], checked.total)
        if self._door.mode == "raise" and checked.refusals:
            raise RefusedInput(checked.refusals)
        return Answers(np.maximum(seen.labels, REJECTED), tuple(refused + rejected))

    @torch.no_grad()
    def _labels_of(self, x: Tensor) -> tuple[Array, list[tuple[int, str, float]]]:
        """The label of each input (n,), `REJECTED` for some; and which guard did it, with its score."""
        labels, rejections = np.full(len(x), REJECTED), []
        home = next(self.model.parameters(), x).device if isinstance(self.model, nn.Module) else x.device
        for start in range(0, len(x), self._batch):
            batch = x[start : start + self._batch].to(home)
            found = self.model(batch).argmax(1)
            rejected = (found == self.model.classes).nonzero()[:, 0]
            if len(rejected):
                assert isinstance(self.model, Guarded)
                found[rejected] = REJECTED
                worst = _worst(self.model.rejections(batch[rejected]))
                rejections += [(start + row, *why) for row, why in zip(rejected.tolist(), worst, strict=True)]
            labels[start : start + len(batch)] = found.cpu().numpy()
        return labels, rejections

    def _seen(self, checked: Checked, labels: Array) -> Seen:
        """One row for everything that came; something that has no rows counts as one refused input."""
        total = max(checked.total, min(len(checked.refusals), 1))
        seen = Seen(np.full((total, len(self._features)), np.nan), np.full(total, REFUSED))
        seen.labels[checked.rows] = labels
        values = checked.x.flatten(1)[:, torch.from_numpy(self._features)].double().numpy()
        seen.values[checked.rows] = np.clip(values, -_LARGEST, _LARGEST)
        return seen

    def _record(self, seen: Seen, rejections: Sequence[Rejection], total: int) -> None:
        labels, counts = np.unique(np.maximum(seen.labels, REJECTED), return_counts=True)
        keep = len(self._recent.labels)
        reasons = Counter((each.guard, each.reason) for each in rejections if each.row is not None)
        whole = next((each for each in rejections if each.row is None), None)
        if whole is not None:
            # It concerns every input that came with it.
            reasons[whole.guard, whole.reason] += max(total, 1)
        with self._lock:
            self._calls += 1
            self._labels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
            self._reasons.update(reasons)
            last = np.arange(max(len(seen.labels) - keep, 0), len(seen.labels))
            places = (self._came + last) % keep
            self._recent.values[places], self._recent.labels[places] = seen.values[last], seen.labels[last]
            self._came += len(seen.labels)

    def counters(self) -> dict[str, Any]:
        """What was counted since the beginning, as plain data.

        Returns:
            "calls", "inputs", "accepted", "rejected"; "labels" holds a count for each class, and "reasons"
            for each guard a count for each reason.
        """
        with self._lock:
            labels, reasons, calls = dict(self._labels), dict(self._reasons), self._calls
        rejected = labels.pop(REJECTED, 0)
        accepted = sum(labels.values())
        by_guard: dict[str, dict[str, int]] = {}
        for (guard, reason), count in sorted(reasons.items()):
            by_guard.setdefault(guard, {})[reason] = count
        return {
            "calls": calls,
            "inputs": accepted + rejected,
            "accepted": accepted,
            "rejected": rejected,
            "labels": {label: labels.get(label, 0) for label in range(self.model.classes)},
            "reasons": by_guard,
        }

    def prometheus(self) -> str:
        """The counters in the text format (0.0.4) that Prometheus scrapes."""
        now = self.counters()
        labels = [({"class": str(label)}, count) for label, count in now["labels"].items()]
        reasons = [
            ({"guard": guard, "reason": reason}, count)
            for guard, counts in now["reasons"].items()
            for reason, count in counts.items()
        ]
        parts: list[tuple[str, str, list[tuple[dict[str, str], int]]]] = [
            ("robustml_calls_total", "Calls to the model.", [({}, now["calls"])]),
            ("robustml_inputs_total", "Inputs that came.", [({}, now["inputs"])]),
            ("robustml_accepted_total", "Inputs that got a label, by class.", labels),
            ("robustml_rejected_total", "Inputs that were rejected, by guard and reason.", reasons),
        ]
        return "".join(_exposed(name, about, samples) for name, about, samples in parts)

    def drift(self, window: int | None = None, alpha: float = 0.01) -> Drift:
        """Compare the most recent inputs with the reference.

        Three exact tests: are more inputs rejected (Fisher), are other classes predicted (Fisher, for each
        class), has a feature moved (Kolmogorov and Smirnov, for each feature)? If the inputs are independent
        draws from what the reference was drawn from, the probability of an alarm is at most `alpha`.

        Args:
            window: How many inputs, at most; all that are kept if None.
            alpha: The false-alarm rate of one look.

        Raises:
            InputError: for unacceptable arguments, or before any input came.
        """
        if isinstance(alpha, bool) or not isinstance(alpha, float) or not 0 < alpha < 1:
            raise InputError(f"alpha={brief(alpha)} is not a number between 0 and 1")
        keep = len(self._recent.labels)
        size = keep if window is None else window
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= keep:
            raise InputError(f"window={brief(window)} is not a whole number from 1 to {keep}, which are kept")
        with self._lock:
            places = np.arange(max(self._came - size, 0), self._came) % keep
            recent = Seen(self._recent.values[places], self._recent.labels[places])
        if not len(recent.labels):
            raise InputError("no inputs have come yet")
        inputs = self.model.inputs
        return compare_windows(
            self._reference, recent, alpha, self.model.classes, self._features, inputs.features
        )


def _door_of(model: Model) -> tuple[str, Validate]:
    """Where raw inputs come in, and what that is called."""
    first = model.guards[0] if isinstance(model, Guarded) and len(model.guards) else None
    if isinstance(first, Validate):
        return f"0:{first.name}", first
    door = Validate(discrete=False)
    door.attach(model.inputs)
    return "entry", door


def _worst(scores: dict[str, Tensor]) -> list[tuple[str, float]]:
    """The guard with the highest score for each input, and the score."""
    stacked = torch.stack(list(scores.values())).nan_to_num(nan=1.0)
    most, which = stacked.max(0)
    names = list(scores)
    return [(names[place], value) for place, value in zip(which.tolist(), most.tolist(), strict=True)]


def _exposed(name: str, about: str, samples: list[tuple[dict[str, str], int]]) -> str:
    lines = [f"# HELP {name} {about}", f"# TYPE {name} counter"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
