"""FMN, DDN, DeepFool, SuperDeepFool and sigma-zero: what they promise, on small models and on a real one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustml.attacks.planes import ENDLESS
from robustml.attacks.radii import ahead, shrink
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import THREATS, Threat
from tests.attacks import trained
from tests.attacks.trained import MNIST

CASES = [
    *(("fmn", norm) for norm in ("linf", "l2", "l1", "l0")),
    *(("deepfool", norm) for norm in ("linf", "l2")),
    ("ddn", "l2"),
    ("superdeepfool", "l2"),
    ("sigma-zero", "l0"),
]
# Budgets within which about half of the inputs of the small network can be broken.
MIDDLE = {"linf": 0.05, "l2": 0.4, "l1": 2.0, "l0": 3}
IMAGES = InputSpec(shape=(2, 6, 6))
EXACT_IMAGES = InputSpec(shape=(2, 6, 6), dtype="float64")

every_case = pytest.mark.parametrize(("name", "norm"), CASES)


def middle(norm: str, spec: InputSpec = IMAGES) -> Threat:
    return THREATS[norm](MIDDLE[norm]).within(spec)


@every_case
@pytest.mark.parametrize("gradient", ["true", "smooth"])
def test_what_is_found_is_valid_and_wrong(run, tiny_cnn, images, name, norm, gradient) -> None:
    x, y = images
    z = run(name, tiny_cnn, x, y, middle(norm), nearest=True, gradient=gradient)
    assert middle(norm).unbounded().around(x).contains(z).all()
    assert (tiny_cnn(z).argmax(1) != y).all()
    assert middle(norm).around(x).contains(z).sum() > len(x) / 3


@every_case
def test_without_nearest_the_same_samples_break_for_less(run, tiny_cnn, images, name, norm) -> None:
    model, x, y = tiny_cnn.double(), images[0].double(), images[1]
    passes = []

    def counted(z: Tensor) -> Tensor:
        passes.append(len(z))
        return model(z)

    threat = middle(norm, EXACT_IMAGES)
    ball = threat.around(x)
    near = run(name, counted, x, y, threat, nearest=True)
    spent = sum(passes)
    passes.clear()
    z = run(name, counted, x, y, threat)
    assert sum(passes) < spent
    assert (ball.distance(near) <= ball.distance(z) + 1e-9).all()
    assert torch.equal(ball.contains(z), ball.contains(near))


@every_case
@pytest.mark.parametrize("nearest", [False, True])
def test_the_result_of_a_sample_is_its_own(run, tiny_cnn, images, name, norm, nearest) -> None:
    model, x, y = tiny_cnn.double(), images[0].double(), images[1]
    options = {"steps": 20, "nearest": nearest}
    threat, ids = middle(norm, EXACT_IMAGES), torch.arange(len(x))
    whole = run(name, model, x, y, threat, **options)
    for size in (1, 7):
        parts = [
            run(name, model, x[i : i + size], y[i : i + size], threat, ids=ids[i : i + size], **options)
            for i in range(0, len(x), size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=0)


def from_start(name: str, model, x: Tensor, y: Tensor, threat: Threat, start: Tensor, **options) -> Tensor:
    attack = find_attack(name)
    assert attack.minimum and attack.takes_start
    streams = Streams.derive(0, name, torch.arange(len(x)))
    return attack.function(model, x, y, threat=threat, streams=streams, start=start, **attack.check(options))


@every_case
@pytest.mark.parametrize("blind", [False, True])
def test_a_known_point_is_never_made_worse(run, tiny_cnn, images, name, norm, blind) -> None:
    x, y = images
    ball = middle(norm).around(x)
    known = run("noise", tiny_cnn, x, y, middle(norm).unbounded(), draws=50)
    assert (tiny_cnn(known).argmax(1) != y).sum() > len(x) / 2
    known[::3] = x[::3]
    model = (lambda z: tiny_cnn(z.detach()).detach()) if blind else tiny_cnn
    z = from_start(name, model, x, y, middle(norm), known, nearest=True, steps=20)
    was = tiny_cnn(known).argmax(1) != y
    assert (tiny_cnn(z).argmax(1) != y)[was].all()
    assert (ball.distance(z) <= ball.distance(known))[was].all()
    if not blind:
        assert (ball.distance(z) < 0.9 * ball.distance(known))[was].all()


@every_case
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_scale_of_the_logits_does_not_matter(run, tiny_cnn, images, name, norm, factor) -> None:
    if name == "ddn":
        pytest.skip("the cross-entropy depends on it")
    model, x, y = tiny_cnn.double(), images[0].double(), images[1]
    threat = middle(norm, EXACT_IMAGES)
    plain = run(name, model, x, y, threat, steps=30, nearest=True)
    other = run(name, lambda z: factor * model(z), x, y, threat, steps=30, nearest=True)
    torch.testing.assert_close(other, plain, atol=1e-6, rtol=0)


@every_case
@pytest.mark.parametrize("factor", [1e-3, 255.0])
def test_the_unit_of_the_inputs_does_not_matter(run, tiny_cnn, images, name, norm, factor) -> None:
    model, x, y = tiny_cnn.double(), images[0].double(), images[1]
    spec = InputSpec(shape=(2, 6, 6), dtype="float64", bounds=(0.0, factor))
    eps = MIDDLE[norm] if norm == "l0" else MIDDLE[norm] * factor
    plain = run(name, model, x, y, middle(norm, EXACT_IMAGES), steps=30, nearest=True)
    threat = THREATS[norm](eps).within(spec)
    other = run(name, lambda z: model(z / factor), x * factor, y, threat, steps=30, nearest=True)
    torch.testing.assert_close(other / factor, plain, atol=1e-6, rtol=0)


@every_case
def test_smooth_gradients_find_what_rounding_hides(run, tiny_cnn, images, name, norm) -> None:
    x, _ = images

    def rounded(z: Tensor) -> Tensor:
        return tiny_cnn((z * 8).round() / 8)

    y = rounded(x).argmax(1)
    broken = {
        gradient: rounded(
            run(name, rounded, x, y, middle(norm), steps=40, nearest=True, gradient=gradient)
        ).argmax(1)
        != y
        for gradient in ("true", "smooth")
    }
    assert not broken["true"].any()
    assert broken["smooth"].double().mean() > 0.9


@every_case
@pytest.mark.parametrize("n", [0, 1])
def test_the_smallest_batches(run, tiny_cnn, images, name, norm, n) -> None:
    x, y = images[0][:n], images[1][:n]
    z = run(name, tiny_cnn, x, y, middle(norm), nearest=True)
    assert z.shape == x.shape
    assert (tiny_cnn(z).argmax(1) != y).all()


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[1] != "l0"])
def test_inputs_without_a_range(run, tiny_cnn, images, name, norm) -> None:
    x, y = images
    threat = THREATS[norm](MIDDLE[norm])
    z = run(name, tiny_cnn, x, y, threat, nearest=True)
    assert (tiny_cnn(z).argmax(1) != y).all()
    assert threat.around(x).distance(z).median() < 1.5 * MIDDLE[norm]


@every_case
def test_a_sample_that_is_wrong_costs_little_and_stays(run, tiny_cnn, images, name, norm) -> None:
    x, y = images
    sizes = []

    def counted(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return tiny_cnn(z)

    z = run(name, counted, x, (y + 1) % 4, middle(norm), nearest=True)
    assert torch.equal(z, x)
    assert sum(sizes) <= 8 * len(x)


class _NaN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * math.nan


ODD_MODELS = {
    "NaN gradient": lambda net: lambda z: net(_NaN.apply(z)),
    "zero gradient": lambda net: lambda z: net(z) * 0 + torch.tensor([1.0, 0, 0, 0]),
    "cut graph": lambda net: lambda z: net(z.round().detach()).detach(),
    "huge logits": lambda net: lambda z: net(z) * 1e30,
    "tiny logits": lambda net: lambda z: net(z) * 1e-30,
    "NaN logits": lambda net: lambda z: net(z) * math.nan,
}


@every_case
@pytest.mark.parametrize("odd", ODD_MODELS)
@pytest.mark.parametrize("nearest", [False, True])
def test_models_without_a_usable_gradient(run, tiny_cnn, images, name, norm, odd, nearest) -> None:
    x, y = images
    z = run(name, ODD_MODELS[odd](tiny_cnn), x, y, middle(norm), steps=12, nearest=nearest)
    assert torch.isfinite(z).all()
    assert middle(norm).unbounded().around(x).contains(z).all()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_kind_of_feature_is_respected(data) -> None:
    size = 10
    integer = data.draw(st.lists(st.integers(0, 3), unique=True))
    groups = data.draw(st.sampled_from([(), ((4, 5, 6),)]))
    frozen = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=10))
    scale = data.draw(st.sampled_from([1.0, tuple(0.5 + 0.25 * i for i in range(size))]))
    spec = InputSpec(
        shape=(size,),
        bounds=(-3.0, 3.0),
        integer=tuple(integer),
        one_hot=groups,
        immutable=tuple(frozen),
        scale=scale,
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    x = torch.rand(5, size, generator=generator) * 2 - 1
    x[:, integer] = x[:, integer].round()
    for group in groups:
        x[:, list(group)] = nn.functional.one_hot(torch.arange(5) % 3, 3).float()
    weight = torch.randn(size, 3, generator=generator)
    y = (x @ weight).argmax(1)
    name, norm = data.draw(st.sampled_from(CASES))
    threat = THREATS[norm](data.draw(st.integers(1, 4)) / (1 if norm == "l0" else 2)).within(spec)
    attack = find_attack(name)
    z = attack.function(
        lambda v: v @ weight,
        x,
        y,
        threat=threat,
        streams=Streams.derive(0, name, torch.arange(5)),
        **attack.check({"steps": 12, "nearest": data.draw(st.booleans())}),
    )
    assert threat.unbounded().around(x).contains(z).all()
    assert torch.equal(z[:, frozen], x[:, frozen])


@given(seed=st.integers(0, 500), norm=st.sampled_from(["linf", "l2", "l1", "l0"]), share=st.floats(0.01, 1.2))
def test_shrinking_stays_in_range_and_within_the_radius(seed, norm, share) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta, slope = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    low = -torch.rand(4, 9, generator=generator, dtype=torch.float64)
    high = torch.rand(4, 9, generator=generator, dtype=torch.float64)
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    size = torch.maximum(torch.minimum(delta, high), low).norm(p=order, dim=1)
    radius = (size * share).floor() if norm == "l0" else size * share
    out = shrink(norm, delta, radius, slope, low, high)
    assert ((out >= low) & (out <= high)).all()
    assert (out.norm(p=order, dim=1) <= radius * (1 + 1e-9)).all()
    assert (out * delta >= 0).all()
    if share >= 1:
        torch.testing.assert_close(out, torch.maximum(torch.minimum(delta, high), low))
    elif norm == "l1":
        torch.testing.assert_close(out.abs().sum(1), radius)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_steps_have_the_length_that_is_asked_for(norm, size) -> None:
    slope = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]]) * size
    step = ahead(norm, torch.zeros_like(slope), slope, torch.tensor([2.0, 2.0]))
    order = 2 if norm == "l2" else math.inf
    torch.testing.assert_close(step.norm(p=order, dim=1), torch.tensor([2.0, 0.0]))
    assert torch.equal(step.sign(), slope.sign())
    assert torch.isfinite(ahead(norm, torch.zeros_like(slope), slope, torch.full((2,), ENDLESS))).all()


@pytest.fixture(scope="module")
def robust_mnist() -> tuple[nn.Module, Tensor, Tensor]:
    if not (MNIST / "mnist_pgd.safetensors").exists():
        pytest.skip("needs the data beside the repository")
    return trained.robust_mnist(1000)


# The best peer at the same number of passes: samples, the median distance, the share that stands at a budget
# and the share of successes, in percent; then what the surrogates were measured to be good for.
PEERS = [
    ("ddn", "l2", 1000, {"steps": 99}, 1.5, (2.18, 78.0, 100), (1.45, 40.0, 100)),
    ("fmn", "l2", 1000, {"steps": 99}, 1.5, (2.24, 78.7, 99), (1.40, 36.0, 100)),
    ("fmn", "linf", 1000, {"steps": 99}, 0.3, (0.57, 91.1, 92), (0.312, 86.0, 100)),
    ("deepfool", "l2", 256, {"steps": 50}, 1.5, (5.16, 96.1, 65), (4.0, 96.1, 65)),
]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["true", "smooth"])
@pytest.mark.parametrize(("name", "norm", "count", "options", "eps", "peers", "ours"), PEERS)
def test_at_least_as_strong_as_the_best_peer(
    run, robust_mnist, name, norm, count, options, eps, peers, ours, gradient
) -> None:
    model, x, y = robust_mnist[0], robust_mnist[1][:count], robust_mnist[2][:count]
    passes = [0, 0]

    def counted(z: Tensor) -> Tensor:
        logits = model(z)
        passes[0] += len(z)
        if logits.requires_grad:
            logits.register_hook(lambda g: passes.__setitem__(1, passes[1] + len(g)))
        return logits

    threat = THREATS[norm](eps).within(InputSpec(shape=(1, 28, 28)))
    z = torch.cat(
        [
            run(
                name,
                counted,
                x[i : i + 256],
                y[i : i + 256],
                threat,
                nearest=True,
                gradient=gradient,
                **options,
            )
            for i in range(0, count, 256)
        ]
    )
    clean, adversarial = model(x).argmax(1) != y, model(z).argmax(1) != y
    distance = threat.around(x).distance(z).masked_fill(~adversarial, math.inf).masked_fill(clean, 0.0)
    median, robust, success = peers if gradient == "true" else ours
    assert distance.median() <= median
    assert 100 * (distance > eps * (1 + 1e-6)).double().mean() <= robust + 1e-9
    assert 100 * adversarial[~clean].double().mean() >= success
    forward, backward = (28, 251) if name == "deepfool" else (100, 100)
    assert passes[0] <= forward * count
    assert passes[1] <= backward * count
