"""Conditions for a release: judged on the unfavorable end, and only on what was measured and is trusted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.report.gate import check_gate, judge_gate, parse_gate
from robustml.report.parts import Estimate, Gate, Score, Scores

CLEAN = Estimate(value=0.9, low=0.85, high=0.94, confidence=0.95, count=90, total=100)
ROBUST = Estimate(value=0.5, low=0.4, high=0.6, confidence=0.95, count=50, total=100)
SCORE = Score(value=50.0, low=40.0, high=60.0)


def judged(gate: dict[str, str], *, trusted: bool = True, **figures: Any) -> Gate:
    facts: dict[str, Any] = {
        "clean": CLEAN,
        "scores": Scores(evasion=SCORE, overall=SCORE),
        "threats": {"linf:0.1": ROBUST, "l2:1": None},
    }
    return judge_gate(gate, **{**facts, **figures}, trusted=trusted)


@pytest.mark.parametrize(
    ("figure", "condition", "passed", "value"),
    [
        ("evasion", ">= 40", True, 40.0),
        ("evasion", ">= 40.001", False, 40.0),
        ("evasion", ">= 50", False, 40.0),  # the value would do, its lower end does not
        ("evasion", "> 40", False, 40.0),
        ("evasion", "> 39.9", True, 40.0),
        ("evasion", "<= 55", False, 60.0),  # and from above the upper end counts
        ("evasion", "<= 60", True, 60.0),
        ("evasion", "< 60", False, 60.0),
        ("overall", ">=40%", True, 40.0),
        ("clean", ">= 85", True, 85.0),
        ("clean", ">= 86", False, 85.0),
        ("linf:0.1", ">= 40", True, 40.0),
        ("linf:0.1", ">= 45", False, 40.0),
    ],
)
def test_the_unfavorable_end_decides(figure: str, condition: str, passed: bool, value: float) -> None:
    gate = judged({figure: condition})
    assert gate.passed is passed
    assert (gate.conditions[0].figure, gate.conditions[0].value) == (figure, value)


@pytest.mark.parametrize("figure", ["corruption", "privacy", "l2:1"])
@pytest.mark.parametrize("condition", [">= 0", "<= 100"])
def test_what_was_not_measured_fails(figure: str, condition: str) -> None:
    gate = judged({figure: condition})
    assert gate.passed is False
    assert gate.conditions[0].value is None
    assert "not measured" in gate.conditions[0].reason


@pytest.mark.parametrize("condition", [">= 0", "<= 100"])
def test_what_is_not_trusted_fails(condition: str) -> None:
    gate = judged({"evasion": condition, "clean": condition, "linf:0.1": condition}, trusted=False)
    assert [c.passed for c in gate.conditions] == [False, True, False]
    assert gate.passed is False
    assert "not trusted" in gate.conditions[0].reason


def test_one_failure_fails_and_no_condition_is_no_verdict() -> None:
    assert judged({"evasion": ">= 1", "clean": ">= 99"}).passed is False
    assert judged({"evasion": ">= 1", "clean": ">= 2"}).passed is True
    assert judged({}).passed is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("evasion>=40", ("evasion", ">=40")),
        (" evasion >= 40 % ", ("evasion", ">= 40 %")),
        ("linf:8/255 > 12.5", ("linf:8/255", "> 12.5")),
    ],
)
def test_parse(text: str, expected: tuple[str, str]) -> None:
    assert parse_gate(text) == expected


@pytest.mark.parametrize(
    "text", ["", "evasion", "evasion=40", ">=40", "evasion>=", "evasion>=101", "evasion>=-1"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InputError, match="^gate "):
        parse_gate(text)


@given(text=st.text(max_size=30))
def test_parse_of_anything(text: str) -> None:
    try:
        figure, condition = parse_gate(text)
    except InputError:
        return
    check_gate({figure: condition}, [figure])
    assert figure


def test_unknown_figures_suggest() -> None:
    with pytest.raises(InputError, match="did you mean 'evasion'"):
        check_gate({"evasoin": ">= 40"}, [])
    with pytest.raises(InputError, match="did you mean 'linf:0.1'"):
        check_gate({"linf:0.2": ">= 40"}, ["linf:0.1", "l2:1"])
    check_gate({"linf:0.1": ">= 40", "clean": "<= 3"}, ["linf:0.1"])


@pytest.mark.parametrize("condition", ["40", ">= x", ">= 1e2", "== 4", "", ">= 40 40", 40, None, [">= 40"]])
def test_conditions_that_are_none(condition: Any) -> None:
    with pytest.raises(InputError, match="not a comparison"):
        check_gate({"clean": condition}, [])
