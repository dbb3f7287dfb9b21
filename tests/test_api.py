"""The main job as a function: what it takes, what it refuses before it begins, and what it leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustml import L2, BlackBox, Classifier, InputError, InputSpec, Linf, Report, RunError, stress_test
from tests.stress.toy import Counting, labels_of, linear, masked, only, points

N, FEATURES = 20, 6


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "short.toml"
    path.write_text(only("fgsm", 'apgd(loss = "margin", steps = 5)', "square(queries = 15)"))
    return str(path)


def data(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    x = points(N).astype(dtype)
    return x, labels_of(net(), x.astype("float32"), wrong=2)


def net() -> Any:
    return linear(dtype=torch.float32)


def stressed(model: Any, given: Any, suite: str, **options: Any) -> Report:
    return stress_test(model, given, **{"threats": [Linf(0.1)], "suite": suite, **options})


def forms() -> dict[str, Any]:
    x, y = data()
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    return {
        "arrays": (x, y),
        "tensors": tensors,
        "lists": (x.tolist(), y.tolist()),
        "loader": DataLoader(TensorDataset(*tensors), batch_size=7),
        "dataset": TensorDataset(*tensors),
        "batches": ((x[i : i + 6], y[i : i + 6]) for i in range(0, N, 6)),
    }


def test_every_form_of_the_data_gives_the_same_report(suite: str) -> None:
    reports = {name: masked(stressed(net(), given, suite)) for name, given in forms().items()}
    expected = reports["arrays"]
    assert expected["clean"]["accuracy"]["count"] == N - 2
    for name, report in reports.items():
        assert report == expected, name


def test_a_bare_module_equals_its_classifier(suite: str) -> None:
    model = Classifier(net(), inputs=InputSpec(shape=(FEATURES,)), classes=3)
    assert masked(stressed(model, data(), suite)) == masked(stressed(net(), data(), suite))


def test_bytes_are_divided(suite: str) -> None:
    x = (points(N) * 255).astype(np.uint8)
    y = labels_of(net(), (x / 255).astype(np.float32))
    report = stressed(net(), (x, y), suite)
    assert report.clean.accuracy.count == N
    assert report.target.inputs["bounds"] == [0.0, 1.0]


@pytest.mark.parametrize("threats", ["linf:0.1", Linf(0.1), ["linf:0.1"], (Linf(0.1),)])
def test_threats_as_text_or_objects(suite: str, threats: Any) -> None:
    report = stressed(net(), data(), suite, threats=threats)
    assert [t.name for t in report.threats] == ["linf:0.1"]


def test_files_of_a_run(suite: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = stressed(net(), data(), Path(suite), out=out, name="mine", class_names=["a", "b", "c"])
    assert Report.load(out) == report
    assert (out / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert report.target.name == "mine"
    assert [row.name for row in report.clean.per_class] == ["a", "b", "c"]
    again = stressed(
        net(), data(), Path(suite), out=out, name="mine", class_names=["a", "b", "c"], resume=True
    )
    assert masked(again) == masked(report)


def test_an_estimator_that_gives_scores(suite: str) -> None:
    x, y = data("float64")
    estimator = LogisticRegression(C=100).fit(x, y)
    model = BlackBox.from_sklearn(estimator, inputs=InputSpec(shape=(FEATURES,), dtype="float64"))
    report = stressed(model, (x, estimator.predict(x)), suite, threats=[Linf(0.2)])
    attacks = {row.id: row for row in report.threats[0].attacks}
    for name in ("fgsm", "apgd"):
        assert attacks[name].status == "skipped"
        assert "score access" in str(attacks[name].reason)
        assert attacks[name].attempted == 0
    assert attacks["square"].status == "ran"
    assert attacks["square"].broken > 0
    assert "that see only scores" in report.verdict
    codes = {d.code: d.status for d in report.threats[0].diagnostics}
    assert codes["D01"] == "skipped"
    assert report.target.model.sha256 is None


def test_scores_under_a_norm_that_no_score_attack_has(suite: str) -> None:
    x, y = data("float64")
    estimator = LogisticRegression(C=100).fit(x, y)
    model = BlackBox.from_sklearn(estimator, inputs=InputSpec(shape=(FEATURES,), dtype="float64"))
    report = stressed(model, (x, estimator.predict(x)), suite, threats=["l0:2"])
    assert report.threats[0].robust_accuracy.upper is None
    assert not report.trusted


def test_labels_only() -> None:
    x, y = data("float64")
    estimator = LogisticRegression(C=100).fit(x, y)
    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    model = BlackBox.from_sklearn(estimator, inputs=spec, labels_only=True)
    x, y = x[:4], estimator.predict(x[:4])
    report = stressed(model, (x, y), "quick", threats=[Linf(0.4)])
    ran = {row.id for row in report.threats[0].attacks if row.status == "ran"}
    assert "rays" in ran
    assert {row.id for row in report.threats[0].attacks if row.status == "skipped"} >= {"fgsm", "relay"}
    assert "that see only labels" in report.verdict
    assert report.threats[0].outcomes.count("b") > 0


def unsteady() -> nn.Module:
    layer = net()

    class Unsteady(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return layer(x) + torch.randn(1)

    return Unsteady()


def test_a_model_that_answers_at_random_is_judged_by_a_vote(suite: str) -> None:
    report = stressed(unsteady(), (X, Y), suite, draws=6, eot=2)
    assert report.randomness is not None
    assert (report.randomness.draws, report.randomness.eot) == (6, 2)
    # What it adds to all logits alike changes no answer.
    assert report.randomness.flip_rate == 0
    assert "draws=6, eot=2" in report.command


def answering(value: float) -> nn.Module:
    class Answering(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return net()(x) * value

    return Answering()


def refused(expected: str, tmp_path: Path, model: Any, given: Any, suite: str, **options: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        stressed(model, given, suite, out=out, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert expected in str(caught.value)
    assert not out.exists()


X, Y = data()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((X, Y + 1), "outside [0, 2]"),
        ((X, Y - 1), "outside [0, 2]"),
        ((X, Y.astype(float)), "y holds float64"),
        ((X, Y[:-1]), "20 samples and y has 19"),
        ((X[:0], Y[:0]), "shape (0, 6)"),
        ((np.where(X[3] == X, np.nan, X), Y), "NaN"),
        ((np.where(X[3] == X, np.inf, X), Y), "infinity"),
        ((X * 2, Y), "values from"),
        ((X - 1, Y), "values from"),
        ((X.astype(object), Y), "Python objects"),
        ((X[:, :5], Y), "the model fails on a batch"),
        (X, "without labels"),
        (7, "int is not"),
        ("digits", "str is not"),
        (DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), shuffle=True), "shuffle"),
    ],
)
def test_bad_data(tmp_path: Path, suite: str, given: Any, expected: str) -> None:
    refused(expected, tmp_path, net(), given, suite)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(net(), nn.Softmax(dim=1)), "the model returns probabilities"),
        (nn.Sequential(net(), nn.Dropout(0.5)).train(), "the model is in training mode"),
        (nn.Sequential(nn.BatchNorm1d(6), net()).train(), "BatchNorm1d at '0'"),
        (answering(float("nan")), "NaN"),
        (nn.Sequential(net(), nn.Flatten(0)), "returns (6,) for 2 inputs"),
        (nn.LSTM(6, 3), "returns tuple"),
        (lambda x: x, "function; give a torch.nn.Module"),
        (None, "NoneType"),
    ],
)
def test_bad_models(tmp_path: Path, suite: str, model: Any, expected: str) -> None:
    if isinstance(model, nn.LSTM):
        refused("", tmp_path, model, (X, Y), suite)
    else:
        refused(expected, tmp_path, model, (X, Y), suite)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threats": [Linf(8)]}, "did you mean 8/255?"),
        ({"threats": []}, "threats is empty"),
        ({"threats": ["linf:0.1", Linf(0.1)]}, "linf:0.1 twice"),
        ({"threats": ["lnif:0.1"]}, "did you mean 'linf'?"),
        ({"threats": [0.3]}, "threats holds 0.3"),
        ({"threats": 0.3}, "threats=0.3"),
        ({"threats": ["0.3"]}, "NORM:EPS"),
        ({"suite": "standrad"}, "did you mean 'standard'?"),
        ({"suite": "none.toml"}, "cannot be read"),
        ({"samples": 21}, "more than the 20 samples"),
        ({"samples": 0}, "samples=0"),
        ({"select": "frist"}, "did you mean 'first'?"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 2**70}, "seed="),
        ({"seed": True}, "seed=True"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"confidence": 95}, "confidence=95"),
        ({"confidence": "high"}, "confidence='high'"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"max_passes": 0}, "max_passes=0"),
        ({"max_passes": float("inf")}, "max_passes=inf"),
        ({"time_budget": -1}, "time_budget=-1"),
        ({"time_budget": "1h"}, "time_budget='1h'"),
        ({"gate": {"evasoin": ">= 40"}}, "did you mean 'evasion'?"),
        ({"gate": {"evasion": "40"}}, "not a comparison"),
        ({"gate": {"evasion": 40}}, "not a comparison"),
        ({"class_names": ["a"]}, "1 names for 3 classes"),
        ({"resume": True}, "not a run folder"),
        ({"inputs": InputSpec(shape=(7,))}, "(n, 7) is wanted"),
    ],
)
def test_bad_settings(tmp_path: Path, suite: str, options: dict[str, Any], expected: str) -> None:
    refused(expected, tmp_path, net(), (X, Y), **{"suite": suite, **options})


def test_two_specifications_of_the_inputs(tmp_path: Path, suite: str) -> None:
    model = Classifier(net(), inputs=InputSpec(shape=(FEATURES,)), classes=3)
    other = InputSpec(shape=(FEATURES,), bounds=(0, 2))
    refused("give one of them", tmp_path, model, (X, Y), suite, inputs=other)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, suite: str) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        stressed(net(), (X, Y), suite, out=out)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Nothing about the module or the process may differ afterwards."""

    def look() -> Any:
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        flags = [(layer.training,) for layer in module.modules()]
        parameters = [(p.requires_grad, p.grad is None, p.device, p.dtype) for p in module.parameters()]
        return state, flags, parameters

    before, numbers = look(), (torch.get_rng_state(), np.random.get_state()[1].copy())
    grads = torch.is_grad_enabled()
    yield
    after = look()
    assert before[1:] == after[1:]
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name])
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert np.array_equal(numbers[1], np.random.get_state()[1])
    assert torch.is_grad_enabled() is grads


