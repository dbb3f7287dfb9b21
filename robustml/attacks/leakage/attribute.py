"""Attribute inference: one feature of a record from all others, with the model's answers and without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ...checks import whole
from ...classifier import Model
from ...data import Dataset
from ...errors import InputError, suggest
from ...estimates import PairedDifference, Proportion, paired_difference
from .asking import Array, Asked, agreement, asked, both
from .attributes import Attribute, attribute_of
from .imputing import LEARNERS, Learner, art_guesses, fitted

__all__ = ["AttributeInference", "Side", "attribute_test"]

Method = Literal["answers", "candidates", "art"]

_METHODS = ("answers", "candidates", "art")
_SAMPLES = 20  # fewer to learn from would make the baseline, and with it the gain, a matter of luck
_FLOOR = 1e-12


@dataclass(frozen=True)
class Side:
    """How often the attribute of members, or of non-members, is inferred.

    Attributes:
        attack: With the model's answers.
        baseline: Without the model, by the same kind of learner from the same samples.
        gain: Of the attack over the baseline, on the same records.
    """

    attack: Proportion
    baseline: Proportion
    gain: PairedDifference


@dataclass(frozen=True)
class AttributeInference:
    """What the answers of a model tell about one feature of a record whose other features are known.

    A gain on non-members is what the model says about everybody: it tells of the feature because the feature
    matters to it. Only the `excess`, the gain on members beyond that on non-members, comes from having been
    trained on. High accuracy alone is no leak: the baseline has it without the model. An excess without a
    gain on members is a model that misleads about others: it is overfitted, which membership inference shows,
    and has told nobody more of a member.

    Attributes:
        feature: Its name.
        values: What it can be: its values, or ranges of them.
        method: "answers", "candidates" or "art".
        learner: The kind of both the attack's and the baseline's learner.
        learned_from: Non-members that the attack and the baseline learned from; none of them is in
            `non_members`.
        queries: Rows that the model was asked.
        members, non_members: What was found.
        chance: How often the commonest value (of those learned from) is right for members.
        excess: The gain on members minus the gain on non-members, with its interval (square-and-add: Zou and
            Donner 2008).
    """

    feature: str
    values: tuple[str, ...]
    method: str
    learner: str
    learned_from: int
    queries: int
    members: Side
    non_members: Side
    chance: Proportion
    excess: float
    excess_low: float
    excess_high: float

    def __str__(self) -> str:
        sides = "; ".join(
            f"{name}: {side.attack} with the model, {side.baseline} without, "
            f"gain {_points(side.gain.value, side.gain.low, side.gain.high)}"
            for name, side in (("members", self.members), ("non-members", self.non_members))
        )
        excess = _points(self.excess, self.excess_low, self.excess_high)
        return f"{self.feature} ({len(self.values)} values) from {self.method}: {sides}; excess {excess}"


def attribute_test(
    model: Model,
    members: Any,
    non_members: Any,
    *,
    feature: int | str,
    bins: int = 2,
    method: Method = "answers",
    learner: Learner = "logistic",
    seed: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
) -> AttributeInference:
    """Infer one feature of members and of non-members, and compare with imputation that knows no model.

    The attacker knows the true label and all features but one, and has records of the same kind: a half of
    `non_members`. Three ways to use the model:

    - "answers": its answer to the record itself, as a service that stores answers gives it away, is one more
      feature to learn from.
    - "candidates": the record is asked about with each possible value, and what the model then thinks of the
      true label is weighed with what the baseline thinks of the value (Fredrikson et al. 2014, figure 2; Yeom
      et al. 2018, section 4). A model that has memorized a record is surest of it as it was. Where it gives
      labels only, its accuracy on the members is conceded to the attacker.
    - "art": the black-box attack of the Adversarial Robustness Toolbox, which sees the predicted label.

    Args:
        model: A `Classifier` or a `BlackBox`, of labels only, too.
        members: Labelled samples that the model was trained on.
        non_members: Labelled samples of the same kind that it was not trained on.
        feature: Its name or its index among all features; one of a one-hot group stands for the group.
        bins: Ranges, of about as many samples each, that a feature of many values is cut into.
        method: See above.
        learner: "logistic" regression or a random "forest".
        seed: Decides every random number.
        device: "auto", "cpu", "cuda", ...
        confidence: Of the intervals.

    Raises:
        InputError: for a sample that is in both, a feature that does not vary, too few samples, or an
            unacceptable argument.
    """
    whole("bins", bins, 2)
    if method not in _METHODS:
        raise InputError(f"method={method!r} is not known{suggest(str(method), _METHODS)}")
    if learner not in LEARNERS:
        raise InputError(f"learner={learner!r} is not known{suggest(str(learner), LEARNERS)}")
    inside, outside = both(model, members, non_members)
    order = np.random.default_rng(seed).permutation(len(outside))
    half = len(order) // 2
    if half < _SAMPLES:
        raise InputError(
            f"non_members has {len(outside)} samples; {2 * _SAMPLES} at least are wanted, since the attack "
            "learns from a half of them"
        )
    known, fresh = (_rows(outside, np.sort(part)) for part in (order[:half], order[half:]))
    attribute = attribute_of(model.inputs, known.x, feature, bins)
    truth = {name: attribute.codes(data.x) for name, data in (("in", inside), ("out", fresh))}
    baseline = fitted(
        learner, attribute.rest(known.x), known.y, model.classes, attribute.codes(known.x), seed
    )
    plain = {n: baseline(attribute.rest(d.x), d.y) for n, d in (("in", inside), ("out", fresh))}
    with asked(model, device, seed, "leakage/attribute") as target:
        attack = {"answers": _by_answers, "candidates": _by_candidates, "art": _by_art}[method]
        guesses = attack(target, attribute, known, (inside, fresh), list(plain.values()), learner, seed)
        queries = target.queries
    insiders, strangers = (
        _side(guess == truth[name], plain[name].argmax(1) == truth[name], confidence)
        for name, guess in zip(("in", "out"), guesses, strict=True)
    )
    commonest = int(np.bincount(attribute.codes(known.x)).argmax())
    chance = agreement(truth["in"] == commonest, confidence)
    excess, low, high = _excess(insiders.gain, strangers.gain)
    return AttributeInference(
        feature=attribute.name,
        values=attribute.values,
        method=method,
        learner=learner,
        learned_from=len(known),
        queries=queries,
        members=insiders,
        non_members=strangers,
        chance=chance,
        excess=excess,
        excess_low=low,
        excess_high=high,
    )


def _by_answers(
    target: Asked,
    attribute: Attribute,
    known: Dataset,
    records: tuple[Dataset, ...],
    _plain: list[Array],
    learner: Learner,
    seed: int,
) -> list[Array]:
    classes = target.model.classes
    learned = fitted(
        learner,
        np.hstack([attribute.rest(known.x), _answers(target, known.x)]),
        *(known.y, classes, attribute.codes(known.x), seed),
    )
    return [
        learned(np.hstack([attribute.rest(data.x), _answers(target, data.x)]), data.y).argmax(1)
        for data in records
    ]


def _answers(target: Asked, x: Array) -> Array:
    """What the model says, as features: the labels, or log-probabilities where it gives scores."""
    said = target.probabilities(torch.from_numpy(x))
    return (said if target.labels_only else said.clamp_min(_FLOOR).log()).numpy()


def _by_candidates(
    target: Asked,
    attribute: Attribute,
    _known: Dataset,
    records: tuple[Dataset, ...],
    plain: list[Array],
    _learner: Learner,
    _seed: int,
) -> list[Array]:
    right = 0.0
    if target.labels_only:
        # A label says as much as it is worth on members: how often it is right (with one of each kind added).
        # Training accuracy is published often enough to be conceded to the attacker; nobody asks for it here.
        hits = target.labels(torch.from_numpy(records[0].x)).numpy() == records[0].y
        target.queries -= len(hits)
        right = (int(hits.sum()) + 1) / (len(hits) + 2)
    guesses = []
    for data, prior in zip(records, plain, strict=True):
        support = _support(target, attribute, data, right)
        guesses.append((np.log(np.maximum(support, _FLOOR)) + np.log(np.maximum(prior, _FLOOR))).argmax(1))
    return guesses


def _support(target: Asked, attribute: Attribute, data: Dataset, right: float) -> Array:
    """What the model thinks of the true label with each value of the attribute: (n, values).

    A rejected candidate says nothing, and counts as what the others of the record come to.
    """
    sums, counts = (np.zeros((len(data), len(attribute.values))) for _ in range(2))
    for code, stands in enumerate(attribute.candidates):
        for value in stands:
            said = target.probabilities(torch.from_numpy(attribute.put(data.x, value))).numpy()
            chance = said[np.arange(len(data)), data.y]
            if target.labels_only:
                chance = np.where(chance > 0, right, (1 - right) / (target.model.classes - 1))
            answered = said[:, : target.model.classes].any(1)
            sums[:, code] += np.where(answered, chance, 0)
            counts[:, code] += answered
    overall = sums.sum(1) / np.maximum(counts.sum(1), 1)
    found: Array = np.where(counts > 0, sums / np.maximum(counts, 1), overall[:, None])
    return found


def _by_art(
    target: Asked,
    attribute: Attribute,
    known: Dataset,
    records: tuple[Dataset, ...],
    _plain: list[Array],
    learner: Learner,
    seed: int,
) -> list[Array]:
    said = [target.labels(torch.from_numpy(data.x)).numpy() for data in (known, *records)]
    tables = [attribute.rest(data.x) for data in (known, *records)]
    truths = [data.y for data in (known, *records)]
    codes = attribute.codes(known.x)
    return art_guesses(learner, tables, said, truths, codes, target.width, seed)


def _rows(data: Dataset, rows: Array) -> Dataset:
    return Dataset(data.x[rows], data.y[rows], data.name)


def _side(attack: Array, baseline: Array, confidence: float) -> Side:
    gained, lost = int((attack & ~baseline).sum()), int((~attack & baseline).sum())
    gain = paired_difference(gained, lost, len(attack), confidence)
    return Side(agreement(attack, confidence), agreement(baseline, confidence), gain)


def _excess(inside: PairedDifference, outside: PairedDifference) -> tuple[float, float, float]:
    """The difference of two independent differences; each end is the two distances, squared and added."""
    value = inside.value - outside.value
    low = value - math.hypot(inside.value - inside.low, outside.high - outside.value)
    high = value + math.hypot(inside.high - inside.value, outside.value - outside.low)
    return value, low, high


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
