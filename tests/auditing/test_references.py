"""Reference models: who is in which, kept, and the same after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from robustml.auditing import train_references
from robustml.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
X, Y = RNG.random((61, 4)).astype(np.float32), RNG.integers(0, 3, 61)
MEMBERS, OTHERS = (X[:30], Y[:30]), (X[30:], Y[30:])
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def weights(references):
    return [{k: v.clone() for k, v in model.module.state_dict().items()} for model in references.models]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a
    )


def test_each_sample_is_left_out_by_half_of_the_models() -> None:
    found = train_references(build, MEMBERS, OTHERS, count=6, **QUICK)
    assert found.design == "halves" and len(found) == 6
    assert found.inside.shape == (6, 61)
    assert (found.inside.sum(0) == 3).all()
    assert set(found.inside.sum(1).tolist()) == {30, 31}
    assert (found.inside[0] != found.inside[1]).all()
    assert (found.inside[0] != found.inside[2]).any()
    one, other = (model.module.state_dict()["0.weight"] for model in found.models[:2])
    assert not torch.equal(one, other)
    assert not any(model.training for model in found.models)


def test_models_learn_what_they_are_given_and_nothing_else() -> None:
    # Labels that only memory can know.
    wild = RNG.random((60, 40)).astype(np.float32)
    y = RNG.integers(0, 2, 60)
    net = lambda: nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 2))  # noqa: E731
    found = train_references(
        net, (wild[:30], y[:30]), (wild[30:], y[30:]), count=2, epochs=40, batch_size=15, learning_rate=0.02
    )
    with torch.no_grad():
        right = np.stack([(m(torch.from_numpy(wild)).argmax(1).numpy() == y) for m in found.models])
    assert right[found.inside].mean() > 0.95
    assert right[~found.inside].mean() < 0.75


def test_models_apart_know_none_of_the_samples() -> None:
    apart = RNG.random((20, 4)).astype(np.float32), RNG.integers(0, 3, 20)
    found = train_references(build, MEMBERS, OTHERS, count=3, apart=apart, **QUICK)
    assert found.design == "apart"
    assert found.inside.shape == (3, 61) and not found.inside.any()


def test_the_rest_of_the_training_data_is_in_all_of_them() -> None:
    # Labels that only memory can know.
    wild = RNG.random((90, 40)).astype(np.float32)
    y = RNG.integers(0, 2, 90)
    net = lambda: nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 2))  # noqa: E731
    parts = [(wild[k : k + 30], y[k : k + 30]) for k in (0, 30, 60)]
    found = train_references(
        net, *parts[:2], common=parts[2], count=2, epochs=40, batch_size=15, learning_rate=0.02
    )
    assert found.inside.shape == (2, 60)
    with torch.no_grad():
        right = np.stack([(m(torch.from_numpy(wild)).argmax(1).numpy() == y) for m in found.models])
    assert right[:, 60:].mean() > 0.95
    assert right[:, :60][found.inside].mean() > 0.95 and right[:, :60][~found.inside].mean() < 0.75


def test_noise_is_never_that_of_the_target(tmp_path) -> None:
    pytest.importorskip("opacus")
    from robustml.defenses.privacy import DifferentialPrivacy

    privacy = DifferentialPrivacy(noise_multiplier=1.0, seed=5)
    train_references(build, MEMBERS, OTHERS, count=2, out=tmp_path / "r", privacy=privacy, **QUICK)
    seeds = set()
    for path in sorted((tmp_path / "r").glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            seeds.add(json.loads(file.metadata()["robustml"])["privacy"]["randomness"])
    assert len(seeds) == 2 and "seed 5" not in seeds
    assert all(re.fullmatch(r"seed \d+", seed) for seed in seeds)


def test_a_seed_decides_everything_and_more_models_change_nothing() -> None:
    two = train_references(build, MEMBERS, OTHERS, count=2, seed=1, **QUICK)
    four = train_references(build, MEMBERS, OTHERS, count=4, seed=1, **QUICK)
    assert same(weights(two), weights(four)[:2])
    assert (two.inside == four.inside[:2]).all()
    assert same(weights(four.first(2)), weights(two))
    other = train_references(build, MEMBERS, OTHERS, count=2, seed=2, **QUICK)
    assert not same(weights(two), weights(other))
    assert (two.inside != other.inside).any()


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_references(build, MEMBERS, OTHERS, count=2, **QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_finished_models_are_taken_from_the_folder(tmp_path) -> None:
    folder = tmp_path / "references"
    done = []
    first = train_references(
        build, MEMBERS, OTHERS, count=2, out=folder, on_model=lambda *at: done.append(at), **QUICK
    )
    assert done == [(1, 2), (2, 2)]
    assert sorted(path.name for path in folder.iterdir()) == [
        "0000.safetensors",
        "0001.safetensors",
        "references.json",
    ]
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    more = train_references(build, MEMBERS, OTHERS, count=4, out=folder, **QUICK)
    assert same(weights(first), weights(more)[:2])
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert same(weights(more), weights(train_references(build, MEMBERS, OTHERS, count=4, **QUICK)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 3}, "training"),
        ({"seed": 9}, "seed"),
        ({"members": (X[1:30], Y[1:30])}, "data_sha256"),
        ({"build": lambda: nn.Linear(4, 3)}, "model"),
    ],
)
def test_a_folder_of_other_models_is_refused(tmp_path, change, named) -> None:
    train_references(build, MEMBERS, OTHERS, count=2, out=tmp_path / "r", **QUICK)
    plan = {"build": build, "members": MEMBERS, "non_members": OTHERS, **QUICK, **change}
    with pytest.raises(InputError, match=f"holds other reference models: their {named} is"):
        train_references(count=2, out=tmp_path / "r", **plan)


def test_damage_is_named(tmp_path) -> None:
    folder = tmp_path / "r"
    train_references(build, MEMBERS, OTHERS, count=2, out=folder, **QUICK)
    (folder / "0001.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"0001\.safetensors' does not hold the weights"):
        train_references(build, MEMBERS, OTHERS, count=2, out=folder, **QUICK)
    (folder / "references.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        train_references(build, MEMBERS, OTHERS, count=2, out=folder, **QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and holds no reference models"):
        train_references(build, MEMBERS, OTHERS, count=2, out=tmp_path / "mine", **QUICK)


def test_what_cannot_be_used() -> None:
    net = build()
    for count in (3, 0, True, 2.0):
        with pytest.raises(InputError, match="count="):
            train_references(build, MEMBERS, OTHERS, count=count, **QUICK)
    with pytest.raises(InputError, match="the same module twice"):
        train_references(lambda: net, MEMBERS, OTHERS, count=2, **QUICK)
    with pytest.raises(InputError, match="build returned NoneType"):
        train_references(lambda: None, MEMBERS, OTHERS, count=2, **QUICK)
    with pytest.raises(InputError, match="resume cannot be given"):
        train_references(build, MEMBERS, OTHERS, count=2, resume=True, **QUICK)
    with pytest.raises(InputError, match="epocs is not a setting of harden"):
        train_references(build, MEMBERS, OTHERS, count=2, epocs=3)
    with pytest.raises(InputError, match="more than the 2 reference models"):
        train_references(build, MEMBERS, OTHERS, count=2, **QUICK).first(4)


PROGRAM = """
import sys
import torch
sys.path[:0] = [{root!r}, {here!r}]
torch.set_num_threads(1)
from test_references import MEMBERS, OTHERS, build
from robustml.auditing import train_references
train_references(build, MEMBERS, OTHERS, count=2, out=sys.argv[1], epochs=80, batch_size=8)
"""


@pytest.mark.slow
def test_what_was_killed_goes_on_and_comes_out_the_same(tmp_path) -> None:
    program = PROGRAM.format(root=str(ROOT), here=str(Path(__file__).parent))
    folder = tmp_path / "r"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], env=environment)
    # Killed in the middle of the second model.
    until = time.monotonic() + 120
    while not (folder / "0001" / "checkpoint.safetensors").is_file():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "0000.safetensors").is_file() and not (folder / "0001.safetensors").exists()
    resumed = train_references(build, MEMBERS, OTHERS, count=2, out=folder, epochs=80, batch_size=8)
    whole = train_references(build, MEMBERS, OTHERS, count=2, epochs=80, batch_size=8)
    assert same(weights(resumed), weights(whole))
    assert not (folder / "0001").exists()
