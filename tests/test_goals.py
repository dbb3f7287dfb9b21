"""Goals: what is read, what is refused and how, and which samples they concern."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.data import choose
from robustml.errors import InputError
from robustml.goals import Goals, choose_rows, parse_goals

SIGNS = ["stop", "yield", "speed limit 30", "speed limit 50"]
NUMBERS = [str(label) for label in range(10)]


@pytest.mark.parametrize(
    ("given", "names", "pairs"),
    [
        (["3->8", "*->0"], NUMBERS, ((3, 8), (None, 0))),
        ("3->8", NUMBERS, ((3, 8),)),
        ((" 3 ->  8 ",), NUMBERS, ((3, 8),)),
        (["stop->speed limit 30"], SIGNS, ((0, 2),)),
        (["0->2", "*->yield"], SIGNS, ((0, 2), (None, 1))),
        # A name goes before a number, and may hold an arrow or be a star.
        (["1->0"], ["a", "1", "0"], ((1, 2),)),
        (["a->b->c"], ["a->b", "c"], ((0, 1),)),
        (["*->x"], ["*", "x"], ((0, 1),)),
        ([], NUMBERS, ()),
    ],
)
def test_goals_are_read(given: Any, names: list[str], pairs: tuple[tuple[int | None, int], ...]) -> None:
    goals = parse_goals(given, names)
    assert goals.pairs == pairs
    assert bool(goals) is bool(pairs)
    assert parse_goals(goals.texts, [str(label) for label in range(len(names))]) == goals


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["stop>yield"], "goal 'stop>yield' is not of the form SOURCE->TARGET, as in '3->8' or '*->0'"),
        (["stop->yeild"], "goal 'stop->yeild': 'yeild' is not the name of a class; did you mean 'yield'?"),
        (["stpo->yield"], "'stpo' is not the name of a class; did you mean 'stop'?"),
        (["stop->4"], "goal 'stop->4': '4' is not a class from 0 to 3; known: speed limit 30"),
        (["-1->stop"], "'-1' is not a class from 0 to 3"),
        (["stop->"], "'' is not the name of a class"),
        (["->stop"], "'' is not the name of a class"),
        (["stop->*"], "needs one class as its target; only the source can be any, '*'"),
        (["*->*"], "needs one class as its target"),
        (["stop->stop"], "goal 'stop->stop' turns a class into itself"),
        (["0->stop"], "turns a class into itself"),
        (["stop->yield", "0->1"], "goals names '0->1' twice"),
        ([3], "goal 3 is not of the form"),
        (3, "goals=3 is not a list of goals, as in ['3->8', '*->0']"),
        (None, "goals=None is not a list"),
    ],
)
def test_what_is_not_a_goal_is_refused_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_goals(given, SIGNS)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_two_classes_of_one_name_need_a_number() -> None:
    with pytest.raises(InputError, match="several classes are called 'cat'; use a number"):
        parse_goals(["dog->cat"], ["cat", "dog", "cat"])
    assert parse_goals(["dog->2"], ["cat", "dog", "cat"]).pairs == ((1, 2),)


def test_a_thousand_names_are_not_listed() -> None:
    with pytest.raises(InputError) as caught:
        parse_goals(["zebra->?"], [f"class number {label}" for label in range(1000)])
    assert len(str(caught.value)) < 200


@given(st.lists(st.tuples(st.none() | st.integers(0, 4), st.integers(0, 4)), max_size=5, unique=True))
def test_the_table_says_where_each_label_may_go(pairs: list[tuple[int | None, int]]) -> None:
    goals = Goals(tuple(pairs), 5)
    for label in range(5):
        wanted = {target for source, target in pairs if source in {None, label} and target != label}
        assert set(np.flatnonzero(goals.table[label]).tolist()) == wanted
        assert bool(goals.concern(np.array([label]))[0]) is bool(wanted)


def test_only_samples_with_a_goal_are_chosen() -> None:
    y = np.random.default_rng(0).integers(0, 4, 60)
    goals = parse_goals(["0->2", "*->3"], SIGNS)
    rows = choose_rows(y, None, "stratified", 0, goals)
    assert rows.tolist() == np.flatnonzero(y != 3).tolist()
    few = choose_rows(y, 12, "stratified", 0, goals)
    assert len(few) == 12
    assert set(few) <= set(rows)
    only = parse_goals(["1->2"], SIGNS)
    assert set(y[choose_rows(y, 5, "first", 0, only)]) == {1}
    assert choose_rows(y, 7, "stratified", 3, parse_goals([], SIGNS)).tolist() == (
        choose(y, 7, "stratified", 3).tolist()
    )


def test_too_few_samples_with_a_goal() -> None:
    y = np.array([0, 0, 1, 2])
    with pytest.raises(InputError, match="goals=3->1 concern none of the 4 samples"):
        choose_rows(y, None, "stratified", 0, parse_goals(["3->1"], SIGNS))
    with pytest.raises(InputError, match="samples=3 is more than the 2 samples that the goals concern"):
        choose_rows(y, 3, "stratified", 0, parse_goals(["0->1"], SIGNS))
