import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import robustml
from robustml.classifier import BlackBox, Classifier
from robustml.errors import InputError
from robustml.targets import BUILTIN_TARGETS, Target, load_target, read_target_file

WHOLE = """
schema = 1
[model]
factory = "nets.py:build"
weights = "weights/w.safetensors"
classes = 3
name = "small net"
[inputs]
shape = [1, 2, 2]
bounds = [0, 1]
mean = 0.5
[data]
test = "data/test.npz"
x = "images"
samples = 4
select = "first"
class_names = ["ant", "bee", "cow"]
[stress]
suite = "mine.toml"
threats = ["linf:8/255", "l2:0.5"]
seed = 7
batch_size = 64
[gate]
evasion = ">= 40"
"threats.linf:8/255" = "> 0.5"
"""

MINIMAL = """
schema = 1
[model]
factory = "nets.py:build"
classes = 3
[inputs]
shape = [1, 2, 2]
[data]
test = "data/test.npz"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "weights").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.constant_(net[1].weight, 0.25)
    safetensors.torch.save_file(net.state_dict(), root / "weights" / "w.safetensors")
    x = np.linspace(0, 1, 40, dtype=np.float32).reshape(10, 1, 2, 2)
    np.savez(root / "data" / "test.npz", images=x, x=x[::-1], y=np.arange(10) % 3)
    (root / "robustml.toml").write_text(WHOLE)
    (root / "minimal.toml").write_text(MINIMAL)
    return root


def test_a_whole_target_file(project: Path, monkeypatch) -> None:
    monkeypatch.chdir(project.parent)
    target = load_target("project/robustml.toml")
    assert isinstance(target.model, Classifier)
    assert torch.equal(target.model.module[1].weight, torch.full((3, 4), 0.25))
    assert target.model.inputs.mean == 0.5
    assert (target.name, target.model_name, target.builtin) == ("project", "small net", False)
    assert target.data.name == "test.npz"
    assert target.data.x[1, 0, 0, 0] == np.float32(4 / 39)
    assert target.class_names == ("ant", "bee", "cow")
    assert target.suite == str(project / "mine.toml")
    assert [threat.name for threat in target.threats] == ["linf:8/255", "l2:0.5"]
    assert all(threat.inputs == target.model.inputs for threat in target.threats)
    assert (target.seed, target.batch_size, target.samples, target.select) == (7, 64, 4, "first")
    assert target.gate == {"evasion": ">= 40", "threats.linf:8/255": "> 0.5"}
    assert load_target(project).name == "project"
    assert dataclasses.replace(target, seed=1).seed == 1


def test_defaults(project: Path) -> None:
    target = load_target(project / "minimal.toml")
    assert (target.name, target.model_name, target.suite) == ("minimal", "nets.py:build", "standard")
    assert (target.seed, target.batch_size, target.samples, target.select) == (0, None, None, "stratified")
    assert (target.threats, target.gate, target.class_names) == ((), {}, ("0", "1", "2"))
    assert target.data.x[0, 0, 0, 0] == np.float32(36 / 39)


def test_an_image_folder(project: Path) -> None:
    for name in ("ant", "bee", "cow"):
        (project / "pictures" / name).mkdir(parents=True)
        Image.new("L", (2, 2), 51).save(project / "pictures" / name / "0.png")
    text = MINIMAL.replace('test = "data/test.npz"', 'folder = "pictures"')
    (project / "minimal.toml").write_text(text)
    target = load_target(project / "minimal.toml")
    assert target.class_names == ("ant", "bee", "cow")
    assert target.data.x.max() == np.float32(0.2)
    (project / "minimal.toml").write_text(text.replace("classes = 3", "classes = 4"))
    assert "pictures has 3 class folders; model.classes is 4" in refusal(project / "minimal.toml")


def test_an_onnx_model(project: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", kind, ["n", 3])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (project / "net.onnx").write_bytes(model.SerializeToString())
    path = project / "minimal.toml"
    path.write_text(MINIMAL.replace('factory = "nets.py:build"', 'onnx = "net.onnx"'))
    target = load_target(path)
    assert isinstance(target.model, BlackBox)
    assert (target.model_name, len(target.model.fingerprint() or "")) == ("net.onnx", 64)
    x = torch.from_numpy(target.data.x)
    np.testing.assert_allclose(target.model(x).numpy(), x.flatten(1).numpy() @ weights, rtol=1e-6)


def test_features_may_be_named(project: Path) -> None:
    (project / "minimal.toml").write_text(
        MINIMAL.replace("shape = [1, 2, 2]", 'shape = [4]\nfeatures = ["a", "b", "c", "d"]').replace(
            "[data]", 'immutable = ["b", 0]\ninteger = []\none_hot = [["c", "d"]]\n[data]'
        )
    )
    spec = read_target_file(project / "minimal.toml").input_spec()
    assert (spec.immutable, spec.one_hot) == ((1, 0), ((2, 3),))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_target(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "schema=2 is not accepted"),
        ("schema = 1", "", "schema is missing"),
        ("[model]", "[modell]", "modell is not known; did you mean 'model'?"),
        ("weights =", "weight =", "model.weight is not known; did you mean 'weights'?"),
        ("classes = 3", "classes = 1", "model.classes=1 is not accepted"),
        ("classes = 3", 'classes = "3"', "model.classes='3' is not accepted"),
        ("classes = 3", "classes = true", "model.classes=True is not accepted"),
        ('factory = "nets.py:build"', "", "it takes exactly one of factory and onnx"),
        ('name = "small net"', 'onnx = "m.onnx"', "it takes exactly one of factory and onnx"),
        ("[inputs]", 'outputs = "softmax"\n[inputs]', "model.outputs='softmax'"),
        ("[inputs]", 'outputs = "labels"\n[inputs]', "has no gradient"),
        ("shape =", "shap =", "inputs.shap is not known; did you mean 'shape'?"),
        ("shape = [1, 2, 2]", "shape = [0]", "inputs.shape holds 0"),
        ("shape = [1, 2, 2]", "shape = [99999, 99999, 99999]", "inputs.shape"),
        ("mean = 0.5", "dtype = [1]", "inputs.dtype"),
        ("mean = 0.5", "std = 0", "inputs.std=0"),
        ("mean = 0.5", "mean = nan", "inputs.mean=nan"),
        ("mean = 0.5", 'immutable = ["age"]', "names need inputs.features"),
        ("mean = 0.5", "features = [1, 2]", "inputs.features"),
        ("mean = 0.5", 'features = ["a", "a", "b", "c"]', "names a feature twice"),
        (
            "mean = 0.5",
            'features = ["age", "bmi", "sex", "bp"]\ninteger = ["agee"]',
            "is no feature; did you mean 'age'?",
        ),
        ("bounds = [0, 1]", "bounds = [1, 0]", "inputs.bounds"),
        ("bounds = [0, 1]", "bounds = { low = 0 }", "inputs.bounds"),
        ('test = "data/test.npz"', "", "it takes exactly one of test and folder"),
        ('test = "data/test.npz"', 'folder = "pictures"', "x, y and layout go with test"),
        ('test = "data/test.npz"', 'test = "data/none.npz"', "none.npz does not exist"),
        ('test = "data/test.npz"', 'test = "data/no\\u0000ne.npz"', "does not exist"),
        ('x = "images"', 'x = "image"', "has no array 'image'; did you mean 'images'?"),
        ('x = "images"', 'x = "y"', "test.npz: x has shape (10,)"),
        ('x = "images"', 'layout = "nhwc"', "data.layout='nhwc'"),
        ("samples = 4", "samples = 0", "data.samples=0"),
        ("samples = 4", "samples = 4.5", "data.samples=4.5"),
        ('select = "first"', 'select = "last"', "data.select='last'"),
        ('["ant", "bee", "cow"]', '["ant"]', "class_names has 1 names for 3 classes"),
        ('["linf:8/255", "l2:0.5"]', '["linf:8"]', "did you mean 8/255?"),
        ('["linf:8/255", "l2:0.5"]', '["lnf:0.3"]', "stress.threats: norm 'lnf' is not known; did you mean"),
        ('["linf:8/255", "l2:0.5"]', '"linf:0.3"', "stress.threats='linf:0.3' is not accepted"),
        ("seed = 7", "seed = -1", "stress.seed=-1"),
        ("batch_size = 64", "batch_size = 0", "stress.batch_size=0"),
        ('">= 40"', '"40"', "evasion takes a comparison and a number, as in '>= 40', not '40'"),
        ('">= 40"', '">= forty"', "takes a comparison and a number"),
        ('">= 40"', '"=> 40"', "takes a comparison and a number"),
        ('">= 40"', "40", "gate.evasion=40 is not accepted"),
        ('w.safetensors"', 'w.pkl"', "w.pkl does not exist"),
        ("nets.py:build", "nets.py:built", "nets.py has no 'built'; did you mean 'build'?"),
    ],
)
def test_a_mistake_is_told_in_one_line(project: Path, old: str, new: str, said: str) -> None:
    assert old in WHOLE
    path = project / "robustml.toml"
    path.write_text(WHOLE.replace(old, new))
    assert said in refusal(path)


PRIVACY = """
[privacy]
tier = "few"
recipe = "mine.toml"
canaries = 200
members = 8
attribute = "age"
leakage = ["inversion"]
"""


def test_how_privacy_is_audited(project: Path) -> None:
    path = project / "robustml.toml"
    text = WHOLE.replace('test = "data/test.npz"', 'test = "data/test.npz"\ntrain = "data/test.npz"')
    path.write_text(text + PRIVACY)
    target = load_target(path)
    assert target.privacy is not None
    assert target.privacy.recipe == str(project / "mine.toml")
    assert (target.privacy.reference_count, target.privacy.canaries) == (4, 200)
    assert target.build is not None
    assert isinstance(target.build(), nn.Module)
    assert target.claim is None
    path.write_text(text)
    assert load_target(path).privacy is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('tier = "few"', 'tier = "fw"', "privacy.tier='fw'"),
        ('tier = "few"', "references = 3", "privacy.references=3"),
        ('tier = "few"', 'tier = "few"\nreferences = 64', "tier 'few' does not go with 64"),
        ('recipe = "mine.toml"', "", "reference models need a recipe"),
        ("canaries", "canarys", "privacy.canarys is not known; did you mean 'canaries'?"),
        ("members = 8", "members = 1", "privacy.members=1"),
        ('["inversion"]', '["invertion"]', "privacy.leakage.0='invertion'"),
        ('train = "data/test.npz"\n', "", "privacy needs data.train"),
    ],
)
def test_a_mistake_about_privacy_is_told_in_one_line(project: Path, old: str, new: str, said: str) -> None:
    path = project / "robustml.toml"
    text = (
        WHOLE.replace('test = "data/test.npz"', 'test = "data/test.npz"\ntrain = "data/test.npz"') + PRIVACY
    )
    assert old in text
    path.write_text(text.replace(old, new))
    assert said in refusal(path)


def test_what_the_file_of_the_weights_claims(project: Path) -> None:
    path, weights = project / "robustml.toml", project / "weights" / "w.safetensors"
    state = safetensors.torch.load_file(weights)
    for told, claim in (
        ({"privacy": {"epsilon": 3.0}}, {"epsilon": 3.0}),
        ({"privacy": 3}, None),
        # What a federation was asked for is no claim, what its clients have spent is.
        ({"privacy": {"epsilon": 3.0}, "spent": {"samples": None}}, None),
        (
            {"privacy": {"epsilon": 3.0}, "spent": {"samples": {"epsilon": 9.0, "delta": 1e-5, "client": 1}}},
            {
                "epsilon": 9.0,
                "delta": 1e-5,
                "accountant": "of each client",
                "neighbors": "add or remove one sample of one client",
                "randomness": "of each client",
            },
        ),
        ({"privacy": None}, None),
        ([], None),
    ):
        safetensors.torch.save_file(state, weights, metadata={"robustml": json.dumps(told)})
        assert load_target(path).claim == claim
    safetensors.torch.save_file(state, weights, metadata={"robustml": "{"})
    assert "have a header that cannot be read" in refusal(path)


def test_several_mistakes_are_told_at_once(project: Path) -> None:
    path = project / "robustml.toml"
    path.write_text(WHOLE.replace("seed = 7", 'sed = 7\nbatch_size = "x"').replace("batch_size = 64\n", ""))
    said = refusal(path)
    assert str(path) in said
    assert "stress.sed is not known; did you mean 'seed'?" in said
    assert "stress.batch_size='x'" in said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    for content, said in (
        (b"schema = 1\n[model\n", "(at line 2"),
        (b"schema = 1\nname = '\xff'\n", "not UTF-8 text: line 2 holds the byte 0xff"),
        (b"a = " + b"[" * 20000, "t.toml"),
        (b"a = 1" + b"0" * 5000, "t.toml"),
        (b"a = 2020-13-45", "is not TOML"),
        (b"#" * (11 * 2**20), "is larger than 10 MiB"),
        (b"", "schema is missing"),
        (b"\xef\xbb\xbfschema = 1", "model is missing"),
    ):
        file.write_bytes(content)
        assert said in refusal(file)
    assert "does not exist" in refusal(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is a folder"):
        read_target_file(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read|does not exist"):
        read_target_file("no\0where.toml")


def test_targets_that_do_not_exist(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for spec, said in (
        ("digit", "target 'digit' is neither built in nor a file; did you mean 'digits'?"),
        ("xyz", "known: breast-cancer, digits"),
        ("xyz.toml", "target file 'xyz.toml' does not exist"),
        ("a/b", "target file 'a/b' does not exist"),
        ("empty", "folder 'empty' holds no robustml.toml"),
        ("a\0b", "neither built in nor a file"),
        ("x" * 5000, "neither built in nor a file"),
    ):
        with pytest.raises(InputError) as caught:
            load_target(spec)
        assert said in str(caught.value)


def only_input_errors(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = ""
    try:
        read_target_file(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 20000


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=300, deadline=None)
def test_junk_is_never_more_than_an_input_error(tmp_path_factory, content: bytes) -> None:
    only_input_errors(tmp_path_factory.getbasetemp() / "junk.toml", content)


SCALARS = """
    1 | -1 | 0 | 1e400 | nan | -inf | true | "" | "x" | "0.5" | "\\u0000\\n" | 2020-01-01 | 07:32:00
    | 0x7fffffffffffffffffff | [] | {} | [[]] | [0, 1] | [[0, 0], [1, 1]] | ["a"] | [{}] | [1, 2, 2] | [nan]
    | [[[1]]] | { a = 1 } | [0, "a"] | [true] | [2020-01-01] | "linf:0.1" | ["linf:1e99"] | [2147483648]
