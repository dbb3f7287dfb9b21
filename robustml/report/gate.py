"""Conditions for a release, judged on the unfavorable end of each figure's interval."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import InputError, suggest
from .parts import Condition, Estimate, Gate, Score, Scores
from .privacy_gate import EPSILONS, PRIVACY_FIGURES, Figure, privacy_figures
from .privacy_parts import Privacy

__all__ = ["check_gate", "judge_gate", "parse_gate"]

_SCORES = ("clean", *Scores.model_fields)
_LARGEST = 1e6  # epsilon
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(>=|<=|>|<)\s*(\d{1,7}(?:\.\d{1,6})?)\s*%?\s*")


def parse_gate(text: str) -> tuple[str, str]:
    """Split a condition such as "evasion>=40" into the figure and the condition on it.

    Raises:
        InputError: if it has no comparison or no number from 0 to 100.
    """
    match = re.match(r"\s*([^<>=\s]+)\s*([<>=].*)", text)
    if match is None:
        raise InputError(f"gate {text!r} is not of the form FIGURE>=NUMBER, as in evasion>=40")
    figure, condition = match[1], match[2].strip()
    _split(figure, condition)
    return figure, condition


def _split(figure: str, condition: str) -> tuple[str, float]:
    match = _CONDITION.fullmatch(condition) if isinstance(condition, str) else None
    highest, example = (_LARGEST, "<= 8") if figure in EPSILONS else (100.0, ">= 40")
    if match is None or float(match[2]) > highest:
        raise InputError(
            f"gate {figure}: {condition!r} is not a comparison with a number from 0 to {highest:.0f}, "
            f"as in {example}"
        )
    return match[1], float(match[2])


def check_gate(gate: Mapping[str, str], threats: Sequence[str]) -> None:
    """Refuse conditions on figures that no report of these threat models has.

    Raises:
        InputError: naming the figure, with the nearest known one.
    """
    known = [*_SCORES, *PRIVACY_FIGURES, *threats]
    for figure, condition in gate.items():
        if figure not in known:
            raise InputError(f"gate figure {figure!r} is not known{suggest(figure, known)}")
        _split(figure, condition)


def judge_gate(
    gate: Mapping[str, str],
    *,
    clean: Estimate,
    scores: Scores,
    threats: Mapping[str, Estimate | None],
    trusted: bool,
    privacy: Privacy | None = None,
) -> Gate:
    """Judge every condition; a figure that was not measured, or that cannot be trusted, does not pass."""
    shares: dict[str, Estimate | Score | None] = {"clean": clean, **threats}
    shares |= {name: getattr(scores, name) for name in Scores.model_fields}
    figures = {name: _figure(share) for name, share in shares.items()} | privacy_figures(privacy)
    conditions = [
        _judge(figure, condition, figures.get(figure, _figure(None)), trusted or figure == "clean")
        for figure, condition in gate.items()
    ]
    passed = all(condition.passed for condition in conditions) if conditions else None
    return Gate(conditions=conditions, passed=passed)


def _figure(share: Estimate | Score | None) -> Figure:
    if share is None:
        return Figure(None, None)
    unit = 1 if isinstance(share, Score) else 100
    return Figure(unit * share.low, unit * share.high)


def _judge(figure: str, condition: str, measured: Figure, trusted: bool) -> Condition:
    sign, bound = _split(figure, condition)
    expression = f"{figure} {sign} {bound:g}"
    at_least = sign.startswith(">")
    limit = measured.low if at_least else measured.high
    reason = measured.reason if limit is None else measured.blind(bound)
    if limit is None or reason:
        return Condition(expression=expression, figure=figure, value=None, passed=False, reason=reason)
    value = round(limit, 6)
    passed = _OPERATORS[sign](value, bound)
    end = "lower" if at_least else "upper"
    reason = f"the {end} end of its interval is {value:.1f}" if not measured.said else measured.said
    if not trusted:
        passed, reason = False, f"{reason}, but the report is not trusted"
    return Condition(expression=expression, figure=figure, value=value, passed=passed, reason=reason)
