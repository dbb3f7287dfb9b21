"""The density detector: its statistics, its threshold, its derivative, the layers it looks into."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import beta
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.calibration import calibrated, needed, shuffled
from robustml.defenses.guards.density import DensityDetector
from robustml.guards import Answers, find_guard

METHODS = ("mahalanobis", "knn")


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    state = torch.get_rng_state()
    torch.manual_seed(3)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )
    torch.set_rng_state(state)
    return made.to(dtype).eval()


def images(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classifier(dtype: str = "float32") -> rml.Classifier:
    inputs = rml.InputSpec(shape=(1, 6, 6), dtype=dtype)
    return rml.Classifier(network(inputs.torch_dtype), inputs=inputs, classes=3)


def gaussian_model(size: int = 5) -> rml.BlackBox:
    """What the layer "input" needs of a model: its input space."""
    inputs = rml.InputSpec(shape=(size,), bounds=(-50, 50), dtype="float64")
    return rml.BlackBox(lambda x: np.eye(2)[(x[:, 0] > 0).astype(int)], inputs=inputs, classes=2)


def scores(detector: DensityDetector, x: Tensor) -> Tensor:
    return detector.score(x, lambda z: z)


def test_mahalanobis_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    y = rng.integers(0, 3, 400)
    x = rng.normal(size=(400, 5)) @ mixing + rng.normal(size=(3, 5))[y] * 3
    model = rml.BlackBox(
        lambda z: np.eye(3)[np.zeros(len(z), int)], inputs=gaussian_model().inputs, classes=3
    )
    detector = DensityDetector.fit(model, x, y, layer="input", fpr=0.1)
    own = shuffled(400)[:200].numpy()
    means = np.stack([x[own][y[own] == label].mean(0) for label in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(x[own] - means[y[own]]).get_precision()
    fresh = rng.normal(size=(20, 5)) * 4
    wanted = np.array([min(mahalanobis(row, mean, precision) ** 2 for mean in means) for row in fresh])
    got = (scores(detector, torch.from_numpy(fresh)) + 1) * detector.threshold
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_nearest_neighbors_are_those_of_sklearn() -> None:
    x, fresh = np.random.default_rng(1).normal(size=(300, 5)), np.random.default_rng(2).normal(size=(20, 5))
    # Far from the origin, where careless distances lose their digits.
    detector = DensityDetector.fit(gaussian_model(), x + 40, layer="input", method="knn", k=7, fpr=0.1)
    tree = NearestNeighbors(n_neighbors=7).fit(x[shuffled(300)[:150].numpy()])
    got = (scores(detector, torch.from_numpy(fresh + 40)) + 1) * detector.threshold
    np.testing.assert_allclose(got, tree.kneighbors(fresh)[0].mean(1), rtol=1e-5)


def test_knn_keeps_no_more_than_it_may() -> None:
    x = np.random.default_rng(1).normal(size=(300, 5))
    assert DensityDetector.fit(
        gaussian_model(), x, layer="input", method="knn", keep=20, k=20
    ).reference.shape == (20, 5)


@given(st.integers(1, 4000), st.floats(1e-3, 0.9))
def test_the_threshold_is_the_lowest_with_the_rate(n: int, fpr: float) -> None:
    if n < needed(fpr):
        with pytest.raises(rml.InputError, match=f"needs {needed(fpr)} inputs"):
            calibrated(np.arange(n, dtype=float), fpr)
        return
    found = calibrated(np.random.default_rng(n).permutation(n).astype(float), fpr)
    # A fresh score exceeds it with this probability, by exchangeability.
    assert (found.exceeded + 1) / (n + 1) <= fpr + 1e-9 < (found.exceeded + 2) / (n + 1) + 2e-9
    low, high = found.interval
    exact = beta(found.exceeded + 1, n - found.exceeded)
    assert low <= exact.ppf(0.025) and high == pytest.approx(exact.ppf(0.975))


@pytest.mark.parametrize("method", METHODS)
def test_the_rate_on_fresh_data_is_the_chosen_one(method: str) -> None:
    """Over many fits: the mean rate is the chosen one, and the interval holds it as often as it says."""
    rng = np.random.default_rng(5)
    fresh = torch.from_numpy(rng.normal(size=(20_000, 5)))
    rates, held = [], 0
    for _ in range(60):
        detector = DensityDetector.fit(
            gaussian_model(), rng.normal(size=(400, 5)), layer="input", method=method, k=3, fpr=0.1
        )
        rates.append(float((scores(detector, fresh) > 0).double().mean()))
        low, high = detector.calibration.interval
        held += low <= rates[-1] <= high
    # 20 of 201: the mean of Beta(20, 181), whose standard deviation is 0.021, so 0.0027 for the mean of 60.
    assert np.mean(rates) == pytest.approx(20 / 201, abs=4 * 0.0027)
    assert held >= 53  # of 60 at 95 %; fewer in 1 of 100 such tests at most


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["input", "logits", "0", "3"])
def test_the_derivative_is_that_of_the_score(method: str, layer: str) -> None:
    model = classifier("float64")
    x = images(200, 1, torch.float64)
    guarded = rml.Guarded(model, [DensityDetector.fit(model, x, layer=layer, method=method, k=3)])
    z = images(4, 2, torch.float64).requires_grad_()
    detector = guarded.guards[0]

    def of(point: Tensor) -> Tensor:
        return detector.score(point, Answers(model, detector.layers)).sum()

    (slope,) = torch.autograd.grad(of(z), z)
    direction = images(4, 3, torch.float64) - 0.5
    with torch.no_grad():
        rise = (of(z + 1e-6 * direction) - of(z - 1e-6 * direction)) / 2e-6
    assert float(rise) == pytest.approx(float((slope * direction).sum()), rel=1e-4, abs=1e-9)
    assert float(slope.abs().sum()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_at_a_sample_that_it_keeps_the_derivative_is_a_number(method: str) -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 5)))
    detector = DensityDetector.fit(gaussian_model(), x, layer="input", method=method, k=1)
    own = x[shuffled(200)[:100]].clone().requires_grad_()
    scores(detector, own).sum().backward()
    assert own.grad is not None and torch.isfinite(own.grad).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["input", "logits", "1", "3"])
def test_a_guarded_model_rejects_what_is_far(tmp_path, method: str, layer: str) -> None:
    model = classifier()
    x = images(600, 1)
    guarded = rml.Guarded(model, [DensityDetector.fit(model, x, layer=layer, method=method, pool=False)])
    fresh = images(300, 2)
    logits = guarded(fresh)
    assert logits.shape == (300, 4)
    torch.testing.assert_close(logits[:, :3], model(fresh))
    assert (logits.argmax(1) == 3).float().mean() < 0.12
    # A checkerboard is like no uniform noise.
    board = (torch.arange(6)[:, None] + torch.arange(6)).remainder(2).float().expand(8, 1, 6, 6)
    if layer != "logits":
        assert (guarded(board).argmax(1) == 3).all()
    assert (guarded(board)[:, -1] == guarded(board)[0, -1]).all()
    torch.testing.assert_close(guarded.rejections(fresh)["0:density"] > 0, logits.argmax(1) == 3)
    guarded.save(tmp_path / "g.safetensors")
    again = rml.Guarded.load(tmp_path / "g.safetensors", network())
    assert torch.equal(again(fresh), logits)
    assert again.fingerprint() == guarded.fingerprint()
    assert again.guards[0].calibration == guarded.guards[0].calibration
    attacked = fresh.clone().requires_grad_()
    guarded(attacked)[:, -1].sum().backward()
    assert attacked.grad.abs().sum() > 0


def test_feature_maps_are_averaged_unless_told_otherwise() -> None:
    model, x = classifier(), images(100, 1)
    with torch.no_grad():
        maps = model.module[0](x)
    pooled = DensityDetector.fit(model, x, layer="0")
    assert pooled.center.shape == (4,)
    torch.testing.assert_close(pooled.center, maps[shuffled(100)[:50]].mean((0, 2, 3)))
    assert DensityDetector.fit(model, x, layer="0", pool=False).center.shape == (144,)


def test_the_model_runs_once_for_two_detectors_and_the_answer() -> None:
    model, x = classifier(), images(100, 1)
    guards = [
        DensityDetector.fit(model, x, layer="3"),
        DensityDetector.fit(model, x, layer="logits"),
        DensityDetector.fit(model, x, layer="1", method="knn"),
    ]
    runs = []
    model.module[0].register_forward_hook(lambda *_: runs.append(1))
    rml.Guarded(model, guards)(x)
    assert len(runs) == 1
    assert len(model.module[0]._forward_hooks) == 1 and not model.module[3]._forward_hooks


def test_threads_do_not_see_each_other() -> None:
    model, x = classifier(), images(100, 1)
    guarded = rml.Guarded(model, [DensityDetector.fit(model, x, layer="3")])
    batches = [images(50, seed) for seed in range(4)]
    with torch.no_grad():
        wanted = [guarded(batch) for batch in batches]
    wrong: list[object] = []

    def work(place: int) -> None:
        for _ in range(100):
            with torch.no_grad():
                if not torch.equal(guarded(batches[place]), wanted[place]):
                    wrong.append(place)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_labels_or_answers_and_the_model_is_left_as_it_was() -> None:
    model, x = classifier(), images(100, 1)
    model.train()
    with torch.no_grad():
        answers = model(x).argmax(1)
    one = DensityDetector.fit(model, x.numpy(), answers.numpy())
    two = DensityDetector.fit(model, x)
    assert model.module[0].training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, two.learned[name]) for name, value in one.learned.items())
    other = DensityDetector.fit(model, x, answers.roll(1))
    assert not torch.equal(other.whitening, two.whitening)


def test_constant_features_do_no_harm() -> None:
    x = np.random.default_rng(0).normal(size=(200, 5))
    x[:, 2] = 3.0
    detector = DensityDetector.fit(gaussian_model(), x, layer="input")
    moved = torch.from_numpy(x[:1]).clone()
    moved[:, 2] += 2.0
    assert torch.isfinite(detector.whitening).all() and float(scores(detector, moved)) > 0


def test_what_it_refuses() -> None:
    model, x = classifier(), images(60, 1)
    box = rml.BlackBox(
        lambda z: z.reshape(len(z), -1)[:, :3], inputs=model.inputs, classes=3, outputs="logits"
    )
    labels = rml.BlackBox(lambda z: np.zeros(len(z), int), inputs=model.inputs, classes=3, outputs="labels")
    fit = DensityDetector.fit
    for call, message in [
        (lambda: fit(box, x, layer="3"), "layer '3' cannot be seen in a BlackBox, which has no layers"),
        (lambda: rml.Guarded(box, [fit(model, x, layer="3")]), "layer '3' cannot be seen in a BlackBox"),
        (lambda: fit(model, x, layer="33"), "layer '33' is not in the module; did you mean '3'"),
        (lambda: fit(labels, x), "of a model that gives labels says nothing"),
        (lambda: fit(rml.Guarded(model, []), x), "model is Guarded; give the Classifier"),
        (
            lambda: fit(model, x, fpr=0.01),
            "fpr=0.01 needs 198 inputs, a half of them for the threshold; 60 came",
        ),
        (lambda: fit(model, x[:0]), "fpr=0.05 needs 38 inputs"),
        (lambda: fit(model, x, fpr=1.0), "fpr=1.0 is not a share between 0 and 1"),
        (lambda: fit(model, x, method="knn", k=31), "k=31 needs 62 inputs"),
        (lambda: fit(model, x, method="knm"), "method='knm' is not known; did you mean 'knn'"),
        (lambda: fit(model, x, k=True), "k=True is not a whole number of at least 1"),
        (lambda: fit(model, x, layer=""), 'layer=\'\' is not the name of a submodule, "logits" or "input"'),
        (lambda: fit(model, x, pool="yes"), "pool='yes' is not true or false"),
        (lambda: fit(model, x[:, 0]), r"x has shape \(60, 6, 6\); \(n, 1, 6, 6\) is wanted"),
        (lambda: fit(model, x.tolist()), "x is list; give an array or a tensor of inputs"),
        (lambda: fit(model, x * torch.nan), "x holds numbers that are not finite"),
        (lambda: fit(model, x, torch.zeros(60)), "y has torch.float32 of shape"),
        (lambda: fit(model, x, torch.full((60,), 3)), r"y holds a label outside \[0, 2\]"),
        (lambda: fit(model, torch.zeros(60, 1, 6, 6), layer="input"), "is the same for all clean inputs"),
        (lambda: rml.Guarded(model, [DensityDetector()]), "guard density has not been fitted"),
        (lambda: scores(fit(model, x, layer="3"), x), "sees layer '3' only as a part of a Guarded"),
        (
            lambda: scores(fit(model, x, layer="input"), x[:, :, :5]),
            "fitted to 36 features of layer 'input', but 30",
        ),
    ]:
        with pytest.raises(rml.InputError, match=message):
            call()


class Odd(nn.Module):
    """A layer that returns a pair."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Holder(nn.Module):
    """A module with a layer that is not a tensor's, and one that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.odd, self.idle, self.last = Odd(), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.odd(x)[0])


def test_layers_that_cannot_be_used_say_why() -> None:
    model = rml.Classifier(Holder(), inputs=rml.InputSpec(shape=(4,)), classes=3)
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(rml.InputError, match="layer 'odd' returned tuple for 60 inputs"):
        DensityDetector.fit(model, x, layer="odd")
    with pytest.raises(rml.InputError, match="layer 'idle' was not seen to run"):
        DensityDetector.fit(model, x, layer="idle")


def test_it_is_registered() -> None:
    assert find_guard("density") is DensityDetector and DensityDetector.rejects and DensityDetector.fits
