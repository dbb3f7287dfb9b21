"""Mislabelled canaries in a run of training: an audit that sees no more than the trained model's answers.

A canary is a sample with a wrong label, which nothing but having seen it can teach. Half of them, by coins,
are trained on. How sure the model is of a canary's wrong label tells whether it was.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..attacks.audit import AuditedEpsilon, fdp_one_run, many_runs, one_run
from ..attacks.membership import confidence_logit
from ..classifier import Classifier
from ..data import Dataset, choose
from ..defenses.privacy import DifferentialPrivacy, Guarantee
from ..defenses.training import Objective, Term, harden
from ..errors import InputError, brief
from ..inputs import InputSpec
from .admitting import admitted

__all__ = ["CanaryAudit", "audit_by_many_runs", "audit_with_canaries"]

Array = np.ndarray[Any, Any]

_BATCH = 512
_LEAST_RUNS = 16


@dataclass(frozen=True)
class CanaryAudit:
    """What mislabelled canaries show of a run.

    Attributes:
        epsilon: A lower bound without assumptions on the training.
        gaussian: A lower bound that assumes a Gaussian trade-off, which training without noise is not: of
            that, it says how little privacy there is in a figure that can be compared, and bounds nothing.
        accounted: What the accountant says of the same run; None for a plain one.
        learned: Of the canaries that were trained on, the share whose wrong label the model has learned.
        unseen: The same of the others.
        seconds: Of the whole.
    """

    epsilon: AuditedEpsilon
    gaussian: AuditedEpsilon
    accounted: Guarantee | None
    learned: float
    unseen: float
    seconds: float


def audit_with_canaries(
    model: nn.Module | Classifier,
    data: Any,
    *,
    canaries: int = 1000,
    privacy: DifferentialPrivacy | None = None,
    objective: Objective | None = None,
    terms: Sequence[Term] = (),
    inputs: InputSpec | None = None,
    delta: float = 1e-5,
    confidence: float = 0.95,
    seed: int = 0,
    **settings: Any,
) -> CanaryAudit:
    """Train a copy of a model with mislabelled canaries, and bound epsilon by its answers alone.

    Private training hardly ever shows anything here: phantom canaries (`audit_training`) see more. What it
    is good for is training without noise, and training that nobody can look into.

    Args:
        model: A `Classifier`, or a module whose input space and classes are inferred; it is left as it is.
        data: A pair (x, y), or a `Dataset`, with more samples than there are canaries.
        canaries: How many samples get a wrong label; each is trained on if its coin says so, and the rest of
            the data is trained on as it is.
        privacy, objective, terms, inputs: As for `harden`.
        delta: Of the bound; that of `privacy` where it is given.
        confidence: The least share of audits whose bound holds.
        seed: Of the choice of canaries, their labels, the coins, and the run.
        settings: Other settings of `harden`.

    Raises:
        InputError: for something that cannot be used.
        RunError: if the run fails.
    """
    begun = time.perf_counter()
    model, known = admitted(model, data, inputs, settings)
    if isinstance(canaries, bool) or not isinstance(canaries, int) or not 2 <= canaries < len(known):
        raise InputError(
            f"canaries={brief(canaries)} is not a whole number from 2 to one below the {len(known)} samples"
        )
    rows, labels, included = _planted(known, model.classes, canaries, seed)
    if included.all() or not included.any():
        raise InputError(
            f"canaries={canaries}: all coins of seed {seed} fell on one side; give more, or another"
        )
    rest = np.setdiff1d(np.arange(len(known)), rows)
    x = np.concatenate([known.x[rest], known.x[rows[included]]])
    y = np.concatenate([known.y[rest], labels[included]])
    done = harden(
        copy.deepcopy(model),
        (x, y),
        objective=objective,
        terms=terms,
        privacy=privacy,
        validation=None,
        seed=seed,
        **settings,
    )
    logits = _answers(done.model, known.x[rows])
    scores = confidence_logit(logits, labels)
    right = logits.argmax(1) == labels
    wanted = delta if privacy is None else privacy.delta
    return CanaryAudit(
        one_run(scores, included, delta=wanted, confidence=confidence),
        fdp_one_run(scores, included, delta=wanted, confidence=confidence),
        done.privacy,
        float(right[included].mean()),
        float(right[~included].mean()),
        round(time.perf_counter() - begun, 3),
    )


def audit_by_many_runs(
    model: nn.Module | Classifier,
    data: Any,
    *,
    runs: int,
    privacy: DifferentialPrivacy | None = None,
    objective: Objective | None = None,
    terms: Sequence[Term] = (),
    inputs: InputSpec | None = None,
    gaussian: bool = False,
    delta: float = 1e-5,
    confidence: float = 0.95,
    seed: int = 0,
    **settings: Any,
) -> AuditedEpsilon:
    """Train many copies of a model, half of them with one mislabelled sample, and tell them apart.

    For those who have the budget: `runs` trainings show ln(runs / 15) at most without an assumption, since
    half of them serve to find the threshold, and half of the rest have no canary. The canary is one sample
    of the data with a wrong label; copies start from the same weights and differ by it, by their seeds, and
    by their noise.

    Args:
        model, data, privacy, objective, terms, inputs, delta, settings: As for `audit_with_canaries`.
        runs: How many trainings, 16 at least; every other one has the canary.
        gaussian: Whether to assume a Gaussian trade-off, which shows more.
        confidence: The least share of audits whose bound holds.
        seed: Of the choice of the canary and of the runs. A seed of `privacy` is moved on with each run.

    Raises:
        InputError: for something that cannot be used.
        RunError: if a run fails.
    """
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < _LEAST_RUNS:
        raise InputError(f"runs={brief(runs)} is not a whole number of at least {_LEAST_RUNS}")
    model, known = admitted(model, data, inputs, settings)
    rows, labels, _ = _planted(known, model.classes, 1, seed)
    rest = np.setdiff1d(np.arange(len(known)), rows)
    included = np.arange(runs) % 2 == 0
    scores = np.empty(runs)
    for run in range(runs):
        own = privacy
        if privacy is not None and privacy.seed is not None:
            own = dataclasses.replace(privacy, seed=privacy.seed + run)
        x, y = known.x[rest], known.y[rest]
        if included[run]:
            x, y = np.concatenate([x, known.x[rows]]), np.concatenate([y, labels])
        done = harden(
            copy.deepcopy(model),
            (x, y),
            objective=objective,
            terms=terms,
            privacy=own,
            validation=None,
            seed=seed + run,
            **settings,
        )
        scores[run] = confidence_logit(_answers(done.model, known.x[rows]), labels)[0]
    wanted = delta if privacy is None else privacy.delta
    return many_runs(scores, included, delta=wanted, confidence=confidence, gaussian=gaussian)


def _planted(known: Dataset, classes: int, canaries: int, seed: int) -> tuple[Array, Array, Array]:
    """Which rows are canaries, what their wrong labels are, and which of them are trained on."""
    rows = choose(known.y, canaries, "stratified", seed)
    rng = np.random.default_rng([seed, 3])
    labels = (known.y[rows] + rng.integers(1, classes, canaries)) % classes
    included = rng.random(canaries) < 0.5
    return rows, labels, included


def _answers(model: Classifier, x: Array) -> Array:
    """Logits in float64 (n, classes)."""
    home = next(model.parameters()).device
    parts = torch.split(torch.from_numpy(x), _BATCH)
    with torch.no_grad():
        return np.concatenate([model(part.to(home)).double().cpu().numpy() for part in parts])
