"""Model extraction: queries are counted to the row, and fidelity stands beside what needs no query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustml.attacks.leakage import extraction_test, steal
from robustml.classifier import BlackBox, Classifier
from robustml.errors import InputError
from robustml.estimates import clopper_pearson
from robustml.guarded import Guarded
from robustml.guards import Guard
from robustml.inputs import InputSpec
from robustml.threats import L2, Linf

SPEC = InputSpec(shape=(8,))


def _points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 8)).astype(np.float32)


WEIGHTS = np.random.default_rng(7).normal(size=(8, 3)) * 6


class Service:
    """A linear model that keeps count of what it is asked."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.rows += len(x)
        scores = (x - 0.5) @ WEIGHTS
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)


def _labels(x: np.ndarray) -> np.ndarray:
    return Service()(x).argmax(1)


def test_queries_are_what_the_model_was_asked() -> None:
    service = Service()
    model = BlackBox(service, inputs=SPEC, classes=3)
    stolen = steal(model, _points(700, 0), 613, steps=5)
    assert stolen.queries == service.rows == 613
    assert len(set(stolen.rows.tolist())) == 613
    np.testing.assert_allclose(stolen.answers.numpy(), Service()(_points(700, 0)[stolen.rows]), atol=1e-6)


def test_a_smaller_budget_asks_the_first_of_a_larger_one() -> None:
    model = BlackBox(Service(), inputs=SPEC, classes=3)
    few, many = (steal(model, _points(100, 0), budget, steps=2) for budget in (10, 60))
    assert (few.rows == many.rows[:10]).all()
    other = steal(model, _points(100, 0), 60, steps=2, seed=1)
    assert set(other.rows) != set(many.rows)


def test_a_linear_model_is_copied_and_more_queries_copy_it_better() -> None:
    model = BlackBox(Service(), inputs=SPEC, classes=3)
    held = _points(1000, 1)
    found = extraction_test(model, _points(500, 0), (held, _labels(held)), budgets=(500, 12))
    few, many = found.points
    assert (few.queries, many.queries) == (12, 500)
    assert many.fidelity.low > 0.93
    assert many.fidelity.low > few.fidelity.high
    assert found.constant.high < 0.6
    assert found.target.value == 1.0
    assert many.accuracy == many.fidelity  # the target makes no mistake here
    assert many.on_mistakes.total == 0
    assert many.without is many.gain is many.transfer is None
    assert (many.fidelity.low, many.fidelity.high) == clopper_pearson(many.fidelity.count, 1000)


def test_labels_are_enough_and_are_all_that_is_seen() -> None:
    labels = BlackBox(_labels, inputs=SPEC, classes=3, outputs="labels")
    held = _points(1000, 1)
    blind = extraction_test(labels, _points(500, 0), (held, _labels(held)), budgets=(500,))
    assert blind.reply == "labels"
    assert blind.points[0].fidelity.low > 0.9
    scores = BlackBox(Service(), inputs=SPEC, classes=3)
    same = extraction_test(scores, _points(500, 0), (held, _labels(held)), budgets=(500,), reply="labels")
    assert same == blind


def test_agreement_on_mistakes_tells_a_copy_from_a_good_model() -> None:
    # The target is wrong about a strip in a way that nothing but asking shows.
    def target(x: np.ndarray) -> np.ndarray:
        return np.where(x[:, 0] < 0.3, 0, _labels(x)).astype(np.int64)

    model = BlackBox(target, inputs=SPEC, classes=3, outputs="labels")
    pool, held = _points(600, 0), _points(1500, 1)
    found = extraction_test(model, (pool, _labels(pool)), (held, _labels(held)), budgets=(600,))
    (point,) = found.points
    assert point.without is not None
    assert point.without_accuracy is not None
    assert point.gain is not None
    assert point.gain.low > 0.05
    assert point.without_accuracy.low > point.accuracy.high
    assert point.on_mistakes.total == 1500 - found.target.count
    assert point.on_mistakes.low > 0.6
    assert point.gain.value == pytest.approx(point.fidelity.value - point.without.value)
    assert "without queries" in str(found)


def test_examples_made_on_a_copy_fool_the_target() -> None:
    model = BlackBox(Service(), inputs=SPEC, classes=3)
    held = _points(300, 1)
    data = (held, _labels(held))
    found = extraction_test(model, _points(400, 0), data, budgets=(400,), threat=Linf(0.1))
    (point,) = found.points
    assert point.transfer is not None
    assert point.transfer.total == 300
    # What the best attacker, who knows the weights, can do to a linear model with this budget.
    scores = (held - 0.5) @ WEIGHTS
    gaps = scores[np.arange(300), data[1], None] - scores
    reach = 0.1 * np.abs(WEIGHTS[:, data[1]].T[:, :, None] - WEIGHTS[None]).sum(1)
    broken = ((gaps < reach) & (np.arange(3) != data[1][:, None])).any(1).mean()
    assert 0.7 * broken < point.transfer.value <= broken + 1e-9
    assert found.attack == "pgd"


