"""Randomized smoothing: certificates against closed forms, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binom
from torch import Tensor, nn

import robustml as rml
from robustml.certificates import behind_first, certificate, uncertified
from robustml.defenses.guards.smoothing import ABSTAINED, Certificate, Smoothing, certify, predict
from robustml.errors import InputError
from robustml.guards import Guard, find_guard
from robustml.inputs import InputSpec
from robustml.sampling import Streams

FEATURES = 6


def linear(classes: int, seed: int = 0, features: int = FEATURES) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features, classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, features, generator=generator, dtype=torch.float64))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return layer


def smoothed(
    module: nn.Module, *more: Guard, classes: int = 3, sigma: float = 0.25, **spec: Any
) -> rml.Guarded:
    inputs = InputSpec(shape=(FEATURES,), dtype="float64", **spec)
    return rml.Guarded(rml.Classifier(module, inputs=inputs, classes=classes), [Smoothing(sigma), *more])


def streams(n: int, seed: int = 0) -> Streams:
    return Streams.derive(seed, "test", torch.arange(n))


def points(n: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, FEATURES)))


def distances(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The label of a linear model and how far each input is from the nearest other class, in L2."""
    with torch.no_grad():
        logits = layer(x)
        label = logits.argmax(1)
        lead = logits.gather(1, label[:, None]) - logits
        length = (layer.weight[label][:, None] - layer.weight[None]).norm(dim=2)
        lead[torch.arange(len(x)), label] = torch.inf
        return label, (lead / length.clamp_min(1e-12)).amin(1)


def test_two_classes_of_a_linear_model_have_the_radius_of_the_closed_form() -> None:
    layer, x = linear(2), points(60)
    label, distance = distances(layer, x)
    draws = 20_000
    found = certify(smoothed(layer, classes=2), x, draws=draws, generator=streams(60))
    share = ndtr(distance.numpy() / 0.25)
    # The lower limit is below the share by what chance explains: a limit at 0.001 and five deviations more.
    error = np.sqrt(share * (1 - share) / draws)
    least = 0.25 * torch.special.ndtri(torch.from_numpy(np.clip(share - 9 * error - 2e-3, 0.5, 1)))
    kept = ~found.abstained
    assert kept.sum() > 50
    assert bool((found.label[kept] == label[kept]).all())
    assert bool((found.radius[kept] <= distance[kept]).all())
    assert bool((found.radius[kept] >= least[kept]).all())
    # Where a limit exists above one half, the input is certified.
    assert bool((least[found.abstained] == 0).all())


@pytest.mark.parametrize("classes", [3, 5])
def test_more_classes_are_never_certified_beyond_the_nearest_boundary(classes: int) -> None:
    layer, x = linear(classes), points(80)
    label, distance = distances(layer, x)
    found = certify(smoothed(layer, classes=classes), x, draws=2000, generator=streams(80))
    assert float((found.radius > 0).double().mean()) > 0.5
    # Where three regions meet, noise may prefer another class than the model does without it.
    right = found.label == label
    assert bool((found.radius[right] <= distance[right]).all())


def test_the_error_of_a_certificate_is_what_it_says() -> None:
    layer, n = linear(2), 3000
    x = points(n)
    _, distance = distances(layer, x)
    found = certify(smoothed(layer, classes=2), x, draws=400, confidence=0.9, generator=streams(n))
    wrong = int((found.radius > distance).sum())
    assert wrong <= binom.ppf(1 - 1e-6, n, 0.1)
    # An exact limit uses what it may: one that never errs would be too timid.
    assert wrong > 0.03 * n


def test_many_certificates_hold_together_at_a_bonferroni_level() -> None:
    layer, n = linear(2), 1000
    x = points(n)
    _, distance = distances(layer, x)
    found = certify(smoothed(layer, classes=2), x, draws=400, confidence=1 - 0.001 / n, generator=streams(n))
    assert int((found.radius > distance).sum()) == 0


def test_scale_is_the_unit_of_noise_and_radius() -> None:
    scale = (1.0, 2.0, 4.0, 0.5, 1.0, 10.0)
    layer, x = linear(2), points(40)
    with torch.no_grad():
        # A change of `scale` counts as 1: the distance is that of the model on scaled inputs.
        lead = (layer(x)[:, 0] - layer(x)[:, 1]).abs()
        distance = lead / ((layer.weight[0] - layer.weight[1]) * torch.tensor(scale)).norm()
    found = certify(smoothed(layer, classes=2, scale=scale), x, draws=20_000, generator=streams(40))
    assert bool((found.radius <= distance).all())
    wide = distance < 0.6
    assert bool((distance - found.radius)[wide].max() < 0.05)


