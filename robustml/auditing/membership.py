"""Membership inference on a model: every attack that the references and the model's answers allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..attacks.membership import (
    Limits,
    MembershipResult,
    Strongest,
    Subjects,
    auc,
    calibrated_loss,
    exposure,
    gap,
    judge,
    kept_labels,
    lira_offline,
    lira_online,
    loss_threshold,
    quantile_scores,
    rmia_log_ratio,
    rmia_offline,
    rmia_online,
    strongest,
)
from ..attacks.membership.scores import FEW
from ..attacks.membership.signals import Array
from ..classifier import Model
from ..data import as_dataset
from ..errors import InputError, brief, suggest
from ..estimates import Proportion, proportion
from ..inputs import InputSpec
from ..sampling import Streams, seeded
from ..wrapping import collected, pick_device, wrapped
from .evidence import Evidence, gather, slices, subjects_of
from .references import References

__all__ = ["MembershipAudit", "audit_membership"]

_FEW = 8  # reference models up to which a tier is called "few"
_LEAST_TO_LEARN = 30  # non-members to choose thresholds on, below which nothing is learned from them
_A = 0.3  # the a of RMIA that its authors found to do for images


@dataclass(frozen=True)
class MembershipAudit:
    """What membership inference finds out about one model.

    Attributes:
        tier: "quick" (no reference models), "few" (up to 8) or "many".
        references: How many.
        members, non_members: How many were asked about.
        duplicates: Non-members that equal a member; they were left out, and so were those members.
        member_accuracy, non_member_accuracy: Of the model; the gap between them is the simplest leak.
        confidence: Of the intervals.
        results: One for each attack.
        strongest: The most that any of them finds, with limits that hold for a maximum.
        left_out: Attacks that were not run, and why.
        control: The AUC of the losses of models that never saw either set. If its interval does not hold
            0.5, then members and non-members differ in themselves, and attacks may tell that apart instead of
            membership. None without references.
        seed: Decided which non-members thresholds are chosen on.
    """

    tier: str
    references: int
    members: int
    non_members: int
    duplicates: int
    member_accuracy: Proportion
    non_member_accuracy: Proportion
    confidence: float
    results: tuple[MembershipResult, ...]
    strongest: Strongest
    left_out: tuple[tuple[str, str], ...]
    control: Limits | None
    seed: int

    @property
    def score(self) -> float:
        """The privacy score: 100 times (1 - the upper limit of the highest advantage)."""
        return 100 * (1 - self.strongest.advantage.high)

    def __getitem__(self, attack: str) -> MembershipResult:
        """The result of one attack."""
        for result in self.results:
            if result.attack == attack:
                return result
        raise KeyError(attack)


@dataclass(frozen=True)
class _Kind:
    """An attack: how it scores, and what it needs.

    Attributes:
        saw, unseen: Reference models per sample that saw it, and that did not.
        scores: Whether it needs more than labels.
        learned: Whether it learns from non-members.
        default: Whether it is run on a model that gives scores without being asked for.
    """

    run: Callable[[Evidence], Array]
    saw: int = 0
    unseen: int = 0
    scores: bool = True
    learned: bool = False
    default: bool = True


def _loss(e: Evidence) -> Array:
    assert e.phi is not None
    return loss_threshold(e.phi)


def _quantile(e: Evidence) -> Array:
    assert e.phi is not None
    return quantile_scores(e.x, e.y, e.phi, e.chosen_on, seed=e.seed)


def _rmia_offline(e: Evidence) -> Array:
    population = rmia_log_ratio(*e.both(), a=_A)[e.chosen_on]
    return rmia_offline(*e.both(), population, a=_A)


def _rmia_online(e: Evidence) -> Array:
    return rmia_online(*e.both(), rmia_log_ratio(*e.both())[e.chosen_on])


def _kept_labels(e: Evidence) -> Array:
    def part(rows: slice) -> Array:
        x, y = (torch.from_numpy(side[rows]).to(e.place) for side in (e.x, e.y))
        ids = torch.arange(rows.start, rows.start + len(y))
        streams = Streams(Streams.derive(e.seed, "membership/nearby", ids).keys.to(e.place))
        return kept_labels(e.model, x, y, e.model.inputs, streams, queries=e.queries).cpu().numpy()

    with e.model.ready(e.place), seeded(e.place, e.seed, "membership"), torch.no_grad():
        parts = [part(rows) for rows in slices(len(e.x), e.batch_size)]
    return np.concatenate(parts).astype(np.float64)


_ATTACKS: dict[str, _Kind] = {
    "gap": _Kind(lambda e: gap(e.correct), scores=False),
    "kept-labels": _Kind(_kept_labels, scores=False, default=False),
    "loss": _Kind(_loss),
    "quantile": _Kind(_quantile, learned=True),
    "calibrated-loss": _Kind(lambda e: calibrated_loss(*e.both()), unseen=1),
    "rmia-offline": _Kind(_rmia_offline, unseen=1),
    "rmia-online": _Kind(_rmia_online, saw=1, unseen=1),
    "lira-offline": _Kind(lambda e: lira_offline(*e.both()), unseen=1),
    "lira-online": _Kind(lambda e: lira_online(*e.both()), saw=2, unseen=2),
}


def audit_membership(
    model: Model | nn.Module,
    members: Any,
    non_members: Any,
    *,
    references: References | None = None,
    attacks: Sequence[str] | None = None,
    fprs: Sequence[float] = (0.01, 0.001),
    confidence: float = 0.95,
    queries: int = 33,
    inputs: InputSpec | None = None,
    batch_size: int = 512,
    seed: int = 0,
    device: str = "auto",
) -> MembershipAudit:
    """Find out how well an attacker tells samples that a model was trained on from others.

    Args:
        model: The target.
        members: What it was trained on, (x, y), or a random part of that. Samples that were held out to
            choose the epoch are not members.
        non_members: Samples (x, y) of the same distribution that played no part in training. Half of them
            are used to choose thresholds, so that 200 resolve a false positive rate of 1 %.
        references: From `train_references`, for these members and non-members; None for attacks without.
        attacks: Their names; None for all that are possible. "kept-labels" is run on models that give
            scores only if it is named.
        fprs: False positive rates at which to say how many members are found.
        confidence: Of the intervals.
        queries: Questions per sample of "kept-labels".
        inputs: The input space of a bare module.
        batch_size: Samples per forward pass.
        seed: Decides halves and noise.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: for something that cannot be used.
    """
    place = pick_device(device)
    if not isinstance(model, Model):
        model = wrapped(model, collected(members, np.dtype("float32"))[0], inputs)
    own, others = (
        as_dataset(side, model.inputs, model.classes, name)
        for side, name in ((members, "members"), (non_members, "non_members"))
    )
    _check(fprs, confidence, batch_size, seed, references, len(own) + len(others))
    subjects = subjects_of(own, others, seed)
    evidence = gather(model, own, others, subjects, references, queries, batch_size, seed, place)
    chosen, left_out = _choose(evidence, attacks)
    control = None
    if evidence.references is not None and evidence.inside is not None:
        hard = exposure(evidence.references, evidence.inside)
        control = _control(evidence.references, evidence.inside, subjects, confidence)
        subjects = replace(subjects, exposure=hard)
    scores = {name: _ATTACKS[name].run(evidence) for name in chosen}
    count = 0 if references is None else len(references)
    results = tuple(
        judge(name, scores[name], subjects, fprs=fprs, confidence=confidence, **_about(name, count, evidence))
        for name in chosen
    )
    learned = {name for name in chosen if _ATTACKS[name].learned}
    kept = np.concatenate([subjects.chosen_on, subjects.reported_on])
    return MembershipAudit(
        tier=_tier(count),
        references=count,
        members=len(subjects.members),
        non_members=len(kept),
        duplicates=len(others) - len(kept),
        member_accuracy=_share(evidence.correct[subjects.members], confidence),
        non_member_accuracy=_share(evidence.correct[kept], confidence),
        confidence=confidence,
        results=results,
        strongest=strongest(scores, subjects, results, learned),
        left_out=tuple(left_out),
        control=control,
        seed=seed,
    )


def _tier(count: int) -> str:
    return "quick" if not count else "few" if count <= _FEW else "many"


def _about(name: str, count: int, evidence: Evidence) -> dict[str, Any]:
    kind = _ATTACKS[name]
    used = count if kind.unseen else 0
    note = None
    saw, unseen = evidence.sides()
    if name.startswith("lira") and min(saw if kind.saw else unseen, unseen) < FEW:
        note = f"all samples share one variance: a sample has fewer than {FEW} reference models on a side"
    if kind.learned:
        note = "learned from the non-members that thresholds are chosen on; reported on the others alone"
    return {
        "learned": kind.learned,
        "tier": _tier(used),
        "references": used,
        "queries": evidence.queries if name == "kept-labels" else 1,
        "note": note,
    }


def _check(
    fprs: Sequence[float],
    confidence: float,
    batch_size: int,
    seed: int,
    references: References | None,
    samples: int,
) -> None:
    for fpr in fprs:
        if not 0 < fpr < 1:
            raise InputError(f"fprs holds {brief(fpr)}, which is not between 0 and 1")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={brief(confidence)} is not between 0 and 1")
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={brief(value)} is not a whole number of at least {least}")
    if references is not None and references.inside.shape[1] != samples:
        raise InputError(
            f"references are about {references.inside.shape[1]} samples; "
            f"members and non_members are {samples}: give both as they were given to train_references"
        )


def _choose(evidence: Evidence, wanted: Sequence[str] | None) -> tuple[list[str], list[tuple[str, str]]]:
    """The attacks to run, and those that are left out with the reason.

    Raises:
        InputError: for an unknown name, or an attack that was asked for and is not possible.
    """
    for name in wanted or ():
        if name not in _ATTACKS:
            raise InputError(f"attacks names {brief(name)}{suggest(str(name), _ATTACKS)}")
    if wanted is not None and not wanted:
        raise InputError("attacks is empty; name at least one, or leave it out for all of them")
    chosen, left_out = [], []
    for name, kind in _ATTACKS.items():
        if wanted is not None and name not in wanted:
            continue
        reason = _obstacle(evidence, kind)
        if reason is None and wanted is None and not kind.default and evidence.phi is not None:
            reason = f"{evidence.queries} questions per sample; name it to have it run"
        elif reason is not None and wanted is not None:
            raise InputError(f"attacks names {name!r}, which is not possible: {reason}")
        if reason is None:
            chosen.append(name)
        else:
            left_out.append((name, reason))
    return chosen, left_out


def _obstacle(evidence: Evidence, kind: _Kind) -> str | None:
    saw, unseen = evidence.sides()
    if kind.scores and evidence.phi is None:
        return "the model answers with labels alone"
    if unseen < kind.unseen or saw < kind.saw:
        need = " and ".join(
            f"{count} reference model{'s' * (count > 1)} that {what}"
            for count, what in ((kind.saw, "saw it"), (kind.unseen, "never saw it"))
            if count
        )
        return f"needs for each sample {need}"
    if kind.learned and len(evidence.chosen_on) < _LEAST_TO_LEARN:
        return f"{len(evidence.chosen_on)} non-members to learn from; {_LEAST_TO_LEARN} are needed"
    return None


def _control(references: Array, inside: Array, subjects: Subjects, confidence: float) -> Limits | None:
    """How well models that saw none of the samples tell the two sets apart."""
    unseen = np.where(inside, 0.0, references).sum(0) / (~inside).sum(0)
    others = np.concatenate([subjects.chosen_on, subjects.reported_on])
    return auc(unseen[subjects.members], unseen[others], confidence)


def _share(correct: Array, confidence: float) -> Proportion:
    return proportion(int(correct.sum()), len(correct), confidence)
