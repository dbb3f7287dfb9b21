"""Charts as SVG text: the same report gives the same bytes, and the colors are those of the page.

A chart is drawn with stand-in colors that are then replaced by CSS variables, so that one picture is right
on a light page, on a dark one and in print.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from .parts import CertifiedPoint, CurvePoint
from .text import estimate, number

__all__ = ["LOOKS", "drawn", "security_curve"]

_INK, _LINE, _MARK, _CHANCE, _PROVEN = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_ALARM = "#101112"
_COLORS = {
    _INK: "--muted",
    _LINE: "--accent",
    _MARK: "--ink",
    _CHANCE: "--warn",
    _PROVEN: "--good",
    _ALARM: "--bad",
}
LOOKS: list[dict[str, Any]] = [
    {"color": color, "linestyle": dashes}
    for dashes in ("-", (0, (5, 2)), (0, (1.5, 1.5)))
    for color in (_LINE, _PROVEN, _CHANCE, _ALARM)
]
"""Ways to draw a line, each unlike the others."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustml",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}


def security_curve(
    points: Sequence[CurvePoint],
    *,
    eps: float,
    chance: float,
    name: str,
    title: str,
    certified: Sequence[CertifiedPoint] = (),
) -> str:
    """Draw robust accuracy against eps.

    Args:
        points: The curve, by rising eps; at least one point.
        eps: The budget under test, shown as a vertical line.
        chance: What guessing would reach, in [0, 1], shown as a horizontal line.
        name: Prefix that keeps the ids of several charts on one page apart; letters and digits.
        title: What a screen reader says of the picture.
        certified: Certified accuracy, by rising eps, shown as a second curve.

    Returns:
        An `<svg>` element.
    """
    hints = {
        f"point-{index}": f"eps {number(point.eps)}: {estimate(point.robust_accuracy)}"
        for index, point in enumerate(points)
    }
    hints |= {
        f"certified-{index}": f"eps {number(point.eps)}, certified: {estimate(point.certified_accuracy)}"
        for index, point in enumerate(certified)
    }
    return drawn(lambda axes: _draw(axes, points, eps, chance, certified), name, title, hints)


def drawn(draw: Callable[[Any], None], name: str, title: str, hints: dict[str, str]) -> str:
    """What a function draws on axes, as an `<svg>` element.

    Args:
        draw: Draws it.
        name: Prefix that keeps the ids of several charts on one page apart; letters and digits.
        title: What a screen reader says of the picture.
        hints: What to say of the marks with these ids.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # The user's own style must not change the report.
    kept = matplotlib.rcParamsDefault.items()
    style: Any = {key: value for key, value in kept if not key.startswith("backend")} | _STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.1))
        # A fixed place: measuring the words first doubles the time, and they never change.
        figure.subplots_adjust(left=0.09, right=0.985, bottom=0.15, top=0.97)
        draw(figure.subplots())
        file = io.StringIO()
        silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=silent)
    return _for_the_page(file.getvalue(), name, title, hints)


def _draw(
    axes: Any, points: Sequence[CurvePoint], eps: float, chance: float, certified: Sequence[CertifiedPoint]
) -> None:
    budgets = [point.eps for point in points]
    figures = [point.robust_accuracy for point in points]
    values = [100 * figure.value for figure in figures]
    axes.fill_between(
        budgets,
        [100 * figure.low for figure in figures],
        [100 * figure.high for figure in figures],
        color=_LINE,
        alpha=0.16,
        linewidth=0,
    )
    axes.plot(budgets, values, color=_LINE, linewidth=1.6)
    for index, (budget, value) in enumerate(zip(budgets, values, strict=True)):
        axes.plot([budget], [value], "o", color=_LINE, markersize=4.5, clip_on=False, gid=f"point-{index}")
    if certified:
        ends = [point.eps for point in certified]
        shares = [100 * point.certified_accuracy.value for point in certified]
        # Between two budgets no more is proven than at the larger one.
        axes.plot(ends, shares, color=_PROVEN, linewidth=1.4, drawstyle="steps-pre")
        for index, (end, share) in enumerate(zip(ends, shares, strict=True)):
            axes.plot(
                [end], [share], "s", color=_PROVEN, markersize=3, clip_on=False, gid=f"certified-{index}"
            )
        budgets = [*budgets, *ends]
    axes.axvline(eps, color=_MARK, linewidth=1, linestyle=(0, (4, 3)))
    axes.axhline(100 * chance, color=_CHANCE, linewidth=1, linestyle=(0, (1.5, 2.5)))
    right = max(*budgets, eps) or 1.0
    axes.set_xlim(0, right * 1.02)
    axes.set_ylim(0, 102)
    axes.annotate(
        "tested", (eps, 102), (-3, -3), textcoords="offset points", ha="right", va="top", color=_MARK
    )
    axes.annotate("chance", (0, 100 * chance), (4, 3), textcoords="offset points", va="bottom", color=_CHANCE)
    axes.set_xlabel("perturbation budget eps")
    axes.set_ylabel("robust accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_INK, alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)


def _for_the_page(svg: str, name: str, title: str, hints: dict[str, str]) -> str:
    """Cut the element out of the file and make it fit: ids, colors, fonts, size, words for screen readers."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>\*\{.*?\}</style>", "", svg)
    for gid, words in hints.items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(words)}</title>', 1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    for stand_in, variable in _COLORS.items():
        svg = svg.replace(stand_in, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None  # matplotlib always writes it
    opening = f'<svg {size[0]} role="img" aria-labelledby="{name}-title"><title id="{name}-title">'
    return re.sub(r"<svg[^>]*>", lambda _: f"{opening}{html.escape(title)}</title>", svg, count=1)