def module_in_mixed_modes(inner: nn.Module | None = None) -> nn.Sequential:
    # An activation in training mode changes nothing, so it is accepted and must stay as it was.
    module = nn.Sequential(nn.Identity(), inner or net(), nn.Dropout(0.3)).train()
    module[2].eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    return module


def test_the_model_and_the_process_are_left_as_they_were(suite: str) -> None:
    module, loader = module_in_mixed_modes(), forms()["loader"]
    with untouched(module):
        stressed(module, loader, suite, threats=[Linf(0.1), L2(0.2)])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken"), MemoryError()])
def test_so_they_are_after_a_failure(suite: str, error: BaseException, tmp_path: Path) -> None:
    module = module_in_mixed_modes(Counting(net(), fail_after=200, error=error))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RunError
    with untouched(module), pytest.raises(expected) as caught:
        stressed(module, (X, Y), suite, out=tmp_path / "run")
    if expected is RunError:
        assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "run" / "journal.jsonl").exists()


def test_so_they_are_after_a_refusal(suite: str) -> None:
    module = nn.Sequential(net(), nn.Dropout(0.5)).train()
    with untouched(module), pytest.raises(InputError):
        stressed(module, (X, Y), suite)


def test_a_seed_is_all_that_chance_depends_on(suite: str) -> None:
    first = stressed(net(), (X, Y), suite, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    assert masked(stressed(net(), (X, Y), suite, seed=3)) == masked(first)


def test_nothing_is_left_without_a_folder(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    assert stressed(net(), (X, Y), suite).samples.ids == list(range(N))
    assert list(elsewhere.iterdir()) == []
