"""`robustml stress` from the outside: streams, exit codes, settings, and what happens to folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from robustml.report.model import Report


def test_a_run_prints_its_result_and_nothing_else_on_stdout(bench, command) -> None:
    plain = command("stress", bench.folder, "--out", "run")
    assert plain.code == 0
    assert str(Report.load("run")).strip() in plain.out
    assert plain.out.endswith(f"report: {Path('run/report.html')}\n")
    assert "\x1b" not in plain.out + plain.err
    assert plain.err.splitlines()[0] == "clean: 40 samples"
    assert "linf:0.05/fgsm: 38 samples" in plain.err.splitlines()
    assert sorted(p.name for p in Path("run").iterdir()) == [
        "evidence",
        "journal.jsonl",
        "plan.json",
        "report.html",
        "report.json",
    ]


def test_json_is_alone_on_stdout_even_where_the_model_prints(bench, command) -> None:
    bench.edit("time.sleep", "print('from the model'); time.sleep", "model.py")
    outcome = command("stress", bench.folder, "--out", "run", "--json")
    assert outcome.code == 0
    assert outcome.out == Path("run/report.json").read_text()
    assert "from the model" in outcome.err
    assert "report: run/report.html" in outcome.err
    for words in (["doctor", bench.folder], ["verify", "run", "--target", bench.folder]):
        outcome = command(*words, "--json")
        assert outcome.code == 0, outcome
        assert json.loads(outcome.out)
        assert "from the model" in outcome.err


@pytest.mark.parametrize(
    ("conditions", "code"),
    [(["clean>=50"], 0), (["evasion>=99"], 1), (["clean >= 50", "linf:0.05<90"], 0), (["privacy>=1"], 1)],
)
def test_gates_decide_the_exit_code(bench, command, conditions: list[str], code: int) -> None:
    flags = [word for condition in conditions for word in ("--gate", condition)]
    outcome = command("stress", bench.folder, "--out", "run", *flags)
    assert outcome.code == code
    report = Report.load("run")
    assert report.gate.passed is (code == 0)
    assert len(report.gate.conditions) == len(conditions)
    assert ("the figure was not measured" in report.to_json()) == (conditions == ["privacy>=1"])


def test_a_report_that_is_not_trusted_passes_no_gate(bench, command) -> None:
    bench.edit("self.layers(x)", "self.layers(x.round(decimals=3))", "model.py")
    assert command("stress", bench.folder, "--out", "free").code == 0
    outcome = command("stress", bench.folder, "--out", "gated", "--gate", "evasion>=0")
    report = Report.load("gated")
    assert not report.trusted
    assert outcome.code == 1
    assert "the report is not trusted" in report.gate.conditions[0].reason


def test_a_spent_budget_leaves_a_report_that_passes_no_gate(bench, command) -> None:
    outcome = command("stress", bench.folder, "--out", "run", "--max-passes", "1", "--gate", "evasion>=0")
    assert outcome.code == 1
    assert "incomplete" in " ".join(Report.load("run").distrust)
    late = command("stress", bench.folder, "--out", "late", "--time-budget", "0.000001s")
    assert late.code == 0
    assert "the time budget is spent" in late.err
    assert not Report.load("late").trusted


def test_settings_flags_over_environment_over_file(bench, command, monkeypatch) -> None:
    def plan(*flags: str) -> dict:
        outcome = command("stress", bench.folder, "--dry-run", "--json", *flags)
        assert outcome.code == 0, outcome
        return json.loads(outcome.out)["plan"]

    bench.edit("batch_size = 8", "batch_size = 8\nseed = 1")
    assert (plan()["seed"], plan()["chunk"], plan()["threats"]) == (1, 8, ["linf:0.05"])
    monkeypatch.setenv("ROBUSTML_STRESS_SEED", "2")
    monkeypatch.setenv("ROBUSTML_STRESS_THREAT", "l2:0.3 linf:0.1")
    monkeypatch.setenv("ROBUSTML_STRESS_GATE", "clean>=1")
    monkeypatch.setenv("ROBUSTML_STRESS_BATCH_SIZE", "20")
    assert plan()["seed"] == 2
    assert plan()["threats"] == ["l2:0.3", "linf:0.1"]
    assert plan()["gate"] == {"clean": ">=1"}
    assert plan("--seed", "3", "--threat", "l1:1")["seed"] == 3
    assert plan("--seed", "3", "--threat", "l1:1")["threats"] == ["l1:1"]
    monkeypatch.setenv("ROBUSTML_STRESS_JSON", "1")
    assert json.loads(command("stress", bench.folder, "--dry-run").out)["plan"]["chunk"] == 20
    monkeypatch.setenv("ROBUSTML_STRESS_SEED", "two")
    refusal = command("stress", bench.folder, "--dry-run")
    assert (refusal.code, refusal.out) == (2, "")
    assert "'two' is not a valid integer" in refusal.errors[0]


def test_a_dry_run_runs_nothing_and_leaves_nothing(bench, command, refused) -> None:
    bench.edit("time.sleep", "raise RuntimeError('it ran'); time.sleep", "model.py")
    before = sorted(Path().rglob("*"))
    outcome = command("stress", bench.folder, "--dry-run", "--threat", "l0:2", "--out", "run")
    assert outcome.code == 0
    assert outcome.out.startswith("target: 40 samples in 5 chunks of 8, suite tiny\n")
    assert re.search(r"l0:2/pgd +skipped: it has no l0 version", outcome.out)
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    assert "'evasion'" in refused("stress", bench.folder, "--dry-run", "--gate", "evason>=1")
    assert "twice" in refused("stress", bench.folder, "--dry-run", *["--threat", "l2:1"] * 2)
    bench.edit('["linf:0.05"]', "[]")
    assert "threats is empty" in refused("stress", bench.folder, "--dry-run")


def test_a_used_folder_is_never_written_into(bench, made, command, refused) -> None:
    before = Path("run/report.json").read_bytes()
    line = refused("stress", "target", "--out", "run")
    assert "already exists and is not empty; choose another or resume it" in line
    assert Path("run/report.json").read_bytes() == before
    outcome = command("stress", "target", "--out", "run", "--overwrite", "--seed", "5")
    assert outcome.code == 0
    assert Report.load("run").seed == 5
    assert sorted(path.name for path in Path().iterdir()) == ["run", "target"]


def test_overwriting_costs_nothing_where_the_new_run_is_refused(made, refused) -> None:
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for flags in (["--suite", "none"], ["--gate", "x>=1"], ["--samples", "99"], ["--device", "none"]):
        refused("stress", "target", "--out", "run", "--overwrite", *flags)
    refused("stress", "target", "--out", "run", "--overwrite", "--merge", "run")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in Path().iterdir()) == ["run", "target"]


@pytest.mark.parametrize("stranger", ["notes.txt", "evidence/notes.txt", ".git/config", "report.md"])
def test_overwriting_spares_what_is_not_part_of_a_run(made, refused, stranger: str) -> None:
    path = Path("run") / stranger
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert "is not part of a run" in refused("stress", "target", "--out", "run", "--overwrite")
    assert path.read_text() == "mine"
    assert Report.load("run").seed == 0


def test_overwriting_takes_only_runs(made, command, refused) -> None:
    Path("file").write_text("mine")
    Path("other").mkdir()
    Path("other/report.json").write_text("{}")
    Path("link").symlink_to("run")
    for name, said in (("file", "it is a file"), ("other", "it holds no run"), ("link", "it is a link")):
        assert said in refused("stress", "target", "--out", name, "--overwrite")
    assert "holds no robustml.toml" in refused("stress", ".", "--out", "target", "--overwrite")
    assert Path("target/weights.safetensors").exists()
    Path("run/.0123456789abcdef.tmp").write_text("half of a report")
    assert command("stress", "target", "--out", "run", "--overwrite", "--samples", "8").code == 0


def test_where_a_run_goes_that_names_no_folder(bench, command) -> None:
    outcome = command("stress", bench.folder, "--samples", "8")
    assert outcome.code == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"target-\d{8}-\d{6}", folder.name)
    assert f"report: {folder / 'report.html'}" in outcome.out
    assert command("stress", bench.folder, "--shard", "1/2").code == 0
    assert any(re.fullmatch(r"target-\d{8}-\d{6}-shard-1-of-2", path.name) for path in Path("runs").iterdir())


def test_shards_merge_into_the_single_run(made, command, refused, figures) -> None:
    for part in ("1", "2"):
        outcome = command("stress", "target", "--out", part, "--shard", f"{part}/2")
        assert (outcome.code, outcome.out) == (0, "")
        assert f"shard {part}/2 is done" in outcome.err
    merged = command("stress", "target", "--merge", "1", "--merge", "2", "--out", "both")
    assert merged.code == 0
    assert figures(Path("both")) == figures(Path("run"))
    evidence = {path.name: path.read_bytes() for path in Path("run/evidence").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("both/evidence").iterdir()} == evidence
    for flags, said in (
        (["--merge", "1", "--merge", "1"], "holds chunks that another of the folders holds, too"),
        (["--merge", "1", "--merge", "2", "--gate", "evasion>=90"], "--gate differs from what '1' was run"),
        (["--merge", "1", "--merge", "2", "--seed", "4"], "--seed differs"),
        (["--merge", "1", "--resume", "2"], "cannot go with --resume"),
        (["--merge", "1", "--shard", "1/2"], "cannot go with --shard"),
    ):
        assert said in refused("stress", "target", *flags, "--out", "no")
        assert not Path("no").exists()
    assert "'run' already exists" in refused("stress", "target", "--merge", "1", "--out", "run")
    assert sorted(path.name for path in Path().iterdir()) == ["1", "2", "both", "run", "target"]
    assert "--merge needs --out" in refused("stress", "target", "--merge", "1")
    half = command("stress", "target", "--merge", "1", "--out", "half")
    assert half.code == 0
    assert not Report.load("half").trusted


def test_a_run_is_resumed_only_with_its_own_settings(made, command, refused) -> None:
    before = Path("run/journal.jsonl").read_bytes()
    assert "its seed is not the same as now" in refused("stress", "target", "--resume", "run", "--seed", "1")
    assert "'none' is not a run folder" in refused("stress", "target", "--resume", "none")
    assert command("stress", "target", "--resume", "run", "--overwrite").code == 0
    assert Path("run/journal.jsonl").read_bytes() == before


def test_paths_with_spaces_and_other_scripts(made, command, monkeypatch) -> None:
    folder = Path("my rüns 中文")
    shutil.move("target", folder)
    assert command("doctor", folder).code == 0
    outcome = command("stress", folder, "--out", folder / "läuft gut", "--samples", "8")
    assert outcome.code == 0, outcome
    assert "läuft gut" in outcome.out
    assert Report.load(folder / "läuft gut").target.name == folder.name
    assert command("verify", folder / "läuft gut", "--target", folder).code == 0
    monkeypatch.chdir(folder)
    assert command("report", "läuft gut", "--out", "ber icht.html").code == 0
    assert "中文" in Path("ber icht.html").read_text()
