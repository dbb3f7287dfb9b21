from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from rich.cells import cell_len
from rich.console import Console

from tests.report.hostile import HOSTILE, names
from tests.report.sample import bare, named, report, tabular, untrusted

ROOT = Path(__file__).resolve().parents[2]


def test_distrust_comes_first_with_its_reasons() -> None:
    lines = str(untrusted()).splitlines()
    assert lines[0].startswith("NOT TRUSTED")
    assert lines[1].strip() == "- linf:0.1: the gradient of 62.0 % of the samples is exactly zero."
    assert str(report()).startswith(report().verdict)
    assert "NOT TRUSTED" not in str(report())


def test_card_says_all_that_was_measured() -> None:
    shown = str(report())
    for words in (
        "clean accuracy  91.1 % [88.2, 93.9]  346 of 380 correct",
        "evasion         36.1 [31.2, 40.9]",
        "overall         36.1 [31.2, 40.9]",
        "linf:0.1      adaptive  36.1 % [31.2, 40.9]",
        "l2:0.5        adaptive  52.9 % [47.9, 57.9]",
        "apgd-ce         346     193     21,106    20,760      1.2",
        "fab: skipped: the time budget was spent",
        "WARN slow-start, linf:0.1",
        "Remedy: Run again with steps = 200.",
        "Gate: FAILED",
    ):
        assert words in shown
    assert "corruption" not in shown


def test_gate_is_worst_first() -> None:
    shown = str(report())
    assert shown.index("FAIL  ") < shown.index("NOT MEASURED  ") < shown.index("PASS  ")


def test_bounds_from_both_sides_fit_one_line() -> None:
    row = next(line for line in str(tabular()).splitlines() if line.startswith("linf:0.1 "))
    assert row.split("  ")[-3:] == ["36.1 % [31.2, 40.9]", "23.7 % [19.4, 28.0]", "12.4 %"]


def test_what_was_not_measured_says_so() -> None:
    shown = str(bare())
    assert "evasion         not measured" in shown
    assert "apgd-ce: skipped: the model gives no gradient" in shown
    assert "Gate" not in shown


@settings(max_examples=60, deadline=None)
@given(names)
def test_no_name_breaks_the_card(name: str) -> None:
    shown = str(named(name))
    assert all(line.isprintable() or "\u200c" in line or "\u200d" in line for line in shown.splitlines())
    assert max(map(cell_len, shown.splitlines())) <= 80


def test_markup_in_a_name_comes_out_as_written() -> None:
    shown = str(named("[red]x[/red]"))
    assert shown.count("[red]x[/red]") > 10


@pytest.mark.parametrize("name", HOSTILE)
def test_color_console_gets_only_our_own_escapes(name: str) -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=200).print(named(name))
    shown = file.getvalue()
    assert "\x1b]" not in shown
    assert "\x9b" not in shown
    # The only red is that of the words that mean it.
    assert "\x1b[31mred" not in shown


def test_wide_console_still_shows_80_columns() -> None:
    file = io.StringIO()
    Console(file=file, width=300).print(report())
    assert max(len(line.rstrip()) for line in file.getvalue().splitlines()) <= 80


@pytest.mark.parametrize(
    "surroundings", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1", "COLUMNS": "40"}]
)
def test_surroundings_do_not_change_the_text(surroundings: dict[str, str]) -> None:
    program = "from tests.report.sample import report; print(report(), end='')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **surroundings},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout == str(report())
