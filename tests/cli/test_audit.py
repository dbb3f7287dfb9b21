"""`robustml audit`: what training gave away, its gate, its folder, and the stress test that includes it."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

RECIPE = """
schema = 1
name = "tiny"
description = "A short one."
objective = { use = "standard" }
settings = { epochs = 2, batch_size = 20, optimizer = "sgd" }
"""
# With a seed: one in a hundred faultless loops fails the conformance test, and not one run of this.
PRIVATE = RECIPE + "privacy = { epsilon = 5, clipping_norm = 0.5, seed = 1 }\n"


@pytest.fixture
def ready(bench, monkeypatch):
    """The tiny target, with members and a recipe; commands are run in its folder."""
    monkeypatch.chdir(bench.folder)
    members = np.random.default_rng(5).random((60, 1, 4, 4)).astype(np.float32)
    np.savez(bench.folder / "train.npz", x=members, y=np.arange(60) % 3)
    bench.edit('test = "test.npz"', 'test = "test.npz"\ntrain = "train.npz"')
    (bench.folder / "tiny-recipe.toml").write_text(RECIPE)
    (bench.folder / "private-recipe.toml").write_text(PRIVATE)
    return bench


@pytest.fixture
def brief(ready):
    """The same, with little to try."""
    ready.edit("[stress]", '[privacy]\nleakage = ["inversion"]\n[stress]')
    return ready


def test_it_says_what_training_gave_away(command, ready) -> None:
    done = command("audit", ".", "--out", "found")
    assert done.code == 0, done.err
    assert done.out.startswith("The strongest of 2 membership attacks")
    assert "no epsilon is accounted for" in " ".join(done.out.split())
    assert done.out.rstrip().endswith("report: found/report.html")
    assert "privacy: membership" in done.err
    report = json.loads((ready.folder / "found" / "report.json").read_text())
    limits = report["privacy"]["membership"]["strongest"]["advantage"]
    assert report["scores"]["privacy"]["value"] == pytest.approx(100 * (1 - limits["high"]))
    assert report["scores"]["overall"] == report["scores"]["privacy"]
    assert report["threats"] == []
    assert report["clean"]["accuracy"]["total"] == 40
    again = command("audit", ".", "--out", "again", "--json")
    other = json.loads(again.out)
    for made in (report, other):
        del made["created"], made["seconds"], made["command"], made["privacy"]["seconds"]
    assert other == report


def test_the_gate_decides_on_the_exit_code(command, brief) -> None:
    brief.edit("[stress]", '[gate]\nclean = ">= 50"\nevasion = ">= 99"\n[stress]')
    met = command("audit", ".", "--out", "one", "--gate", "membership-advantage<=100")
    assert met.code == 0, met.err
    # What attacks on inputs leave standing is for the stress test to say.
    assert "evasion >= 99" not in met.out
    missed = command("audit", ".", "--out", "two", "--gate", "epsilon<=8")
    assert missed.code == 1
    assert "does not claim to be private" in " ".join(missed.out.split())
    unresolved = command("audit", ".", "--out", "three", "--gate", "membership-tpr-0.1%<=100")
    assert unresolved.code == 1
    assert "NOT MEASURED" in unresolved.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gate", "evasion>=40"), "is none of an audit"),
        (("--gate", "epsilonn<=8"), "did you mean 'epsilon'"),
        (("--tier", "few"), "need a recipe"),
        (("--tier", "fw"), "did you mean 'few'"),
        (("--references", "3", "--recipe", "standard"), "references=3"),
        (("--recipe", "privat"), "did you mean 'private'"),
        (("--recipe", "distill"), "trains a teacher first"),
        (("--attribute", "age"), "age"),
        (("--resume",), "--resume needs --out"),
        (("--out", "robustml.toml"), "is a file"),
        (("--out", "."), "is not empty"),
        (("--out", ".", "--resume"), "holds no audit.json"),
        (("--members", "1"), "members"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(refused, ready, words, says) -> None:
    assert says in refused("audit", ".", *words)


def test_members_have_to_be_known(refused, ready) -> None:
    ready.edit('train = "train.npz"\n', "")
    assert "does not say what its model was trained on" in refused("audit", ".", "--out", "x")
    assert not (ready.folder / "x").exists()


@pytest.mark.slow
def test_a_private_recipe_is_run_held_to_its_word_and_compared(command, brief) -> None:
    words = ("--recipe", "private-recipe.toml", "--canaries", "40")
    done = command("audit", ".", "--out", "found", *words)
    assert done.code == 0, done.err
    section = json.loads((brief.folder / "found" / "report.json").read_text())["privacy"]
    assert section["accounted"] is None
    assert 4.9 < section["rerun"]["epsilon"] <= 5
    assert [audit["canaries"] for audit in section["audits"]] == [40, 40, 20]
    assert section["loop"]["passed"]
    assert [rung["name"] for rung in section["ladder"]["rungs"]] == ["plain", "clipped", "private"]
    assert "of a run by the recipe: epsilon in [" in section["pair"]


def test_a_model_with_a_claim_meets_its_gate(command, brief) -> None:
    hardened = command("harden", ".", "--recipe", "private-recipe.toml", "--out", "hardened")
    assert hardened.code == 0, hardened.err
    brief.edit('weights = "weights.safetensors"', 'weights = "hardened/model.safetensors"')
    done = command("audit", ".", "--out", "found", "--gate", "epsilon<=5")
    assert done.code == 0, done.err
    section = json.loads((brief.folder / "found" / "report.json").read_text())["privacy"]
    assert section["accounted"]["source"] == "its own claim"
    assert section["pair"].startswith("epsilon at most 5.00 at delta 1e-05 as accounted (prv; its own claim)")
    assert command("audit", ".", "--out", "other", "--gate", "epsilon<=4.5").code == 1


def test_reference_models_are_kept_and_taken_up_again(command, brief) -> None:
    words = ("audit", ".", "--recipe", "tiny-recipe.toml", "--references", "2", "--canaries", "0")
    whole = command(*words, "--out", "whole", "--json")
    assert whole.code == 0, whole.err
    section = json.loads(whole.out)["privacy"]
    assert (section["membership"]["references"], section["tier"]) == (2, "few")
    assert {"lira-offline", "rmia-offline"} <= {a["attack"] for a in section["membership"]["attacks"]}
    folder = brief.folder / "whole"
    (folder / "privacy" / "membership.json").unlink()
    kept = sorted((folder / "privacy" / "references").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in kept]
    again = command(*words, "--out", "whole", "--resume", "--json")
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert len(kept) == 2
    assert json.loads(again.out)["privacy"]["membership"] == section["membership"]
    other = command(*words, "--out", "whole", "--resume", "--seed", "3")
    assert other.code == 2
    assert "the seed of its audit is not the same" in other.errors[0]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_an_interrupted_audit_says_how_to_go_on(start, finished, command, brief) -> None:
    process = start(
        "audit", ".", "--out", "cut", "--members", "20", cwd=brief.folder, env={"NET_PAUSE": "0.02"}
    )
    until = time.monotonic() + 120
    while not (brief.folder / "cut" / "privacy" / "membership.json").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    outcome = finished(process)
    assert outcome.code == 130, outcome.err
    line = outcome.err.rstrip().splitlines()[-1]
    assert line == "interrupted; continue with: robustml audit --members 20 --out cut --resume ."
    done = command(*line.rpartition("robustml ")[2].split())
    assert done.code == 0, done.err
    assert "privacy: clean" not in done.err
    assert "privacy: membership" not in done.err


def test_verify_asks_again_and_finds_what_was_changed(command, brief) -> None:
    assert command("audit", ".", "--out", "found").code == 0
    good = command("verify", "found", "--target", ".")
    assert good.code == 0, good.out
    assert "clean, claim, membership, inversion of the audit done again" in good.out
    for file, old, new in (
        ("privacy/membership.json", '"members": 60', '"members": 61'),
        ("privacy.json", '"advantage_by": "', '"advantage_by": "x'),
        ("report.json", '"trusted": true', '"trusted": false'),
    ):
        path = brief.folder / "found" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        bad = command("verify", "found", "--target", ".")
        assert bad.code == 1, file
        assert "NOT verified" in bad.out
        path.write_text(text)
    np.savez(brief.folder / "test.npz", x=brief.x[::-1].copy(), y=brief.y[::-1].copy())
    other = command("verify", "found", "--target", ".", "--json")
    assert other.code == 1
    assert "data_sha256" in json.loads(other.out)["problems"][0]


def test_a_stress_test_includes_the_audit_that_its_target_asks_for(command, ready) -> None:
    ready.edit("[stress]", '[privacy]\nleakage = ["inversion"]\n[gate]\nprivacy = ">= 0"\n[stress]')
    planned = command("stress", ".", "--dry-run")
    assert [line.split()[0] for line in planned.out.splitlines() if "privacy/" in line] == [
        "privacy/clean",
        "privacy/claim",
        "privacy/membership",
        "privacy/inversion",
    ]
    done = command("stress", ".", "--out", "run")
    assert done.code == 0, done.err
    report = json.loads((ready.folder / "run" / "report.json").read_text())
    scores = report["scores"]
    assert scores["overall"]["value"] == min(scores["evasion"]["value"], scores["privacy"]["value"])
    assert report["privacy"]["extraction"] is None
    assert command("verify", "run", "--target", ".").code == 0
    plan = Path("run/audit.json")
    plan.rename("aside.json")
    assert "nothing stands behind the part on privacy" in command("verify", "run", "--target", ".").out
    Path("aside.json").rename(plan)
    resumed = command("stress", ".", "--resume", "run")
    assert resumed.code == 0
    assert "privacy: membership" not in resumed.err
    short = command("stress", ".", "--out", "short", "--time-budget", "0.000001s")
    assert short.code == 1
    assert "privacy: membership is missing: the time budget was spent before" in " ".join(short.out.split())
    again = command("stress", ".", "--out", "run", "--overwrite")
    assert again.code == 0, again.err
    # Before and after hardening, attacks on inputs are compared; the audit has a command of its own.
    hardened = command("harden", ".", "--recipe", "tiny-recipe.toml", "--out", "hardened")
    assert hardened.code == 0, hardened.err
    assert not list(Path("hardened").glob("*/privacy.json"))


def test_shards_are_audited_when_they_are_put_together(command, ready) -> None:
    ready.edit("[stress]", "[privacy]\nleakage = []\n[stress]")
    for part in ("1/2", "2/2"):
        assert command("stress", ".", "--out", f"part-{part[0]}", "--shard", part).code == 0
    assert not (ready.folder / "part-1" / "privacy.json").exists()
    merged = command("stress", ".", "--merge", "part-1", "--merge", "part-2", "--out", "whole")
    assert merged.code == 0, merged.err
    report = json.loads((ready.folder / "whole" / "report.json").read_text())
    assert report["privacy"]["membership"]["members"] == 60
    assert report["trusted"]


def test_training_that_fails_keeps_what_was_finished(command, brief) -> None:
    broken = RECIPE.replace('optimizer = "sgd"', 'optimizer = "sgd", learning_rate = 1e38')
    (brief.folder / "broken.toml").write_text(broken)
    done = command("audit", ".", "--recipe", "broken.toml", "--out", "found")
    assert done.code == 3, done.err
    assert "continue with: robustml audit --recipe broken.toml --out found --resume ." in done.errors[0]
    assert (brief.folder / "found" / "privacy" / "membership.json").is_file()
    assert not (brief.folder / "found" / "report.json").exists()