def test_noise_is_that_of_the_global_generator_and_is_not_cut() -> None:
    guard = Smoothing(0.5)
    guard.attach(InputSpec(shape=(FEATURES,), dtype="float64"))
    x = torch.full((20_000, FEATURES), 0.9, dtype=torch.float64)
    torch.manual_seed(3)
    one = guard(x)
    torch.manual_seed(3)
    assert torch.equal(one, guard(x))
    assert not torch.equal(one, guard(x))
    noise = one - x
    assert abs(float(noise.std()) - 0.5) < 0.01
    assert abs(float(noise.mean())) < 0.01
    assert float(one.max()) > 1.5


def test_the_derivative_goes_through_the_noise() -> None:
    layer = linear(3)
    model = smoothed(layer)
    x = points(5).requires_grad_()
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.allclose(gradient, layer.weight[1].expand(5, FEATURES))
    torch.manual_seed(0)
    assert torch.equal(model(x.detach()), model_again(model, x.detach()))


def model_again(model: rml.Guarded, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.model(model.guards[0](x))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 11))
def test_a_sample_owes_nothing_to_its_batch(order: list[int], cut: int) -> None:
    model, x, own = smoothed(linear(3)), points(12), streams(12)
    whole = certify(model, x, draws=50, confidence=0.9, generator=own)
    for rows in (torch.tensor(order[:cut]), torch.tensor(order[cut:])):
        part = certify(model, x[rows], draws=50, confidence=0.9, generator=own.select(rows))
        assert torch.equal(part.label, whole.label[rows])
        assert torch.equal(part.radius, whole.radius[rows])


def test_memory_is_bounded_and_the_numbers_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import robustml.defenses.guards.smoothing as home

    seen: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Any:
            seen.append(len(x))
            return layer(x)

    layer = linear(3)
    monkeypatch.setattr(home, "_ELEMENTS", 60 * FEATURES)
    found = certify(smoothed(Watched()), points(30), select=20, draws=150, generator=streams(30))
    assert max(seen) <= 60
    assert sum(seen) == 30 * (20 + 150) + 2 * 8
    again = certify(smoothed(layer), points(30)[:7], select=20, draws=150, generator=streams(7))
    assert torch.equal(found.radius[:7], again.radius)


SUITE = """
schema = 1
name = "certified"
[[attack]]
id = "apgd-margin"
use = "apgd"
options = { loss = "margin", steps = 20 }
[[attack]]
id = "square"
use = "square"
options = { queries = 60 }
[curve]
points = [0.25, 0.5, 1.5, 2.0]
[[curve.attack]]
use = "pgd"
options = { loss = "margin", steps = 15 }
[diagnostics]
samples = 8
noise_draws = 8
[certificates]
draws = 1000
select = 50
"""


