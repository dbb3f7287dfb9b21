"""The verbs beside `stress`: report, verify, compare, doctor, init, list and describe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import click
import numpy as np
import pytest
import safetensors.numpy

from robustml.cli import cli
from robustml.registry import all_attacks
from robustml.report.model import Report
from robustml.targets import BUILTIN_TARGETS, read_target_file


def test_report_writes_every_format(made, command) -> None:
    names = ["x.html", "deep/x.md", "x.xml", "x.json", "X.TXT"]
    outcome = command("report", "run", *(word for name in names for word in ("--out", name)))
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.splitlines() == [f"wrote {name}" for name in names]
    report = Report.load("run")
    assert Path("x.html").read_text().startswith("<!doctype html>")
    assert ElementTree.parse("x.xml").getroot().tag == "testsuites"
    assert Path("x.json").read_bytes() == Path("run/report.json").read_bytes()
    assert Path("X.TXT").read_text().strip() == str(report).strip()
    assert report.verdict.partition(":")[0] in Path("deep/x.md").read_text()


def test_report_shows_what_was_measured(made, command, refused) -> None:
    assert command("report", "run").out.strip() == str(Report.load("run")).strip()
    assert command("report", "run/report.json", "--json").out == Path("run/report.json").read_text()
    both = command("report", "run", "--json", "--out", "x.md")
    assert (json.loads(both.out)["seed"], Path("x.md").exists()) == (0, True)
    assert "does not end in one of .json, .html" in refused("report", "run", "--out", "x.pdf")
    Path("run/report.json").unlink()
    assert "go on with robustml stress TARGET --resume run" in refused("report", "run")
    Path("run/report.json").write_text("{")
    assert "is not JSON" in refused("report", "run")


def test_verify_accepts_an_honest_run(made, command) -> None:
    outcome = command("verify", "run", "--target", "target", "--rerun", "2")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("verified: 40 clean predictions and ")
    assert outcome.out.endswith(" adversarial inputs replayed, 2 units attacked again\n")
    found = json.loads(command("verify", "run", "--target", "target", "--json").out)
    assert (found["passed"], found["problems"], found["samples"]) == (True, [], 40)


def test_verify_names_what_was_changed(made, command) -> None:
    evidence = sorted(Path("run/evidence").glob("*fgsm*"))[0]
    honest = evidence.read_bytes()
    columns = safetensors.numpy.load(honest)
    position = int(columns["position"][0])
    sample = json.loads(Path("run/plan.json").read_bytes())["ids"][position]
    place = honest.index(columns["x"].tobytes()) + 2
    evidence.write_bytes(honest[:place] + bytes([honest[place] ^ 1]) + honest[place + 1 :])
    outcome = command("verify", "run", "--target", "target")
    assert outcome.code == 1
    assert f"evidence of sample {sample} is not what was recorded" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("NOT verified")
    evidence.write_bytes(honest)

    report = Path("run/report.json")
    text = report.read_text()
    report.write_text(text.replace('"broken": 15', '"broken": 14'))
    outcome = command("verify", "run", "--target", "target")
    assert outcome.code == 1
    assert "attacks[0].broken is 14, but 15 follows from the evidence" in outcome.out
    report.write_text(text)

    weights = Path("target/weights.safetensors")
    tensors = safetensors.numpy.load(weights.read_bytes())
    tensors["layers.3.bias"] = tensors["layers.3.bias"] + np.float32([0, 0.1, 0])
    safetensors.numpy.save_file(tensors, weights)
    outcome = command("verify", "run", "--target", "target", "--json")
    assert outcome.code == 1
    problems = json.loads(outcome.out)["problems"]
    assert any(problem.startswith("model: SHA-256") for problem in problems)
    assert any(problem.startswith("sample ") for problem in problems)


def test_verify_runs_nothing_that_the_run_names(made, refused) -> None:
    Path("target/model.py").write_text("open('ran', 'w').close()\n")
    line = refused("verify", "run")
    assert "which is not built in; name the target file that you trust" in line
    assert "robustml verify run --target FILE" in line
    assert not Path("ran").exists()
    shutil.move("run", "a run")
    assert "robustml verify 'a run' --target FILE" in refused("verify", "a run")
    Path("a run/report.json").unlink()
    Path("target/model.py").write_text("")
    assert refused("verify", "a run", "--target", "target")


def test_compare_pairs_and_limits_the_drop(made, command, refused) -> None:
    same = command("compare", "run", "run")
    assert same.code == 0
    assert same.out.splitlines()[1].startswith("linf:0.05: 57.5 % -> 57.5 % (+0.0 [")
    assert command("compare", "run", "run", "--max-drop", "20").code == 0
    # Forty samples cannot rule out a drop of one point.
    tight = command("compare", "run", "run", "--max-drop", "1")
    assert tight.code == 1
    assert "FAIL linf:0.05 may have dropped by up to" in tight.out
    found = json.loads(command("compare", "run", "run", "--max-drop", "1", "--json").out)
    assert [row["figure"] for row in found["figures"]] == ["clean", "linf:0.05"]
    assert len(found["failed"]) == 2
    assert (
        command("stress", "target", "--threat", "l2:0.3", "--threat", "linf:0.05", "--out", "two").code == 0
    )
    assert command("compare", "two", "run").code == 0
    lost = command("compare", "two", "run", "--max-drop", "50")
    assert (lost.code, "FAIL l2:0.3 was not measured after" in lost.out) == (1, True)
    assert command("compare", "run", "two", "--max-drop", "50").code == 0
    assert command("stress", "target", "--out", "few", "--max-passes", "1").code == 0
    doubtful = command("compare", "run", "few", "--max-drop", "100")
    assert (doubtful.code, "FAIL after is NOT TRUSTED: " in doubtful.out) == (1, True)
    data = json.loads(Path("run/report.json").read_text())
    data["target"]["data"]["sha256"] = "0"
    Path("other.json").write_text(json.dumps(data))
    assert "are about different data" in refused("compare", "run", "other.json")


def test_doctor_says_what_it_found(bench, command, refused, monkeypatch) -> None:
    outcome = command("doctor", bench.folder)
    assert outcome.code == 0
    assert all(line.startswith("ok  ") for line in outcome.out.splitlines())
    for said in ("243 parameters, gradient access", "40 samples", "5 calls agree", "reaches the input"):
        assert said in outcome.out
    monkeypatch.chdir(bench.folder)
    found = json.loads(command("doctor", "--json").out)
    assert (found["threats"], found["suite"]) == ("linf:0.05", "tiny")
    assert "device='gpu' cannot be used" in refused("doctor", "--device", "gpu")
    bench.edit("steps = 3", "stpes = 3", "tiny.toml")
    assert "did you mean 'steps'?" in refused("doctor")
    bench.edit("stpes = 3", "steps = 3", "tiny.toml")
    bench.edit("return self.layers(x)", "return self.layers(x.detach())", "model.py")
    assert "the model cuts the graph" in command("doctor").out
    bench.edit("return self.layers(x.detach())", "return self.layers(x).softmax(1)", "model.py")
    assert "returns probabilities" in refused("doctor")


def test_init_writes_a_start_and_replaces_nothing(tmp_path: Path, monkeypatch, command, refused) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("init", "my project")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        f"wrote {Path('my project/robustml.toml')}",
        f"wrote {Path('my project/model.py')}",
    ]
    file = read_target_file("my project/robustml.toml")
    assert (file.model.factory, file.model.classes, file.stress.threats) == (
        "model.py:build",
        10,
        ["linf:8/255"],
    )
    assert file.gate == {"evasion": ">= 40"}
    x = np.random.default_rng(0).random((30, 1, 28, 28), dtype=np.float32)
    np.savez("my project/test.npz", x=x, y=np.arange(30) % 10)
    assert command("doctor", "my project").code == 0
    assert "already exists; nothing was written" in refused("init", "my project")
    Path("other").mkdir()
    Path("other/model.py").write_text("mine")
    assert "model.py' already exists" in refused("init", "other")
    assert [path.name for path in Path("other").iterdir()] == ["model.py"]
    assert Path("other/model.py").read_text() == "mine"
    assert "is a file; name a folder" in refused("init", "other/model.py")


def test_list_and_describe_cover_everything(command) -> None:
    listed = json.loads(command("list", "--json").out)
    assert set(listed) == {
        "attacks",
        "corruptions",
        "diagnostics",
        "guards",
        "recipes",
        "suites",
        "targets",
    }
    assert {row["name"] for row in listed["attacks"]} == {*all_attacks(), "art:NAME"}
    assert {row["name"] for row in listed["targets"]} == set(BUILTIN_TARGETS)
    text = command("list").out
    for kind, rows in listed.items():
        assert f"{kind}:" in text.splitlines()
        assert list(json.loads(command("list", kind, "--json").out)) == [kind]
        for row in rows:
            assert row["summary"]
            assert row["summary"] in text
            if row["name"] != "art:NAME":
                # Recipes are called like what they use.
                name = f"recipe:{row['name']}" if kind == "recipes" else row["name"]
                facts = json.loads(command("describe", name, "--json").out)
                shown = command("describe", name).out
                assert all(f"{key}:" in shown for key in facts)


def test_describe_shows_the_options_of_an_attack(command, bench) -> None:
    shown = command("describe", "apgd").out
    assert "steps: int = 100" in shown
    assert "Croce" in shown
    assert "fgsm: fgsm" in command("describe", bench.folder / "tiny.toml").out


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_help(name: str, command) -> None:
    verb = cli.commands[name]
    missing = [option.name for option in verb.params if isinstance(option, click.Option) and not option.help]
    assert missing == []
    for option in (o for o in verb.params if isinstance(o, click.Option)):
        # The environment variable is named after the parameter, and has to be found from the flag.
        assert option.opts[-1] == f"--{str(option.name).replace('_', '-')}"
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: robustml {name} ")
    assert verb.help


def test_the_command_alone_shows_its_help(command) -> None:
    outcome = command()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: robustml ")
    assert all(name in outcome.err for name in cli.commands)
