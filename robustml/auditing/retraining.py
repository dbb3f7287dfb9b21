"""The parts of an audit that train models by the recipe: the loop, its run with canaries, the ladder."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import InputError
from ..report.privacy_parts import Undone
from .canaries import audit_by_many_runs, audit_with_canaries
from .converting import accounted_of, audited_of, conformance_of, ladder_of
from .job import Job
from .ladder import ladder
from .phantoms import audit_training
from .steps import Fields

__all__ = ["canaries", "loop", "phantoms", "rungs", "runs"]

_PHANTOMS, _CANARIES = 1000, 500
_SHARP = 0.3
_SHARE = 3  # of this many samples, at most one becomes a mislabelled canary
_GAUSSIAN = "that training is a Gaussian mechanism, with a trade-off to match"


def _objective(job: Job) -> dict[str, Any]:
    return {name: job.training[name] for name in ("objective", "terms")}


def _settings(job: Job) -> dict[str, Any]:
    """What the recipe gives `harden` beside privacy, objective and what decides which epoch is kept."""
    hidden = {"privacy", "objective", "terms", "keep", "patience"}
    return {name: value for name, value in job.training.items() if name not in hidden}


def loop(job: Job) -> Fields:
    """The conformance test of the training loop with the recipe's objective: short, and with sharp eyes."""
    assert job.privacy is not None
    job.say("conformance test of the training loop")
    found = audit_training(
        _fresh(job),
        (job.train.x, job.train.y),
        # The recipe's own clipping and gradients, but so little noise that every fault would show.
        privacy=dataclasses.replace(job.privacy, epsilon=None, max_epsilon=None, noise_multiplier=_SHARP),
        seed=job.seed,
        device=job.device,
        **_objective(job),
    )
    return {"loop": conformance_of(found.conformance)}


def phantoms(job: Job) -> Fields:
    """A run by the recipe with phantom canaries among its samples: epsilon from below, and conformance."""
    privacy = job.privacy
    assert privacy is not None
    canaries = _PHANTOMS if job.table.canaries is None else job.table.canaries
    job.say(f"a run by the recipe with {canaries} phantom canaries")
    found = audit_training(
        _fresh(job),
        (job.train.x, job.train.y),
        privacy=privacy,
        canaries=canaries,
        samples=None,
        seed=job.seed,
        device=job.device,
        **_objective(job),
        **_settings(job),
    )
    claim = accounted_of(found.accounted.to_dict(), "the run by the recipe, canaries included")
    bounds = [
        audited_of(
            found.epsilon, runs=1, method="phantom canaries, one run, white box", accounted=claim.epsilon
        ),
        audited_of(
            found.gaussian,
            runs=1,
            method="phantom canaries, one run, white box, by f-DP",
            accounted=claim.epsilon,
            assumes=_GAUSSIAN,
        ),
    ]
    return {"rerun": claim, "audits": bounds, "conformance": conformance_of(found.conformance)}


def canaries(job: Job) -> Fields:
    """A run by the recipe in which some samples have wrong labels: epsilon from below, by answers alone."""
    wanted = _CANARIES if job.table.canaries is None else job.table.canaries
    number = max(2, min(wanted, len(job.train) // _SHARE))
    job.say(f"a run by the recipe with {number} mislabelled canaries")
    found = audit_with_canaries(
        _fresh(job),
        (job.train.x, job.train.y),
        canaries=number,
        privacy=job.privacy,
        delta=job.table.delta,
        confidence=job.confidence,
        seed=job.seed,
        device=job.device,
        **_objective(job),
        **_settings(job),
    )
    method = "mislabelled canaries, one run, black box"
    upper = None if found.accounted is None else found.accounted.epsilon
    return {"audits": [audited_of(found.epsilon, runs=1, method=method, accounted=upper)]}


def runs(job: Job) -> Fields:
    """Many trainings by the recipe, half of them with one mislabelled sample: epsilon from below."""
    assert job.table.runs is not None
    job.say(f"{job.table.runs} runs by the recipe, every other one with a canary")
    found = audit_by_many_runs(
        _fresh(job),
        (job.train.x, job.train.y),
        runs=job.table.runs,
        privacy=job.privacy,
        delta=job.table.delta,
        confidence=job.confidence,
        seed=job.seed,
        device=job.device,
        **_objective(job),
        **_settings(job),
    )
    # What is spent is what was asked for, where that was an epsilon and no noise.
    upper = None if job.privacy is None else job.privacy.epsilon
    method = "one mislabelled canary, many runs, black box"
    bound = audited_of(found, runs=job.table.runs, method=method, accounted=upper)
    return {"audits": [bound.model_copy(update={"canaries": 1})]}


def rungs(job: Job) -> Fields:
    """The ladder: plain, clipped, clipped and noised."""
    privacy = job.privacy
    assert privacy is not None
    job.say("the ladder: three models by the recipe, private, clipped and plain")
    try:
        found = ladder(
            job.build,
            job.train,
            job.non_members,
            privacy=privacy,
            seed=job.seed,
            device=job.device,
            confidence=job.confidence,
            **_objective(job),
            **_settings(job),
        )
    except InputError as error:
        return {"undone": [Undone(part="ladder", reason=str(error), asked=True)]}
    return {"ladder": ladder_of(found, job.confidence)}


def _fresh(job: Job) -> Any:
    import torch

    from ..sampling import seeded

    with seeded(torch.device("cpu"), job.seed, "audit"):
        return job.build()
