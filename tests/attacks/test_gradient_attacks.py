"""FGSM, PGD and APGD against closed forms, against themselves under other conditions, and on odd models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import L1, L2, Linf, Threat

GRADIENT_ATTACKS = ["fgsm", "pgd", "apgd"]
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
KIND: dict[str, type[Threat]] = {"linf": Linf, "l2": L2, "l1": L1}
STEPS = {"pgd": 30, "apgd": 50}
# How many of 24 inputs each attack breaks on the small network.
GOLDEN = {
    "linf": {"fgsm": 11, "pgd": 13, "apgd": 14},
    "l2": {"fgsm": 11, "pgd": 14, "apgd": 13},
    "l1": {"fgsm": 5, "pgd": 15, "apgd": 22},
}
MNIST = Path(__file__).parents[3] / "shared" / "data"


def linear_problem(shape: tuple[int, ...], classes: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, 24 inputs, their predicted labels and the weight differences to the other classes."""
    generator = torch.Generator().manual_seed(classes)
    layer = nn.Linear(math.prod(shape), classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        layer.bias.zero_()
    model = nn.Sequential(nn.Flatten(), layer)
    x = torch.randn(24, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, layer.weight[y][:, None] - layer.weight[None]


def distances(model: nn.Module, x: Tensor, y: Tensor, gaps: Tensor, norm: str) -> Tensor:
    """How far each input is from the nearest decision boundary."""
    with torch.no_grad():
        logits = model(x)
        margins = logits.gather(1, y[:, None]) - logits
        sizes = gaps.norm(p=DUAL[norm], dim=2)
        return (margins / sizes).scatter(1, y[:, None], math.inf).amin(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(12,), (4, 5), (3, 6, 6)])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_linear_models_break_exactly_within_their_distance(run, name, classes, shape, norm) -> None:
    model, x, y, gaps = linear_problem(shape, classes)
    away = distances(model, x, y, gaps, norm)
    eps = float(away.median())
    spec = InputSpec(shape=shape, bounds=(-100.0, 100.0), dtype="float64")
    # Among ten classes the margin climbs towards one at a time, and starts decide which.
    restarts = 25 if classes == 10 else 5
    threat = KIND[norm](eps).within(spec)
    z = run(name, model, x, y, threat, loss="margin", restarts=restarts, steps=STEPS[name])
    broken = model(z).argmax(1) != y
    assert not broken[away > eps].any()
    assert broken[away < 0.98 * eps].all()


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_the_box_takes_part_in_the_linf_optimum(run, name) -> None:
    model, _, _, _ = linear_problem((20,), 2)
    x = torch.rand(80, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
    y, eps = logits.argmax(1), 0.3
    margin = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]
    weight = model[1].weight[1 - y] - model[1].weight[y]
    room = torch.where(weight > 0, (1 - x).clamp_max(eps), x.clamp_max(eps))
    slack = (weight.abs() * room).sum(1) - margin
    without_box = eps * weight.abs().sum(1) - margin
    z = run(name, model, x, y, Linf(eps).within(InputSpec(shape=(20,), dtype="float64")))
    broken = model(z).argmax(1) != y
    assert ((without_box > 0) & (slack < 0)).any(), "the box must matter for the test to mean anything"
    assert not broken[slack < 0].any()
    assert broken[slack > 0.02 * margin].all()


def test_fgsm_takes_one_full_step_along_the_sign(run, tiny_cnn, images) -> None:
    x, y = images
    point = x.clone().requires_grad_()
    nn.functional.cross_entropy(tiny_cnn(point), y, reduction="sum").backward()
    expected = (x + 0.01 * point.grad.sign()).clamp(0, 1)
    z = run("fgsm", tiny_cnn, x, y, Linf(0.01).within(InputSpec(shape=(2, 6, 6))))
    standing = tiny_cnn(x).argmax(1) == y
    torch.testing.assert_close(z[standing], expected[standing], atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stronger_attacks_break_more_of_a_network(run, tiny_cnn, images, norm) -> None:
    x, y = images
    threat = {"linf": Linf(0.06), "l2": L2(0.4), "l1": L1(1.5)}[norm].within(InputSpec(shape=(2, 6, 6)))
    found = {name: run(name, tiny_cnn, x, y, threat) for name in GRADIENT_ATTACKS}
    broken = {name: int((tiny_cnn(z).argmax(1) != y).sum()) for name, z in found.items()}
    assert broken == GOLDEN[norm]
    assert broken["fgsm"] < broken["pgd"]
    assert broken["fgsm"] < broken["apgd"]


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5)], ids=lambda t: t.norm)
def test_verdicts_do_not_depend_on_the_batch(run, tiny_cnn, images, name, threat) -> None:
    model, (x, y) = tiny_cnn.double(), images
    x, threat = x.double(), threat.within(InputSpec(shape=(2, 6, 6), dtype="float64"))
    options = {} if name == "fgsm" else {"steps": 15, "restarts": 2}
    ids = torch.arange(len(x)) + 100
    whole = run(name, model, x, y, threat, ids=ids, **options)
    for size in (1, 7):
        parts = [
            run(name, model, x[i : i + size], y[i : i + size], threat, ids=ids[i : i + size], **options)
            for i in range(0, len(x), size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5)], ids=lambda t: t.norm)
