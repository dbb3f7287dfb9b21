"""Runs that end before their end: killed, interrupted, out of disk; each goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robustml import cli
from robustml.cli.folders import chosen_folder, resume_line
from robustml.stress.folder import RunFolder
from robustml.stress.plan import stages


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def units(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def check_same_run(run: Path, before: bytes, figures) -> None:
    """The finished run holds what was there before, every unit once, and the undisturbed run's figures."""
    journal = (run / "journal.jsonl").read_bytes()
    assert journal.startswith(before)
    done = [(record["stage"], record.get("chunk")) for record in map(json.loads, journal.splitlines())]
    assert len(set(done)) == len(done)
    assert figures(run) == figures(Path("run"))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(made, start, command, figures) -> None:
    process = start("stress", "target", "--out", "killed", cwd=made, env={"NET_PAUSE": "0.02"})
    journal = Path("killed/journal.jsonl")
    wait_for(lambda: units(journal) >= 7, process)
    process.kill()
    process.communicate()
    before = journal.read_bytes()
    assert not Path("killed/report.json").exists()
    whole = before[: before.rindex(b"\n") + 1]
    # A kill in the middle of a write leaves part of a line, and a report that was never renamed.
    journal.write_bytes(whole + b'{"stage":"linf:0.05/pgd","chu')
    Path("killed/.0123456789abcdef.tmp").write_bytes(b"{")
    outcome = command("stress", "target", "--resume", "killed")
    assert outcome.code == 0
    plan = RunFolder.open(Path("killed"))[1]
    total = len(stages(plan)) * plan.chunks
    assert f"resuming: {whole.count(bytes([10]))} of {total} units were finished before" in outcome.err
    check_same_run(Path("killed"), whole, figures)


def test_an_interrupt_says_how_to_go_on(made, start, finished, command, figures, words_after) -> None:
    flags = ["--out=stopped here", "--threads=1", "--overwrite"]
    environment = {"NET_PAUSE": "0.02", "ROBUSTML_STRESS_CONFIDENCE": "0.95"}
    process = start("stress", *flags, "--", "target", cwd=made, env=environment)
    journal = Path("stopped here/journal.jsonl")
    wait_for(lambda: units(journal) >= 7, process)
    process.send_signal(signal.SIGINT)
    outcome = finished(process)
    assert (outcome.code, outcome.out) == (130, "")
    assert "Traceback" not in outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith("interrupted; continue with: robustml stress ")
    words = words_after(last, "continue with: ")
    assert words[0] == "stress"
    assert {"--threads", "--confidence", "--resume", "stopped here", "target"} < set(words)
    assert not {"--overwrite", "--out"} & set(words)
    before = journal.read_bytes()
    assert command(*words).code == 0
    check_same_run(Path("stopped here"), before, figures)


def test_an_interrupt_before_there_is_a_run_promises_nothing(made, start, finished) -> None:
    text = Path("target/model.py").read_text()
    slow = "    open('loading', 'w').close()\n    time.sleep(60)\n    return Net().eval()"
    Path("target/model.py").write_text(text.replace("    return Net().eval()", slow))
    before = Path("run/journal.jsonl").read_bytes()
    process = start("stress", "target", "--out", "run", "--overwrite", cwd=made)
    wait_for(Path("loading").exists, process)
    process.send_signal(signal.SIGINT)
    outcome = finished(process, seconds=30)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")
    assert Path("run/journal.jsonl").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["loading", "run", "target"]


def test_a_full_disk_costs_only_the_unfinished(made, start, finished, command, figures, words_after) -> None:
    resource = pytest.importorskip("resource")
    size = Path("run/journal.jsonl").stat().st_size // 2
    # The largest file is the journal, so that this limit strikes in the middle of it.
    assert size > Path("run/plan.json").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    outcome = finished(start("stress", "target", "--out", "full", cwd=made, preexec_fn=limit))
    assert (outcome.code, outcome.out) == (3, "")
    assert "Traceback" not in outcome.err
    (line,) = outcome.errors
    assert "cannot write 'full/journal.jsonl': File too large" in line
    before = Path("full/journal.jsonl").read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert kept.count(b"\n") > 5
    assert command(*words_after(line, "continue with: ")).code == 0
    check_same_run(Path("full"), kept, figures)


