"""The bookkeeping of the samples that an attack is still working on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.attacks.active import Columns, Search, Watched
from robustml.balls.waiting import as_on_a_device
from robustml.inputs import InputSpec
from robustml.losses import cross_entropy
from robustml.sampling import Streams
from robustml.threats import THREATS, Linf

THREAT = Linf(0.5).within(InputSpec(shape=(3,), bounds=(-9.0, 9.0)))


def threshold(z: Tensor) -> Tensor:
    """Class 1 where the first feature is above 0."""
    return torch.stack([-z[:, 0], z[:, 0]], dim=1)


def search_over(model, n: int = 6) -> Search:
    x = torch.full((n, 3), -0.2)
    y = torch.zeros(n, dtype=torch.int64)
    return Search(model, x, y, THREAT, Streams.derive(0, "test", torch.arange(n)))


@dataclass
class State(Columns):
    z: Tensor


def test_broken_samples_leave_with_all_that_belongs_to_them() -> None:
    search = search_over(threshold)
    keys = search.streams.keys.clone()
    z = search.x.clone()
    z[[1, 4]] = 0.1
    search.look(z)
    state = State(z=z)
    assert search.prune(0, state)
    assert search.rows.tolist() == [0, 2, 3, 5]
    assert torch.equal(state.z, z[[0, 2, 3, 5]])
    assert torch.equal(search.streams.keys, keys[[0, 2, 3, 5]])
    assert len(search.ball.lower) == len(search.x) == len(search.y) == 4
    assert search.broken.tolist() == [False, True, False, False, True, False]
    found = search.finish(search.x + 0.01)
    torch.testing.assert_close(found[[1, 4]], z[[1, 4]])
    torch.testing.assert_close(found[[0, 2, 3, 5]], torch.full((4, 3), -0.19))


def test_the_first_adversarial_point_is_kept() -> None:
    search = search_over(threshold, 1)
    for value in (-0.1, 0.1, 0.2, -0.1):
        search.look(torch.full((1, 3), value))
    torch.testing.assert_close(search.finish(torch.zeros(1, 3)), torch.full((1, 3), 0.1))


def test_prune_says_when_none_is_left() -> None:
    search = search_over(threshold)
    search.look(torch.full((6, 3), 0.1))
    assert not search.prune(0, State(z=search.x))
    assert len(search) == 0
    assert not search.restart(1)


@given(broken=st.lists(st.integers(0, 5), unique=True), steps=st.lists(st.integers(0, 60), max_size=4))
def test_pruning_never_changes_what_is_found(broken, steps) -> None:
    search = search_over(threshold)
    z = search.x.clone()
    z[broken] = 0.3
    search.look(z)
    state = State(z=z)
    for step in steps:
        search.prune(step, state)
    found = search.finish(state.z)
    torch.testing.assert_close(found, z)
    assert sorted(search.broken.nonzero()[:, 0].tolist()) == sorted(broken)


def checks(number: int, steps: int) -> list[int]:
    """The steps at which a sample that broke just before leaves."""
    found = []
    for step in range(steps):
        search = search_over(threshold)
        search.restart(number)
        z = search.x.clone()
        z[0] = 0.1
        search.look(z)
        search.prune(step, State(z=z))
        if len(search) < 6:
            found.append(step)
    return found


def test_who_has_left_is_asked_at_every_step_at_first_and_then_ever_more_rarely() -> None:
    assert checks(0, 60) == [*range(8), 8, 12, 16, 20, 24, 28, 32, 40, 48, 56]


@pytest.mark.parametrize("number", [1, 2, 17])
def test_a_later_restart_asks_at_no_more_than_every_fourth_step(number) -> None:
    steps = checks(number, 60)
    assert steps[0] == 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert all(4 <= gap <= 8 for gap in gaps)
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("number", [0, 1])
def test_a_device_is_asked_at_no_more_than_every_fourth_step(number) -> None:
    with as_on_a_device():
        steps = checks(number, 60)
    assert steps[0] == (3 if number else 0)
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("name", "norm", "eps", "options"),
    [
        ("pgd", "linf", 0.05, {"steps": 20}),
        ("pgd", "l2", 0.4, {"steps": 20}),
        ("pgd", "l1", 1.5, {"steps": 20}),
        ("apgd", "linf", 0.05, {"restarts": 2, "steps": 20}),
        ("apgd", "l2", 0.4, {"restarts": 2, "steps": 20}),
        ("apgd", "l1", 1.5, {"restarts": 2, "steps": 20}),
        ("relay", "l2", 0.4, {"legs": 3}),
        ("square", "linf", 0.05, {"queries": 60}),
        ("square", "l2", 0.4, {"queries": 60}),
        ("noise", "l2", 0.4, {}),
    ],
)
def test_an_attack_finds_on_a_device_what_it_finds_elsewhere(
    run, tiny_cnn, images, name, norm, eps, options
) -> None:
    x, y = images
    threat = THREATS[norm](eps).within(InputSpec(shape=(2, 6, 6)))
    here = run(name, tiny_cnn, x, y, threat, **options)
    with as_on_a_device():
        there = run(name, tiny_cnn, x, y, threat, **options)
    broken = tiny_cnn(here).argmax(1) != y
    assert 0 < broken.sum() < len(x) or name == "noise"
    assert torch.equal(tiny_cnn(there).argmax(1) != y, broken)
    torch.testing.assert_close(there[broken], here[broken], rtol=1e-4, atol=1e-4)
    assert threat.around(x).contains(there).all()


@given(
    when=st.lists(st.integers(0, 40), min_size=6, max_size=6),
    number=st.integers(0, 3),
)
def test_a_sample_that_stays_after_it_broke_keeps_its_first_adversarial_point(when, number) -> None:
    search = search_over(threshold)
    search.restart(number)
    when, own = torch.tensor(when), torch.arange(6)
    for step in range(30):
        # From the step at which it breaks on each sample shows another adversarial point every time.
        z = search.x.clone()
        ripe = when[search.rows] <= step
        z[ripe, 0] = 0.01 * (1 + step)
        z[:, 1] = -0.2 + 0.01 * own[search.rows]
        search.look(z)
        if not search.prune(step, State(z=z)):
            break
    found = search.finish()
    broken = when < 30
    assert torch.equal(search.broken, broken)
    torch.testing.assert_close(found[broken, 0], 0.01 * (1 + when[broken]))
    torch.testing.assert_close(found[broken, 1], -0.2 + 0.01 * own[broken])
    torch.testing.assert_close(found[~broken], torch.full((int((~broken).sum()), 3), -0.2))


def test_samples_that_broke_in_a_restart_are_not_in_the_next() -> None:
    search = search_over(threshold)
    search.restart(1)
    z = search.x.clone()
    z[[2, 5]] = 0.1
    search.look(z)
    # Too early for a check: they stay for now.
    assert search.prune(0, State(z=z))
    assert len(search) == 6
    assert search.restart(2)
    assert search.rows.tolist() == [0, 1, 3, 4]


def test_finishing_after_the_last_restart_had_nothing_to_do() -> None:
    search = search_over(threshold)
    last = torch.full((6, 3), 0.1)
    search.look(last)
    assert not search.restart(1)
    torch.testing.assert_close(search.finish(last), last)


def test_a_rehearsal_is_not_held_against_the_model() -> None:
    search = search_over(threshold)
    value, gradient = search.climb(torch.full((6, 3), 5.0), cross_entropy, record=False)
    assert not search.broken.any()
    assert (value > 5).all()
    assert (gradient[:, 0] > 0).all()
    torch.testing.assert_close(search.finish(), search.x)


def test_a_gradient_that_shares_its_memory_is_no_obstacle() -> None:
    _, gradient = search_over(lambda z: torch.stack([z.sum(1) * 0, z.sum(1)], dim=1)).climb(
        torch.zeros(6, 3), lambda logits, _: logits.sum(1)
    )
    torch.testing.assert_close(gradient, torch.ones(6, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad) -> None:
    def model(z: Tensor) -> Tensor:
        z.register_hook(lambda gradient: gradient * bad)
        return threshold(z)

    _, gradient = search_over(model).climb(torch.zeros(6, 3), cross_entropy)
    assert torch.equal(gradient, torch.zeros(6, 3))


def test_a_watching_model_knows_the_rows_of_every_call() -> None:
    class Watching:
        def __init__(self) -> None:
            self.rows = torch.empty(0)
            self.calls: list[tuple[list[int], int]] = []

        def focus(self, rows: Tensor) -> None:
            self.rows = rows

        def __call__(self, z: Tensor) -> Tensor:
            self.calls.append((self.rows.tolist(), len(z)))
            return threshold(z)

    model = Watching()
    assert isinstance(model, Watched)
    search = search_over(model)
    z = search.x.clone()
    z[[0, 3]] = 0.1
    search.look(z)
    search.prune(0, State(z=z))
    search.look(search.x)
    search.restart(1)
    search.look(search.x)
    assert model.calls == [([0, 1, 2, 3, 4, 5], 6), ([1, 2, 4, 5], 4), ([1, 2, 4, 5], 4)]
