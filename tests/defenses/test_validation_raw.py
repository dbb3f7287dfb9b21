"""Raw inputs that are not images: whatever comes is refused with a reason, and nothing crashes."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import robustml as rml
from robustml.defenses.guards.validation import CODES, Checked, Code, Refusal, RefusedInput, Validate

NAMES = ("age", "income", "color=red", "color=blue", "color=green")
SPEC = rml.InputSpec(shape=(5,), bounds=(0.0, 100.0), integer=(0,), one_hot=((2, 3, 4),), features=NAMES)
GOOD = {"age": [30, 41], "income": [1.5, 2.5], "color": ["red", "green"]}


def validate(spec: rml.InputSpec = SPEC, **options: Any) -> Validate:
    guard = Validate(**options)
    guard.attach(spec)
    return guard


def is_sound(found: Checked, spec: rml.InputSpec = SPEC) -> bool:
    """Whether an answer is what the documentation says, whatever came."""
    refusals = list(found.refusals)
    texts = [str(refusal) for refusal in refusals]
    return (
        found.x.shape == (len(found.rows), *spec.shape)
        and found.x.dtype == spec.torch_dtype
        and bool(found.x.isfinite().all())
        and all(refusal.code in CODES and refusal.accepted for refusal in refusals)
        and all(len(text.splitlines()) == 1 and text.isprintable() for text in texts)
        and sum(found.refusals.counts.values()) == len(refusals)
        # Every row is either accepted or refused, unless the whole is.
        and (
            any(refusal.row is None for refusal in refusals)
            or sorted([*found.rows.tolist(), *(refusal.row for refusal in refusals)])
            == list(range(found.total))
        )
        and all(json.dumps(dataclasses.asdict(refusal)) for refusal in refusals)
        and found.ok == (not refusals)
    )


@dataclasses.dataclass
class Frame:
    """What a data frame looks like from outside."""

    data: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        return list(self.data)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("raw", [GOOD, Frame(GOOD), {**GOOD, "color": np.array(["red", "green"])}])
def test_columns_become_rows(raw: Any) -> None:
    found = validate().check(raw)
    assert found.ok
    assert found.x.tolist() == [[30, 1.5, 1, 0, 0], [41, 2.5, 0, 0, 1]]


def test_one_record_is_one_row() -> None:
    found = validate().check({"age": 30, "income": 1.5, "color": "blue"})
    assert found.x.tolist() == [[30, 1.5, 0, 1, 0]]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"age": None}, {"missing-column"}),
        ({"agee": [1, 2]}, {"extra-column"}),
        ({"income": [1.0]}, {"column-length"}),
        ({"income": ["1.5", 2.5]}, {"dtype"}),
        ({"income": ["1.5", "2"]}, {"dtype"}),
        ({"income": [None, 2.5]}, {"dtype"}),
        ({"income": [1j, 2.5]}, {"dtype"}),
        ({"income": [10**400, 2.5]}, {"not-finite"}),
        ({"income": [1e300, 2.5]}, {"bounds"}),
        ({"income": np.array(["2026-01-01"] * 2, "datetime64[D]")}, {"dtype"}),
        ({"income": [[1, 2], [3, 4]]}, {"dtype"}),
        ({"income": [[1, 2], [3]]}, {"dtype"}),
        ({"age": [30.5, 41]}, {"integer"}),
        ({"age": [-1, 101]}, {"bounds"}),
        ({"age": [float("nan"), float("inf")]}, {"not-finite"}),
        ({"color": ["red", "pink"]}, {"category"}),
        ({"color": ["red", 3]}, {"category"}),
    ],
)
def test_each_thing_that_can_be_wrong_with_a_column(changes: dict[str, Any], wanted: set[Code]) -> None:
    raw = {name: values for name, values in {**GOOD, **changes}.items() if values is not None}
    found = validate().check(raw)
    assert is_sound(found)
    assert set(found.refusals.counts) == wanted


def test_text_among_numbers_concerns_its_own_row() -> None:
    found = validate().check({**GOOD, "income": [1.5, "2 $"]})
    assert found.rows.tolist() == [0]
    assert str(found.refusals[0]) == "row 1, 'income': dtype: '2 $' came; a number is accepted"
    assert validate().check({**GOOD, "income": np.array(["1.5", "2"])}).refusals.counts == {"dtype": 2}


def test_a_misspelt_column_is_suggested() -> None:
    raw = {"agee": [1], "income": [1.0], "color": ["red"]}
    texts = [str(refusal) for refusal in validate().check(raw).refusals]
    assert texts == [
        "all rows, 'age': missing-column: the column is needed; did you mean 'agee'?",
        "all rows, 'agee': extra-column: only the columns of the features are accepted",
    ]
    assert validate(extra="ignore").check({**GOOD, "id": ["x", "y"]}).ok


def test_spelt_out_groups_are_checked() -> None:
    raw = {"age": [1, 2], "income": [1, 2], "color=red": [1, 1], "color=blue": [0, 1], "color=green": [0, 0]}
    found = validate().check(raw)
    assert found.rows.tolist() == [0]
    (refusal,) = found.refusals
    assert (refusal.code, refusal.row, refusal.name) == ("one-hot", 1, "color=blue")


def test_refusals_name_row_feature_value_and_what_is_accepted() -> None:
    found = validate().check({**GOOD, "income": [1.5, 250]})
    assert list(found.refusals) == [Refusal("bounds", 1, 1, "income", 250.0, "[0, 100] is accepted")]
    assert str(found.refusals[-1]) == "row 1, 'income': bounds: 250 came; [0, 100] is accepted"
    assert found.refusals[:1] == [found.refusals[0]]
    with pytest.raises(IndexError):
        found.refusals[1]


def test_raise_carries_the_refusals() -> None:
    with pytest.raises(RefusedInput, match=r"row 0, 'age': bounds: -1 came; .* \(and 1 more\)$") as caught:
        validate(mode="raise").check({**GOOD, "age": [-1, 101]})
    assert isinstance(caught.value, rml.InputError)
    assert [refusal.row for refusal in caught.value.refusals] == [0, 1]
    assert validate(mode="raise").check(GOOD).ok


def test_clip_repairs_what_it_can() -> None:
    found = validate(mode="clip").check({**GOOD, "age": [-1.0, float("nan")]})
    assert found.x.tolist() == [[0, 1.5, 1, 0, 0]]
    assert found.refusals.counts == {"not-finite": 1}


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i8", "u8", "f2", "f4", "f8", ">f8", ">i4", "g", "O"])
@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
def test_arrays_of_every_type_and_layout(dtype: str, order: str) -> None:
    values = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 1]])
    x = np.asarray(values, dtype=dtype, order="F" if order == "F" else "C")
    if order == "strided":
        x = np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3]
    if order == "reversed":
        x = x[::-1, ::-1].copy()[::-1, ::-1]
    found = validate().check(x)
    assert found.ok, list(found.refusals)
    assert found.x.tolist() == values.tolist()


@pytest.mark.parametrize(
    "raw",
    [
        [30, 1.5, 1, 0, 0],
        (30, 1.5, 1, 0, 0),
        [[30, 1.5, 1, 0, 0]],
        torch.tensor([30, 1.5, 1, 0, 0]),
        torch.tensor([[30, 1.5, 1, 0, 0]], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([30, 1.5, 1, 0, 0])],
        [np.array([30, 1.5, 1, 0, 0])],
    ],
)
def test_one_row_in_many_forms(raw: Any) -> None:
    assert validate().check(raw).x.tolist() == [[30, 1.5, 1, 0, 0]]


def _endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _deep(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


class Hostile:
    """Fails wherever it is touched."""

    @property
    def columns(self) -> list[str]:
        raise RuntimeError("no\nway")

    def __getitem__(self, name: str) -> Any:
        raise MemoryError

    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "kind"),
        ("age", "kind"),
        (3, "kind"),
        (object(), "kind"),
        (Hostile(), "kind"),
        (iter([1]), "kind"),
        ({1, 2}, "kind"),
        (datetime.date(2026, 1, 1), "kind"),
        (b"bytes", "kind"),
        (_endless(), None),
        (_deep(50), "shape"),
        (_deep(5000), None),
        ([[1, 2], [3]], None),
        ([[30, None, 1, 0, 0]], "dtype"),
        ([[30, "1.5", 1, 0, 0]], "dtype"),
        ([["a"] * 5], "dtype"),
        ([[10**5000, 1.5, 1, 0, 0]], "not-finite"),
        ([[30, Hostile(), 1, 0, 0]], None),
        (np.zeros((2, 5), "c16"), "dtype"),
        (np.zeros((2, 5), "M8[s]"), "dtype"),
        (np.zeros((2, 5), "S3"), "dtype"),
        (np.zeros((2, 5), [("a", "f4")]), "dtype"),
        (np.zeros((2, 4)), "shape"),
        (np.zeros((2, 5, 1)), "shape"),
        (np.zeros(()), "shape"),
        (torch.zeros(2, 5, dtype=torch.complex64), "dtype"),
        (torch.zeros(2, 5).to_sparse(), "kind"),
        (torch.zeros(2, 5, device="meta"), "kind"),
        ({}, "missing-column"),
        ({1: 2}, "missing-column"),
        (collections.OrderedDict(age=Hostile()), "missing-column"),
        ({**GOOD, "age": Hostile()}, "column-length"),
        ({**GOOD, "a\nb\x1b[31m": 1}, "extra-column"),
    ],
)
def test_what_is_no_input_at_all(raw: Any, code: Code | None) -> None:
    found = validate().check(raw)
    assert is_sound(found)
    assert not found.ok
    assert len(found.rows) == 0
    if code is not None:
        assert found.refusals[0].code == code


def test_too_many_rows() -> None:
    guard = validate(max_rows=3)
    for raw in (np.zeros((4, 5)), {**GOOD, "age": [1] * 4, "income": [1] * 4, "color": ["red"] * 4}):
        found = guard.check(raw)
        assert found.refusals.counts == {"rows": 1}
        assert "at most 3 rows" in str(found.refusals[0])


def test_columns_need_names() -> None:
    found = validate(rml.InputSpec(shape=(2,))).check({"a": [1], "b": [1]})
    assert found.refusals.counts == {"kind": 1}


def test_nothing_is_no_mistake() -> None:
    assert validate().check([]).ok
    assert validate().check({"age": [], "income": [], "color": []}).ok


def test_codes_are_the_literal() -> None:
    assert get_args(Code) == CODES
    assert len(set(CODES)) == len(CODES)


def test_a_million_rows() -> None:
    n = 10**6
    rng = np.random.default_rng(0)
    x = np.zeros((n, 5), np.float32)
    x[:, 0], x[:, 1], x[:, 2] = rng.integers(0, 100, n), rng.uniform(0, 100, n), 1
    bad = rng.random(n) < 0.3
    x[bad, 1] = np.nan
    found = validate().check(x)
    assert found.rows.tolist() == np.flatnonzero(~bad).tolist()
    assert found.refusals.counts == {"not-finite": int(bad.sum())}
    assert found.refusals[-1].row == int(np.flatnonzero(bad)[-1])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.dates()
)
columns = st.one_of(
    scalars,
    st.lists(scalars, max_size=4),
    st.lists(st.floats(), min_size=2, max_size=2),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=8),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)),
)
tables = st.dictionaries(
    st.sampled_from([*NAMES, "color", "other"]) | st.integers() | st.none() | st.text(), columns
)


@given(tables)
@settings(max_examples=500)
def test_any_table(raw: dict[Any, Any]) -> None:
    for guard in (validate(), validate(extra="ignore"), validate(mode="clip", extra="ignore")):
        assert is_sound(guard.check(raw))


@given(
    st.fixed_dictionaries(
        {
            name: st.lists(st.floats() | st.integers() | scalars, min_size=3, max_size=3)
            for name in ("age", "income")
        }
        | {"color": st.lists(st.sampled_from(["red", "blue", "pink"]) | scalars, min_size=3, max_size=3)}
    )
)
@settings(max_examples=500)
def test_any_values_in_the_right_columns(raw: dict[str, Any]) -> None:
    found = validate().check(raw)
    assert is_sound(found)
    assert found.total == 3


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, max_side=6)))
@settings(max_examples=500)
def test_any_array(raw: Any) -> None:
    assert is_sound(validate().check(raw))


@given(st.data(), hnp.scalar_dtypes())
@settings(max_examples=500)
def test_any_array_of_the_right_shape(data: st.DataObject, dtype: np.dtype[Any]) -> None:
    raw = data.draw(hnp.arrays(dtype, st.sampled_from([(5,), (0, 5), (1, 5), (4, 5)])))
    found = validate().check(raw)
    assert is_sound(found)
    assert set(found.refusals.counts) <= {"dtype", "not-finite", "bounds", "integer", "one-hot"}


@given(
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner), max_leaves=25)
)
@settings(max_examples=500)
def test_any_nested_list(raw: Any) -> None:
    assert is_sound(validate().check(raw))


def test_masked_values_are_missing() -> None:
    raw = np.ma.masked_array([[30.0, 1.5, 1, 0, 0], [30, 1.5, 1, 0, 0]], mask=[[0] * 5, [0, 1, 0, 0, 0]])
    found = validate().check(raw)
    assert found.rows.tolist() == [0]
    assert (found.refusals[0].code, found.refusals[0].feature) == ("not-finite", 1)
    found = validate().check({**GOOD, "age": np.ma.masked_array([30, 41], mask=[1, 0])})
    assert [(refusal.code, refusal.row, refusal.name) for refusal in found.refusals] == [
        ("not-finite", 0, "age")
    ]


def test_numbers_beyond_every_precision() -> None:
    huge = np.full((1, 5), np.finfo(np.longdouble).max, dtype=np.longdouble)
    with np.errstate(all="raise"):
        assert validate().check(huge).refusals.counts == {"bounds": 1}
