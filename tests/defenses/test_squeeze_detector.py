"""Detection by squeezing: its distance and derivative, its threshold, what models it works with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.filters import MedianSmoothing
from robustml.defenses.guards.squeeze_detector import SqueezeDetector, default_squeezers, distance
from robustml.defenses.guards.squeezing import BitDepth, Decimals
from robustml.estimates import clopper_pearson
from robustml.guards import Guard, all_guards, guard
from robustml.inputs import InputSpec
from robustml.targets.guarding import made

BITS = {"guard": "bit-depth", "bits": 2}
MEDIAN = {"guard": "median", "size": 3}


class Counting(nn.Module):
    """A small network that counts how often it is asked."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3, sure: float = 3.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.body[1].weight.normal_(generator=generator).mul_(sure)
            self.body[1].bias.zero_()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.body(x)


def classifier(
    shape: tuple[int, ...] = (1, 6, 6), sure: float = 3.0, dtype: str = "float32"
) -> rml.Classifier:
    inputs = InputSpec(shape=shape, bounds=(-1.0, 1.0), dtype=dtype)
    return rml.Classifier(Counting(shape, sure=sure).to(inputs.torch_dtype), inputs=inputs, classes=3)


def points(n: int, shape: tuple[int, ...] = (1, 6, 6), seed: int = 0, dtype: str = "float32") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator, dtype=getattr(torch, dtype)) * 2 - 1


# Distance and score


def test_the_distance_is_that_between_probabilities() -> None:
    left, right = (torch.randn(20, 4, generator=torch.Generator().manual_seed(s)) * 5 for s in (0, 1))
    expected = np.abs(softmax(left.numpy(), 1) - softmax(right.numpy(), 1)).sum(1)
    assert np.allclose(distance(left, right).numpy(), expected, atol=1e-6)
    assert torch.equal(distance(left.requires_grad_(), right), distance(left.detach(), right))


def test_the_derivative_is_the_true_one_where_a_prediction_is_in_doubt() -> None:
    left, right = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).double() for s in (2, 3))
    assert torch.autograd.gradcheck(distance, (left.requires_grad_(), right.requires_grad_()))


@pytest.mark.parametrize("sure", [50.0, 500.0])
def test_attacks_have_a_derivative_where_both_predictions_are_certain(sure: float) -> None:
    left = torch.tensor([[sure, 0.0, -sure]]).requires_grad_()
    right = torch.tensor([[0.0, sure, 0.0]]).requires_grad_()
    slopes = torch.autograd.grad(distance(left, right).sum(), (left, right))
    # Towards agreement: down in the class that only one of them sees.
    assert slopes[0][0, 0] > 0 > slopes[0][0, 1]
    assert slopes[1][0, 1] > 0 > slopes[1][0, 0]
    assert all(slope.abs().amax() > 1e-6 for slope in slopes)


def test_the_score_is_the_largest_distance_in_units_of_the_threshold() -> None:
    model, x = classifier(sure=0.3, dtype="float64"), points(50, dtype="float64")
    detector = SqueezeDetector.fit(model, x, fpr=0.5, squeezers=[BITS, MEDIAN])
    squeezed = [MedianSmoothing(3), BitDepth(2)]
    for each in squeezed:
        each.attach(model.inputs)
    with torch.no_grad():
        plain = softmax(model(x).numpy(), 1)
        apart = np.max([np.abs(plain - softmax(model(s(x)).numpy(), 1)).sum(1) for s in squeezed], axis=0)
        score = detector.score(x, model).numpy()
    ratio = apart / float(detector.threshold)
    assert float(detector.threshold) == pytest.approx(np.sort(apart)[50 - 25])
    assert np.allclose(score, np.where(ratio > 1, np.log(np.maximum(ratio, 1)), ratio - 1))
    assert (score > 0).sum() == detector.rate.count == 24
    assert (score > 0).sum() == (ratio > 1).sum()


def test_the_score_has_the_true_derivative() -> None:
    model = classifier(sure=0.3, dtype="float64")
    detector = SqueezeDetector.fit(model, points(50, dtype="float64"), fpr=0.5, squeezers=[MEDIAN])
    x = points(6, dtype="float64", seed=9).requires_grad_()
    with torch.no_grad():
        assert 0 < (detector.score(x, model) > 0).sum() < 6  # on both sides of the threshold
    assert torch.autograd.gradcheck(lambda z: detector.score(z, model), (x,))


@pytest.mark.parametrize("sure", [1.0, 30.0, 1000.0])
def test_a_model_that_is_sure_of_itself_does_not_hide_the_gradient(sure: float) -> None:
    model = classifier(sure=sure)
    with torch.no_grad():
        clean = points(400)
        agree = (model(clean).argmax(1) == model(_squeezed(clean, model)).argmax(1)).nonzero()[:, 0]
    detector = SqueezeDetector.fit(model, clean[agree], fpr=0.3, squeezers=[MEDIAN])
    guarded = rml.Guarded(model, [detector])
    x = points(100, seed=5).requires_grad_()
    logits = guarded(x)
    rejected = logits.argmax(1) == 3
    assert rejected.sum() > 20
    margin = logits[:, 3] - logits[:, :3].amax(1)
    (slope,) = torch.autograd.grad(margin.sum(), x)
    assert (slope[rejected].flatten(1).norm(dim=1) > 0).all()


