"""What membership inference works on: the answers of the target and of the references, asked once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..attacks.membership import Subjects, confidence_logit
from ..attacks.membership.signals import Array
from ..classifier import Model
from ..data import Dataset
from ..errors import InputError
from ..losses import is_wrong
from ..registry import Access
from ..sampling import seeded
from .references import References

__all__ = ["Evidence", "gather", "slices", "subjects_of"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What attacks work on: rows are members first, then non-members."""

    model: Model
    x: Array
    y: Array
    phi: Array | None
    correct: Array
    references: Array | None
    inside: Array | None
    chosen_on: Array
    queries: int
    batch_size: int
    seed: int
    place: torch.device

    def sides(self) -> tuple[int, int]:
        """The fewest reference models that saw a sample, and that did not."""
        if self.inside is None:
            return 0, 0
        count = self.inside.sum(0)
        return int(count.min()), int(len(self.inside) - count.max())

    def both(self) -> tuple[Array, Array, Array]:
        assert self.phi is not None and self.references is not None and self.inside is not None
        return self.phi, self.references, self.inside


def _digests(data: Dataset) -> Iterator[bytes]:
    for row, label in zip(data.x, data.y, strict=True):
        # Zeros of either sign are one number.
        value = (row + 0.0).tobytes() + int(label).to_bytes(8, "little")
        yield hashlib.blake2b(value, digest_size=16).digest()


def subjects_of(own: Dataset, others: Dataset, seed: int) -> Subjects:
    """Members, and two random halves of the non-members, without what is on both sides, label included.

    Left out on one side only, records that repeat by nature would be rarer there, which attacks could see.

    Raises:
        InputError: if no member is left, or fewer than 2 non-members are.
    """
    inside, outside = list(_digests(own)), list(_digests(others))
    members, rows = (
        np.flatnonzero([digest not in met for digest in side])
        for side, met in ((inside, set(outside)), (outside, set(inside)))
    )
    if not len(members) or len(rows) < 2:
        raise InputError(
            f"non_members has {len(rows)} samples that are no members, and members {len(members)} that are "
            "no non-members; give at least 2 and 1"
        )
    rows = len(own) + np.random.default_rng([seed, 1]).permutation(rows)
    chosen_on, reported_on = np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])
    return Subjects(members, chosen_on, reported_on, np.concatenate([own.y, others.y]))


def gather(
    model: Model,
    own: Dataset,
    others: Dataset,
    subjects: Subjects,
    references: References | None,
    queries: int,
    batch_size: int,
    seed: int,
    place: torch.device,
) -> Evidence:
    """Ask the target and the references about every sample."""
    x = np.concatenate([own.x, others.x])
    logits = _answers(model, x, batch_size, seed, place)
    correct = ~is_wrong(torch.from_numpy(logits), torch.from_numpy(subjects.y)).numpy()
    phi = None if model.access is Access.DECISION else confidence_logit(logits, subjects.y)
    known = None
    if references is not None and phi is not None:
        answers = (_answers(reference, x, batch_size, seed, place) for reference in references.models)
        known = np.stack([confidence_logit(answer, subjects.y) for answer in answers])
    return Evidence(
        model=model,
        x=x,
        y=subjects.y,
        phi=phi,
        correct=correct,
        references=known,
        inside=None if known is None or references is None else references.inside,
        chosen_on=subjects.chosen_on,
        queries=queries,
        batch_size=batch_size,
        seed=seed,
        place=place,
    )


def _answers(model: Model, x: Array, batch_size: int, seed: int, place: torch.device) -> Array:
    with model.ready(place), seeded(place, seed, "membership"), torch.no_grad():
        parts = [model(torch.from_numpy(x[rows]).to(place)).cpu() for rows in slices(len(x), batch_size)]
    answers: Array = torch.cat(parts).numpy()
    return answers


def slices(n: int, size: int) -> list[slice]:
    """Rows from 0 to n in pieces."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