def test_leaving_the_batch_early_changes_no_verdict(run, tiny_cnn, images, name, threat, monkeypatch) -> None:
    x, y = images
    threat = threat.within(InputSpec(shape=(2, 6, 6)))
    pruned = tiny_cnn(run(name, tiny_cnn, x, y, threat)).argmax(1) != y
    monkeypatch.setattr("robustml.attacks.active._is_check", lambda step: False)
    unpruned = tiny_cnn(run(name, tiny_cnn, x, y, threat)).argmax(1) != y
    assert 0 < pruned.sum() < len(x)
    assert torch.equal(pruned, unpruned)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0), L1(5.0)], ids=lambda t: t.norm)
def test_a_broken_model_costs_a_handful_of_passes(run, tiny_cnn, images, threat) -> None:
    x, y = images
    passes = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal passes
        passes += len(z)
        return tiny_cnn(z)

    run("apgd", counted, x, (y + 1) % 4, threat.within(InputSpec(shape=(2, 6, 6))), steps=100, restarts=5)
    assert passes < 15 * len(x)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_restart_after_everything_broke_in_the_last_look(run, name) -> None:
    """One step suffices and the last look is what breaks them all, so that no sample is left to restart."""
    model, x, y, gaps = linear_problem((12,), 2)
    eps = 1.05 * float(distances(model, x, y, gaps, "linf").max())
    threat = Linf(eps).within(InputSpec(shape=(12,), bounds=(-100.0, 100.0), dtype="float64"))
    z = run(name, model, x, y, threat, steps=3, restarts=4)
    assert (model(z).argmax(1) != y).all()


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5)], ids=lambda t: t.norm)
def test_an_attack_leaves_no_trace(run, tiny_cnn, images, name, threat) -> None:
    x, y = images
    tiny_cnn.train()
    before, torch_state, numpy_state = x.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    threat = threat.within(InputSpec(shape=(2, 6, 6)))
    z = run(name, tiny_cnn, x, y, threat)
    assert threat.around(x).contains(z).all()
    assert torch.equal(x, before)
    assert all(parameter.grad is None for parameter in tiny_cnn.parameters())
    assert tiny_cnn.training
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


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
    "rounded": lambda net: lambda z: net(z.round()),
    "NaN logits": lambda net: lambda z: net(z) * math.nan,
}


@pytest.mark.parametrize("odd", ODD_MODELS)
@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4), L1(1.5)], ids=lambda t: t.norm)
def test_models_without_a_usable_gradient(run, tiny_cnn, images, name, threat, odd) -> None:
    x, y = images
    threat = threat.within(InputSpec(shape=(2, 6, 6)))
    z = run(name, ODD_MODELS[odd](tiny_cnn), x, y, threat)
    assert torch.isfinite(z).all()
    assert threat.around(x).contains(z).all()


def test_l1_steps_spread_over_the_features_that_can_move(run) -> None:
    """Two hundred equal features with little range each: one coordinate per step would not get far."""
    x = torch.full((4, 200), 0.5)
    y = torch.zeros(4, dtype=torch.int64)

    def model(z: Tensor) -> Tensor:
        gain = z.sum(1) - 100
        return torch.stack([torch.full_like(gain, 3.0), gain], dim=1)

    spec = InputSpec(shape=(200,), bounds=(0.45, 0.55))
    threat = L1(4.0).within(spec)
    assert (model(run("pgd", model, x, y, threat, steps=100)).argmax(1) == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "steps=0 is not accepted"),
        ({"steps": 2.5}, "steps=2.5 is not accepted"),
        ({"loss": "cee"}, "did you mean 'ce'"),
    ],
)
def test_bad_options_are_one_line(run, tiny_cnn, images, options, message) -> None:
    x, y = images
    with pytest.raises(InputError, match=message) as caught:
        run("apgd", tiny_cnn, x, y, Linf(0.05).within(InputSpec(shape=(2, 6, 6))), **options)
    assert "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_kind_of_feature_is_respected(data) -> None:
    size = 10
    integer = data.draw(st.lists(st.integers(0, 3), unique=True))
    groups = data.draw(st.sampled_from([(), ((4, 5, 6),)]))
    frozen = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=9))
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
    name = data.draw(st.sampled_from(["fgsm", "pgd", "apgd", "noise", "square"]))
    attack = find_attack(name)
    norm = data.draw(st.sampled_from(sorted(attack.norms & KIND.keys())))
    threat = KIND[norm](data.draw(st.floats(0.3, 3.0))).within(spec)
    small = {
        "fgsm": {},
        "pgd": {"steps": 5},
        "apgd": {"steps": 12},
        "noise": {"draws": 5},
        "square": {"queries": 20},
    }
    streams = Streams.derive(0, name, torch.arange(5))
    z = attack.function(
        lambda v: v @ weight, x, y, threat=threat, streams=streams, **attack.check(small[name])
    )
    assert threat.around(x).contains(z).all()
    assert torch.equal(z[:, frozen], x[:, frozen])


@pytest.mark.slow
@pytest.mark.skipif(
    not (MNIST / "mnist_pgd.safetensors").exists(), reason="needs the data beside the repository"
)
def test_apgd_on_a_real_adversarially_trained_network(run) -> None:
    """AutoAttack's own APGD-CE leaves 87.5 to 87.7 % of the first 1,000 test images standing."""
    from safetensors.torch import load_file

    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    model.load_state_dict(load_file(MNIST / "mnist_pgd.safetensors"))
    data = np.load(MNIST / "mnist.npz")
    x = torch.from_numpy(data["x_test"][:1000]).float()[:, None] / 255
    y = torch.from_numpy(data["y_test"][:1000].astype(np.int64))
    z = run("apgd", model, x, y, Linf(0.3).within(InputSpec(shape=(1, 28, 28))))
    robust = ((model(x).argmax(1) == y) & (model(z).argmax(1) == y)).double().mean()
    assert robust <= 0.877