def _squeezed(x: Tensor, model: rml.Classifier) -> Tensor:
    median = MedianSmoothing(3)
    median.attach(model.inputs)
    return median(x)


def test_two_classes_that_are_alike_do_not_hide_a_third() -> None:
    left = torch.tensor([[900.0, 0.0, -50.0]])
    right = torch.tensor([[0.0, 500.0, 499.9]]).requires_grad_()
    (slope,) = torch.autograd.grad(distance(left, right).sum(), right)
    assert slope[0, 0] < -1e-6


# Calibration


@given(st.integers(19, 300), st.sampled_from([0.05, 0.1, 0.25]))
def test_the_expected_rate_is_at_most_the_one_wanted(n: int, fpr: float) -> None:
    detector = SqueezeDetector.fit(classifier(sure=0.3), points(n, seed=n), fpr=fpr, squeezers=[BITS])
    rate = detector.rate
    # One of n + 1 equally likely places of a fresh score among the others, and the lowest such threshold.
    assert (rate.count + 1) / (n + 1) <= fpr + 1e-12 < (rate.count + 2) / (n + 1)
    assert (rate.low, rate.high) == clopper_pearson(rate.count, n)
    assert (rate.total, rate.confidence, rate.value) == (n, 0.95, rate.count / n)


def test_the_interval_holds_the_rate_on_fresh_data() -> None:
    model, held = classifier(sure=0.3), 0
    fresh = points(4000, seed=10**6)
    rates = []
    for seed in range(40):
        detector = SqueezeDetector.fit(model, points(99, seed=seed), fpr=0.1, squeezers=[BITS])
        with torch.no_grad():
            rates.append(float((detector.score(fresh, model) > 0).double().mean()))
        held += detector.rate.low <= rates[-1] <= detector.rate.high
    assert held >= 36
    assert np.mean(rates) == pytest.approx(0.1, abs=0.015)


# Models and inputs


def labels_only(threshold: float) -> rml.BlackBox:
    inputs = InputSpec(shape=(4,))
    return rml.BlackBox(
        lambda x: (x[:, 0] > threshold).astype(int), inputs=inputs, classes=2, outputs="labels"
    )


def test_with_labels_alone_a_change_of_the_label_is_rejected() -> None:
    model = labels_only(0.505)
    clean = points(100, (4,)).abs()
    clean[:, 0] = torch.where(clean[:, 0] > 0.5, 0.9, 0.1)
    guarded = rml.Guarded(model, [SqueezeDetector.fit(model, clean, squeezers=[Decimals(1)])])
    x = torch.full((3, 4), 0.5)
    x[:, 0] = torch.tensor([0.2, 0.52, 0.8])
    assert guarded(x).argmax(1).tolist() == [0, 2, 1]  # 0.52 is 1, and 0.5 is 0


def test_labels_that_change_too_often_are_refused() -> None:
    clean = torch.rand(100, 4, generator=torch.Generator().manual_seed(0))
    clean[:20, 0] = 0.52
    with pytest.raises(
        rml.InputError, match="change the prediction altogether for 2.\\.0 % of the clean inp"
    ):
        SqueezeDetector.fit(labels_only(0.505), clean, squeezers=[Decimals(1)])


def test_a_black_box_of_scores_is_guarded() -> None:
    net = classifier(sure=1.0)

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(x)).softmax(1).numpy()

    model = rml.BlackBox(predict, inputs=net.inputs, classes=3)
    x = points(60)
    box = SqueezeDetector.fit(model, x.numpy(), fpr=0.2, squeezers=[BITS])
    assert torch.allclose(
        box.threshold, SqueezeDetector.fit(net, x, fpr=0.2, squeezers=[BITS]).threshold, rtol=1e-4
    )
    assert (rml.Guarded(model, [box])(x).argmax(1) == 3).sum() == box.rate.count


def test_each_model_answer_is_asked_for_once() -> None:
    model = classifier()
    guarded = rml.Guarded(model, [SqueezeDetector.fit(model, points(40), squeezers=[BITS, MEDIAN])])
    before = model.module.asked
    guarded(points(7))
    assert model.module.asked - before == 3


def test_rows_do_not_depend_on_each_other() -> None:
    model, x = classifier(), points(30)
    guarded = rml.Guarded(model, [SqueezeDetector.fit(model, x, fpr=0.2, squeezers=[BITS, MEDIAN])])
    assert torch.allclose(guarded(x)[4:5], guarded(x[4:5]), atol=1e-5)
    assert guarded(x[:0]).shape == (0, 4)