"""
KEYS = """
    factory onnx weights classes outputs name shape bounds dtype mean std scale features immutable integer
    one_hot test folder x layout samples select class_names suite threats seed batch_size evasion
    train use fit saved twin goals draws eot tier references recipe canaries members leakage attribute delta
    epsilon "audited-epsilon" "two\\nlines" ""
"""
TABLES = st.sampled_from(["model", "inputs", "data", "guards", "stress", "privacy", "gate", '"a\\nb"'])


@given(
    st.lists(
        st.tuples(TABLES, st.sampled_from(KEYS.split()), st.sampled_from(SCALARS.split("|"))),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=400, deadline=None)
def test_valid_toml_with_wrong_contents_is_never_more_than_an_input_error(tmp_path_factory, entries) -> None:
    tables: dict[str, dict[str, str]] = {
        "model": {"factory": '"m:b"', "classes": "3"},
        "inputs": {"shape": "[1, 2, 2]"},
        "data": {"test": '"t.npz"'},
    }
    for table, key, value in entries:
        tables.setdefault(table, {})[key] = value
    lines = ["schema = 1"]
    for table, contents in tables.items():
        lines += [f"[{table}]", *(f"{key} = {value.strip()}" for key, value in contents.items())]
    only_input_errors(tmp_path_factory.getbasetemp() / "junk.toml", "\n".join(lines).encode())


def test_names_of_built_in_targets_come_without_heavy_imports() -> None:
    root = Path(robustml.__file__).parents[1]
    code = (
        "import sys, robustml.targets as t; assert 'digits' in t.BUILTIN_TARGETS; "
        "print(sorted({'torch', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all("\n" not in line and line for line in BUILTIN_TARGETS.values())
    assert Target.__dataclass_params__.frozen