def test_images_are_copied_by_a_convolutional_network() -> None:
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32)[:, None], digits.target
    estimator = LogisticRegression(max_iter=300).fit(x[:900].reshape(900, -1), y[:900])
    model = BlackBox.from_sklearn(estimator, inputs=InputSpec(shape=(1, 8, 8)))
    stolen = steal(model, x[900:1300], 400)
    assert any(isinstance(layer, nn.Conv2d) for layer in stolen.model.modules())
    with torch.no_grad():
        said = stolen.model(torch.from_numpy(x[1300:])).argmax(1).numpy()
    agrees = said == estimator.predict(x[1300:].reshape(len(x) - 1300, -1))
    assert agrees.mean() > 0.85


@pytest.mark.parametrize("reply", ["labels", "probabilities"])
def test_the_toolbox_asks_as_much_and_copies_no_better(reply: str) -> None:
    from art.attacks.extraction import KnockoffNets
    from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier

    pool, held = _points(300, 0), _points(1000, 1)
    service = Service()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
        thief = PyTorchClassifier(
            net,
            loss=nn.CrossEntropyLoss(),
            input_shape=(8,),
            nb_classes=3,
            optimizer=torch.optim.Adam(net.parameters(), lr=2e-3),
            device_type="cpu",
        )
        victim = BlackBoxClassifier(service, (8,), 3)
        settings = {"batch_size_fit": 64, "batch_size_query": 300, "nb_epochs": 80, "nb_stolen": 300}
        settings["use_probability"] = reply == "probabilities"
        state = np.random.get_state()
        try:
            np.random.seed(0)
            stolen = KnockoffNets(victim, verbose=False, **settings).extract(pool, thieved_classifier=thief)
        finally:
            np.random.set_state(state)
    assert service.rows == 300
    theirs = (stolen.predict(held).argmax(1) == _labels(held)).mean()
    model = BlackBox(Service(), inputs=SPEC, classes=3)
    found = extraction_test(model, pool, (held, _labels(held)), budgets=(300,), reply=reply)
    assert found.points[0].fidelity.high > theirs


def test_nothing_is_left_changed_and_a_seed_decides() -> None:
    module = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5))
    model = Classifier(module, inputs=SPEC, classes=3).train()
    held = (_points(50, 1), _labels(_points(50, 1)))
    state, before = torch.get_rng_state(), model.fingerprint()
    first, again = (
        extraction_test(model, _points(60, 0), held, budgets=(60,), steps=20, threat=L2(0.1), device="cpu")
        for _ in range(2)
    )
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.fingerprint() == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class _Limit(Guard):
    """Rejects inputs whose first feature is high."""

    name = "limit"
    rejects = True

    def score(self, x: torch.Tensor, model: object) -> torch.Tensor:
        return x[:, 0] - 0.8


def test_rejections_are_answers_that_a_copy_learns() -> None:
    linear = BlackBox(Service(), inputs=SPEC, classes=3)
    model = Guarded(linear, [_Limit()])
    held = _points(1000, 1)
    stolen = steal(model, _points(500, 0), 500)
    rejected = _points(500, 0)[stolen.rows, 0] > 0.8
    assert stolen.answers.shape == (500, 4)
    assert (stolen.answers[rejected] == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
    # Where it is not rejected, scores are those of the classes and say nothing of how near a rejection is.
    np.testing.assert_allclose(
        stolen.answers[~rejected, :3].numpy(),
        Service()(_points(500, 0)[stolen.rows])[~rejected],
        atol=1e-6,
    )
    assert (stolen.answers[~rejected, 3] == 0).all()
    found = extraction_test(model, _points(500, 0), (held, _labels(held)), budgets=(500,))
    assert found.target.count == int((held[:, 0] <= 0.8).sum())
    assert found.points[0].fidelity.low > 0.9
    assert found.points[0].on_mistakes.low > 0.75  # rejections count as mistakes on clean data


def test_a_substitute_of_ones_own() -> None:
    model = BlackBox(Service(), inputs=SPEC, classes=3)
    stolen = steal(model, _points(200, 0), 200, build=lambda: nn.Linear(8, 3), steps=50)
    assert isinstance(stolen.model.module, nn.Linear)
    with pytest.raises(InputError, match="module returned shape"):
        steal(model, _points(200, 0), 200, build=lambda: nn.Linear(8, 4), steps=5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"budgets": ()}, "budgets is empty"),
        ({"budgets": (0,)}, "budgets=0"),
        ({"budgets": (61,)}, "budget=61 is more than the 60 samples of the pool"),
        ({"reply": "logits"}, "reply='logits' is not known"),
        ({"reply": "probabilities"}, "the model gives labels only"),
        ({"held_out": (_points(60, 0)[5:6], [0])}, r"held_out\[0\] is pool\[5\]"),
        ({"budgets": (60,), "threat": Linf(0.1), "attack": "pdg"}, "did you mean 'pgd'"),
    ],
)
def test_mistakes_are_named(arguments: dict, said: str) -> None:
    labels = BlackBox(_labels, inputs=SPEC, classes=3, outputs="labels")
    held = arguments.pop("held_out", (_points(20, 1), _labels(_points(20, 1))))
    with pytest.raises(InputError, match=said):
        extraction_test(labels, _points(60, 0), held, **{"steps": 2, "budgets": (10,), **arguments})