def test_fitting_leaves_the_model_as_it_was() -> None:
    model = classifier()
    model.train()
    state = torch.get_rng_state()
    SqueezeDetector.fit(model, points(40), squeezers=[BITS])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    model, x = classifier(sure=0.3), points(60)
    guarded = rml.Guarded(
        model, [SqueezeDetector.fit(model, x, fpr=0.1, squeezers=[MedianSmoothing(2), BITS])]
    )
    guarded.save(tmp_path / "g.safetensors")
    again = rml.Guarded.load(tmp_path / "g.safetensors", Counting((1, 6, 6)))
    assert torch.equal(again(x), guarded(x))
    assert again.fingerprint() == guarded.fingerprint()
    assert again.guards[0].rate == guarded.guards[0].rate
    assert again.describe() == [
        {"guard": "squeeze-detector", "squeezers": [{"guard": "median", "size": 2}, BITS], "fpr": 0.1}
    ]


def test_target_files_can_have_it() -> None:
    model, x = classifier(sure=0.3), points(60)
    built = made("squeeze-detector", {"fpr": 0.1, "squeezers": [BITS]}, model=model, x=x)
    assert built.rate == SqueezeDetector.fit(model, x, fpr=0.1, squeezers=[BITS]).rate
    assert made("squeeze-detector", {}, model=model, x=x).squeezers == default_squeezers(model.inputs)
    assert all_guards()["squeeze-detector"] is SqueezeDetector


def test_the_default_sets_are_those_of_the_paper() -> None:
    grey = default_squeezers(InputSpec(shape=(1, 28, 28)))
    color = default_squeezers(InputSpec(shape=(3, 32, 32)))
    assert [(entry["guard"], *list(entry.values())[1:]) for entry in grey] == [
        ("bit-depth", 1),
        ("median", 2),
    ]
    assert [(entry["guard"], *list(entry.values())[1:]) for entry in color] == [
        ("bit-depth", 5),
        ("median", 2),
        ("non-local-means", 13, 3, 2.0),
    ]
    assert SqueezeDetector(color).squeezers == color


@guard("test-noise-squeezer", reference="a test")
class NoiseSqueezer(Guard):
    """A squeezer that draws random numbers."""

    random = True


@pytest.mark.parametrize(
    ("squeezers", "message"),
    [
        ([], "squeezers is empty; give at least one"),
        ("median", "squeezers='median' is not a list of guards"),
        ([7], "squeezers holds 7; a table is wanted"),
        ([{"size": 2}], "a table is wanted, as in"),
        ([{"guard": "medain"}], "guard 'medain' is not known; did you mean 'median'?"),
        ([{"guard": "median", "syze": 2}], "median: syze is not known; did you mean 'size'?"),
        ([{"guard": "bit-depth", "bits": 40}], "bits=40 is not accepted"),
        ([{"guard": "squeeze-detector"}], "squeezers holds squeeze-detector, which does more than change"),
        ([{"guard": "test-noise-squeezer"}], "squeezers holds test-noise-squeezer, which does more"),
    ],
)
def test_squeezers_that_are_none_are_named(squeezers: object, message: str) -> None:
    with pytest.raises(rml.InputError) as caught:
        SqueezeDetector.fit(classifier(), points(40), squeezers=squeezers)
    assert message in str(caught.value)


def test_other_mistakes_are_named() -> None:
    model, x = classifier(), points(40)
    with pytest.raises(rml.InputError, match="has not been fitted; SqueezeDetector.fit"):
        rml.Guarded(model, [SqueezeDetector([BITS])])
    with pytest.raises(rml.InputError, match="has no rate before it has been fitted"):
        _ = SqueezeDetector([BITS]).rate
    with pytest.raises(rml.InputError, match="fpr=1 is not a share between 0 and 1"):
        SqueezeDetector.fit(model, x, fpr=1, squeezers=[BITS])
    with pytest.raises(rml.InputError, match=r"fpr=0.01 needs 99 inputs .* 40 are there"):
        SqueezeDetector.fit(model, x, fpr=0.01, squeezers=[BITS])
    with pytest.raises(rml.InputError, match="x is list"):
        SqueezeDetector.fit(model, x.tolist(), squeezers=[BITS])
    with pytest.raises(rml.InputError, match=r"x has shape \(40, 36\)"):
        SqueezeDetector.fit(model, x.flatten(1), squeezers=[BITS])
    with pytest.raises(rml.InputError, match="model is Guarded; give the Classifier or BlackBox"):
        SqueezeDetector.fit(rml.Guarded(model, []), x, squeezers=[BITS])
    with pytest.raises(rml.InputError, match="squeezers are missing: for inputs of shape"):
        SqueezeDetector.fit(classifier((4,)), points(40, (4,)))
    with pytest.raises(rml.InputError, match="guard median works on images"):
        SqueezeDetector.fit(classifier((4,)), points(40, (4,)), squeezers=[MEDIAN])
