"""Certified accuracy as every renderer shows it."""

from __future__ import annotations

import re

from robustml.report.charts import security_curve
from robustml.report.model import Bounds, Certificates, CertifiedPoint, Report
from robustml.report.text import certified_line
from tests.report.sample import attack, condition, diagnostic, estimate, report, threat

POINTS = [
    CertifiedPoint(eps=eps, certified_accuracy=estimate(count, 380))
    for eps, count in ((0.0, 330), (0.125, 300), (0.25, 260), (0.375, 200), (0.5, 90), (0.75, 30), (1.0, 0))
]


def certified(**changes: object) -> Report:
    bounds = Bounds(upper=estimate(201, 380), lower=estimate(90, 380))
    section = Certificates(
        select=100,
        draws=1000,
        confidence=0.995,
        attempted=346,
        certified=330,
        abstained=12,
        median_radius=0.41,
        passes=346 * 1100,
    )
    two = threat("l2:0.5", 201, robust_accuracy=bounds, undecided=111 / 380, certified=POINTS)
    return report(**{"threats": [threat("linf:0.1", 137), two], "certificates": section, **changes})


def test_a_report_with_certificates_survives_json() -> None:
    made = certified()
    assert Report.from_json(made.to_json()) == made


def test_the_terminal_shows_bounds_curve_and_cost() -> None:
    card = " ".join(str(certified()).split())
    assert "23.7 % [19.4, 28.0]" in card
    assert "29.2 %" in card
    assert "Certified accuracy as eps grows l2:0.5: 86.8 % at 0" in card
    assert "23.7 % at 0.5" in card
    assert "330 of 346 correct samples have a radius, from 100 + 1,000 draws each; 12 abstain" in card
    assert "linf:0.1: 8" not in card


def test_a_report_without_certificates_says_nothing_of_them() -> None:
    assert "Certified accuracy" not in str(report()) + report().to_markdown() + report().to_html()


def test_markdown_has_one_line() -> None:
    lines = certified().to_markdown().splitlines()
    (line,) = [line for line in lines if line.startswith("Certified accuracy")]
    assert line.startswith("Certified accuracy: within l2 86.8 % at 0, ")
    assert "| Robust accuracy, l2:0.5 | 52.9 % [47.9, 57.9]; at least 23.7 % [19.4, 28.0] |" in lines


def test_markdown_stays_within_60_lines_whatever_is_asked_besides() -> None:
    checks = [diagnostic(f"check-{n}", "", "fail") for n in range(30)]
    attacks = [attack(f"attack-{n}", 10, 1) for n in range(30)]
    threats = [
        threat(f"linf:0.{n}", 137, diagnostics=checks, attacks=attacks, certified=POINTS) for n in range(1, 9)
    ]
    conditions = [condition(f"evasion >= {n}", 1.0, False, "") for n in range(50)]
    made = certified(
        threats=threats,
        goals=["3->8"],
        gate=report().gate.model_copy(update={"conditions": conditions}),
        trusted=False,
        distrust=[f"reason {n}" for n in range(40)],
    )
    lines = made.to_markdown().splitlines()
    assert len(lines) <= 60
    assert "| linf:0.1 | attack-0 | 1 of 10 | 10.0 % | 61.0 | 60.0 | 0.0 |  |" in lines


def test_the_page_draws_a_second_curve_and_lists_it() -> None:
    page = certified().to_html()
    assert page.count("Certified accuracy as a table") == 1
    assert "var(--good)" in page
    assert "certified 23.7 % [19.4, 28.0]" in page
    hints = re.findall(r"<title>(eps [^<]*certified[^<]*)</title>", page)
    assert len(hints) == len(POINTS)
    assert hints[4] == "eps 0.5, certified: 23.7 % [19.4, 28.0]"


def test_the_chart_is_as_wide_as_the_longer_curve_and_colored_by_the_page() -> None:
    points = threat("l2:0.1", 137).curve
    svg = security_curve(points, eps=0.1, chance=0.1, name="c", title="t", certified=POINTS)
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    plain = security_curve(points, eps=0.1, chance=0.1, name="c", title="t")
    assert "certified" not in plain
    assert re.findall(r">1\.0<", svg)
    assert not re.findall(r">1\.0<", plain)


def test_a_line_keeps_the_ends_and_the_tested_budget() -> None:
    many = [CertifiedPoint(eps=n / 100, certified_accuracy=estimate(100 - n, 100)) for n in range(41)]
    line = certified_line(threat("l2:0.17", 1, certified=many))
    assert line.startswith("100.0 % at 0, ")
    assert line.endswith("60.0 % at 0.4")
    assert "83.0 % at 0.17" in line
    assert line.count("at") <= 7
    assert certified_line(threat("l2:0.17", 1)) == ""
