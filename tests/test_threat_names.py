"""How threat models are written, read, bound to inputs and refused."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.threats import L0, L1, L2, THREATS, Linf, Threat, format_eps, parse_eps, parse_threat

UNIT, GREY = InputSpec(shape=(4,)), InputSpec(shape=(4,), bounds=(0, 255))

budgets = (
    st.floats(min_value=0, exclude_min=True, allow_infinity=False)
    | st.floats(1e-6, 1)
    | st.integers(1, 255).map(lambda level: level / 255)
)


@settings(max_examples=200)
@given(budgets)
@example(1.2345678e-12)
@example(5e-324)
@example(1.7976931348623157e308)
@example(8.0000000001 / 255)
def test_a_budget_survives_being_written_and_read(eps: float) -> None:
    assert parse_eps(format_eps(eps)) == eps
    for kind in (Linf, L2, L1):
        assert parse_threat(kind(eps).name) == kind(eps)


@given(st.integers(1, 10**6))
def test_a_count_survives_being_written_and_read(count: int) -> None:
    assert parse_threat(L0(count).name) == L0(count)


@pytest.mark.parametrize(
    ("text", "eps"),
    [("0.3", 0.3), ("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), (".5", 0.5), ("12", 12.0), ("1e-2", 0.01)],
)
def test_budgets_that_people_write(text: str, eps: float) -> None:
    assert parse_eps(text) == eps


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.3, "0.3"), (1.0, "1"), (0.2, "0.2"), (1 / 3, "85/255"), (1e-5, "1e-05")],
)
def test_budgets_are_written_the_way_people_do(eps: float, text: str) -> None:
    assert format_eps(eps) == text


@settings(max_examples=200)
@given(
    st.text(max_size=60)
    | st.from_regex(r"[\d.e+/-]{1,12}", fullmatch=True)
    | st.text("0123456789./eE+- ", max_size=45)
)
@example("1/0")
@example("1e999")
@example("0")
@example("\n")
@example("9" * 10_000)
def test_other_budgets_are_refused_in_one_line(text: str) -> None:
    outcomes = [outcome(parse_eps, text)]
    outcomes += [outcome(parse_threat, given) for given in (text, f"linf:{text}", f"l0:{text}", f"{text}:1")]
    for result in outcomes:
        if isinstance(result, str):
            assert result.isprintable()
            assert 10 < len(result) < 300
        else:
            assert math.isfinite(result.eps if isinstance(result, Threat) else result)


def outcome(read: Any, text: str) -> Any:
    """What was read, or what the refusal says."""
    try:
        return read(text)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linf", "is not of the form NORM:EPS"),
        ("li:0.3", "norm 'li' is not known"),
        ("linv:0.3", "did you mean 'linf'?"),
        ("linf:abc", "eps='abc' is not a number such as 0.3 or a fraction such as 8/255"),
        ("linf:1/0", "divides by zero"),
        ("linf:-1", "eps='-1' is not a number"),
        ("l2:0", "is not a finite number above 0"),
        ("l0:2.5", "eps=2.5 is not a whole number of features"),
        ("l1:1e999", "too large"),
    ],
)
def test_refusals_say_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_threat(text)


def test_norms_are_read_in_any_case() -> None:
    assert parse_threat(" LINF :8/255") == Linf(8 / 255)


@pytest.mark.parametrize(
    "eps", [0, -1, math.nan, math.inf, 10**400, pytest.param(16**5000, id="long"), True, "0.3", None, [1]]
)
def test_unusable_budgets_are_refused(eps: Any) -> None:
    for kind in THREATS.values():
        with pytest.raises(InputError, match="eps="):
            kind(eps)


@pytest.mark.parametrize("eps", [2, np.float32(2), np.int64(2), Fraction(2)])
def test_any_real_number_is_a_budget(eps: Any) -> None:
    for kind in THREATS.values():
        assert kind(eps).eps == 2.0
        assert type(kind(eps).eps) is float


def test_a_budget_in_grey_levels_for_inputs_in_the_unit_range() -> None:
    with pytest.raises(InputError) as caught:
        Linf(8).within(UNIT)
    assert str(caught.value) == "eps=8 is outside (0, 1] for inputs in [0, 1]; did you mean 8/255?"


def test_a_budget_of_the_unit_range_for_inputs_in_grey_levels() -> None:
    with pytest.raises(InputError, match=re.escape("inputs in [0, 255]; did you mean 7.65?")):
        Linf(0.03, GREY)
    assert Linf(8, GREY).eps == 8


def test_no_guess_where_nobody_meant_grey_levels() -> None:
    with pytest.raises(
        InputError, match=re.escape("eps=300 is outside (0, 1] for inputs in [0, 1]")
    ) as caught:
        Linf(300, UNIT)
    assert "did you mean" not in str(caught.value)
    table = InputSpec(shape=(2,), bounds=(0, (1, 50)), scale=(1, 10))
    with pytest.raises(InputError, match=re.escape("eps=6 is outside (0, 5] for these inputs")) as caught:
        Linf(6, table)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(("threat", "widest"), [(Linf(0.1), 1), (L2(0.1), 2), (L1(0.1), 4), (L0(1), 4)])
def test_the_widest_budget_reaches_every_valid_input(threat: Threat, widest: float) -> None:
    full = threat.within(UNIT).unbounded()
    assert full.eps == widest
    corners = torch.tensor([[0.0] * 4, [1.0] * 4])
    assert full.around(corners).contains(1 - corners).all()
    with pytest.raises(InputError, match="outside"):
        full.at(widest + 1)


def test_unbounded_needs_inputs() -> None:
    with pytest.raises(InputError, match="bound to inputs"):
        Linf(0.1).unbounded()


def test_at_and_within_keep_the_rest() -> None:
    bound = Linf(0.1).within(UNIT)
    assert bound.at(0.2) == Linf(0.2, UNIT)
    assert bound.within(GREY.__class__(shape=(4,), bounds=(0, 2))).eps == 0.1
    assert hash(bound) == hash(Linf(0.1, UNIT))
    assert repr(bound) == "Linf(eps=0.1)"
