"""Goals and randomized models from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from robustml.report.model import Report

NOISE = "return self.layers(x + 0.02 * __import__('torch').randn_like(x))"


def test_goals_of_a_flag_or_of_the_file_ask_the_same(bench, command) -> None:
    outcome = command("stress", bench.folder, "--out", "run", "--goal", "1->2", "--goal", "*->0")
    assert outcome.code == 0, outcome.err
    report = Report.load("run")
    assert report.goals == ["1->2", "*->0"]
    assert set(bench.y[report.samples.ids]) == {1, 2}
    assert "Goals     1->2, *->0" in outcome.out
    assert "test inputs with a goal" in report.verdict
    words = shlex.split(report.command)
    assert words[words.index("--goal") + 1] == "1->2"
    assert command("verify", "run", "--target", bench.folder).code == 0
    bench.edit("[stress]", "[stress]\ngoals = ['1->2', '*->0']", "robustml.toml")
    assert command("stress", bench.folder, "--out", "again").code == 0
    again = Report.load("again")
    assert (again.goals, again.threats[0].outcomes) == (report.goals, report.threats[0].outcomes)
    # A flag takes the place of what the file says.
    assert command("stress", bench.folder, "--out", "other", "--goal", "2->0").code == 0
    assert Report.load("other").goals == ["2->0"]


def test_shards_have_one_goal(bench, command) -> None:
    for part in ("1/2", "2/2"):
        flags = ["--shard", part, "--out", part[0], "--goal", "1->2"]
        assert command("stress", bench.folder, *flags).code == 0
    merge = ["--merge", "1", "--merge", "2", "--out", "whole"]
    outcome = command("stress", bench.folder, *merge, "--goal", "1->0")
    assert outcome.code == 2
    assert "--goal differs from what '1' was run with" in outcome.err
    assert command("stress", bench.folder, *merge, "--goal", "1->2").code == 0
    assert Report.load("whole").goals == ["1->2"]


def test_a_goal_that_concerns_nothing_and_too_many_samples(bench, refused) -> None:
    assert "known: 0, 1, 2" in refused("stress", bench.folder, "--goal", "7->0")
    line = refused("stress", bench.folder, "--goal", "1->2", "--samples", "39")
    assert "samples that the goals concern" in line


def test_a_randomized_model(bench, command) -> None:
    bench.edit("return self.layers(x)", NOISE, "model.py")
    doctor = command("doctor", bench.folder)
    assert doctor.code == 0
    assert "the model answers at random, so points are judged by the vote of several draws" in doctor.out
    outcome = command("stress", bench.folder, "--out", "run", "--draws", "8", "--eot", "4")
    assert outcome.code == 0, outcome.err
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["randomness"] == {"draws": 8, "eot": 4, "shared": False, "foreign": False}
    report = Report.load("run")
    assert report.randomness is not None
    assert "8 draws vote on each point" in outcome.out
    assert "--draws 8 --eot 4" in report.command
    assert command("verify", "run", "--target", bench.folder, "--rerun", "2").code == 0
