"""Square attack: its windows, its strength, its budget and the shapes that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustml.attacks.windows import Grid, bumps, spans
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import L1, L2, Linf


def linear(size: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, classes, generator=generator), torch.rand(12, size, generator=generator)


@pytest.mark.parametrize(
    ("shape", "share", "window"),
    [
        ((1, 28, 28), 0.8, (25, 25)),  # the reference implementation's first window on MNIST
        ((3, 32, 32), 0.8 / 2, (20, 20)),
        ((1, 28, 28), 0.8 / 512, (1, 1)),
        ((100,), 0.25, (1, 25)),
        ((4, 100), 0.5, (4, 50)),
        ((100, 4), 0.5, (50, 4)),
    ],
)
def test_windows_cover_their_share(shape, share, window) -> None:
    assert Grid.of(torch.zeros(1, *shape)).window(share, smallest=1, odd=False) == window


def test_the_schedule_is_that_of_the_paper() -> None:
    grid = Grid.of(torch.zeros(1, 1, 28, 28))
    sizes = [
        (span.height, span.moves)
        for span in spans(grid, 10_000, 0.8, torch.device("cpu"), smallest=1, odd=False)
    ]
    assert sum(moves for _, moves in sizes) == 9_999
    heights = list(dict.fromkeys(height for height, _ in sizes))
    assert heights == [25, 18, 13, 9, 6, 4, 3, 2, 1]
    assert sum(moves for height, moves in sizes if height == 25) == 11


def test_a_bump_pair_has_length_one_and_two_signs() -> None:
    patterns = bumps(7, 7, torch.zeros(1, dtype=torch.float64)).view(2, 7, 7)
    assert torch.allclose(patterns.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert (patterns[0, :3] > 0).all() and (patterns[0, 3:] < 0).all()
    torch.testing.assert_close(patterns[1], patterns[0].T)
    # Equation 2 for the upper bump, three rows by seven columns: its middle gathers all four rings.
    assert patterns[0, 1, 3] / patterns[0, 1, 0] == pytest.approx((1 + 1 / 4 + 1 / 9 + 1 / 16) / (1 / 16))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 5), (20,), (2,), (1,), (6, 7), (2, 2, 3, 4)])
@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.5), L1(0.9)], ids=lambda t: t.norm)
def test_any_shape_stays_in_its_ball(run, shape, threat) -> None:
    size = torch.zeros(shape).numel()
    weight, x = linear(size)
    threat = threat.within(InputSpec(shape=shape))

    def model(z: Tensor) -> Tensor:
        return z.flatten(1) @ weight

    x = x.view(12, *shape)
    y = model(x).argmax(1)
    z = run("square", model, x, y, threat, queries=60, restarts=2)
    assert threat.around(x).contains(z).all()
    assert not torch.equal(z, x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (40,), (5, 8)])
def test_linf_finds_the_best_corner_of_a_linear_model(run, shape) -> None:
    """The optimum is the corner that the signs of the weights name; random search comes close to it."""
    size = torch.zeros(shape).numel()
    weight, x = linear(size, 2)
    direction = weight[:, 1] - weight[:, 0]
    low = Linf(0.05).within(InputSpec(shape=shape, bounds=(-9.0, 9.0)))
    gain = 0.05 * direction.abs().sum()

    def model(z: Tensor) -> Tensor:
        push = (z - x[0].view(shape)).flatten(1) @ direction
        return torch.stack([torch.full_like(push, 0.9 * float(gain)), push], dim=1)

    inputs = x[:1].view(1, *shape).expand(10, *shape).clone()
    y = torch.zeros(10, dtype=torch.int64)
    assert (model(run("square", model, inputs, y, low, queries=800)).argmax(1) == 1).all()


def test_l2_spends_what_the_range_cuts_off(run) -> None:
    """Half of the features cannot rise; a search that leaves their budget unused stays below this bar."""
    x = torch.cat([torch.ones(6, 1, 4, 8), torch.zeros(6, 1, 4, 8)], dim=2)
    y = torch.zeros(6, dtype=torch.int64)
    threat = L2(1.0).within(InputSpec(shape=(1, 8, 8)))
    lengths: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        lengths.append((z - x[: len(z)]).flatten(1).norm(dim=1))
        rise = (z - x[: len(z)]).flatten(1).sum(1)
        return torch.stack([torch.full_like(rise, 100.0), rise], dim=1)

    run("square", model, x, y, threat, queries=50)
    assert torch.stack(lengths).amin() > 0.97
    assert torch.stack(lengths).amax() <= 1.0


def test_every_query_counts_and_no_more(run) -> None:
    weight, x = linear(30)
    y = (x @ weight).argmax(1)
    seen = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal seen
        seen += len(z)
        return z @ weight + 1000 * nn.functional.one_hot(y[: len(z)], 3)

    for threat in (Linf(0.1), L2(0.3), L1(1.0)):
        for queries in (1, 2, 77):
            seen = 0
            run("square", counted, x, y, threat.within(InputSpec(shape=(30,))), queries=queries, restarts=2)
            assert seen == 2 * queries * len(x)


def test_a_query_never_repeats_the_best_point(run) -> None:
    """A window that has its colors already takes the opposite ones."""
    best: Tensor | None = None
    repeats = 0

    def model(z: Tensor) -> Tensor:
        nonlocal best, repeats
        if best is not None:
            repeats += int((z == best).flatten(1).all(1).sum())
        else:
            best = z.clone()
        return torch.tensor([[1.0, 0.0]]).repeat(len(z), 1)

    x = torch.full((8, 1, 6, 6), 0.5)
    threat = Linf(0.1).within(InputSpec(shape=(1, 6, 6)))
    run("square", model, x, torch.zeros(8, dtype=torch.int64), threat, queries=100)
    assert repeats == 0


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.2), L1(0.8)], ids=lambda t: t.norm)
def test_verdicts_do_not_depend_on_the_batch(run, tiny_cnn, images, threat) -> None:
    model, (x, y) = tiny_cnn.double(), images
    x, threat = x.double(), threat.within(InputSpec(shape=(2, 6, 6), dtype="float64"))
    ids = torch.arange(len(x)) + 7
    whole = run("square", model, x, y, threat, ids=ids, queries=80, restarts=2)
    broken = model(whole).argmax(1) != y
    assert 0 < broken.sum() < len(x)
    for size in (1, 7):
        parts = [
            run(
                "square",
                model,
                x[i : i + size],
                y[i : i + size],
                threat,
                ids=ids[i : i + size],
                queries=80,
                restarts=2,
            )
            for i in range(0, len(x), size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=0)


def test_scale_is_the_unit_of_the_budget(run) -> None:
    scale = tuple(float(i + 1) for i in range(12))
    spec = InputSpec(shape=(12,), bounds=(-50.0, 50.0), scale=scale)
    x, y = torch.zeros(5, 12), torch.zeros(5, dtype=torch.int64)
    unit = torch.tensor(scale)
    for threat in (Linf(0.5).within(spec), L2(0.5).within(spec), L1(0.5).within(spec)):
        z = run("square", lambda v: torch.stack([v.sum(1) * 0 + 1e3, v.sum(1)], 1), x, y, threat, queries=80)
        assert threat.around(x).contains(z).all()
        assert threat.around(x).distance(z).amin() > 0.49
        assert ((z / unit).abs().amax(1) <= 0.5).all()


def test_an_l1_bump_is_steeper_and_sums_to_one() -> None:
    patterns = bumps(7, 7, torch.zeros(1, dtype=torch.float64), 1).view(2, 7, 7)
    assert torch.allclose(patterns.abs().sum((1, 2)), torch.ones(2, dtype=torch.float64))
    # Equation 2 with fourth powers (Croce and Hein 2021, appendix).
    assert patterns[0, 1, 3] / patterns[0, 1, 0] == pytest.approx((1 + 1 / 16 + 1 / 81 + 1 / 256) / (1 / 256))


@pytest.mark.parametrize("shape", [(1, 8, 8), (40,)])
def test_l1_comes_close_to_the_best_of_a_linear_model(run, shape) -> None:
    """The optimum puts the whole budget on the feature with the largest weight."""
    size = torch.zeros(shape).numel()
    weight, x = linear(size, 2)
    direction = weight[:, 1] - weight[:, 0]
    threat = L1(0.5).within(InputSpec(shape=shape, bounds=(-9.0, 9.0)))
    rises: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        push = (z - x[0].view(shape)).flatten(1) @ direction
        rises.append(push)
        return torch.stack([torch.full_like(push, 1e3), push], dim=1)

    inputs = x[:1].view(1, *shape).expand(10, *shape).clone()
    run("square", model, inputs, torch.zeros(10, dtype=torch.int64), threat, queries=1500)
    best = 0.5 * direction.abs().max()
    assert (torch.stack(rises).amax(0) / best).median() > 0.6
    assert (torch.stack(rises) <= best * 1.0001).all()


def test_streams_decide_and_nothing_else(run, tiny_cnn, images) -> None:
    x, y = images
    threat = Linf(0.03).within(InputSpec(shape=(2, 6, 6)))
    attack = find_attack("square")

    def once(seed: int) -> Tensor:
        streams = Streams.derive(seed, "square", torch.arange(len(x)))
        return attack.function(tiny_cnn, x, y, threat=threat, streams=streams, queries=40)

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
