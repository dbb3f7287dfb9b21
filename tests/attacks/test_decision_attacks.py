"""Attacks on labels alone: exact budgets, progress on linear models, real black boxes, figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import robustml as rml
from robustml.attacks.decisions import Questions, noise_row, noise_window
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.targets import load_target
from robustml.threats import L2, Linf, Threat

CASES = [("hop-skip-jump", "l2"), ("hop-skip-jump", "linf"), ("boundary", "l2"), ("rays", "linf")]
NORMS = {"l2": L2, "linf": Linf}
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


class Linear:
    """Labels of a linear model, and how far its boundary is."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.size = math.prod(shape)
        generator = torch.Generator().manual_seed(self.size + classes)
        self.weight = torch.randn(self.size, classes, generator=generator, dtype=torch.float64)
        self.x = torch.rand(6, *shape, generator=generator, dtype=torch.float64)
        self.y = self.scores(self.x).argmax(1)
        self.asked = torch.zeros(6, dtype=torch.int64)

    def scores(self, z: Tensor) -> Tensor:
        return z.flatten(1) @ self.weight

    def __call__(self, z: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.scores(z).argmax(1), self.weight.shape[1]).double()

    def faces(self, norm: str) -> Tensor:
        """The distance of the boundary to each class if the range were endless (n, classes)."""
        scores = self.scores(self.x)
        gap = scores.gather(1, self.y[:, None]) - scores
        slope = self.weight.T[None] - self.weight.T[self.y][:, None]
        dual = slope.norm(dim=2) if norm == "l2" else slope.abs().sum(2)
        return (gap / dual).masked_fill(dual == 0, torch.inf)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("queries", [1, 2, 13, 150, 701])
