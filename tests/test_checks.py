"""What arguments must be, and what errors about them say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.checks import real, share, whole
from robustml.errors import InputError

NO_NUMBERS = [True, None, "3", [3], 3j, math.nan, object()]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.5, 2.0])
def test_what_is_no_whole_number(value) -> None:
    with pytest.raises(InputError, match=r"^n=.* is not a whole number"):
        whole("n", value)


@pytest.mark.parametrize("check", [real, share])
@pytest.mark.parametrize("value", [*NO_NUMBERS, math.inf, -math.inf])
def test_what_is_no_finite_number(check, value) -> None:
    with pytest.raises(InputError, match=r"^n=.* is not a (finite number|share)"):
        check("n", value)


def test_numbers_of_numpy_come_back_as_those_of_python() -> None:
    assert type(whole("n", np.int64(3))) is int
    assert type(real("n", np.float32(0.5))) is float
    assert type(share("n", np.float64(0.5))) is float


@given(value=st.integers(-5, 5), low=st.integers(-5, 5), high=st.integers(-5, 5))
def test_whole_numbers_within_limits(value, low, high) -> None:
    if low <= value <= high:
        assert whole("n", value, low, high) == value
    else:
        with pytest.raises(InputError, match=rf"^n={value} is not a whole number from {low} to {high}$"):
            whole("n", value, low, high)


@given(value=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), closed=st.booleans(), top=st.booleans())
def test_limits_are_accepted_as_they_are_asked_for(value, closed, top) -> None:
    inside = 0 < value < 1 or (closed and value == 0) or (top and value == 1)
    if inside:
        assert real("n", value, high=1.0, closed=closed, top=top) == value
        assert share("n", value, zero=closed, one=top) == value
        return
    for check in (
        lambda: real("n", value, high=1.0, closed=closed, top=top),
        lambda: share("n", value, zero=closed, one=top),
    ):
        with pytest.raises(InputError, match=f"^n={value}"):
            check()


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: whole("steps", 0, 1), "steps=0 is not a whole number of at least 1"),
        (lambda: whole("seed", 0.5), "seed=0.5 is not a whole number"),
        (lambda: real("eps", 0), "eps=0 is not a finite number above 0"),
        (lambda: real("eps", -1, closed=True), "eps=-1 is not a finite number of at least 0"),
        (lambda: real("eps", 2, 0.5, 1), "eps=2 is not a finite number above 0.5 and below 1"),
        (lambda: real("eps", 2, high=1, top=True), "eps=2 is not a finite number above 0 and at most 1"),
        (lambda: real("eps", "a", -math.inf), "eps='a' is not a finite number"),
        (lambda: share("part", 2), "part=2 is not a share from 0 to 1"),
        (lambda: share("part", 0, zero=False), "part=0 is not a share above 0 and at most 1"),
        (lambda: share("part", 1, one=False), "part=1 is not a share of at least 0 and below 1"),
        (lambda: share("part", 1, zero=False, one=False), "part=1 is not a share between 0 and 1"),
    ],
)
def test_the_words(check, says) -> None:
    with pytest.raises(InputError) as caught:
        check()
    assert str(caught.value) == says