def noise_trained(sigma: float) -> tuple[nn.Module, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """A small network for digits that has seen noise in training, and 80 digits that it has not seen."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((pixels / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[80:], order[:80]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(25):
        for rows in train[torch.randperm(len(train), generator=generator)].split(64):
            noisy = x[rows] + sigma * torch.randn(x[rows].shape, generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(noisy), y[rows]).backward()
            optimizer.step()
    return net.eval(), (x[test].numpy(), y[test].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_on_digits_nothing_certified_is_broken_at_any_radius(tmp_path: Path, sigma: float) -> None:
    from robustml.stress.certifying import longest
    from robustml.stress.folder import RunFolder
    from robustml.stress.ledger import Ledger

    net, data = noise_trained(sigma)
    spec = InputSpec(shape=(1, 8, 8))
    model = rml.Guarded(rml.Classifier(net, inputs=spec, classes=10), [Smoothing(sigma)])
    (tmp_path / "suite.toml").write_text(SUITE)
    report = rml.stress_test(
        model,
        data,
        threats=["l2:0.5", "linf:0.05"],
        suite=tmp_path / "suite.toml",
        draws=500,
        eot=8,
        out=tmp_path / "run",
    )
    folder, plan = RunFolder.open(tmp_path / "run")
    ledger = Ledger(plan, data[1][plan.ids], folder.records)
    for threat, result in zip(plan.bound_threats, report.threats, strict=True):
        assert [d.status for d in result.diagnostics if d.code == "D23"] == ["pass"]
        for point in result.curve:
            # The certificates as they are, without what attacks broke being taken out of them.
            at = threat.at(point.eps) if point.eps else None
            proven = ledger.certified.radius > (0.0 if at is None else longest(at, plan.spec))
            standing = ledger.correct if at is None else ledger.standing(threat.norm, point.eps)
            assert not (proven & ~standing).any()
            assert int(proven.sum()) <= point.robust_accuracy.count
        assert result.robust_accuracy.lower is not None
        assert result.robust_accuracy.upper is not None
        assert result.robust_accuracy.lower.count > 10
        assert result.robust_accuracy.upper.count < 80


def test_ties_are_answered_by_abstaining() -> None:
    class Coin(nn.Module):
        """Decides by the sign of a feature that is exactly at its boundary."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], dim=1)

    x = torch.full((200, FEATURES), 0.5, dtype=torch.float64)
    model = smoothed(Coin(), classes=2)
    found = certify(model, x, draws=500, generator=streams(200))
    assert int(found.abstained.sum()) >= 198
    assert bool((found.label[found.abstained] == ABSTAINED).all())
    assert bool((found.radius[found.abstained] == 0).all())
    assert found.accuracy(torch.zeros(200, dtype=torch.int64)) <= 0.01
    answered = predict(model, x, draws=500, generator=streams(200))
    assert int(answered.abstained.sum()) >= 198
    assert bool(((answered.label == ABSTAINED) == answered.abstained).all())


def test_abstentions_count_as_errors() -> None:
    labels = torch.tensor([0, ABSTAINED, 2, 1])
    found = Certificate(labels, torch.tensor([0.5, 0.0, 0.25, 0.9]).double(), labels == ABSTAINED)
    y = torch.tensor([0, 1, 2, 2])
    assert found.accuracy(y) == 0.5
    assert found.accuracy(y, 0.25) == 0.25  # nothing is proven of a perturbation as long as the radius
    assert found.accuracy(y, 0.6) == 0.0


def test_predictions_agree_with_the_smoothed_model() -> None:
    layer, x = linear(2), points(100)
    label, distance = distances(layer, x)
    found = predict(smoothed(layer, classes=2), x, generator=streams(100))
    kept = ~found.abstained
    assert bool((found.label[kept] == label[kept]).all())
    # With 1,000 draws an abstention needs a share within about five deviations of one half.
    assert bool((distance[found.abstained] < 0.25 * 0.22).all())
    assert int(kept.sum()) > 80


def test_the_default_noise_is_fresh() -> None:
    model, x = smoothed(linear(3)), points(200)
    torch.manual_seed(0)
    one, other = (certify(model, x, draws=100, confidence=0.9) for _ in range(2))
    assert not torch.equal(one.radius, other.radius)
    generator = torch.Generator().manual_seed(5)
    first = certify(model, x, draws=100, confidence=0.9, generator=generator)
    again = certify(model, x, draws=100, confidence=0.9, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.radius, again.radius)


def test_answers_that_are_no_numbers_speak_for_no_class() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x[:, 0], -x[:, 0]], dim=1)
            return torch.where(x[:, :1] > 0.5, torch.nan, logits)

    x = torch.full((4, FEATURES), 0.6, dtype=torch.float64)
    model = smoothed(Silent(), classes=2)
    assert bool(certify(model, x, draws=500, generator=streams(4)).abstained.all())
    assert bool(predict(model, x, generator=streams(4)).abstained.all())


def test_an_empty_batch() -> None:
    model = smoothed(linear(3))
    found = certify(model, points(0))
    assert found.label.shape == found.radius.shape == found.abstained.shape == (0,)
    assert predict(model, points(0)).label.shape == (0,)


def test_float32_images_and_a_black_box() -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    spec = InputSpec(shape=(1, 4, 4))
    model = rml.Guarded(rml.Classifier(layer, inputs=spec, classes=4), [Smoothing(0.1)])
    x = np.random.default_rng(0).random((6, 1, 4, 4)).astype(np.float32)

    def labels(batch: Any) -> Any:
        with torch.no_grad():
            return layer(torch.from_numpy(batch)).argmax(1).numpy()

    box = rml.Guarded(rml.BlackBox(labels, inputs=spec, classes=4, outputs="labels"), [Smoothing(0.1)])
    one, other = (certify(each, x, draws=500, generator=streams(6)) for each in (model, box))
    assert torch.equal(one.radius, other.radius)
    assert one.radius.dtype == torch.float64
    assert one.label.dtype == torch.int64


def test_saved_and_loaded(tmp_path: Path) -> None:
    layer = linear(3)
    model = smoothed(layer, sigma=0.3)
    model.save(tmp_path / "model.safetensors")
    again = rml.Guarded.load(tmp_path / "model.safetensors", nn.Linear(FEATURES, 3).double())
    assert again.describe() == [{"guard": "smoothing", "sigma": 0.3}]
    one, other = (certify(each, points(9), draws=100, generator=streams(9)) for each in (model, again))
    assert torch.equal(one.radius, other.radius)
    assert find_guard("smoothing") is Smoothing


