from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from robustml.report.charts import security_curve
from robustml.report.model import CurvePoint
from tests.report.sample import estimate, threat

CURVE = threat("linf:0.1", 137).curve


def draw(points: list[CurvePoint] = CURVE, *, eps: float = 0.1, title: str = "a curve") -> str:
    return security_curve(points, eps=eps, chance=0.1, name="c0", title=title)


def test_same_curve_same_bytes_whatever_the_users_style() -> None:
    first = draw()
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "font.size": 30, "axes.grid": True, "svg.fonttype": "path"}
    ):
        assert draw() == first


def test_chart_is_well_formed_and_takes_the_colors_of_the_page() -> None:
    svg = draw(title="x & <y>")
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root[0].text == "x & <y>"
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    assert {"var(--accent)", "var(--muted)", "var(--ink)", "var(--warn)"} <= set(
        re.findall(r"var\([^)]*\)", svg)
    )
    assert "http" not in svg
    assert "font-family" not in svg


def test_every_point_tells_its_figure() -> None:
    hints = re.findall(r"<title>(eps [^<]*)</title>", draw())
    assert len(hints) == len(CURVE)
    assert hints[0] == "eps 0: 91.1 % [88.2, 93.9]"
    assert hints[4] == "eps 0.1: 36.1 % [31.2, 40.9]"


def test_words_are_text_and_not_outlines() -> None:
    words = re.findall(r"<text[^>]*>([^<]*)</text>", draw())
    assert {"tested", "chance", "perturbation budget eps", "robust accuracy, %", "100"} <= set(words)


@pytest.mark.parametrize(
    ("budgets", "eps"),
    [([0.0], 0.0), ([0.0], 0.5), ([0.0, 1e-12], 1e-12), ([0.0, 1e300], 1e300), ([3.0], 8.0)],
)
def test_curves_of_odd_shape_are_drawn(budgets: list[float], eps: float) -> None:
    points = [CurvePoint(eps=budget, robust_accuracy=estimate(1, 2)) for budget in budgets]
    assert len(re.findall(r"<title>eps ", draw(points, eps=eps))) == len(budgets)
