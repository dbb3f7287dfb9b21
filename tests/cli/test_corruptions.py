"""Corruptions on the command line: listed, explained, measured, gated and verified."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustml.registry import all_corruptions, all_transformations

SECTION = """
[corruptions]
kinds = ["fog", "gaussian-noise", "saturate"]
severities = [1, 5]
samples = 20

[[corruptions.worst]]
use = "spatial"
options = { rotations = 3, translations = 3 }
"""


@pytest.fixture
def weather(bench):
    """The tiny target with a suite that asks for corruptions."""
    suite = bench.folder / "tiny.toml"
    suite.write_text(suite.read_text() + SECTION)
    return bench


def test_list_and_describe(command, refused) -> None:
    rows = json.loads(command("list", "corruptions", "--json").out)["corruptions"]
    assert [row["name"] for row in rows] == [*all_corruptions(), *all_transformations()]
    assert all(row["summary"] and row["group"] and row["reference"] for row in rows)
    shown = command("list", "corruptions").out
    assert re.search(r"^  fog +Clouds between the camera and the scene", shown, re.MULTILINE)
    fog = command("describe", "fog").out
    for said in ("corruption: fog", "group: weather", "channels: any number", "severities: 1, 2, 3, 4, 5"):
        assert said in fog.splitlines()
    assert "channels: 3" in command("describe", "saturate").out
    assert "  rotation: float = 30.0" in command("describe", "spatial").out.splitlines()
    assert json.loads(command("describe", "spatial", "--json").out)["transformations"] == "spatial"
    assert "did you mean 'spatial'?" in refused("describe", "spatail")
    assert "did you mean 'jpeg'?" in refused("describe", "jpg")


def test_describe_a_suite_that_asks_for_them(weather, command) -> None:
    lines = command("describe", str(weather.folder / "tiny.toml")).out.splitlines()
    assert "  kinds: fog, gaussian-noise, saturate" in lines
    assert "  severities: 1, 5" in lines
    assert "  samples: 20" in lines
    assert "  worst: spatial rotations=3, translations=3" in lines


def test_stress_shows_gates_and_verifies_them(weather, command) -> None:
    outcome = command("stress", weather.folder, "--out", "run", "--gate", "corruption>=1")
    shown = " ".join(outcome.out.split())
    assert "Corruptions: accuracy " in shown
    assert "under 2 kinds on 20 samples; weakest under " in shown
    assert "under the worst spatial transformation " in shown
    data = json.loads(Path("run/report.json").read_text())
    assert data["scores"]["corruption"]["value"] == pytest.approx(
        100 * data["corruptions"]["accuracy"]["value"]
    )
    assert data["gate"]["conditions"][0]["figure"] == "corruption"
    assert data["gate"]["conditions"][0]["value"] == pytest.approx(data["scores"]["corruption"]["low"])
    verified = command("verify", "run", "--target", str(weather.folder), "--rerun", "3")
    assert verified.code == 0, verified
    assert re.search(r"40 clean predictions, \d+ predictions on corrupted inputs and \d+ adv", verified.out)
    data["corruptions"]["accuracy"]["low"] += 0.01
    Path("run/report.json").write_text(json.dumps(data))
    altered = command("verify", "run", "--target", str(weather.folder))
    assert altered.code == 1
    assert "report: corruptions.accuracy.low is" in altered.out


def test_a_misspelt_corruption_is_refused_before_anything_runs(weather, refused) -> None:
    weather.edit('"fog"', '"fogg"', "tiny.toml")
    assert "corruption 'fogg' is not known; did you mean 'fog'?" in refused(
        "stress", weather.folder, "--out", "run"
    )
    assert not Path("run").exists()
