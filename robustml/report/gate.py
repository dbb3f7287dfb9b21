"""Conditions for a release, judged on the unfavorable end of each figure's interval."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import InputError, suggest
from .parts import Condition, Estimate, Gate, Score, Scores

__all__ = ["check_gate", "judge_gate", "parse_gate"]

_SCORES = ("clean", *Scores.model_fields)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(>=|<=|>|<)\s*(\d{1,3}(?:\.\d{1,6})?)\s*%?\s*")


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
    if match is None or float(match[2]) > 100:
        raise InputError(
            f"gate {figure}: {condition!r} is not a comparison with a number from 0 to 100, as in >= 40"
        )
    return match[1], float(match[2])


def check_gate(gate: Mapping[str, str], threats: Sequence[str]) -> None:
    """Refuse conditions on figures that no report of these threat models has.

    Raises:
        InputError: naming the figure, with the nearest known one.
    """
    known = [*_SCORES, *threats]
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
) -> Gate:
    """Judge every condition; a figure that was not measured, or that cannot be trusted, does not pass."""
    figures: dict[str, Estimate | Score | None] = {"clean": clean, **threats}
    figures |= {name: getattr(scores, name) for name in Scores.model_fields}
    conditions = [
        _judge(figure, condition, figures.get(figure), trusted or figure == "clean")
        for figure, condition in gate.items()
    ]
    passed = all(condition.passed for condition in conditions) if conditions else None
    return Gate(conditions=conditions, passed=passed)


def _judge(figure: str, condition: str, measured: Estimate | Score | None, trusted: bool) -> Condition:
    sign, bound = _split(figure, condition)
    expression = f"{figure} {sign} {bound:g}"
    if measured is None:
        return Condition(
            expression=expression,
            figure=figure,
            value=None,
            passed=False,
            reason="the figure was not measured",
        )
    at_least = sign.startswith(">")
    limit = measured.low if at_least else measured.high
    value = round(limit if isinstance(measured, Score) else 100 * limit, 6)
    passed = _OPERATORS[sign](value, bound)
    end = "lower" if at_least else "upper"
    reason = f"the {end} end of its interval is {value:.1f}"
    if not trusted:
        passed, reason = False, f"{reason}, but the report is not trusted"
    return Condition(expression=expression, figure=figure, value=value, passed=passed, reason=reason)
