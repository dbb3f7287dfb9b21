"""The registry: finding attacks by name, and checking their options before anything runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt
from torch import Tensor

from robustml import registry
from robustml.errors import InputError
from robustml.registry import Access, Attack, all_attacks, attack, family, find_attack
from robustml.sampling import Streams
from robustml.threats import THREATS, Threat


def wander(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    loss: str = "ce",
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] | None = None,
    greedy: bool = False,
) -> Tensor:
    """Go somewhere: not far.

    More about it.
    """
    return x


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that forgets what a test adds to it."""
    all_attacks()
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


@pytest.fixture
def wandering(own_names: None) -> Attack:
    attack("wander", access=Access.SCORE, norms={"linf", "l2"}, reference="Nobody 2026")(wander)
    return find_attack("wander")


def test_a_registered_attack_is_found_with_what_it_declared(wandering: Attack) -> None:
    assert wandering.function is wander
    assert wandering.access is Access.SCORE
    assert wandering.norms == {"linf", "l2"}
    assert wandering.reference == "Nobody 2026"
    assert wandering.summary == "Go somewhere: not far."
    assert all_attacks()["wander"] is wandering


def test_defaults_are_filled_in_and_options_kept(wandering: Attack) -> None:
    defaults = {"loss": "ce", "steps": 10, "step_size": None, "greedy": False}
    assert wandering.check({}) == defaults
    assert wandering.check({"steps": 3, "step_size": 2}) == {**defaults, "steps": 3, "step_size": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "wander: step is not known; did you mean 'steps'?"),
        ({"qqq": 3}, "wander: qqq is not known; known: greedy, loss, step_size, steps"),
        ({"steps": 0}, "wander: steps=0 is not accepted: input should be greater than or equal to 1"),
        ({"steps": "many"}, "wander: steps='many' is not accepted: input should be a valid integer"),
        ({"steps": 2.5}, "wander: steps=2.5 is not accepted: input should be a valid integer"),
        ({"steps": True}, "wander: steps=True is not accepted: input should be a valid integer"),
        ({"step_size": float("nan")}, "wander: step_size=nan is not accepted: input should be"),
        (
            {"step_size": float("inf")},
            "wander: step_size=inf is not accepted: input should be a finite number",
        ),
        ({"step_size": -1}, "wander: step_size=-1 is not accepted: input should be greater than 0"),
        ({"loss": 3}, "wander: loss=3 is not accepted: input should be a valid string"),
        ({"greedy": 1}, "wander: greedy=1 is not accepted: input should be a valid boolean"),
        ({"threat": "linf"}, "wander: threat is not known"),
        ({"model": None}, "wander: model is not known"),
    ],
)
def test_a_bad_option_is_named_in_one_line(wandering: Attack, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        wandering.check(options)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_all_bad_options_are_reported_together(wandering: Attack) -> None:
    with pytest.raises(InputError, match=r"steps=0 .*; lost is not known; did you mean 'loss'\?"):
        wandering.check({"steps": 0, "lost": "ce"})


def test_parameters_are_described_for_people(wandering: Attack) -> None:
    assert wandering.parameters() == [
        ("loss", "str", "ce"),
        ("steps", "int", 10),
        ("step_size", "float | None", None),
        ("greedy", "bool", False),
    ]


def test_an_option_may_be_required(own_names: None) -> None:
    def aim(model: Any, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams, target: int) -> Tensor:
        """Aim."""
        return x

    attack("aim", access=Access.GRADIENT, norms={"l2"}, reference="Nobody 2026")(aim)
    with pytest.raises(InputError, match="aim: target is missing"):
        find_attack("aim").check({})
    assert find_attack("aim").check({"target": 3}) == {"target": 3}


def test_an_attack_that_takes_anything_gets_it(own_names: None) -> None:
    def accept(model: Any, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams, **more: Any) -> Tensor:
        """Accept."""
        return x

    attack("accept", access=Access.GRADIENT, norms={"l2"}, reference="Nobody 2026")(accept)
    assert find_attack("accept").check({"max_iter": 3, "name": "x"}) == {"max_iter": 3, "name": "x"}


def test_registration_refuses_a_second_use_of_a_name_and_unknown_norms(wandering: Attack) -> None:
    with pytest.raises(ValueError, match="'wander' is registered twice"):
        attack("wander", access=Access.SCORE, norms={"l2"}, reference="Nobody 2026")(wander)
    with pytest.raises(ValueError, match=r"unknown norms \['l3'\]"):
        attack("stray", access=Access.SCORE, norms={"l3"}, reference="Nobody 2026")(wander)


def test_an_unknown_attack_is_suggested() -> None:
    with pytest.raises(InputError, match=r"attack 'apdg' is not known; did you mean 'apgd'\?"):
        find_attack("apdg")
    with pytest.raises(InputError, match=r"attack 'zzzzzz' is not known; known: .*apgd, .*pgd"):
        find_attack("zzzzzz")


def test_a_family_makes_its_members(own_names: None) -> None:
    @family("toy")
    def make(member: str) -> Attack:
        return Attack(f"toy:{member}", wander, Access.DECISION, frozenset({"l2"}), "Nobody 2026", "Toy.")

    assert find_attack("toy:Boat").name == "toy:Boat"
    assert "toy:Boat" not in all_attacks()
    with pytest.raises(InputError, match="toy:NAME"):
        find_attack("tyo:NAME")


def test_a_higher_access_includes_the_lower_ones() -> None:
    assert Access.DECISION < Access.SCORE < Access.GRADIENT
    assert [access.label for access in Access] == ["decision", "score", "gradient"]


def test_every_attack_says_what_it_is() -> None:
    known = all_attacks()
    assert list(known) == sorted(known)
    assert {"apgd", "fgsm", "noise", "pgd"} <= known.keys()
    for name, entry in known.items():
        assert entry.name == name
        assert entry.summary.endswith(".") or entry.summary.endswith(":"), name
        assert entry.norms <= THREATS.keys()
        assert any(character.isdigit() for character in entry.reference), name
        assert entry.check({}).keys() == {option for option, _, _ in entry.parameters()}


def test_the_trunk_knows_no_attack_until_one_is_looked_up() -> None:
    code = (
        "import sys, robustml.registry as r; assert not r._ATTACKS and 'robustml.attacks' not in sys.modules;"
        "print(*r.all_attacks())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pgd" in done.stdout.split()
