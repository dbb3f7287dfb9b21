"""Models that only predict: what becomes of scores and labels, and what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import Access

CPU = torch.device("cpu")
TABLE = InputSpec(shape=(4,), bounds=(-10, 10))


def black_box(answer: Any, outputs: Any = "probabilities", classes: int = 3, **more: Any) -> BlackBox:
    return BlackBox(lambda x: answer, inputs=TABLE, classes=classes, outputs=outputs, **more)


def test_a_function_gets_numpy_of_the_declared_precision() -> None:
    seen = []

    def predict(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return np.tile([0.2, 0.3, 0.5], (len(x), 1))

    model = BlackBox(predict, inputs=TABLE, classes=3, digest="ab")
    x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].dtype == np.float32
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp(), torch.tensor([[0.2, 0.3, 0.5]] * 2))
    assert not logits.requires_grad
    assert model.access is Access.SCORE
    assert (model.fingerprint(), model.size) == ("ab", None)
    with model.ready(CPU):
        assert torch.equal(model(x), logits)


def test_labels_become_one_hot_scores() -> None:
    model = black_box([2, 0], "labels")
    assert model(torch.zeros(2, 4)).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert model.access is Access.DECISION
    assert model.fingerprint() is None
    assert black_box([True, False], "labels", classes=2)(torch.zeros(2, 4)).argmax(1).tolist() == [1, 0]
    assert black_box(np.zeros(0, dtype=int), "labels")(torch.zeros(0, 4)).shape == (0, 3)


def test_broken_scores_stay_broken() -> None:
    logits = black_box([[float("nan"), 0.5, 0.5]])(torch.zeros(1, 4))
    assert logits.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("answer", "outputs", "message"),
    [
        ([[0.5, 0.5]] * 2, "probabilities", "predict returned shape (2, 2) for 2 inputs"),
        ([0.5, 0.5], "logits", "must return (2, 3)"),
        ([[0.1, 0.2, 0.7], [0.5, 0.5]], "logits", "rows of different lengths"),
        ([["a", "b", "c"]] * 2, "logits", "predict returned <U1 values; it must return numbers"),
        ([[None] * 3] * 2, "logits", "predict returned object values"),
        (None, "logits", "predict returned object values"),
        ([[5.0, -3.0, 1.0]] * 2, "probabilities", "from -3 to 5, which are not probabilities"),
        ([[0, 128, 255]] * 2, "probabilities", 'for unnormalized scores pass outputs="logits"'),
        ([0, 3], "labels", "predict returned a label outside [0, 2]"),
        ([-1, 0], "labels", "predict returned a label outside [0, 2]"),
        ([0.0, 1.0], "labels", "must return one whole number each"),
        (["cat", "dog"], "labels", "must return one whole number each"),
        ([[0], [1]], "labels", "of shape (2, 1) for 2 inputs"),
        ([0, 1, 2], "labels", "of shape (3,) for 2 inputs"),
    ],
)
def test_predictions_of_another_form_are_refused(answer: Any, outputs: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        black_box(answer, outputs)(torch.zeros(2, 4))
    assert str(caught.value).isprintable()


def test_only_something_callable_is_a_black_box() -> None:
    with pytest.raises(InputError, match="predict is int, which cannot be called"):
        BlackBox(3, inputs=TABLE, classes=3)  # type: ignore[arg-type]


def blobs(labels: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(4 * k, 1, size=(30, 4)) for k in range(len(labels))])
    return x - 4, np.repeat(np.array(labels), 30)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0.0, 1.0, 2.0]])
def test_scikit_learn_scores_and_labels(labels: list[Any]) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = blobs(labels)
    estimator = LogisticRegression(max_iter=500).fit(x, y)
    square = InputSpec(shape=(1, 2, 2), bounds=(-20, 20), dtype="float64")
    batch = torch.from_numpy(x).view(-1, 1, 2, 2)
    scores = BlackBox.from_sklearn(estimator, inputs=square)
    np.testing.assert_allclose(scores(batch).exp().numpy(), estimator.predict_proba(x), rtol=1e-9)
    assert (scores.classes, scores.access) == (3, Access.SCORE)
    only_labels = BlackBox.from_sklearn(estimator, inputs=square, labels_only=True)
    assert only_labels(batch).argmax(1).tolist() == estimator.predict(x).tolist()
    assert only_labels.access is Access.DECISION


def test_scikit_learn_estimators_that_cannot_be_used() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    for labels in ([1, 2], ["cat", "dog"], [0.5, 1.5]):
        x, y = blobs(labels) if labels != [0.5, 1.5] else (np.eye(2), np.array([0, 2]))
        estimator = LogisticRegression().fit(x, y)
        with pytest.raises(
            InputError, match=r"estimator\.classes_ is .*; the labels must be 0 to classes - 1"
        ):
            BlackBox.from_sklearn(estimator, inputs=TABLE)
    with pytest.raises(InputError, match=r"estimator\.classes_ is \[\]"):
        BlackBox.from_sklearn(LogisticRegression(), inputs=TABLE)
    svm = LinearSVC().fit(*blobs([0, 1]))
    with pytest.raises(InputError, match="LinearSVC has no predict_proba; pass labels_only=True"):
        BlackBox.from_sklearn(svm, inputs=TABLE)
    assert BlackBox.from_sklearn(svm, inputs=TABLE, labels_only=True)(torch.ones(2, 4)).shape == (2, 2)


def onnx_session(folder: Path, *, batch: Any = "n", inputs: int = 1, kind: str = "FLOAT") -> Any:
    """A linear model: x @ W + b, with a second input added if asked for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    element = getattr(onnx.TensorProto, kind)
    dtype = {"FLOAT": np.float32, "DOUBLE": np.float64}[kind]
    weights = np.arange(12, dtype=dtype).reshape(4, 3) / 10
    names = [f"x{index}" for index in range(inputs)]
    nodes = [onnx.helper.make_node("Gemm", ["x0", "W", "b"], ["scores"])]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [onnx.helper.make_tensor_value_info(name, element, [batch, 4]) for name in names],
        [onnx.helper.make_tensor_value_info("scores", element, [batch, 3])],
        [
            onnx.numpy_helper.from_array(weights, "W"),
            onnx.numpy_helper.from_array(np.ones(3, dtype=dtype), "b"),
        ],
    )
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("kind", "dtype"), [("FLOAT", "float32"), ("DOUBLE", "float64")])
def test_an_onnx_session(tmp_path: Path, kind: str, dtype: str) -> None:
    inputs = InputSpec(shape=(4,), dtype=dtype)
    model = BlackBox.from_onnx(onnx_session(tmp_path, kind=kind), inputs=inputs, classes=3)
    x = torch.linspace(0, 1, 20).view(5, 4)
    wanted = x.double() @ (torch.arange(12.0).double().view(4, 3) / 10) + 1
    torch.testing.assert_close(model(x).double(), wanted, rtol=1e-5, atol=1e-6)
    assert model(x).dtype == inputs.torch_dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "DOUBLE"}, "the ONNX model takes tensor(double), but inputs.dtype is 'float32'"),
        ({"inputs": 2}, "the ONNX model has 2 inputs; it must have 1"),
        ({"batch": 1}, "the ONNX model takes batches of 1 only; export it with a dynamic first axis"),
    ],
)
def test_onnx_sessions_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = onnx_session(tmp_path, **changes)
    with pytest.raises(InputError, match=re.escape(message)):
        BlackBox.from_onnx(session, inputs=InputSpec(shape=(4,)), classes=3)
