"""Guards in front of a model: one model, its file, its fingerprint and the errors of both."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
import safetensors.torch
import torch
from annotated_types import Ge
from torch import nn

import robustml as rml
from robustml import guards as registry
from robustml.errors import InputError
from robustml.guards import Guard, find_guard, guard, through

SPEC = rml.InputSpec(shape=(1, 4, 4))


class Levels(Guard):
    """Rounds to so many levels."""

    def __init__(self, levels: Annotated[int, Ge(1)] = 4) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return (x * self.levels).round() / self.levels


class Average(Guard):
    """Rejects inputs that are brighter than it has learned."""

    rejects = True
    fits = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limit", torch.zeros(0))

    def attach(self, inputs):
        if not len(self.limit):
            raise InputError("guard average has not been fitted")
        super().attach(inputs)

    def score(self, x, model):
        model(x)
        return x.flatten(1).mean(1) / self.limit - 1

    @classmethod
    def fit(cls, x):
        made = cls()
        made.limit = torch.as_tensor(x).flatten(1).mean(1).amax().view(1)
        return made


@pytest.fixture(autouse=True)
def known():
    """Both guards by name, for the length of a test."""
    registry.all_guards()
    guard("test-levels", reference="made for a test")(Levels)
    guard("test-average", reference="made for a test")(Average)
    yield
    for name in ("test-levels", "test-average"):
        del registry._GUARDS[name], registry._REFERENCES[name]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def model(seed: int = 0) -> rml.Classifier:
    return rml.Classifier(network(seed), inputs=SPEC, classes=3)


X = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_without_rejections_it_is_the_model_on_what_the_guards_make_of_inputs() -> None:
    inner = model()
    guarded = rml.Guarded(inner, [Levels(3)])
    assert not guarded.rejects
    assert torch.equal(guarded(X), inner((X * 3).round() / 3))


def test_the_derivative_is_the_one_that_is_declared() -> None:
    inner = model()
    guarded = rml.Guarded(inner, [Levels(3)])
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guarded(x)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, inner.module[1].weight[0].view(1, 1, 4, 4).expand_as(x))


def test_an_input_is_rejected_where_the_last_logit_is_the_largest() -> None:
    guarded = rml.Guarded(model(), [Average.fit(X[:3])])
    logits = guarded(X)
    assert logits.shape == (7, 4)
    brighter = X.flatten(1).mean(1) > X[:3].flatten(1).mean(1).amax()
    assert torch.equal(logits.argmax(1) == 3, brighter)
    (scores,) = guarded.rejections(X).values()
    assert torch.equal(scores > 0, brighter)


def test_a_score_that_is_no_number_rejects() -> None:
    class Broken(Levels):
        rejects = True

        def score(self, x, model):
            return torch.full((len(x),), torch.nan)

    assert (rml.Guarded(model(), [Broken()])(X).argmax(1) == 3).all()


def test_an_infinite_score_leaves_finite_logits() -> None:
    class Sure(Levels):
        rejects = True

        def score(self, x, model):
            return torch.full((len(x),), torch.inf)

    logits = rml.Guarded(model(), [Sure()])(X)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == 3).all()


def test_the_model_answers_once_for_detectors_and_for_the_end() -> None:
    calls = []
    inner = model()
    inner.register_forward_hook(lambda *_: calls.append(1))
    rml.Guarded(inner, [Average.fit(X), Average.fit(X)])(X)
    assert len(calls) == 1


def test_a_saved_model_answers_alike(tmp_path) -> None:
    guarded = rml.Guarded(model(), [Levels(5), Average.fit(X[:3])])
    path = tmp_path / "guarded.safetensors"
    guarded.save(path)
    loaded = rml.Guarded.load(path, network(seed=9))
    assert torch.equal(loaded(X), guarded(X))
    assert loaded.fingerprint() == guarded.fingerprint()
    assert loaded.describe() == [{"guard": "test-levels", "levels": 5}, {"guard": "test-average"}]


@pytest.mark.parametrize(
    "change",
    [
        lambda: rml.Guarded(model(1), [Levels(5)]),
        lambda: rml.Guarded(model(), [Levels(4)]),
        lambda: rml.Guarded(model(), []),
        lambda: rml.Guarded(model(), [Levels(5), Levels(5)]),
    ],
)
def test_the_fingerprint_covers_model_guards_and_options(change) -> None:
    assert change().fingerprint() != rml.Guarded(model(), [Levels(5)]).fingerprint()


def test_the_fingerprint_covers_what_was_learned() -> None:
    one, other = (rml.Guarded(model(), [Average.fit(x)]) for x in (X, X / 2))
    assert one.fingerprint() != other.fingerprint()


def test_it_can_be_exported_and_left_as_it_was() -> None:
    guarded = rml.Guarded(model(), [Levels(3), Average.fit(X)]).train()
    with guarded.ready(torch.device("cpu")):
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(guarded, (X,), dynamic_shapes={"x": {0: batch}}).module()
        assert not guarded.model.module.training
    assert guarded.model.module.training
    assert torch.equal(exported(X[:5]), guarded(X[:5]))


def test_through_leaves_identities_alone() -> None:
    assert through(Average.fit(X), X) is X


def refusal(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_guarded_is_refused(tmp_path) -> None:
    inner = model()
    assert "model is Sequential" in refusal(lambda: rml.Guarded(network(), []))
    assert "model is Guarded" in refusal(lambda: rml.Guarded(rml.Guarded(inner, []), []))
    assert "not a list of guards" in refusal(lambda: rml.Guarded(inner, Levels()))
    assert "not a Guard" in refusal(lambda: rml.Guarded(inner, [nn.Identity()]))
    assert "not been fitted" in refusal(lambda: rml.Guarded(inner, [Average()]))
    used = Levels()
    rml.Guarded(inner, [used])
    other = rml.Classifier(nn.Linear(16, 3), inputs=rml.InputSpec(shape=(16,)), classes=3)
    assert "already stands before" in refusal(lambda: rml.Guarded(other, [used]))
    assert "'test-levels'" in refusal(lambda: find_guard("test-level"))
    box = rml.BlackBox(lambda x: x.reshape(len(x), -1)[:, :3], inputs=SPEC, classes=3, outputs="logits")
    assert "black box" in refusal(lambda: rml.Guarded(box, [Levels()]).save(tmp_path / "x"))


def damaged(tmp_path, change) -> None:
    guarded = rml.Guarded(model(), [Levels(5), Average.fit(X[:3])])
    path = tmp_path / "guarded.safetensors"
    guarded.save(path)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["robustml"])
    change(tensors, about)
    safetensors.torch.save_file(tensors, path, {"robustml": json.dumps(about)})
    rml.Guarded.load(path, network())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, a: a.update(schema="other/1"), "no guarded model"),
        (lambda t, a: a.pop("classes"), "damaged"),
        (lambda t, a: a["guards"][0].update(guard="os.system"), "not known"),
        (lambda t, a: a["guards"][0].update(options={"levels": 0}), "levels=0"),
        (lambda t, a: a["guards"][0].update(options={"level": 3}), "did you mean 'levels'"),
        (lambda t, a: a["guards"].pop(), "guards.1"),
        (lambda t, a: t.pop("guards.1.limit"), "limit"),
        (lambda t, a: t.update({"guards.1.limit": torch.zeros(1, dtype=torch.int64)}), "torch.int64"),
        (lambda t, a: t.pop("model.1.weight"), "1.weight"),
        (lambda t, a: t.update({"guards.0.more": torch.zeros(1)}), "more"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change, says) -> None:
    assert says in refusal(lambda: damaged(tmp_path, change))


def test_what_is_no_file_of_ours_is_refused(tmp_path) -> None:
    assert "not a file" in refusal(lambda: rml.Guarded.load(tmp_path / "none", network()))
    text = tmp_path / "text.safetensors"
    text.write_bytes(b"not tensors at all")
    assert "not a safetensors file" in refusal(lambda: rml.Guarded.load(text, network()))
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network().state_dict(), weights)
    assert "no guarded model" in refusal(lambda: rml.Guarded.load(weights, network()))