class Still(Guard):
    """Changes nothing."""

    name = "still"


class Rejecting(Still):
    name, rejects = "rejecting", True


class Wavering(Still):
    name, random = "wavering", True


class Doubling(Still):
    name = "doubling"

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_what_follows_the_noise_is_certified_with_the_model() -> None:
    layer = linear(2)
    model = smoothed(layer, Doubling(), classes=2)
    x = points(20)
    with torch.no_grad():
        assert torch.equal(behind_first(model)(x), layer(2 * x))
        lead = (layer(2 * x)[:, 0] - layer(2 * x)[:, 1]).abs()
        distance = lead / (2 * (layer.weight[0] - layer.weight[1])).norm()
    found = certify(model, x, draws=4000, generator=streams(20))
    assert bool((found.radius <= distance).all())
    assert bool((distance - found.radius)[distance < 0.5].max() < 0.1)


def bare() -> rml.Classifier:
    return rml.Classifier(linear(3), inputs=InputSpec(shape=(FEATURES,), dtype="float64"), classes=3)


class Dropping(nn.Module):
    """Draws random numbers whatever its mode."""

    def forward(self, x: Tensor) -> Any:
        return linear(3)(x) + torch.randn(len(x), 3, dtype=x.dtype)


def trained() -> rml.Guarded:
    model = smoothed(nn.Sequential(nn.Dropout(0.5), linear(3)))
    return model.train()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (bare, "guarded is Classifier; give Guarded"),
        (lambda: rml.Guarded(bare(), []), "no guard of the model certifies anything"),
        (lambda: rml.Guarded(bare(), [Still()]), "no guard of the model certifies anything"),
        (lambda: rml.Guarded(bare(), [Still(), Smoothing(0.1)]), "guard still comes before the one"),
        (lambda: smoothed(linear(3), Rejecting()), "guard rejecting rejects inputs"),
        (lambda: smoothed(linear(3), Wavering()), "guard wavering draws random numbers behind"),
        (lambda: smoothed(linear(3), Smoothing(0.1)), "guard smoothing draws random numbers behind"),
        (lambda: smoothed(Dropping()), "the model behind the noise answers at random"),
        (trained, "the model is in training mode, which matters for Dropout"),
    ],
)
def test_models_without_a_certificate_are_refused(model: Any, said: str) -> None:
    for ask in (certify, predict):
        with pytest.raises(InputError, match=said) as caught:
            ask(model(), points(3))
        assert "\n" not in str(caught.value)


def test_a_bare_model_is_known_to_have_none() -> None:
    assert uncertified(bare()) == "no guard of the model certifies anything"
    assert uncertified(smoothed(linear(3))) is None
    with pytest.raises(InputError, match="no certificate: no guard"):
        certificate(bare(), points(2), select=1, draws=100, confidence=0.9, source=None)


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf"), "0.1", None, True])
def test_sigma_must_be_positive(sigma: Any) -> None:
    with pytest.raises(InputError, match=r"sigma=.* is not a finite number above 0"):
        Smoothing(sigma)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 0}, "draws=0 is not a whole number of at least 1"),
        ({"draws": 10.0}, r"draws=10.0 is not a whole number"),
        ({"select": 0}, "select=0 is not a whole number"),
        ({"select": True}, "select=True is not a whole number"),
        ({"confidence": 0.5}, "confidence=0.5 is not a finite number above 0.5 and below 1"),
        ({"confidence": 1.0}, "confidence=1.0 is not a finite number"),
        ({"confidence": float("nan")}, "confidence=nan is not a finite number"),
        ({"draws": 9}, "draws=9 can certify nothing at confidence 0.999; at least 10 are needed"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        certify(smoothed(linear(3)), points(2), **options)


def test_the_least_number_of_draws_can_certify() -> None:
    x = torch.ones(1, FEATURES, dtype=torch.float64)

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], dim=1)

    assert not bool(certify(smoothed(Sure(), classes=2), x, draws=10).abstained[0])


@pytest.mark.parametrize("ask", [certify, predict])
def test_inputs_of_another_form(ask: Any) -> None:
    model = smoothed(linear(3))
    with pytest.raises(InputError, match=r"x has shape \(2, 5\); the model takes \(n, 6\)"):
        ask(model, torch.zeros(2, 5))
    with pytest.raises(InputError, match=r"x holds torch.int64"):
        ask(model, torch.zeros(2, FEATURES, dtype=torch.int64))
