"""The report: what a stress test measured, as data.

`report.json` is exactly this, and every renderer draws from it alone.

Fractions are in [0, 1]; scores are in [0, 100]. A figure that was not measured is None, never a guess.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..errors import InputError
from ..files import write_atomic
from ..schema import Frozen
from .corruption_parts import CorruptionResult, Corruptions, MeanEstimate, SeverityResult, WorstResult
from .federated import Federated
from .parts import (
    AttackResult,
    Bounds,
    Certificates,
    CertifiedPoint,
    Change,
    ClassResult,
    Clean,
    Condition,
    Count,
    CurvePoint,
    Data,
    Diagnostic,
    Estimate,
    EvidenceFile,
    Fragile,
    Gate,
    Guards,
    ModelInfo,
    Passes,
    Picture,
    Randomized,
    Samples,
    Score,
    Scores,
    TargetInfo,
    ThreatResult,
    Unaware,
    Whole,
)
from .privacy_parts import Privacy

__all__ = [
    "SCHEMA",
    "AttackResult",
    "Bounds",
    "Certificates",
    "CertifiedPoint",
    "Change",
    "ClassResult",
    "Clean",
    "Condition",
    "CorruptionResult",
    "Corruptions",
    "Count",
    "CurvePoint",
    "Data",
    "Diagnostic",
    "Estimate",
    "EvidenceFile",
    "Fragile",
    "Gate",
    "Guards",
    "MeanEstimate",
    "ModelInfo",
    "Passes",
    "Picture",
    "Privacy",
    "Report",
    "Samples",
    "Score",
    "Scores",
    "SeverityResult",
    "TargetInfo",
    "ThreatResult",
    "Unaware",
    "WorstResult",
]

SCHEMA = "robustml.report/1"


class Report(Frozen):
    """The report, schema version 1.

    `print(report)` shows it on a terminal, a notebook shows it as a page, and `save` writes it as JSON,
    HTML, Markdown or JUnit XML. `Report.load` reads the JSON back.
    """

    # `schema` would shadow a pydantic method, hence the alias.
    schema_: Literal["robustml.report/1"] = Field(default="robustml.report/1", alias="schema")
    robustml: str
    created: str
    """UTC, ISO 8601."""
    seconds: float = Field(ge=0)
    """Time spent in the run, over all its sessions and shards."""
    seed: Whole
    confidence: float = Field(gt=0, lt=1)
    suite: str
    command: str
    """What reproduces the run."""
    environment: dict[str, str]
    target: TargetInfo
    goals: list[str] = []
    """What the attacker wants, as in "stop->speed limit 30"; only samples that a goal concerns are in the
    report. Any mistake, if empty."""
    randomness: Randomized | None = None
    """None for a model that answers alike when asked again."""
    guards: Guards | None = None
    """None for a model without guards."""
    certificates: Certificates | None = None
    """None for a model that has none."""
    clean: Clean
    threats: list[ThreatResult]
    corruptions: Corruptions | None = None
    """None when the suite does not ask for it."""
    privacy: Privacy | None = None
    """None when what the model was trained on was not named, or nobody asked."""
    federated: Federated | None = None
    """None for a model that does not come from a federation, or is not said to."""
    scores: Scores
    trusted: bool
    """False when a critical diagnostic failed or when part of the suite did not run."""
    distrust: list[str]
    """Why the report is not trusted, one sentence each."""
    verdict: str
    """The result in one sentence."""
    gate: Gate
    samples: Samples

    def __str__(self) -> str:
        """The terminal card: plain text, 80 columns."""
        from .terminal import card_text

        return card_text(self)

    def __repr__(self) -> str:
        return f"<Report on {self.target.name!r}: {self.verdict!r}>"

    def __rich__(self) -> Any:
        """The terminal card, for a rich console."""
        from .terminal import card

        return card(self)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that a notebook's style and the report's cannot meet."""
        from .html import framed

        return framed(self)

    def to_json(self) -> str:
        """The report as JSON; equal reports give equal bytes."""
        data = self.model_dump(mode="json", by_alias=True)
        # ASCII only: control characters in a name then cannot reach a terminal that the JSON is shown on.
        return json.dumps(data, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """The report as one HTML page that loads nothing and runs nothing."""
        from .html import page

        return page(self)

    def to_markdown(self) -> str:
        """The report in at most 60 lines of Markdown, as for the summary of a CI job."""
        from .markdown import summary

        return summary(self)

    def to_junit(self) -> str:
        """The report as JUnit XML, which CI systems show as test results."""
        from .junit import junit

        return junit(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "report") -> Report:
        """Read a report that `to_json` wrote.

        Args:
            text: The JSON.
            where: What to call it in an error message, as in the path of its file.

        Raises:
            InputError: if it is not a report, or of a schema newer than this one; one line.
        """
        from .reading import read

        return read(text, where=where)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report from its JSON file, or from the run folder that holds it as report.json.

        Raises:
            InputError: if the file cannot be read or is not a report; one line.
        """
        from .reading import load

        return load(path)

    def save(self, path: str | Path) -> None:
        """Write the report in the format that the suffix names: .json, .html, .md, .xml (JUnit) or .txt.

        Raises:
            InputError: for another suffix.
            RunError: if the file cannot be written.
        """
        formats = {
            ".json": self.to_json,
            ".html": self.to_html,
            ".md": self.to_markdown,
            ".xml": self.to_junit,
            ".txt": self.__str__,
        }
        render = formats.get(Path(path).suffix.lower())
        if render is None:
            raise InputError(f"path={str(path)!r} does not end in one of {', '.join(formats)}")
        write_atomic(path, render())

    def save_html(self, path: str | Path) -> None:
        """Write the report as one HTML page, whatever the name of the file.

        Raises:
            RunError: if the file cannot be written.
        """
        write_atomic(path, self.to_html())
