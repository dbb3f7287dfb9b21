"""The section on corruptions as every format shows it."""

from __future__ import annotations

import html
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from robustml.report import Report
from robustml.report.corruption_parts import (
    CorruptionResult,
    Corruptions,
    MeanEstimate,
    SeverityResult,
    WorstResult,
)
from robustml.report.corruptions import weakest
from robustml.report.model import Gate, Passes, Score, Scores
from tests.report.hostile import HOSTILE, names
from tests.report.sample import attack, bare, condition, diagnostic, estimate, report, score, threat


def mean(value: float, half: float = 0.04) -> MeanEstimate:
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return MeanEstimate(value=value, low=low, high=high, confidence=0.95, total=200)


def kind(name: str, accuracies: list[int], **changes: Any) -> CorruptionResult:
    facts: dict[str, Any] = {
        "name": name,
        "group": "weather",
        "status": "ran",
        "severities": [
            SeverityResult(severity=severity, accuracy=estimate(count, 200))
            for severity, count in enumerate(accuracies, 1)
        ],
        "accuracy": mean(sum(accuracies) / 1000) if len(accuracies) == 5 else None,
    }
    return CorruptionResult(**{**facts, **changes})


def section(**changes: Any) -> Corruptions:
    facts: dict[str, Any] = {
        "samples": 200,
        "clean": estimate(182, 200),
        "accuracy": mean(0.751),
        "kinds": [
            kind("fog", [180, 170, 160, 140, 101]),
            kind("snow", [181, 171, 161, 141, 131]),
            kind("jpeg", [180, 179], status="partial", reason="the budget ran out: 3 samples were not seen"),
            kind("saturate", [], status="skipped", reason="it needs 3 channels and the inputs have 1"),
        ],
        "worst": [
            WorstResult(
                name="spatial",
                options={"rotation": 30.0, "translation": 0.1},
                transformations=775,
                status="ran",
                attempted=182,
                broken=80,
                accuracy=estimate(102, 200),
            )
        ],
        "passes": Passes(forward=20_000),
    }
    return Corruptions(**{**facts, **changes})


def corrupted(**changes: Any) -> Report:
    scores = Scores(evasion=score(estimate(137, 380)), corruption=Score(value=75.1, low=71.1, high=79.1))
    return report(**{"corruptions": section(), "scores": scores, **changes})


def test_json_keeps_it_and_older_reports_have_none() -> None:
    made = corrupted()
    assert Report.from_json(made.to_json()) == made
    data = json.loads(made.to_json())
    del data["corruptions"]
    assert Report.from_json(json.dumps(data)).corruptions is None
    assert json.loads(report().to_json())["corruptions"] is None


def test_the_terminal_says_it_in_one_line() -> None:
    shown = " ".join(str(corrupted()).split())
    assert "corruption 75.1 [71.1, 79.1] of 100: accuracy under common corruptions" in shown
    assert (
        "Corruptions: accuracy 75.1 % [71.1, 79.1] under 2 kinds on 200 samples; weakest under fog, 75.1 %; "
        "under the worst spatial transformation 51.0 % [44.1, 57.9]" in shown
    )
    assert max(map(len, str(corrupted()).splitlines())) <= 80
    reason = section(
        accuracy=None, worst=[], kinds=[kind("fog", [], status="skipped", reason="the inputs are not images")]
    )
    assert "Corruptions: not measured (the inputs are not images)" in str(corrupted(corruptions=reason))
    assert "Corruptions" not in str(report())


def test_the_page_has_a_table_of_every_cell() -> None:
    source = corrupted().to_html()
    part = source[source.index("<h2>Corruptions</h2>") : source.index("<h2>Classes</h2>")]
    words = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", part)))
    for said in (
        "Mean over corruptions and severities: 75.1 % [71.1, 79.1]",
        "clean accuracy on the same ones is 91.0 %",
        "fog weather 90.0 % [85.8, 94.2] 85.0 %",
        "50.5 % [43.6, 57.4]",
        "] - - - not measured the budget ran out: 3 samples were not seen",
        "skipped: it needs 3 channels and the inputs have 1",
        "spatial 775 182 80 51.0 %",
        "This is not part of the mean",
    ):
        assert said in words
    assert part.count("--wrong:") == 12
    assert "--wrong:4.5%" in part  # 10 % wrong of at most 45 % of the color
    assert "<script" not in source
    assert "Corruptions</h2>" not in report().to_html()
    assert (
        "Corruptions</h2>" in bare().model_copy(update={"corruptions": section(worst=[], kinds=[])}).to_html()
    )


def test_markdown_stays_short() -> None:
    lines = corrupted().to_markdown().splitlines()
    start = "Corruptions: accuracy 75.1 % \\[71.1, 79.1\\] under 2 kinds on 200 samples; weakest under fog"
    assert [line.startswith(start) for line in lines].count(True) == 1
    assert "| Corruption score | 75.1 [71.1, 79.1] |" in lines


def test_junit_has_a_case_for_each() -> None:
    root = ElementTree.fromstring(corrupted().to_junit().encode())
    (suite,) = root.findall("testsuite[@name='corruptions']")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "0", "1")
    found = {str(case.get("name")): case for case in suite}
    assert found["fog"].findtext("system-out") == "accuracy 75.1 % [71.1, 79.1]"
    assert "the budget ran out" in str(found["jpeg"].findtext("system-out"))
    skipped = found["saturate"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "it needs 3 channels and the inputs have 1"


def named(name: str) -> Report:
    """The report with one hostile name wherever a text of the section can come from."""
    data = json.loads(corrupted().to_json())
    for part in data["corruptions"]["kinds"]:
        part.update(name=name, group=name, reason=name)
    for part in data["corruptions"]["worst"]:
        part.update(name=name, reason=name, options={name: name})
    return Report.from_json(json.dumps(data))


def outline(source: str) -> list[str]:
    return re.findall(r"<(/?\w+)", source)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_no_structure(name: str) -> None:
    assert outline(named(name or "x").to_html()) == outline(named("plain").to_html())
    ElementTree.fromstring(named(name).to_junit().encode())
    assert named(name).to_markdown().count("\n") == named("plain").to_markdown().count("\n")
    for text in (str(named(name)), named(name).to_markdown()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


@settings(max_examples=30, deadline=None)
@given(name=names)
def test_any_name_can_be_shown(name: str) -> None:
    made = named(name)
    assert Report.from_json(made.to_json()) == made
    assert str(made)
    assert "<h2>Corruptions</h2>" in made.to_html()


def test_overall_is_the_weakest_with_the_lowest_limits() -> None:
    evasion, corruption = Score(value=60, low=50, high=70), Score(value=58, low=55, high=61)
    assert weakest([evasion, corruption]) == Score(value=58, low=50, high=61)
    assert weakest([None, corruption]) == corruption
    assert weakest([evasion, None]) == evasion
    assert weakest([None, None]) is None


def test_many_of_everything_stay_within_the_page() -> None:
    checks = [diagnostic(f"check-{n}", "", "fail") for n in range(30)]
    attacks = [attack(f"attack-{n}", 10, 1) for n in range(30)]
    threats = [threat(f"linf:0.{n}", 137, diagnostics=checks, attacks=attacks) for n in range(1, 9)]
    conditions = [condition(f"evasion >= {n}", 1.0, False, "") for n in range(50)]
    made = corrupted(
        threats=threats,
        trusted=False,
        distrust=[f"reason {n}" for n in range(40)],
        gate=Gate(conditions=conditions, passed=False),
    )
    assert len(made.to_markdown().splitlines()) <= 60