def test_the_budget_is_exact_for_every_sample(run, name, norm, queries) -> None:
    linear = Linear((12,), 3)
    threat = NORMS[norm](1e-3).within(InputSpec(shape=(12,), dtype="float64", bounds=(-2, 3)))
    calls: list[int] = []

    def counted(z: Tensor) -> Tensor:
        calls.append(len(z))
        return linear(z)

    run(name, counted, linear.x, linear.y, threat, queries=queries, nearest=True)
    # Nobody leaves, so every call asks about every sample.
    assert calls == [6] * queries


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize(
    ("shape", "classes"), [((20,), 2), ((5, 4), 3), ((1, 6, 6), 10), ((3, 4, 4), 3)], ids=str
)
def test_it_comes_close_to_the_nearest_point_of_a_linear_model(run, name, norm, shape, classes) -> None:
    linear = Linear(shape, classes)
    threat = NORMS[norm](1e-3).within(InputSpec(shape=shape, dtype="float64", bounds=(-9, 9)))
    queries = 4000 if name == "rays" else 6000
    z = run(name, linear, linear.x, linear.y, threat, queries=queries, nearest=True)
    assert (linear.scores(z).argmax(1) != linear.y).all()
    faces = linear.faces(norm)
    distance = threat.around(linear.x).distance(z)
    assert (distance / faces.amin(1) > 1 - 1e-9).all()
    assert (distance / faces.amin(1)).median() < 1.05
    # A walk may end at the boundary of another class than the nearest; there it is at the best point, too.
    reached = faces.gather(1, linear.scores(z).argmax(1)[:, None])[:, 0]
    assert (distance / reached).max() < 1.05
    assert (distance / faces.amin(1)).max() < 1.3


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_it_breaks_what_the_margin_allows_and_then_leaves(run, name, norm) -> None:
    linear = Linear((20,), 3)
    nearest = linear.faces(norm).amin(1)
    spec = InputSpec(shape=(20,), dtype="float64", bounds=(-9, 9))
    for factor in (1.1, 0.99):
        for row in (0, 3):
            threat = NORMS[norm](factor * float(nearest[row])).within(spec)
            x, y = linear.x[row : row + 1], linear.y[row : row + 1]
            calls: list[int] = []

            def counted(z: Tensor, calls: list[int] = calls) -> Tensor:
                calls.append(len(z))
                return linear(z)

            z = run(name, counted, x, y, threat, queries=3000)
            within = bool(threat.around(x).contains(z).all() and (linear.scores(z).argmax(1) != y).all())
            assert within == (factor > 1)
            assert (sum(calls) < 3000) == within


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_results_do_not_depend_on_the_batch(run, tiny_cnn, images, name, norm) -> None:
    model, (x, y) = tiny_cnn.double(), images
    x = x.double()
    eps = {"l2": 0.35, "linf": 0.06}[norm]
    threat = NORMS[norm](eps).within(InputSpec(shape=(2, 6, 6), dtype="float64"))
    ids = torch.arange(len(x)) + 7
    whole = run(name, model, x, y, threat, ids=ids, queries=400)
    broken = (model(whole).argmax(1) != y) & threat.around(x).contains(whole)
    assert 0 < broken.sum() < len(x)
    for size in (1, 7):
        parts = [
            run(name, model, x[i : i + size], y[i : i + size], threat, ids=ids[i : i + size], queries=400)
            for i in range(0, len(x), size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_known_start_is_used_and_never_lost(run, name, norm) -> None:
    linear = Linear((20,), 3)
    spec = InputSpec(shape=(20,), dtype="float64", bounds=(-9, 9))
    threat = NORMS[norm](1e-3).within(spec)
    good = run(name, linear, linear.x, linear.y, threat, queries=4000, nearest=True)
    start = torch.where(torch.arange(6)[:, None] < 3, good, linear.x)
    streams = Streams.derive(1, name, torch.arange(6))
    z = find_attack(name).function(
        linear, linear.x, linear.y, threat=threat, streams=streams, queries=60, nearest=True, start=start
    )
    ball = threat.around(linear.x)
    assert (ball.distance(z)[:3] <= ball.distance(good)[:3] + 1e-12).all()
    assert (linear.scores(z).argmax(1) != linear.y).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_what_cannot_change_does_not_and_the_scale_counts(run, name, norm) -> None:
    linear = Linear((20,), 3)
    scale = tuple(1.0 + i % 3 for i in range(20))
    spec = InputSpec(shape=(20,), dtype="float64", bounds=(-9, 9), immutable=(0, 4), scale=scale)
    threat = NORMS[norm](1e-3).within(spec)
    z = run(name, linear, linear.x, linear.y, threat, queries=1500, nearest=True)
    assert (linear.scores(z).argmax(1) != linear.y).all()
    assert torch.equal(z[:, [0, 4]], linear.x[:, [0, 4]])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_without_a_range_it_still_finds_points(run, name, norm) -> None:
    linear = Linear((8,), 2)
    z = run(name, linear, linear.x, linear.y, NORMS[norm](0.01), queries=1500, nearest=True)
    assert (linear.scores(z).argmax(1) != linear.y).all()
    assert z.isfinite().all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_model_that_cannot_be_fooled_costs_the_budget_and_nothing_else(run, name, norm) -> None:
    x, y = torch.rand(3, 1, 5, 5), torch.zeros(3, dtype=torch.int64)
    threat = NORMS[norm](0.3).within(InputSpec(shape=(1, 5, 5)))
    constant = torch.tensor([[1.0, 0.0]])
    z = run(name, lambda v: constant.expand(len(v), -1), x, y, threat, queries=90)
    assert threat.around(x).contains(z).all()
    assert len(run(name, lambda v: constant.expand(len(v), -1), x[:0], y[:0], threat, queries=9)) == 0


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_one_lost_sample_does_not_change_the_others(run, name, norm) -> None:
    """The first sample is never misclassified: it goes on guessing while the others walk."""
    linear = Linear((20,), 3)
    threat = NORMS[norm](1e-3).within(InputSpec(shape=(20,), dtype="float64", bounds=(-9, 9)))

    def model(z: Tensor) -> Tensor:
        labels = linear(z)
        labels[0] = torch.nn.functional.one_hot(linear.y[0], 3)
        return labels

    mixed = run(name, model, linear.x, linear.y, threat, queries=300, nearest=True)
    alone = run(
        name, linear, linear.x[1:], linear.y[1:], threat, queries=300, nearest=True, ids=torch.arange(1, 6)
    )
    torch.testing.assert_close(mixed[1:], alone, atol=1e-9, rtol=0)
    assert torch.equal(mixed[0], linear.x[0])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_on_a_grid_only_levels_are_asked_about(run, tiny_cnn, images, name, norm) -> None:
    x, y = images
    spec = InputSpec(shape=(2, 6, 6), levels=256)
    x = spec.at_level((x * 255).round())
    with torch.no_grad():
        y = tiny_cnn(x).argmax(1)
    threat = NORMS[norm]({"l2": 0.4, "linf": 16 / 255}[norm]).within(spec)

    def model(z: Tensor) -> Tensor:
        assert torch.equal(z, spec.at_level(spec.level_of(z).round()))
        return tiny_cnn(z)

    z = run(name, model, x, y, threat, queries=400)
    broken = (tiny_cnn(z).argmax(1) != y) & threat.around(x).contains(z)
    assert broken.any()


def test_directions_are_normal_and_uncorrelated() -> None:
    x = torch.zeros(400, 64)
    threat: Threat = L2(1.0).within(InputSpec(shape=(64,)))
    y = torch.zeros(400, dtype=torch.int64)

    def model(z: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(z), 1)

    search = Questions(
        model, x, y, threat, Streams.derive(0, "t", torch.arange(400)), nearest=True, start=None, queries=9
    )
    row = noise_row(search)
    windows = torch.stack([noise_window(row, k, 64) for k in range(32)])
    assert windows.mean().abs() < 0.01
    assert abs(float(windows.square().mean()) - 1) < 0.01
    assert abs(float(windows.pow(4).mean()) - 3) < 0.15
    products = torch.einsum("and,bnd->nab", windows, windows) / 64
    off = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    assert off.mean().abs() < 0.01
    assert (products.mean(0) - torch.eye(32)).abs().max() < 0.06


@pytest.mark.parametrize(("name", "norm"), [("rays", "linf:0.15"), ("hop-skip-jump", "l2:1.0")])
def test_a_black_box_with_labels_only_is_broken(tmp_path, name, norm) -> None:
    target = load_target("digits")
    inner = target.model

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return inner(torch.from_numpy(batch)).argmax(1).numpy()

    model = rml.BlackBox(predict, inputs=inner.inputs, classes=inner.classes, outputs="labels")
    suite = tmp_path / "labels.toml"
    suite.write_text(
        f'schema = 1\nname = "labels"\n[[attack]]\nid = "it"\nuse = "{name}"\noptions = {{ queries = 400 }}\n'
    )
    data = (target.data.x[:24], target.data.y[:24])
    report = rml.stress_test(model, data, threats=[norm], suite=str(suite))
    result = next(attack for attack in report.threats[0].attacks if attack.id == "it")
    assert result.broken > 5
    assert result.unconfirmed == 0 and result.rescued == 0
    assert result.queries is not None
    assert 1 <= result.queries.median <= result.queries.max <= 400
    assert result.passes.forward <= 24 * 400


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "mnist_pgd.safetensors").exists(), reason="needs the shared MNIST data")
@pytest.mark.parametrize(
    ("name", "threat", "queries", "standing"),
    [
        # With labels alone as strong as Square with scores, which leaves 89 of the 100 with 1,000 queries.
        ("rays", Linf(0.3), 1000, 90),
        # ART's HopSkipJump leaves 84 % of the first 50 with 6,433 queries, foolbox's 98 % with 6,588.
        ("hop-skip-jump", L2(1.5), 2000, 84),
    ],
    ids=["rays", "hop-skip-jump"],
)
def test_what_stands_on_a_robust_model(run, name, threat, queries, standing) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1568, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )
    net.load_state_dict(load_file(DATA / "mnist_pgd.safetensors"))
    with np.load(DATA / "mnist.npz", allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["x_test"][:100]).float().div(255)[:, None]
        y = torch.from_numpy(arrays["y_test"][:100].astype(np.int64))

    def labels(z: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(net(z).argmax(1), 10).float()

    threat = threat.within(InputSpec(shape=(1, 28, 28)))
    z = run(name, labels, x, y, threat, queries=queries)
    with torch.no_grad():
        broken = (net(z).argmax(1) != y) & threat.around(x).contains(z)
    assert 100 - int(broken.sum()) <= standing
