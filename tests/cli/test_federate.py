"""`robustml federate`: clients, rounds, and a stress test before and after."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors

RECIPE = """
schema = 1
name = "tiny"
description = "A short one."
[objective]
use = "pgd"
steps = 1
[settings]
epochs = 30
keep = "robust"
batch_size = 16
optimizer = "sgd"
learning_rate = 0.1
"""


@pytest.fixture
def ready(bench, monkeypatch):
    """The tiny target with something to train on; commands are run in its folder."""
    monkeypatch.chdir(bench.folder)
    text = (bench.folder / "robustml.toml").read_text()
    np.savez(bench.folder / "train.npz", x=np.tile(bench.x, (4, 1, 1, 1)), y=np.tile(bench.y, 4))
    (bench.folder / "robustml.toml").write_text(
        text.replace('test = "test.npz"', 'test = "test.npz"\ntrain = "train.npz"')
    )
    (bench.folder / "tiny-recipe.toml").write_text(RECIPE)
    return bench


def federate(command, *more: str):
    return command("federate", ".", "--clients", "3", "--rounds", "2", *more)


def test_it_shows_what_the_federation_came_to(command, ready) -> None:
    done = federate(
        command,
        "--out",
        "fed",
        "--recipe",
        "tiny-recipe.toml",
        "--aggregation",
        "median",
        "--partition",
        "iid",
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert any(line.startswith("clean: ") for line in lines)
    assert any(line.startswith("federation: 2 rounds with 3 clients of ") for line in lines)
    facts = json.loads((ready.folder / "fed" / "comparison.json").read_text())
    assert [entry["number"] for entry in facts["federation"]["history"]] == [0, 1, 2]
    assert facts["federation"]["history"][2]["robust"] is not None
    assert facts["provenance"]["settings"]["epochs"] == 1
    assert facts["provenance"]["aggregation"]["strategy"]["rule"]["is"] == "Median"
    with safetensors.safe_open(ready.folder / "fed" / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["robustml"])["objective"]["name"] == "pgd"
    report = json.loads((ready.folder / "fed" / "after" / "report.json").read_text())
    assert "robustml federate . --clients 3 --rounds 2" in json.dumps(report)
    assert report["federated"]["aggregation"] == "Median"
    assert [entry["number"] for entry in report["federated"]["history"]] == [0, 1, 2]
    assert json.loads((ready.folder / "fed" / "before" / "report.json").read_text())["federated"] is None


def test_the_report_with_its_federation_can_be_verified(command, ready) -> None:
    assert federate(command, "--out", "fed").code == 0
    text = (ready.folder / "robustml.toml").read_text()
    (ready.folder / "robustml.toml").write_text(
        text.replace('weights = "weights.safetensors"', 'weights = "fed/model.safetensors"')
    )
    done = command("verify", "fed/after", "--target", ".")
    assert done.code == 0, done.err + done.out


def test_what_is_finished_is_not_done_again(command, ready) -> None:
    first = federate(command, "--out", "fed", "--json")
    assert first.code == 0, first.err
    (ready.folder / "fed" / "after" / "report.json").unlink()
    again = federate(command, "--out", "fed", "--json", "--resume")
    assert again.code == 0, again.err
    assert json.loads(first.out) == json.loads(again.out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--aggregation", "meen"), "aggregation='meen' is not known; did you mean 'mean'?"),
        (("--partition", "dirichlet:x"), "needs a finite number above 0"),
        (("--runtime", "cloud"), "runtime='cloud' is not known"),
        (("--clients", "5000"), "are too few for clients=5000"),
        (("--recipe", "distill"), "trains a teacher first"),
    ],
)
def test_a_mistake_is_bad_usage(command, ready, more, message: str) -> None:
    done = federate(command, "--out", "fed", *more)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
    # Nothing was attacked for a federation that cannot be.
    assert not (ready.folder / "fed" / "before").exists() or "too few" in message