def test_a_folder_that_cannot_be_written(made, refused) -> None:
    Path("file").write_text("mine")
    assert "cannot write" in refused("stress", "target", "--out", "file/run", code=3)
    assert "already exists and is not empty" in refused("stress", "target", "--out", "file")
    assert Path("file").read_text() == "mine"
    if Path("/proc/version").exists():
        assert "cannot write '/proc/run'" in refused("stress", "target", "--out", "/proc/run", code=3)


def test_a_model_that_breaks_in_the_middle(made, command, figures, words_after) -> None:
    text = Path("target/model.py").read_text()
    broken = "if Path('broken').exists() and x.requires_grad and len(x) == 6: raise ValueError('two\\nlines')"
    Path("target/model.py").write_text(
        text.replace("import time", "import time\nfrom pathlib import Path").replace(
            "        time.sleep", f"        {broken}\n        time.sleep"
        )
    )
    Path("broken").touch()
    outcome = command("stress", "target", "--out", "new")
    assert (outcome.code, outcome.out) == (3, "")
    (line,) = outcome.errors
    assert "linf:0.05/fgsm, chunk" in line
    assert "ValueError: two lines; what was finished is kept" in line
    before = Path("new/journal.jsonl").read_bytes()
    Path("broken").unlink()
    assert command(*words_after(line, "continue with: ")).code == 0
    check_same_run(Path("new"), before, figures)


@pytest.mark.parametrize("exit_code", ["0", "1", "'text'"])
def test_a_model_that_exits_does_not_decide_the_exit_code(bench, command, exit_code: str) -> None:
    bench.edit("time.sleep", f"raise SystemExit({exit_code}) ; time.sleep", "model.py")
    outcome = command("stress", bench.folder, "--out", "run")
    assert (outcome.code, outcome.out, len(outcome.errors)) == (3, "", 1)
    assert "called sys.exit" in outcome.errors[0]
    assert not Path("run").exists()


def test_an_unexpected_error_is_3_and_one_line(bench, command, monkeypatch, capsys) -> None:
    def explode(*_: object, **__: object) -> None:
        raise LookupError("first\nsecond \x1b[31m")

    monkeypatch.setattr("robustml.runs.run_target", explode)
    outcome = command("stress", bench.folder, "--out", "run")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == (
        "error: unexpected LookupError: first second  (set ROBUSTML_TRACEBACK=1 to see where)\n"
    )
    monkeypatch.setenv("ROBUSTML_TRACEBACK", "1")
    assert cli._run() == 3
    assert "in explode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environment", "line"),
    [
        (["digits", "--out", "a"], {}, "--resume a digits"),
        (["--out=a b", "--seed=3", "x.toml"], {}, "--seed 3 --resume 'a b' x.toml"),
        (["--out", "a", "--overwrite", "--redact-data"], {}, "--redact-data --resume a"),
        (["--resume=a", "t", "--json"], {}, "--json --resume a t"),
        (["t", "--out", "a"], {"SEED": "7", "OUT": "b", "JSON": "0"}, "--seed 7 --resume a t"),
        (
            ["t"],
            {"OUT": "a", "GATE": "clean>=1 evasion>=2"},
            "--gate 'clean>=1' --gate 'evasion>=2' --resume a t",
        ),
        (
            ["--threat", "linf:1", "--threat=l2:1", "t"],
            {"OUT": "a"},
            "--threat linf:1 --threat l2:1 --resume a t",
        ),
        (["--out", "a", "--", "--odd"], {}, "--resume a -- --odd"),
        (["--suite=--out", "--out", "a"], {}, "--suite=--out --resume a"),
        (["--out", "a\x1b[31m'\n"], {}, r"--resume $'a\x1b[31m\x27\x0a'"),
        (
            ["--shard", "1/2", "--time-budget", "10m", "--out=a"],
            {},
            "--shard 1/2 --time-budget 10m --resume a",
        ),
    ],
)
def test_the_line_that_goes_on(monkeypatch, words: list[str], environment: dict, line: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"ROBUSTML_STRESS_{name}", value)
    with cli.cli.make_context("robustml", ["stress", *words]) as parent:
        name, stress, rest = cli.cli.resolve_command(parent, ["stress", *words])
        with stress.make_context(name, rest, parent=parent) as context:
            out, _ = chosen_folder(None, context.params)
            assert resume_line(out) == f"robustml stress {line}"
