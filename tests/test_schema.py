"""Reading what people wrote: every problem, with its path, in one readable line."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.errors import InputError, RobustmlError, RunError, brief, suggest
from robustml.extras import need
from robustml.schema import Frozen, validated


class Gate(Frozen):
    """What must hold."""

    evasion: Annotated[float, pydantic.Field(ge=0, le=100)] = 0.0
    label: str | None = None


class Plan(Frozen):
    """A file with a part in it."""

    schema_: int = pydantic.Field(alias="schema", default=1)
    threats: list[str] = []
    gate: Gate | None = None
    gates: list[Gate] = []

    @pydantic.field_validator("threats")
    @classmethod
    def _check_threats(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("Each threat needs a name")
        return value


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def test_good_data_becomes_a_model() -> None:
    plan = validated(Plan, {"schema": 1, "threats": ["linf:0.3"], "gate": {"evasion": 40}}, where="plan.toml")
    assert plan.gate == Gate(evasion=40.0)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        plan.threats = []  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"threat": []}, "plan.toml: threat is not known; did you mean 'threats'?"),
        ({"shcema": 1}, "plan.toml: shcema is not known; did you mean 'schema'?"),
        ({"gate": {"evason": 40}}, "plan.toml: gate.evason is not known; did you mean 'evasion'?"),
        ({"gates": [{}, {"lable": ""}]}, "plan.toml: gates.1.lable is not known; did you mean 'label'?"),
        (
            {"gate": {"evasion": 140}},
            "plan.toml: gate.evasion=140 is not accepted: input should be less than",
        ),
        (
            {"gate": {"evasion": "40"}},
            "plan.toml: gate.evasion='40' is not accepted: input should be a valid",
        ),
        ({"threats": [""]}, "plan.toml: threats=[''] is not accepted: each threat needs a name"),
        ([], "plan.toml: the file=[] is not accepted: input should be"),
    ],
)
def test_a_problem_is_described_with_its_path(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        validated(Plan, data, where="plan.toml")


def test_all_problems_come_at_once_but_not_thousands_of_them() -> None:
    with pytest.raises(InputError, match=r"gate\.evasion=-1 .*; extra is not known"):
        validated(Plan, {"gate": {"evasion": -1}, "extra": 1}, where="plan")
    with pytest.raises(InputError, match=r"; and 994 more$") as caught:
        validated(Plan, {"threats": list(range(1000))}, where="plan")
    assert len(str(caught.value)) < 1000


@given(junk)
def test_junk_gives_a_model_or_one_line(data: Any) -> None:
    message = None
    try:
        plan = validated(Plan, data, where="plan")
    except InputError as error:
        message = str(error)
    if message is None:
        assert isinstance(plan, Plan)
    else:
        assert message.startswith("plan: ")
        assert message.isprintable()
        assert len(message) < 2000


def test_values_that_cannot_be_printed_are_refused_all_the_same() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (16**5000, [16**5000], deep):
        with pytest.raises(InputError, match=r"gate.*is not accepted"):
            validated(Plan, {"gate": value}, where="plan")


def test_error_messages_are_one_line_without_terminal_escapes() -> None:
    error = InputError("name='a\nb\x1b[2J\u2028\udc80' is odd: é")
    assert str(error) == r"name='a\nb\x1b[2J\u2028\udc80' is odd: é"


def test_errors_carry_the_exit_code_of_their_kind() -> None:
    assert (InputError("a").exit_code, RunError("a").exit_code, RobustmlError("a").exit_code) == (2, 3, 3)
    assert isinstance(InputError("a"), ValueError)
    assert isinstance(RunError("a"), RuntimeError)


def test_suggestions() -> None:
    assert suggest("pdg", ["pgd", "fgsm"]) == "; did you mean 'pgd'?"
    assert suggest("zzz", ["pgd", "fgsm"]) == "; known: fgsm, pgd"


def test_brief_is_short_and_on_one_line() -> None:
    assert brief([1, 2]) == "[1, 2]"
    assert brief("x" * 100) == "'" + "x" * 56 + "..."
    assert len(brief(list(range(1000)), 80)) == 80
    assert brief(16**5000) == "<int>"


def test_a_missing_dependency_names_its_extra() -> None:
    with pytest.raises(
        InputError, match=r"federation needs flwr_missing, .*'robustml-hardening\[federated\]'"
    ):
        need("flwr_missing.server", extra="federated", why="federation")
    assert need("math", extra="x", why="y").pi > 3
