from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from robustml.report.model import Gate
from tests.report.hostile import HOSTILE, names
from tests.report.sample import attack, bare, condition, diagnostic, named, report, tabular, threat, untrusted


def test_summary_says_verdict_gate_card_and_attacks() -> None:
    lines = report().to_markdown().splitlines()
    assert lines[2] == report().verdict
    assert "## Gate: FAILED" in lines
    assert "| FAIL | evasion &gt;= 40 | 31.2 | the lower end of its interval is 31.2 |" in lines
    assert "| Clean accuracy | 91.1 % [88.2, 93.9] |" in lines
    assert "| Evasion score | 36.1 [31.2, 40.9] |" in lines
    assert "| linf:0.1 | apgd-ce | 193 of 346 | 55.8 % | 61.0 | 60.0 | 1.2 |  |" in lines
    assert lines.index("## Gate: FAILED") < lines.index("## Score card") < lines.index("## Attacks")


def test_distrust_comes_before_the_verdict() -> None:
    shown = untrusted().to_markdown()
    assert shown.index("**NOT TRUSTED**") < shown.index("linf:0.1: the gradient") < shown.index("Of 380")


def test_bounds_from_both_sides_and_oblivious_attacks() -> None:
    shown = tabular().to_markdown()
    assert "36.1 % [31.2, 40.9]; at least 23.7 % [19.4, 28.0] (oblivious attacks)" in shown
    assert "| Evasion score | not measured |" in bare().to_markdown()


def test_summary_stays_within_60_lines_and_says_what_it_left_out() -> None:
    checks = [diagnostic(f"check-{n}", "", "fail") for n in range(30)]
    attacks = [attack(f"attack-{n}", 10, 1) for n in range(30)]
    threats = [threat(f"linf:0.{n}", 137, diagnostics=checks, attacks=attacks) for n in range(1, 9)]
    conditions = [condition(f"evasion >= {n}", 1.0, False, "") for n in range(50)]
    made = report(
        threats=threats,
        gate=Gate(conditions=conditions, passed=False),
        trusted=False,
        distrust=[f"reason {n}" for n in range(40)],
    )
    lines = made.to_markdown().splitlines()
    assert len(lines) <= 60
    for left_out in ("- and 38 more reasons", "| and 45 more | | | |", "- and 237 more"):
        assert left_out in lines


def shape(text: str) -> list[int]:
    """The unescaped pipes of every line: the cells of the tables."""
    return [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in text.splitlines()]


SHAPE = shape(named("plain name").to_markdown())


@settings(max_examples=100, deadline=None)
@given(names)
def test_no_name_changes_the_layout(name: str) -> None:
    shown = named(name).to_markdown()
    assert shape(shown) == SHAPE
    assert "<" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*`", shown)
    assert "://" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*\]\(", shown)
    assert all(line.isprintable() or "\u200c" in line or "\u200d" in line for line in shown.splitlines())


@pytest.mark.parametrize(
    ("verdict", "written"),
    [
        ("# heading", "&#35; heading"),
        ("- item", "&#45; item"),
        ("1. item", "&#49;. item"),
        ("=====", "&#61;===="),
        ("> quote", "&gt; quote"),
        ("    code", "code"),
        ("a|b *c* [d](e)", r"a\|b \*c\* \[d\](e)"),
        ("@someone www.example.org", "&#64;someone www&#46;example.org"),
        ("36.1 % survive", "36.1 % survive"),
    ],
)
def test_text_that_would_open_a_block_does_not(verdict: str, written: str) -> None:
    expected = {"36.1 % survive": "&#51;&#54;.1 % survive"}.get(verdict, written)
    assert report(verdict=verdict).to_markdown().splitlines()[2] == expected


def test_hostile_names_are_many() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 20
