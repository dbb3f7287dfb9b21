import hashlib
import io
import pickle
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.targets.loading import load_factory, load_onnx, load_weights

NET = """
import torch
from torch import nn

def build():
    return nn.Linear(3, 2)
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def factory_refusal(reference: str, base: Path) -> str:
    path = list(sys.path)
    with pytest.raises(InputError) as caught:
        load_factory(reference, base)
    message = str(caught.value)
    assert "\n" not in message
    assert reference in message
    assert sys.path == path
    return message


def test_a_factory_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    write(tmp_path / "code" / "models.py", "from helper_of_models import WIDTH\n" + NET.replace("3", "WIDTH"))
    write(tmp_path / "code" / "helper_of_models.py", "WIDTH = 5")
    write(tmp_path / "zoo_a" / "__init__.py", "")
    write(tmp_path / "zoo_a" / "nets.py", NET)
    before = list(sys.path)
    assert load_factory("code/models.py:build", tmp_path).in_features == 5
    assert load_factory("zoo_a.nets:build", tmp_path).in_features == 3
    assert sys.path == before


def test_the_import_path_holds_during_the_call_too(tmp_path: Path) -> None:
    write(tmp_path / "late.py", "def build():\n    from late_helper import make\n    return make()")
    write(tmp_path / "late_helper.py", NET.replace("build", "make"))
    assert isinstance(load_factory("late:build", tmp_path), nn.Linear)
    with pytest.raises(ImportError):
        __import__("late_helper_of_nobody")


def test_modules_of_the_same_name_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    for folder, width in (("one", 4), ("two", 7)):
        write(tmp_path / folder / "nets.py", "from widths import W\n" + NET.replace("3", "W"))
        write(tmp_path / folder / "widths.py", f"W = {width}")
    for folder, width in (("one", 4), ("two", 7), ("one", 4)):
        assert load_factory("nets:build", tmp_path / folder).in_features == width
        assert load_factory("nets.py:build", tmp_path / folder).in_features == width


def test_a_module_imported_from_elsewhere_is_not_mistaken_for_the_users(tmp_path: Path) -> None:
    write(tmp_path / "textwrap.py", NET)
    assert "has been imported from" in factory_refusal("textwrap:build", tmp_path)
    assert isinstance(load_factory("textwrap.py:build", tmp_path), nn.Linear)


def test_random_weights_are_the_same_each_time_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "m.py", NET)
    before = torch.get_rng_state()
    one, two = (load_factory("m.py:build", tmp_path) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_factory_prints_stays_out_of_the_result(tmp_path: Path, capsys) -> None:
    write(tmp_path / "m.py", NET + "\nprint('importing')")
    load_factory("m.py:build", tmp_path)
    assert capsys.readouterr() == ("", "importing\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def build():\n    x = 1\n    raise ValueError('no\\nweights')",
            "ValueError: no weights (models.py, line 3)",
        ),
        ("def build():\n    return 'a model'", "returned str, not a torch.nn.Module"),
        ("def build():\n    pass", "returned NoneType"),
        ("def build(width):\n    pass", "TypeError: build() missing 1 required positional argument: 'width'"),
        ("def built():\n    pass", "models.py has no 'build'; did you mean 'built'?"),
        ("x = 1", "models.py has no 'build'"),
        ("build = 7", "is a int, not a function"),
        ("from torch import nn\nbuild = nn.Linear(2, 2)", "is a Linear, not a function"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there' (models.py, line 1)"),
        ("x = 1\ndef build(:", "SyntaxError: invalid syntax (models.py, line 2)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 (models.py, line 2)"),
        ("raise KeyError", "raised KeyError (models.py, line 1)"),
        (
            "class E(Exception):\n    def __str__(self):\n        raise E\nraise E",
            "raised E (models.py, line 4)",
        ),
        ("def build():\n    return build()", "RecursionError"),
        ("raise ValueError('x' * 999)", "xxx... (models.py, line 1)"),
    ],
)
def test_a_factory_that_fails_is_told_in_one_line(tmp_path: Path, code: str, said: str) -> None:
    write(tmp_path / "models.py", code)
    assert said in factory_refusal("models.py:build", tmp_path)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("build", "is not of the form"),
        (":build", "is not of the form"),
        ("models.py:", "is not of the form"),
        ("models.py:build()", "is not of the form"),
        ("none.py:build", "none.py does not exist"),
        ("no_such_package.models:build", "there is no module 'no_such_package'"),
        ("json.no_such:build", "there is no module 'json.no_such'"),
        (".models:build", "TypeError"),
        ("mod\0ule:build", "factory 'mod\\x00ule:build'"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, reference: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_factory(reference, tmp_path)
    assert said in str(caught.value)


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 3)
        self.down = nn.Linear(3, 3)
        self.down.weight = self.up.weight


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def weights_refusal(path: Path, module: nn.Module | None = None) -> str:
    module = module or Net()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(module, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_state_dict_is_loaded(tmp_path: Path, suffix: str) -> None:
    source, target = Net(), Net()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    load_weights(target, path)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_model(source, path)
    load_weights(target, path)
    assert torch.equal(target.down.weight, source.up.weight)
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("weight")}
    safetensors.torch.save_file(state, path)
    assert "2 missing: up.weight, down.weight" in weights_refusal(path, Tied())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(Net(5).state_dict(), path)
    said = weights_refusal(path)
    assert "7 of another shape" in said
    assert "first.weight is (5, 3) and should be (4, 3)" in said
    assert said.count(" should be ") == 3
    state = Net().state_dict()
    del state["last.bias"]
    state["extra"] = torch.zeros(1)
    safetensors.torch.save_file(state, path)
    assert "1 missing: last.bias; 1 unexpected: extra" in weights_refusal(path)
    wrapped = {f"module.{key}": value for key, value in Net().state_dict().items()}
    safetensors.torch.save_file(wrapped, path)
    assert "the keys start with 'module.'" in weights_refusal(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 300, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(Net().state_dict())[:keep])
    assert "it is damaged or cut short" in weights_refusal(path)


@pytest.mark.parametrize("keep", [0, 1, 50, 400, -1])
def test_truncated_state_dict(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.pt"
    torch.save(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    weights_refusal(path)


@pytest.mark.parametrize(
    "suffix",
    [".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".ckpt", ".pt2", ".npy", ".safetensors", ""],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, suffix: str, protocol: int) -> None:
    proof = tmp_path / "executed"
    bomb = pickle.dumps(Payload(proof), protocol)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(bomb)
    weights_refusal(path)
    assert not proof.exists()
    pickle.loads(bomb)
    assert proof.exists(), "the payload must work, or this test shows nothing"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_payload_inside_a_torch_archive_is_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    proof = tmp_path / "executed"
    path = tmp_path / f"w{suffix}"
    torch.save({"first.weight": torch.zeros(4, 3), "x": Payload(proof)}, path)
    said = weights_refusal(path)
    assert "safetensors.torch.save_file" in said
    assert not proof.exists()


def test_a_whole_module_is_refused_with_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(3, 2), path)
    said = weights_refusal(path)
    assert "it pickles Python objects" in said
    assert "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')" in said


def test_archives_that_can_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/constants.pkl", b"")
    assert "it is a TorchScript archive" in weights_refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/archive_format", b"pt2")
    assert "it is a pt2 archive" in weights_refusal(path)


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "state_dict": Net().state_dict()}, path)
    assert "a checkpoint with epoch, state_dict" in weights_refusal(path)
    torch.save([torch.zeros(1)], path)
    assert "holds a list" in weights_refusal(path)
    torch.save({}, path)
    assert "not a state dict" in weights_refusal(path)
    assert "does not exist" in weights_refusal(tmp_path / "none.pt")
    assert "is a folder" in weights_refusal(tmp_path)
    other = write(tmp_path / "w.txt", "weights")
    assert "accepted: .safetensors, .bin, .pt, .pth" in weights_refusal(other)


def onnx_file(path: Path, *, features: int = 3) -> np.ndarray:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.arange(features * 2, dtype=np.float32).reshape(features, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", features])],
        [helper.make_tensor_value_info("logits", kind, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return weights


def onnx_refusal(path: Path, inputs: InputSpec) -> str:
    with pytest.raises(InputError) as caught:
        load_onnx(path, inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_onnx_model(tmp_path: Path) -> None:
    inputs, path = InputSpec(shape=(3,)), tmp_path / "m.onnx"
    weights = onnx_file(path)
    session, digest = load_onnx(path, inputs)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    model = BlackBox.from_onnx(session, inputs=inputs, classes=2)
    x = torch.tensor([[0.25, 0.5, 1.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(model(x).numpy(), x.numpy() @ weights)


def test_onnx_models_that_do_not_fit(tmp_path: Path) -> None:
    inputs, path = InputSpec(shape=(3,)), tmp_path / "m.onnx"
    onnx_file(path, features=4)
    assert "takes inputs of shape (4,); inputs.shape is (3,)" in onnx_refusal(path, inputs)
    assert load_onnx(path, InputSpec(shape=(4,)))
    path.write_bytes(path.read_bytes()[:40])
    assert "is refused" in onnx_refusal(path, inputs)
    assert "cannot be read" in onnx_refusal(tmp_path / "none.onnx", inputs)


def test_onnx_weights_outside_the_file_are_refused(tmp_path: Path, monkeypatch) -> None:
    onnx_file(tmp_path / "whole.onnx")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tmp_path / "whole.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    # Models loaded from memory would find such files in the current folder.
    monkeypatch.chdir(tmp_path)
    assert "save it with its weights inside" in onnx_refusal(tmp_path / "m.onnx", InputSpec(shape=(3,)))


def test_legacy_state_dicts_load(tmp_path: Path) -> None:
    source, target, buffer = Net(), Net(), io.BytesIO()
    torch.save(source.state_dict(), buffer, _use_new_zipfile_serialization=False)
    path = tmp_path / "old.pth"
    path.write_bytes(buffer.getvalue())
    load_weights(target, path)
    assert torch.equal(target.first.weight, source.first.weight)
