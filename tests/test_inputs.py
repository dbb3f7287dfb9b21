"""InputSpec: what it accepts, what it says about the rest, and how it normalizes."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.inputs import InputSpec

KEYS = [field.name for field in dataclasses.fields(InputSpec)]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 300)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["float32", "float64", datetime.date(2026, 1, 1), datetime.time(12), 10**400, -(2**70)])
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
tables = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), junk, max_size=6)
# Tables that get past the first check, so that the later ones are reached too.
likely = st.fixed_dictionaries(
    {"shape": st.lists(st.integers(1, 4), min_size=1, max_size=3) | junk},
    optional={key: junk | st.lists(st.integers(0, 5), max_size=5) for key in KEYS if key != "shape"},
)


@st.composite
def specs(draw: st.DrawFn) -> InputSpec:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    size = int(np.prod(shape))
    numbers = st.floats(-10, 10)
    low = draw(numbers | st.lists(numbers, min_size=size, max_size=size).map(tuple))
    positive = st.floats(0.01, 100)
    one = st.integers(0, size - 1)
    group = tuple(draw(st.lists(one, max_size=4, unique=True)))
    levels = draw(st.none() | st.integers(2, 1000))
    return InputSpec(
        shape=shape,
        bounds=(low, 11.0),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        mean=draw(numbers | st.lists(numbers, min_size=shape[0], max_size=shape[0]).map(tuple)),
        std=draw(positive | st.lists(positive, min_size=size, max_size=size).map(tuple)),
        scale=draw(positive | st.lists(positive, min_size=size, max_size=size).map(tuple)),
        features=tuple(draw(st.just([]) | st.lists(st.text(max_size=4), min_size=size, max_size=size))),
        immutable=tuple(draw(st.lists(one, max_size=3))),
        integer=tuple(draw(st.lists(one, max_size=3))) if levels is None else (),
        one_hot=(group,) if len(group) > 1 and levels is None else (),
        levels=levels,
    )


@given(specs())
def test_a_spec_survives_the_way_through_json(spec: InputSpec) -> None:
    assert InputSpec.from_dict(spec.to_dict()) == spec
    again = InputSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)


def read(data: Any) -> InputSpec | str:
    """The spec, or what the refusal says."""
    try:
        return InputSpec.from_dict(data)
    except InputError as error:
        return str(error)


@settings(max_examples=300)
@given(tables | likely | junk)
@example({"shape": [2**31 - 1, 2**31 - 1]})
@example({"shape": [2**30]})
@example({"shape": [3], "dtype": []})
@example({"shape": [3], "features": [[]] * 3})
@example({"shape": [3], "bad\nkey": 1})
@example({"shape": [3], "mean": {"a": 1}})
@example({"shape": {"a": 1}})
def test_junk_is_refused_in_one_line_or_accepted(data: Any) -> None:
    outcome = read(data)
    if isinstance(outcome, str):
        assert outcome.isprintable()
        assert 10 < len(outcome) < 400
    else:
        assert InputSpec.from_dict(outcome.to_dict()) == outcome


# TOML reads hexadecimal numbers of any length, which Python then refuses to print in decimal.
HUGE = 16**5000


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "value", [HUGE, [HUGE], [0, HUGE], [[HUGE, 1]]], ids=["number", "list", "pair", "group"]
)
def test_numbers_too_long_to_print_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        InputSpec.from_dict({"shape": [3], key: value})


def test_lists_nested_too_deeply_to_print_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for key in KEYS:
        with pytest.raises(InputError, match=key):
            InputSpec.from_dict({"shape": [3], key: deep})


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"shape": ()}, r"shape=\(\) is empty"),
        ({"shape": 10}, "shape=10 is not a list of whole numbers"),
        ({"shape": (0,)}, r"shape holds 0, which is outside \[1, "),
        ({"shape": (2.0,)}, r"shape holds 2.0, which is not a whole number"),
        ({"shape": (True,)}, "shape holds True, which is not a whole number"),
        ({"shape": (2**20, 2**20)}, "has more than 2147483648 features"),
        ({"dtype": "float16"}, "dtype='float16' is not accepted; did you mean"),
        ({"bounds": 1.0}, "bounds=1.0 is not a pair"),
        ({"bounds": (1.0, 1.0)}, "lowest value that is not below"),
        ({"bounds": ((0, 0, 2), 1.0)}, "lowest value that is not below"),
        ({"bounds": ((0, 0), 1.0)}, "bounds has 2 values; it takes one number, or 3 of them"),
        ({"bounds": (0.0, float("inf"))}, "not a finite number"),
        ({"mean": "0"}, "mean='0' is not a number"),
        ({"mean": np.zeros(())}, "mean=.* is not a number or a list of numbers"),
        ({"std": 0}, "std=0.0 has a value that is not above 0"),
        ({"std": (1.0, 1.0, -1.0)}, "std=.* has a value that is not above 0"),
        ({"scale": (1, 2, 0)}, "scale=.* has a value that is not above 0"),
        ({"features": "abc"}, "features='abc' is not a list"),
        ({"features": ("a",)}, "features has 1 names for 3 features"),
        ({"features": (1, 2, 3)}, "features holds 1, which is not a name"),
        ({"immutable": (3,)}, r"immutable holds 3, which is outside \[0, 2\]"),
        ({"integer": 1}, "integer=1 is not a list"),
        ({"one_hot": (0, 1)}, "one_hot=0 is not a list"),
        ({"one_hot": ((0,),)}, "group of fewer than 2"),
        ({"one_hot": ((0, 1), (1, 2))}, "names a feature twice"),
        ({"levels": 1}, r"levels holds 1, which is outside \[2, 65536\]"),
        ({"levels": 2.0}, "levels holds 2.0, which is not a whole number"),
        ({"levels": 256, "integer": (0,)}, "levels=256 says what every feature can be; drop it or integer"),
        ({"levels": 256, "one_hot": ((0, 1),)}, "drop it or one_hot"),
        ({"levels": 65536, "bounds": (1000, 1001)}, "levels=65536 is finer than float32 can tell apart"),
    ],
)
def test_each_refusal_names_the_argument_and_what_is_accepted(
    settings_: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        InputSpec(**{"shape": (3,), **settings_})


def test_an_unknown_key_is_suggested_and_a_missing_shape_is_named() -> None:
    with pytest.raises(InputError, match=r"inputs\.bound is not known; did you mean 'bounds'"):
        InputSpec.from_dict({"shape": [3], "bound": [0, 1]})
    with pytest.raises(InputError, match=r"inputs\.shape is missing"):
        InputSpec.from_dict({})
    with pytest.raises(InputError, match="inputs=5 is not a table"):
        InputSpec.from_dict(5)  # type: ignore[arg-type]


def test_arrays_and_numpy_numbers_are_welcome() -> None:
    spec = InputSpec(
        shape=np.zeros((3, 2)).shape, bounds=(np.zeros(6), np.float32(2)), scale=torch.ones(6), std=[1, 2, 3]
    )
    assert spec.bounds == ((0.0,) * 6, 2.0)
    assert spec.scale == (1.0,) * 6
    assert spec.std == (1.0, 2.0, 3.0)
    assert json.dumps(spec.to_dict())


def test_a_number_normalizes_every_feature() -> None:
    x = torch.tensor([[0.5, 1.0]])
    spec = InputSpec(shape=(2,), mean=0.5, std=0.25)
    assert torch.equal(spec.normalize(x), torch.tensor([[0.0, 2.0]]))
    assert InputSpec(shape=(2,)).normalize(x) is x


def test_normalization_per_channel_and_per_feature() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    per_channel = InputSpec(shape=(3, 2, 2), mean=(1, 2, 3), std=(1, 2, 4)).normalize(x)
    for channel, (mean, std) in enumerate([(1, 1), (2, 2), (3, 4)]):
        assert torch.equal(per_channel[:, channel], (x[:, channel] - mean) / std)
    mean, std = torch.arange(12.0), torch.arange(1.0, 13.0)
    per_feature = InputSpec(shape=(3, 2, 2), mean=tuple(mean.tolist()), std=tuple(std.tolist())).normalize(x)
    assert torch.equal(per_feature.flatten(1), (x.flatten(1) - mean) / std)


def test_normalization_keeps_the_dtype_and_lets_gradients_through() -> None:
    x = torch.ones(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    out = InputSpec(shape=(3, 1, 1), mean=(0.1, 0.2, 0.3), std=(1, 2, 4)).normalize(x)
    assert out.dtype == torch.float64
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient[0].flatten().tolist() == [1.0, 0.5, 0.25]


def test_derived_properties() -> None:
    image = InputSpec(shape=(3, 8, 4), bounds=(0, 255))
    assert (image.size, image.span, image.is_image, image.is_discrete) == (96, 255.0, True, False)
    table = InputSpec(shape=(3,), bounds=(0.0, (1.0, 8.0, 6.0)), scale=(1.0, 4.0, 2.0), one_hot=((0, 1),))
    assert (table.size, table.span, table.is_image, table.is_discrete) == (3, 3.0, False, True)
    assert not InputSpec(shape=(2, 8, 8)).is_image
    assert InputSpec(shape=(1,), dtype="float64").torch_dtype == torch.float64


def test_levels_are_the_values_of_stored_images() -> None:
    spec = InputSpec(shape=(256,), levels=256)
    assert spec.is_discrete
    assert spec.level == 1 / 255
    pixels = torch.arange(256.0)
    assert torch.equal(spec.at_level(pixels), pixels / 255)
    assert torch.equal(spec.level_of(pixels / 255).round(), pixels)
    uneven = InputSpec(shape=(2,), bounds=(-1.0, (1.0, 3.0)), scale=(1.0, 4.0), levels=3)
    assert uneven.at_level(torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])).tolist() == [
        [-1.0, -1.0],
        [0.0, 1.0],
        [1.0, 3.0],
    ]
    assert uneven.level == 0.5
    back = uneven.from_unit(torch.tensor([[0.3, 0.7]], dtype=torch.float64), torch.zeros(1, 2))
    assert back.tolist() == [[0.0, 1.0]]


def test_like_broadcasts_over_a_batch() -> None:
    spec = InputSpec(shape=(2, 3))
    reference = torch.zeros(5, 2, 3, dtype=torch.float64)
    assert spec.like(2.0, reference).shape == ()
    per_feature = spec.like(tuple(range(6)), reference)
    assert per_feature.dtype == torch.float64
    assert torch.equal(per_feature, torch.arange(6.0, dtype=torch.float64).view(2, 3))
