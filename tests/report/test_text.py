from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.report.text import diagnostics_worst_first, per_sample, percent, plain, worst_first
from tests.report.sample import condition, diagnostic, threat


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b1;31mred", "red"),
        ("\x1bcreset", "reset"),
        ("a\nb\tc\u2028d", "a b c d"),
        ("a\x00\x07b", "ab"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("half\ud800", "half\ufffd"),
        ("[red]x[/red] <b>", "[red]x[/red] <b>"),
        ("Größe 日本語", "Größe 日本語"),
    ],
)
def test_plain(given_text: str, expected: str) -> None:
    assert plain(given_text) == expected


@given(st.text(st.characters()))
def test_plain_leaves_nothing_invisible_and_settles_at_once(text: str) -> None:
    shown = plain(text)
    assert plain(shown) == shown
    left = {unicodedata.category(character) for character in shown if character not in "\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")


def test_percent_and_passes() -> None:
    assert percent(0.3605) == "36.0 %"
    assert percent(None) == "not measured"
    assert [per_sample(*pair) for pair in ((0, 0), (61, 2), (12_000, 10))] == ["-", "30.5", "1,200"]


def test_gate_shows_the_worst_first() -> None:
    conditions = [
        condition("a", 1.0, True, ""),
        condition("b", None, False, ""),
        condition("c", 1.0, False, ""),
        condition("d", 1.0, False, ""),
    ]
    assert [found.expression for found in worst_first(conditions)] == ["c", "d", "b", "a"]


def test_diagnostics_show_critical_failures_first() -> None:
    checks = [
        diagnostic("ok", "", "pass"),
        diagnostic("minor", "", "fail"),
        diagnostic("not-run", "", "skipped"),
        diagnostic("hm", "", "warn"),
        diagnostic("major", "", "fail", critical=True),
    ]
    found = diagnostics_worst_first([threat("linf:0.1", 137, diagnostics=checks)])
    assert [check.code for _, check in found] == ["major", "minor", "hm", "not-run", "ok"]
