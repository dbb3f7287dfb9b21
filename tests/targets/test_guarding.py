"""The [guards] table of a target file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.errors import InputError
from robustml.targets import load_target

HEAD = """
schema = 1
[model]
factory = "nets.py:build"
classes = 3
[inputs]
shape = [1, 6, 6]
[data]
test = "test.npz"
[stress]
threats = ["linf:0.1"]
"""
NET = """
import torch
from torch import nn
def build():
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 36, generator=generator))
        net[1].bias.zero_()
    return net.eval()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    rng = np.random.default_rng(0)
    for name, n in (("test", 20), ("clean", 200)):
        x = rng.random((n, 1, 6, 6), dtype=np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(n) % 3)
    return tmp_path


def loaded(project: Path, table: str, head: str = HEAD) -> rml.Guarded:
    (project / "robustml.toml").write_text(head + "[guards]\n" + table)
    model = load_target(project).model
    assert isinstance(model, rml.Guarded)
    return model


def refusal(project: Path, table: str, head: str = HEAD) -> str:
    with pytest.raises(InputError) as caught:
        loaded(project, table, head)
    message = str(caught.value)
    assert "\n" not in message
    assert str(project / "robustml.toml") in message
    return message


def test_guards_without_a_fit(project: Path) -> None:
    model = loaded(project, 'use = [{ guard = "bit-depth", bits = 3 }, { guard = "median", size = 3 }]')
    assert [entry["guard"] for entry in model.describe()] == ["bit-depth", "median"]
    assert model.describe()[0]["bits"] == 3
    assert not model.rejects


def test_guards_are_fitted_on_what_comes_to_them(project: Path) -> None:
    table = 'fit = "clean.npz"\nuse = [{ guard = "bit-depth", bits = 1 }, { guard = "density", fpr = 0.1 }]'
    model = loaded(project, table)
    assert model.rejects
    clean = np.load(project / "clean.npz")
    x = torch.from_numpy(clean["x"])
    by_hand = type(model.guards[1]).fit(model.bare, x.round(), torch.from_numpy(clean["y"]), fpr=0.1)
    for name, value in by_hand.learned.items():
        assert torch.equal(model.guards[1].learned[name], value)


def test_the_saved_model_is_the_one_that_was_saved(project: Path) -> None:
    model = loaded(project, 'fit = "clean.npz"\nuse = [{ guard = "density", fpr = 0.1 }]')
    with torch.no_grad():
        model.bare.module[1].weight.mul_(2)
    model.save(project / "guarded.safetensors")
    again = loaded(project, 'saved = "guarded.safetensors"')
    x = torch.rand(5, 1, 6, 6)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('use = [{ guard = "bit-dept" }]', "did you mean 'bit-depth'"),
        ('use = [{ guard = "bit-depth", bit = 3 }]', "did you mean 'bits'"),
        ('use = [{ guard = "bit-depth", bits = 0 }]', "bits=0"),
        ("use = [{ bits = 3 }]", "has no guard"),
        ('use = [{ guard = "density" }]', "guards.fit"),
        ('fit = "none.npz"\nuse = [{ guard = "density" }]', "none.npz"),
        ('fit = "clean.npz"\nuse = [{ guard = "density", fprr = 0.1 }]', "did you mean 'fpr'"),
        ('fit = "clean.npz"\nuse = [{ guard = "density", fpr = 0.0001 }]', "fpr"),
        ("use = []", "exactly one of use and saved"),
        ('saved = "a"\nuse = [{ guard = "median" }]', "exactly one of use and saved"),
        ('saved = "a"\nfit = "clean.npz"', "fit goes with use"),
        ('saved = "none.safetensors"', "none.safetensors"),
        ("sued = []", "did you mean 'saved'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(project: Path, table: str, says: str) -> None:
    assert says in refusal(project, table)


def test_a_saved_model_of_other_inputs_is_refused(project: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    spec = rml.InputSpec(shape=(1, 6, 6), bounds=(0.0, 255.0))
    rml.Guarded(rml.Classifier(net, inputs=spec, classes=3), []).save(project / "g.safetensors")
    assert "other inputs" in refusal(project, 'saved = "g.safetensors"')
    weights = HEAD.replace(
        'factory = "nets.py:build"', 'factory = "nets.py:build"\nweights = "w.safetensors"'
    )
    assert "drop model.weights" in refusal(project, 'saved = "g.safetensors"', weights)
