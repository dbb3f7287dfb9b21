"""`robustml harden`: a recipe, with a stress test before and after."""

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
steps = 2
[[term]]
use = "l2-weights"
weight = 0.001
[settings]
epochs = 3
batch_size = 16
"""


@pytest.fixture
def ready(bench, monkeypatch):
    """The tiny target with something to train on, and a recipe; commands are run in its folder."""
    monkeypatch.chdir(bench.folder)
    text = (bench.folder / "robustml.toml").read_text()
    np.savez(bench.folder / "train.npz", x=np.tile(bench.x, (3, 1, 1, 1)), y=np.tile(bench.y, 3))
    (bench.folder / "robustml.toml").write_text(
        text.replace('test = "test.npz"', 'test = "test.npz"\ntrain = "train.npz"')
    )
    (bench.folder / "tiny-recipe.toml").write_text(RECIPE)
    return bench


def harden(command, *more: str):
    return command("harden", ".", "--recipe", "tiny-recipe.toml", *more)


def test_it_shows_what_was_bought_and_what_it_cost(command, ready) -> None:
    done = harden(command, "--out", "hardened")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("clean: ")
    assert lines[1].startswith("linf:0.05: ")
    assert any(line.startswith("cost: clean accuracy") and "3 epochs" in line for line in lines)
    folder = ready.folder / "hardened"
    facts = json.loads((folder / "comparison.json").read_text())
    assert [row["figure"] for row in facts["figures"]] == ["clean", "linf:0.05"]
    assert facts["training"]["epochs"] == 3
    before, after = (json.loads((folder / name / "report.json").read_text()) for name in ("before", "after"))
    assert before["seed"] == after["seed"]
    assert before["samples"]["ids"] == after["samples"]["ids"]
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["robustml"])
    assert about["objective"]["threat"] == "linf:0.05"
    assert about["terms"] == [{"name": "l2-weights", "weight": 0.001, "biases": False}]


def test_what_is_finished_is_not_done_again(command, ready) -> None:
    first = harden(command, "--out", "hardened", "--json")
    (ready.folder / "hardened" / "after" / "report.json").unlink()
    again = harden(command, "--out", "hardened", "--json", "--resume")
    assert (first.code, again.code) == (0, 0), again.err
    one, other = json.loads(first.out), json.loads(again.out)
    assert one == other


def test_the_weights_are_those_that_the_target_then_loads(command, ready) -> None:
    assert harden(command, "--out", "hardened").code == 0
    text = (ready.folder / "robustml.toml").read_text()
    (ready.folder / "robustml.toml").write_text(
        text.replace('weights = "weights.safetensors"', 'weights = "hardened/model.safetensors"')
    )
    done = command("verify", "hardened/after", "--target", ".")
    assert done.code == 0, done.err + done.out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recipe", "pdg"], "did you mean 'pgd'"),
        (["--recipe", "none.toml"], "does not exist"),
        (["--recipe", "model.py"], "is not known"),
        (["--recipe", "tiny.toml"], "description is missing"),
    ],
)
def test_recipes_that_cannot_be_followed(command, ready, more, says) -> None:
    done = command("harden", ".", *more, "--out", "hardened")
    assert done.code == 2
    assert says in done.errors[0]
    assert not (ready.folder / "hardened").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({'use = "pgd"': 'use = "pgdd"'}, "did you mean 'pgd'"),
        ({"steps = 2": "stps = 2"}, "did you mean 'steps'"),
        ({"steps = 2": "steps = -1"}, "steps=-1"),
        ({"steps = 2": 'threat = "l0:3"'}, "L0"),
        ({"weight = 0.001": 'weight = "much"'}, "weight='much'"),
        ({"epochs = 3": "epochs = 0"}, "epochs=0"),
        ({"epochs = 3": "epoch = 3"}, "did you mean 'epochs'"),
        ({'use = "pgd"\nsteps = 2': 'use = "distillation"'}, "needs a teacher"),
        ({"schema = 1": "schema = 2"}, "schema=2"),
    ],
)
def test_a_recipe_of_ones_own_with_a_mistake(command, ready, change, says) -> None:
    text = RECIPE
    for old, new in change.items():
        text = text.replace(old, new)
    (ready.folder / "tiny-recipe.toml").write_text(text)
    done = harden(command, "--out", "hardened")
    assert done.code == 2
    assert len(done.errors) == 1
    assert says in done.errors[0]


def test_targets_and_folders_that_will_not_do(command, ready) -> None:
    text = (ready.folder / "robustml.toml").read_text()
    (ready.folder / "robustml.toml").write_text(text.replace('train = "train.npz"\n', ""))
    assert "names nothing to train on" in harden(command, "--out", "x").errors[0]
    (ready.folder / "robustml.toml").write_text(text)
    (ready.folder / "full").mkdir()
    (ready.folder / "full" / "mine").write_text("mine")
    assert "not empty" in harden(command, "--out", "full").errors[0]
    assert "is a file" in harden(command, "--out", "robustml.toml").errors[0]
    assert (ready.folder / "full" / "mine").read_text() == "mine"


def test_a_private_recipe_says_what_it_guarantees_and_starts_afresh(command, ready) -> None:
    recipe = RECIPE.replace("epochs = 3", 'epochs = 2\noptimizer = "sgd"')
    recipe += "\n[privacy]\nepsilon = 5\nclipping_norm = 0.5\n"
    (ready.folder / "tiny-recipe.toml").write_text(recipe)
    done = harden(command, "--out", "private")
    assert done.code == 0, done.err
    assert "training begins with fresh weights" in done.err
    said = next(line for line in done.out.splitlines() if line.startswith("privacy: "))
    assert "at delta 1e-05 (add or remove one sample; accountant prv)" in said
    facts = json.loads((ready.folder / "private" / "comparison.json").read_text())
    assert 4.9 < facts["privacy"]["epsilon"] <= 5
    assert facts["privacy"] == facts["provenance"]["privacy"]
    assert f"epsilon {facts['privacy']['epsilon']:.3g} " in said
    kept = harden(command, "--out", "kept", "--start", "weights")
    assert "fresh weights" not in kept.err
