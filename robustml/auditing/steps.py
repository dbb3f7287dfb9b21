"""The parts of an audit that ask the model: clean accuracy, membership, and other leaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..attacks.leakage import attribute_test, extraction_test, inversion_test
from ..data import Dataset
from ..errors import InputError
from ..estimates import proportion
from ..losses import is_wrong
from ..registry import Access
from ..report.parts import ClassResult, Clean
from ..report.privacy_parts import Undone
from ..sampling import seeded
from ..wrapping import pick_device
from .converting import accounted_of, attribute_of, extraction_of, inversion_of, membership_of, sure
from .job import Job
from .membership import MembershipAudit, audit_membership
from .references import References, train_references

__all__ = ["attribute", "claimed", "clean", "extraction", "inversion", "membership", "membership_audit"]

Fields = Mapping[str, Any]

_BATCH = 512
_BUDGETS = (100, 500)
_FEWEST = 20  # rows to copy a model from, and as many to compare the copy on


def clean(job: Job) -> Fields:
    """Accuracy on the test data, in all and per class."""
    data, place = job.non_members, pick_device(job.device)
    model = job.model
    with model.ready(place), seeded(place, job.seed, "audit/clean"), torch.no_grad():
        wrong = [
            is_wrong(model(x.to(place)).cpu(), y)
            for x, y in zip(
                *(torch.split(torch.from_numpy(part), _BATCH) for part in (data.x, data.y)), strict=True
            )
        ]
    right = ~torch.cat(wrong).numpy()
    rows = [
        ClassResult(
            label=label,
            name=name,
            total=int((data.y == label).sum()),
            correct=int(right[data.y == label].sum()),
        )
        for label, name in enumerate(job.target.class_names)
        if (data.y == label).any()
    ]
    accuracy = sure(proportion(int(right.sum()), len(right), job.confidence), job.confidence)
    return {"clean": Clean(accuracy=accuracy, per_class=rows)}


def claimed(job: Job) -> Fields:
    """What the file of the weights says of how they were trained."""
    claim = job.target.claim
    if claim is None:
        return {}
    return {"accounted": accounted_of(claim, "its own claim")}


def membership(job: Job) -> Fields:
    """Membership inference, with reference models if there are to be any."""
    found = membership_audit(job)
    undone = [Undone(part=name, reason=reason, asked=False) for name, reason in found.left_out]
    return {"membership": membership_of(found), "undone": undone}


def membership_audit(job: Job) -> MembershipAudit:
    """The same, as it is returned."""
    return audit_membership(
        job.model,
        job.members,
        job.others,
        references=_references(job),
        confidence=job.confidence,
        seed=job.seed,
        device=job.device,
    )


def _references(job: Job) -> References | None:
    count = job.table.reference_count
    if not count:
        return None
    job.say(f"reference models: {count} by the recipe {job.recipe.name if job.recipe else ''}")
    return train_references(
        job.build,
        job.members,
        job.others,
        count=count,
        common=job.common,
        out=job.out / "privacy" / "references",
        seed=job.seed,
        device=job.device,
        on_model=lambda done, of: job.say(f"reference models: {done} of {of}"),
        **job.training,
    )


def inversion(job: Job) -> Fields:
    """Reconstructions of the classes."""
    if job.model.access is Access.DECISION:
        return _undone("inversion", "the model gives labels only")
    try:
        found = inversion_test(
            job.model,
            job.members,
            job.strangers,
            seed=job.seed,
            device=job.device,
            confidence=job.confidence,
        )
    except InputError as error:
        return _undone("inversion", str(error))
    return {"inversion": inversion_of(found)}


def extraction(job: Job) -> Fields:
    """Copies of the model, made by somebody who has data of the same kind but none of the members."""
    pool, held_out = _halves(job)
    if min(len(pool), len(held_out)) < _FEWEST:
        return _undone("extraction", f"{len(job.strangers)} non-members are too few to copy it from")
    found = extraction_test(
        job.model,
        pool,
        held_out,
        budgets=sorted({min(budget, len(pool)) for budget in _BUDGETS}),
        threat=None,
        seed=job.seed,
        device=job.device,
        confidence=job.confidence,
    )
    return {"extraction": extraction_of(found, job.confidence)}


def _halves(job: Job) -> tuple[Dataset, Dataset]:
    """What the thief has, and what the copy is compared on, none of which equals any of the former."""
    data = job.strangers
    rows = np.random.default_rng([job.seed, 3]).permutation(len(data))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    known = {data.x[row].tobytes() for row in first}
    second = np.array([row for row in second if data.x[row].tobytes() not in known], dtype=np.int64)
    pool, held_out = (Dataset(data.x[part], data.y[part], data.name) for part in (first, second))
    return pool, held_out


def attribute(job: Job) -> Fields:
    """One feature of a record from the others.

    Raises:
        InputError: if there is no such feature, or the data are too few to learn from.
    """
    assert job.feature is not None
    found = attribute_test(
        job.model,
        job.members,
        job.strangers,
        feature=job.feature,
        seed=job.seed,
        device=job.device,
        confidence=job.confidence,
    )
    return {"attribute": attribute_of(found, job.confidence)}


def _undone(part: str, reason: str) -> Fields:
    return {"undone": [Undone(part=part, reason=reason, asked=False)]}
