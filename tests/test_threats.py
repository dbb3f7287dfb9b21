"""The geometry of threat models, against definitions: who is in the ball, and what is nearest to whom."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.sampling import Streams
from robustml.threats import L0, L1, L2, THREATS, Ball, Linf, Threat

ORDERS = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
DUALS = {"linf": 1, "l2": 2, "l1": math.inf}
every_norm = pytest.mark.parametrize("norm", sorted(THREATS))
convex_norms = pytest.mark.parametrize("norm", sorted(DUALS))


@dataclass(frozen=True)
class World:
    """A threat bound to inputs, a batch of them, and points to project."""

    inputs: InputSpec
    x: Tensor
    z: Tensor
    share: float

    def threat(self, norm: str) -> Threat:
        widest = THREATS[norm](1.0).widest(self.inputs)
        eps = max(1, round(self.share * widest)) if norm == "l0" else self.share * widest
        return THREATS[norm](eps).within(self.inputs)

    def ball(self, norm: str) -> Ball:
        return self.threat(norm).around(self.x)

    def scaled(self, delta: Tensor) -> np.ndarray:
        """A perturbation in units of the scale, as float64 (n, features)."""
        return (delta.double() / self.inputs.like(self.inputs.scale, delta.double())).flatten(1).numpy()


def streams(n: int, seed: int, purpose: str = "test") -> Streams:
    return Streams.derive(seed, purpose, torch.arange(n))


@st.composite
def worlds(
    draw: st.DrawFn, *, dtypes: tuple[str, ...] = ("float32", "float64"), smallest: float = 1e-3
) -> World:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    size = math.prod(shape)
    some = st.lists(st.integers(0, size - 1), max_size=size, unique=True).map(tuple)
    low = draw(st.just(0.0) | st.lists(st.floats(-5, 0), min_size=size, max_size=size).map(tuple))
    high = draw(st.just(1.0) | st.lists(st.floats(0.5, 5), min_size=size, max_size=size).map(tuple))
    scale = draw(st.just(1.0) | st.lists(st.floats(0.2, 5), min_size=size, max_size=size).map(tuple))
    inputs = InputSpec(
        shape=shape,
        bounds=(low, high),
        scale=scale,
        immutable=draw(some),
        dtype=draw(st.sampled_from(dtypes)),
    )
    n, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**32))
    rng = streams(n, seed)
    # Some inputs lie on the border of the range, as black and white pixels do.
    unit = (1.4 * rng.uniform(*shape, dtype=inputs.torch_dtype) - 0.2).clamp(0, 1)
    floor, ceiling = (inputs.like(side, unit) for side in inputs.bounds)
    x = (floor + (ceiling - floor) * unit).clamp(floor, ceiling)
    share = draw(st.floats(smallest, 1))
    reach = share * inputs.span * draw(st.sampled_from([0.1, 1.0, 10.0]))
    return World(inputs, x, x + reach * rng.normal(*shape, dtype=inputs.torch_dtype), share)


def reference_projection(
    norm: str, d: np.ndarray, low: np.ndarray, high: np.ndarray, eps: float
) -> np.ndarray:
    """The nearest point to `d` in ball and box, from the multiplier of the norm constraint."""

    def at(multiplier: float) -> np.ndarray:
        if norm == "l2":
            return np.clip(d / (1 + multiplier), low, high)
        return np.clip(np.sign(d) * np.maximum(np.abs(d) - multiplier, 0), low, high)

    def excess(multiplier: float) -> float:
        return float(np.linalg.norm(at(multiplier), ORDERS[norm]) - eps)

    if norm == "linf":
        return np.clip(d, np.maximum(low, -eps), np.minimum(high, eps))
    if excess(0.0) <= 0:
        return at(0.0)
    largest = 2 * float(np.abs(d).sum()) * max(1.0, 1 / eps)
    return at(scipy.optimize.brentq(excess, 0.0, largest, xtol=1e-14, rtol=1e-14))


@every_norm
@given(world=worlds())
def test_projections_are_in_the_ball_and_in_the_box(norm: str, world: World) -> None:
    ball = world.ball(norm)
    p = ball.project(world.z)
    low, high = (world.inputs.like(side, p) for side in world.inputs.bounds)
    assert p.shape == world.x.shape
    assert p.dtype == world.x.dtype
    assert ball.contains(p).all()
    assert ((p >= low) & (p <= high)).all()
    frozen = list(world.inputs.immutable)
    assert torch.equal(p.flatten(1)[:, frozen], world.x.flatten(1)[:, frozen])


@every_norm
@given(world=worlds())
def test_projecting_twice_changes_nothing(norm: str, world: World) -> None:
    ball = world.ball(norm)
    once = ball.project(world.z)
    torch.testing.assert_close(ball.project(once), once, rtol=1e-5, atol=1e-5)


@every_norm
@given(world=worlds())
def test_inside_points_stay_where_they_are(norm: str, world: World) -> None:
    ball = world.ball(norm)
    toward = ball.project(world.z)
    inside = toward if norm == "l0" else world.x + 0.9 * (toward - world.x)
    torch.testing.assert_close(ball.project(inside), inside, rtol=1e-6, atol=1e-6)
    assert torch.equal(ball.project(world.x), world.x)


@convex_norms
@given(world=worlds(dtypes=("float64",)))
def test_the_projection_is_the_nearest_point(norm: str, world: World) -> None:
    ball, eps = world.ball(norm), world.threat(norm).eps
    wanted = world.scaled(world.z - world.x)
    got = world.scaled(ball.project(world.z) - world.x)
    low, high = world.scaled(ball.lower - world.x), world.scaled(ball.upper - world.x)
    for row in range(len(world.x)):
        best = reference_projection(norm, wanted[row], low[row], high[row], eps)
        shortest = np.linalg.norm(best - wanted[row])
        # The budget is kept with a relative margin of 1e-5; for L2 the last percent is not sought.
        assert np.linalg.norm(got[row] - wanted[row]) <= shortest * 1.01 + 3e-5 * eps


def solver_projection(norm: str, d: np.ndarray, room: np.ndarray, eps: float) -> np.ndarray:
    """The same by a general-purpose solver, for a symmetric box."""

    def slack(v: np.ndarray) -> float:
        return float(eps - v.sum() if norm == "l1" else eps**2 - ((v[:4] - v[4:]) ** 2).sum())

    # u = a - b with a, b >= 0 makes the L1 constraint linear.
    solved = scipy.optimize.minimize(
        lambda v: ((v[:4] - v[4:] - d) ** 2).sum(),
        np.full(8, 0.01),
        bounds=[(0, r) for r in room] * 2,
        constraints={"type": "ineq", "fun": slack},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.asarray(solved.x[:4] - solved.x[4:])


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_reference_projection_agrees_with_a_general_solver(norm: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        d, room, eps = rng.normal(size=4), rng.uniform(0.05, 1, 4), rng.uniform(0.2, 1)
        np.testing.assert_allclose(
            reference_projection(norm, d, -room, room, eps), solver_projection(norm, d, room, eps), atol=1e-4
        )


@pytest.mark.parametrize("spread", [0.5, 1, 2, 4])
@pytest.mark.parametrize("features", [3, 5, 10, 50])
def test_the_l2_projection_is_nearly_exact_where_rooms_differ_widely(features: int, spread: float) -> None:
    rng = streams(4000, features)
    room = (
        rng.uniform(features, dtype=torch.float64)
        * (spread * rng.normal(features, dtype=torch.float64)).exp()
    )
    delta = (
        rng.normal(features, dtype=torch.float64) * (spread * rng.normal(features, dtype=torch.float64)).exp()
    )
    # Every row is scaled to a problem of budget 1 that neither the box nor the point itself solves.
    budget = torch.minimum(delta.abs(), room).norm(dim=1) * (0.05 + 0.9 * rng.uniform(dtype=torch.float64))
    room, delta = room / budget[:, None], delta / budget[:, None]
    top = float(room.max())
    ball = L2(1.0, InputSpec(shape=(features,), bounds=(-top, top), dtype="float64")).around(
        (top - room).copysign(delta)
    )
    got = ball.project(ball.x + delta) - ball.x
    low, high = torch.zeros(4000, 1, dtype=torch.float64), torch.full((4000, 1), 1e6, dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        fits = torch.minimum(delta.abs() / (1 + middle), room).norm(dim=1, keepdim=True) <= 1
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    best = torch.minimum(delta.abs() / (1 + high), room).copysign(delta)
    shortest = (best - delta).norm(dim=1)
    assert ((got - delta).norm(dim=1) <= shortest * 1.01 + 3e-5).all()


@given(world=worlds(dtypes=("float64",)))
def test_the_l0_projection_keeps_the_best_features(world: World) -> None:
    ball = world.ball("l0")
    count, size = int(world.threat("l0").eps), world.inputs.size
    assume(math.comb(size, count) <= 300)
    clipped = torch.clamp(world.z, ball.lower, ball.upper)
    got = world.scaled(ball.project(world.z) - world.z)
    kept, dropped = world.scaled(clipped - world.z) ** 2, world.scaled(world.x - world.z) ** 2
    for row in range(len(world.x)):
        saved = dropped[row] - kept[row]
        best = max(saved[list(chosen)].sum() for chosen in itertools.combinations(range(size), count))
        assert (got[row] ** 2).sum() <= (dropped[row].sum() - best) * (1 + 1e-9) + 1e-12


@every_norm
@given(world=worlds(), seed=st.integers(0, 1000))
def test_random_points_are_inside_and_belong_to_their_streams(norm: str, world: World, seed: int) -> None:
    n, ball = len(world.x), world.ball(norm)
    drawn = ball.random(streams(n, seed))
    assert ball.contains(drawn).all()
    alone = world.threat(norm).around(world.x[-1:]).random(streams(n, seed).select(torch.tensor([n - 1])))
    torch.testing.assert_close(alone, drawn[-1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("threat", "least"), [(Linf(0.1), 0.099), (L2(0.5), 0.49), (L1(3), 2.6), (L0(4), 4)])
def test_random_points_reach_far_and_differ(threat: Threat, least: float) -> None:
    x = torch.full((500, 20), 0.5)
    ball = threat.within(InputSpec(shape=(20,))).around(x)
    first, second = (ball.random(streams(500, seed)) for seed in range(2))
    assert ball.distance(first).max() >= least
    assert (ball.distance(first) > 0).all()
    assert not torch.equal(first, second)
    assert abs(float((first - x).mean())) < 0.01


@convex_norms
@given(world=worlds())
def test_ascent_has_length_1_and_the_largest_inner_product(norm: str, world: World) -> None:
    gradient = world.z - world.x
    movable = torch.ones(world.inputs.size, dtype=torch.bool)
    movable[list(world.inputs.immutable)] = False
    step = world.ball(norm).ascent(gradient)
    assert step.shape == gradient.shape
    assert (step.flatten(1)[:, ~movable] == 0).all()
    if not movable.any():
        return
    lengths = np.linalg.norm(world.scaled(step), ORDERS[norm], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    # Hoelder: the most that a step of length 1 can gain is the dual norm of the (scaled) gradient.
    scale = world.inputs.like(world.inputs.scale, gradient).expand(world.inputs.shape).flatten()
    most = (gradient.flatten(1) * scale)[:, movable].double().numpy()
    gained = (step * gradient).flatten(1).double().sum(1).numpy()
    np.testing.assert_allclose(gained, np.linalg.norm(most, DUALS[norm], axis=1), rtol=1e-4)


@every_norm
def test_ascent_of_a_zero_or_tiny_gradient(norm: str) -> None:
    threat = THREATS[norm](1)
    ball = threat.around(torch.zeros(2, 5, dtype=torch.float32))
    gradient = torch.zeros(2, 5)
    gradient[1, 2:4] = torch.tensor([1e-40, -1e-40])
    step = ball.ascent(gradient)
    assert (step[0] == 0).all()
    assert step.isfinite().all()
    assert np.linalg.norm(step[1].numpy(), ORDERS[norm]) == pytest.approx(1)


def test_l0_ascent_moves_the_features_with_the_largest_gradients() -> None:
    ball = L0(2).around(torch.zeros(1, 4))
    assert ball.ascent(torch.tensor([[0.1, -3.0, 2.0, 0.0]])).tolist() == [[0, -1, 1, 0]]


@every_norm
@given(world=worlds())
def test_distance_is_the_norm(norm: str, world: World) -> None:
    wanted = np.linalg.norm(world.scaled(world.z.double() - world.x.double()), ORDERS[norm], axis=1)
    got = world.ball(norm).distance(world.z)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6)


@every_norm
@given(world=worlds(), data=st.data())
def test_selecting_rows_is_building_the_ball_from_them(norm: str, world: World, data: st.DataObject) -> None:
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(world.x) - 1), max_size=4)), dtype=torch.int64)
    part, built = world.ball(norm).select(rows), world.threat(norm).around(world.x[rows])
    z = world.z[rows]
    assert torch.equal(part.project(z), built.project(z))
    assert torch.equal(part.random(streams(len(rows), 1)), built.random(streams(len(rows), 1)))
    assert torch.equal(part.ascent(z), built.ascent(z))
    assert torch.equal(part.contains(z), built.contains(z))


@every_norm
def test_outside_points_and_broken_ones_are_not_contained(norm: str) -> None:
    inputs = InputSpec(shape=(4,), immutable=(3,))
    x = torch.full((5, 4), 0.5)
    z = x.clone()
    z[1, :3] += torch.tensor([0.3, -0.3, 0.3])  # too far in every norm
    z[2, 0] = math.nan
    z[3, 0] = 1.2  # out of range
    z[4, 3] += 0.01  # immutable
    eps = 1 if norm == "l0" else 0.2
    assert THREATS[norm](eps, inputs).around(x).contains(z).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("top", [1.0, 255.0])
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
@pytest.mark.parametrize("stretch", [0.5, 3.0, 100.0])
@convex_norms
def test_rounding_never_leaves_the_ball(norm: str, stretch: float, eps: float, top: float) -> None:
    n, shape = 24, (3, 32, 32)
    rng = streams(n, 7)
    x = rng.integers(256, *shape).float() / 255 * top  # pixels, which meet their neighbors' budgets exactly
    x[n // 2 :] = top * rng.uniform(*shape)[n // 2 :]
    budget = eps * top
    ball = THREATS[norm](budget, InputSpec(shape=shape, bounds=(0, top))).around(x)
    direction = rng.normal(*shape)
    length = stretch * budget / torch.linalg.vector_norm(direction.flatten(1), ORDERS[norm], dim=1)
    p = ball.project(x + direction * length.view(-1, 1, 1, 1))
    assert ball.contains(p).all()
    assert ball.contains(ball.random(rng)).all()
    if norm == "linf":
        corner = ball.project(x + 2 * budget * direction.sign())
        for point in (p, corner, ball.random(rng)):
            assert ((point.double() - x.double()).abs() <= budget).all()
    if stretch > 1:
        # What keeping inside may cost: the margin of 1e-5, and one float of each feature.
        lost = np.linalg.norm(np.full(x[0].numel(), top * 2**-24), ORDERS[norm])
        assert ball.distance(p).min() >= budget * (1 - 2e-5) - lost


@every_norm
def test_an_input_out_of_range_stays_in_its_own_ball(norm: str) -> None:
    x = torch.tensor([[1.5, 0.5, -0.5]])
    ball = THREATS[norm](1, InputSpec(shape=(3,))).around(x)
    assert ball.contains(x).all()
    assert ball.contains(ball.project(x + 10)).all()
    assert torch.equal(ball.project(x), x)


@every_norm
def test_an_empty_batch_is_a_batch(norm: str) -> None:
    x = torch.zeros(0, 2, 3)
    ball = THREATS[norm](1, InputSpec(shape=(2, 3))).around(x)
    for z in (ball.project(x), ball.random(streams(0, 0)), ball.ascent(x), ball.snap(x)):
        assert z.shape == x.shape
    assert len(ball.contains(x)) == len(ball.distance(x)) == 0


@every_norm
def test_without_inputs_only_the_norm_binds(norm: str) -> None:
    x = torch.full((2, 6), 100.0)
    ball = THREATS[norm](2).around(x)
    far = ball.project(x + 50)
    assert ball.contains(far).all()
    assert (far > 100).any(1).all()
    if norm == "l0":
        with pytest.raises(InputError, match="bind it to inputs"):
            ball.random(streams(2, 0))
    else:
        assert ball.contains(ball.random(streams(2, 0))).all()


def test_a_budget_below_one_level_is_refused() -> None:
    spec = InputSpec(shape=(4,), levels=256)
    with pytest.raises(
        InputError, match=r"eps=0.003 is less than one of the 256 levels .* one level is 0.0039"
    ):
        Linf(0.003, spec)
    assert Linf(1 / 255, spec).eps == 1 / 255
    assert L2(1 / 255, spec).eps == 1 / 255
    assert L0(1, spec).eps == 1
