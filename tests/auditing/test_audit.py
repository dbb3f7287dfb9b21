"""The whole audit: which parts there are, what is kept and refused, and what it makes of a faulty loop."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.auditing.audit import audit_target, parts_of
from robustml.auditing.job import Job
from robustml.auditing.replaying import replay_audit
from robustml.defenses.training.recipe import load_recipe
from robustml.targets import Target
from robustml.targets.privacy import PrivacyTable

RNG = np.random.default_rng(0)
X = RNG.random((160, 6)).astype(np.float32)
Y = (X[:, :3].argmax(1)).astype(np.int64)
MEMBERS, OTHERS = (X[:100], Y[:100]), (X[100:], Y[100:])
RECIPE = """
schema = 1
name = "short"
description = "A short one."
objective = { use = "standard" }
settings = { epochs = 3, batch_size = 25, optimizer = "sgd" }
"""
# With a seed: one in a hundred faultless loops fails the conformance test, and not one run of this.
PRIVATE = RECIPE + "privacy = { epsilon = 4, clipping_norm = 0.5, seed = 1 }\n"


@pytest.fixture(scope="module")
def model() -> rml.Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return rml.harden(net, MEMBERS, epochs=20, validation=None).model


@pytest.fixture
def target(model: rml.Classifier) -> Target:
    from robustml.data import as_dataset

    members, others = (as_dataset(part, model.inputs, 3) for part in (MEMBERS, OTHERS))
    table = PrivacyTable(leakage=["inversion"])
    return Target("toy", model, "toy", others, ("a", "b", "c"), train=members, privacy=table)


def parts(target: Target, **table: object) -> list[str]:
    target = dataclasses.replace(target, privacy=PrivacyTable(**table))  # type: ignore[arg-type]
    job = Job(target, Path(), "cpu", 0.95, lambda line: None)
    return [part for part, _ in parts_of(job)]


def test_the_recipe_decides_which_parts_there_are(target: Target, tmp_path: Path) -> None:
    asking = ["clean", "claim", "membership"]
    assert parts(target) == [*asking, "inversion", "extraction"]
    assert parts(target, leakage=[], attribute="f") == [*asking, "attribute"]
    (tmp_path / "plain.toml").write_text(RECIPE)
    (tmp_path / "private.toml").write_text(PRIVATE)
    plain, private = str(tmp_path / "plain.toml"), str(tmp_path / "private.toml")
    assert parts(target, leakage=[], recipe=plain) == [*asking, "canaries"]
    assert parts(target, leakage=[], recipe=plain, canaries=0) == asking
    assert parts(target, leakage=[], recipe=plain, canaries=0, runs=16) == [*asking, "runs"]
    whole = [*asking, "loop", "phantoms", "canaries", "ladder"]
    assert parts(target, leakage=[], recipe=private) == whole
    assert parts(target, leakage=[], recipe=private, canaries=0) == [*asking, "loop", "ladder"]


def test_finished_parts_are_taken_as_they_are(target: Target, tmp_path: Path) -> None:
    said: list[str] = []
    first = audit_target(target, out=tmp_path / "run", say=said.append)
    assert said == [f"privacy: {part}" for part in ("clean", "claim", "membership", "inversion")]
    (tmp_path / "run" / "privacy" / "inversion.json").unlink()
    said.clear()
    again = audit_target(target, out=tmp_path / "run", resume=True, say=said.append)
    assert said == ["privacy: inversion"]
    assert again.privacy.membership == first.privacy.membership
    assert again.privacy.inversion == first.privacy.inversion
    with pytest.raises(rml.InputError, match="holds an audit"):
        audit_target(target, out=tmp_path / "run")
    for changes, said_of in (
        ({"seed": 1}, "the seed of its audit"),
        ({"privacy": PrivacyTable(leakage=[])}, "the table of its audit"),
        ({"data": target.train}, "the data_sha256 of its audit"),
    ):
        with pytest.raises(rml.InputError, match=said_of):
            audit_target(dataclasses.replace(target, **changes), out=tmp_path / "run", resume=True)


def test_a_damaged_part_is_told(target: Target, tmp_path: Path) -> None:
    audit_target(target, out=tmp_path / "run")
    for content, said in (
        ("{", "is damaged"),
        ("[]", "not hold an object"),
        ('{"part": 3}', "membership.json"),
    ):
        (tmp_path / "run" / "privacy" / "membership.json").write_text(content)
        with pytest.raises(rml.InputError, match=said):
            audit_target(target, out=tmp_path / "run", resume=True)


def test_what_there_was_no_time_for_is_missing_until_there_is(target: Target, tmp_path: Path) -> None:
    late = audit_target(target, out=tmp_path / "run", deadline=time.monotonic() - 1)
    assert late.clean.accuracy.total == 60
    assert late.privacy.membership is None
    assert len(late.privacy.doubts) == 3
    done = audit_target(target, out=tmp_path / "run", resume=True)
    assert done.privacy.doubts == []
    assert done.privacy.membership is not None


def test_the_members_that_are_asked_about_are_a_part_drawn_at_random(target: Target, tmp_path: Path) -> None:
    few = dataclasses.replace(target, privacy=PrivacyTable(members=30, leakage=[]))
    job = Job(few, tmp_path, "cpu", 0.95, lambda line: None)
    assert job.common is not None
    assert (len(job.members), len(job.common), len(job.train)) == (30, 70, 100)
    both = {row.tobytes() for part in (job.members, job.common) for row in part.x}
    assert both == {row.tobytes() for row in MEMBERS[0]}
    other = dataclasses.replace(few, seed=1)
    assert not np.array_equal(Job(other, tmp_path, "cpu", 0.95, print).members.x, job.members.x)
    # A member that is not asked about is no non-member either.
    mixed = dataclasses.replace(few, data=dataclasses.replace(few.train, x=X[90:150], y=Y[90:150]))
    assert len(Job(mixed, tmp_path, "cpu", 0.95, print).others) == 50


def test_a_black_box_is_asked_and_not_trained(target: Target, tmp_path: Path) -> None:
    box = rml.BlackBox(
        lambda x: target.model(torch.as_tensor(x)).detach().numpy().argmax(1),
        inputs=target.model.inputs,
        classes=3,
        outputs="labels",
    )
    found = audit_target(dataclasses.replace(target, model=box), out=tmp_path / "box").privacy
    assert found.membership is not None
    assert [attack.attack for attack in found.membership.attacks] == ["gap", "kept-labels"]
    assert ("inversion", "the model gives labels only") in {(one.part, one.reason) for one in found.undone}
    (tmp_path / "plain.toml").write_text(RECIPE)
    table = PrivacyTable(recipe=str(tmp_path / "plain.toml"))
    with pytest.raises(rml.InputError, match="black box"):
        audit_target(dataclasses.replace(target, model=box, privacy=table), out=tmp_path / "no")


@pytest.mark.slow
def test_a_claim_is_held_against_a_run_by_the_recipe(model: rml.Classifier, tmp_path: Path) -> None:
    (tmp_path / "private.toml").write_text(PRIVATE)
    recipe = tmp_path / "private.toml"
    hardened = rml.harden(
        nn.Linear(6, 3), MEMBERS, epochs=3, batch_size=25, privacy=_privacy(recipe), optimizer="sgd"
    )
    report = rml.audit(
        hardened.model,
        MEMBERS,
        OTHERS,
        recipe=recipe,
        guarantee=hardened.privacy,
        canaries=40,
        leakage=[],
        gate={"epsilon": "<= 4", "privacy": ">= 0"},
        out=tmp_path / "run",
    )
    section = report.privacy
    assert section is not None
    assert report.trusted, report.distrust
    assert report.gate.passed
    assert section.accounted is not None
    assert section.rerun is not None
    assert section.accounted.epsilon == pytest.approx(section.rerun.epsilon, rel=0.01)
    # As both are of the same settings, the pair is in one bracket.
    assert section.pair.startswith("epsilon in [")
    assert section.loop is not None
    assert section.loop.passed
    stated = json.loads((tmp_path / "run" / "privacy" / "phantoms.json").read_text())
    assert stated["conformance"]["claims"][0]["claimed"] == pytest.approx(section.rerun.noise_multiplier)


def test_many_runs_are_counted_as_models(target: Target, tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 1"))
    table = PrivacyTable(recipe=str(tmp_path / "plain.toml"), canaries=0, runs=16, leakage=[])
    found = audit_target(dataclasses.replace(target, privacy=table), out=tmp_path / "run").privacy
    (bound,) = found.audits
    assert (bound.runs, bound.canaries, bound.accounted) == (16, 1, None)
    # So few of them cannot show anything, and that is what is said.
    assert bound.epsilon is None
    assert "[not resolvable, no bound) at delta 1e-05" in found.pair
    assert "1 canaries, 16 models" not in found.pair
    assert "1 canary, 16 models" in found.pair


def _privacy(recipe: Path):
    from robustml.defenses.training.recipe import arguments_of

    return arguments_of(load_recipe(str(recipe)))["privacy"]


def test_a_loop_that_breaks_its_word_is_told_of(target: Target, tmp_path: Path, monkeypatch) -> None:
    """The recipe's noise is left out behind the accountant's back."""
    from robustml.defenses.privacy.mechanism import Mechanism

    (tmp_path / "private.toml").write_text(PRIVATE)
    monkeypatch.setattr(Mechanism, "noised", lambda self, step, sums: list(sums))
    table = PrivacyTable(recipe=str(tmp_path / "private.toml"), canaries=60, leakage=[])
    found = audit_target(dataclasses.replace(target, privacy=table), out=tmp_path / "run").privacy
    assert found.loop is not None
    assert not found.loop.passed
    assert any("the accounted epsilon does not hold" in doubt for doubt in found.doubts)


def test_a_replay_takes_nothing_of_another_model(
    target: Target, model: rml.Classifier, tmp_path: Path
) -> None:
    audit = audit_target(target, out=tmp_path / "run")
    from robustml.auditing.audit import save_audit

    save_audit(audit, gate={"privacy": ">= 1"})
    good = replay_audit(tmp_path / "run", target)
    assert good.problems == ()
    assert good.again == ("clean", "claim", "membership", "inversion")
    torch.manual_seed(3)
    other = rml.Classifier(nn.Linear(6, 3), inputs=model.inputs, classes=3)
    (problem,) = replay_audit(tmp_path / "run", dataclasses.replace(target, model=other)).problems
    assert problem.startswith("audit: model_sha256 of the target is ")
    # The same test data, but other members: nothing names them, and the figures show it.
    swapped = dataclasses.replace(target.train, y=(target.train.y + 1) % 3)
    assert replay_audit(tmp_path / "run", dataclasses.replace(target, train=swapped)).problems
