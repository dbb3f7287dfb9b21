"""An audit as a job: what is to be done, and what is finished, part by part in its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from ..classifier import Classifier, Model
from ..data import Dataset
from ..defenses.privacy import DifferentialPrivacy
from ..defenses.training.recipe import Recipe, arguments_of, load_recipe
from ..defenses.training.renewing import renewed
from ..errors import InputError
from ..files import read_object, write_atomic, writing
from ..guarded import Guarded
from ..report.membership_parts import Membership
from ..report.parts import Clean
from ..report.privacy_parts import (
    Accounted,
    Attribute,
    AuditedEpsilon,
    Conformance,
    Extraction,
    Inversion,
    Ladder,
    Undone,
)
from ..schema import Frozen, validated
from ..targets import Target
from ..targets.privacy import PrivacyTable

__all__ = ["PLAN", "AuditPlan", "Finding", "Job", "read_plan"]

PLAN = "audit.json"
PARTS = "privacy"


class AuditPlan(Frozen):
    """Everything that decides what an audit finds, but for noise from the operating system."""

    schema_: Literal["robustml.audit/1"] = Field(default="robustml.audit/1", alias="schema")
    target: str
    model_sha256: str | None
    data_sha256: str
    """Of the non-members. One of the members would let anybody check a guess at them."""
    members: int
    table: PrivacyTable
    threat: str | None
    """What adversarial recipes train against."""
    recipe_sha256: str | None
    seed: int
    confidence: float = Field(gt=0, lt=1)


class Finding(Frozen):
    """What one part of an audit found."""

    part: str
    seconds: float = Field(ge=0)
    clean: Clean | None = None
    membership: Membership | None = None
    inversion: Inversion | None = None
    attribute: Attribute | None = None
    extraction: Extraction | None = None
    loop: Conformance | None = None
    conformance: Conformance | None = None
    ladder: Ladder | None = None
    accounted: Accounted | None = None
    rerun: Accounted | None = None
    audits: list[AuditedEpsilon] = []
    undone: list[Undone] = []


@dataclass(frozen=True)
class Job:
    """What every part works on.

    Attributes:
        target: With `privacy` and `train`.
        out: The run folder.
        device: "auto", "cpu", "cuda", ...
        confidence: Of every interval.
        say: Told of the progress.
    """

    target: Target
    out: Path
    device: str
    confidence: float
    say: Callable[[str], None]

    @property
    def table(self) -> PrivacyTable:
        assert self.target.privacy is not None
        return self.target.privacy

    @property
    def model(self) -> Model:
        return self.target.model

    @property
    def seed(self) -> int:
        return self.target.seed

    @cached_property
    def members(self) -> Dataset:
        """All members, or as many as are to be asked about, drawn at random."""
        return self.train if self._asked.all() else self._part(self._asked)

    @cached_property
    def common(self) -> Dataset | None:
        """The members that are not asked about, which every reference model is trained on; None for none."""
        return None if self._asked.all() else self._part(~self._asked)

    def _part(self, rows: np.ndarray[Any, Any]) -> Dataset:
        return Dataset(self.train.x[rows], self.train.y[rows], self.train.name)

    @cached_property
    def _asked(self) -> np.ndarray[Any, Any]:
        """Which members are asked about, bool (n,)."""
        count = len(self.train)
        asked = np.zeros(count, dtype=bool)
        drawn = np.random.default_rng([self.seed, 2]).permutation(count)
        asked[drawn[: self.table.members or count]] = True
        return asked

    @property
    def train(self) -> Dataset:
        """All members, which models that are trained again learn from."""
        assert self.target.train is not None
        return self.target.train

    @property
    def non_members(self) -> Dataset:
        return self.target.data

    @property
    def feature(self) -> int | str | None:
        """The feature to infer, by its name or, where features have none, by its index."""
        asked = self.table.attribute
        return (
            int(asked)
            if asked is not None and not self.model.inputs.features and asked.isdecimal()
            else asked
        )

    @property
    def others(self) -> Dataset:
        """The non-members that membership inference asks about; it leaves out members' equals itself."""
        return self.non_members if self.train is self.members else self.strangers

    @cached_property
    def strangers(self) -> Dataset:
        """The non-members that equal no member."""
        data = self.target.data
        known = {row.tobytes() for row in self.train.x}
        rows = np.flatnonzero([row.tobytes() not in known for row in data.x])
        return data if len(rows) == len(data) else Dataset(data.x[rows], data.y[rows], data.name)

    @cached_property
    def recipe(self) -> Recipe | None:
        return None if self.table.recipe is None else load_recipe(self.table.recipe)

    @cached_property
    def training(self) -> dict[str, Any]:
        """What the recipe gives `harden`, privacy included.

        Raises:
            InputError: if the recipe cannot be used for what an audit trains.
        """
        assert self.recipe is not None
        if self.recipe.teacher is not None:
            raise InputError(
                f"recipe {self.recipe.name!r} trains a teacher first, which an audit cannot do; "
                "without a recipe, what needs no training is audited"
            )
        threat = self.target.threats[0] if self.target.threats else None
        return arguments_of(self.recipe, threat=threat)

    @property
    def privacy(self) -> DifferentialPrivacy | None:
        """Of the recipe, where it is private."""
        found: DifferentialPrivacy | None = self.training.get("privacy") if self.recipe is not None else None
        return found

    @cached_property
    def base(self) -> Classifier:
        """What can be trained of the model, without its guards.

        Raises:
            InputError: for a black box.
        """
        model = self.model.bare if isinstance(self.model, Guarded) else self.model
        if not isinstance(model, Classifier):
            raise InputError(
                f"target {self.target.name!r} is a black box, of which no other can be trained: "
                "leave the recipe out"
            )
        return model

    def build(self) -> Classifier:
        """The network as it was before training; random numbers come from torch."""
        if self.target.build is None:
            return renewed(self.base, None)
        module: nn.Module = self.target.build()
        own = self.base
        return Classifier(module, inputs=own.inputs, classes=own.classes, outputs=own.outputs)

    def plan(self) -> AuditPlan:
        """What is done, as it is written down."""
        import hashlib

        recipe = self.recipe
        text = None if recipe is None else recipe.model_dump_json(by_alias=True).encode()
        return AuditPlan(
            target=self.target.name,
            model_sha256=self.model.fingerprint(),
            data_sha256=self.non_members.sha256,
            members=len(self.members),
            table=self.table,
            threat=self.target.threats[0].name if self.target.threats else None,
            recipe_sha256=None if text is None else hashlib.sha256(text).hexdigest(),
            seed=self.seed,
            confidence=self.confidence,
        )

    def open(self, *, resume: bool) -> None:
        """Begin, or make sure that what is in the folder is a part of the same audit.

        Raises:
            InputError: if it is of another one.
            RunError: if the folder cannot be written.
        """
        path, now = self.out / PLAN, self.plan()
        if path.is_file():
            before = read_plan(self.out)
            for name in AuditPlan.model_fields:
                if getattr(before, name) != getattr(now, name):
                    raise InputError(
                        f"{str(self.out)!r} cannot be resumed: the {name} of its audit is not the same as now"
                    )
            if not resume:
                raise InputError(f"{str(self.out)!r} holds an audit; choose another folder or resume it")
            return
        with writing(self.out):
            (self.out / PARTS).mkdir(parents=True, exist_ok=True)
        write_atomic(path, now.model_dump_json(by_alias=True, indent=1) + "\n")

    def finished(self, part: str) -> Finding | None:
        """What a part found, if it was finished before.

        Raises:
            InputError: if its file is damaged.
        """
        path = self.out / PARTS / f"{part}.json"
        if not path.is_file():
            return None
        return validated(Finding, read_object(path), where=str(path))

    def keep(self, finding: Finding) -> None:
        """Write down what a part found: it then counts as finished."""
        path = self.out / PARTS / f"{finding.part}.json"
        write_atomic(path, finding.model_dump_json(indent=1) + "\n")


def read_plan(folder: Path) -> AuditPlan:
    """The plan of the audit in a run folder.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path = folder / PLAN
    return validated(AuditPlan, read_object(path), where=str(path))
