"""The command as a process: what it imports, terminals, closed pipes, full devices, odd encodings."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustml.progress import display_for
from robustml.stress.folder import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [["--help"], ["stress", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from robustml import cli\n"
        f"sys.argv[1:] = {words!r}\n"
        "code = cli._run()\n"
        "heavy = {'torch', 'numpy', 'scipy', 'art', 'matplotlib', 'sklearn', 'pydantic', 'jinja2', 'rich'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "0 []\n"
    assert "robustml" in done.stdout


def test_a_terminal_sees_survivors_and_is_left_clean(made, start) -> None:
    leader, follower = pytest.importorskip("pty").openpty()
    process = start(
        "stress", "target", "--out", "live", cwd=made, stdout=follower, stderr=follower, env={"TERM": "xterm"}
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:
        # Linux reports the end of a terminal as an input/output error.
        pass
    finally:
        os.close(leader)
    assert process.wait() == 0
    text = seen.decode()
    assert re.search(r"linf:0\.05/\S+ .*\d+ standing", text)
    # The cursor is shown again, and the report comes after the bar is gone.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "standing" not in text[text.rindex("\x1b[?25h") :]
    assert "23 survive every attack" in text[text.rindex("\x1b[?25h") :]


def test_output_that_nobody_reads_does_not_change_the_verdict(made, start, finished) -> None:
    process = start(
        "stress", "target", "--out", "cut", "--gate", "evasion>=99", cwd=made, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=240) == 1
    assert Path("cut/report.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_result_that_cannot_be_written_is_an_error(made, start, finished) -> None:
    with Path("/dev/full").open("w") as full:
        outcome = finished(start("report", "run", "--json", cwd=made, stdout=full))
    assert outcome.code == 3
    assert outcome.err == "error: cannot write the result to stdout: No space left on device\n"


def test_an_encoding_that_lacks_the_words(made, start, finished) -> None:
    Path("target").rename("zieł 中")
    environment = {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "PYTHONUTF8": "0"}
    outcome = finished(
        start("stress", "zieł 中", "--out", "new", "--samples", "8", cwd=made, env=environment)
    )
    assert outcome.code == 0, outcome
    assert "zie\\u0142" in outcome.out
    assert (outcome.out + outcome.err).isascii()
    assert "\x1b" not in outcome.out + outcome.err


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def drive(stream: io.StringIO) -> str:
    with display_for(stream) as display:
        assert not display.begun
        display.begin(3, 1)
        assert display.begun
        display.stage("linf:0.1/pgd", 10)
        display.on_pass(10)
        display.unit(Record(stage="linf:0.1/pgd", chunk=0, broken=[1, 2, 3]))
        assert display.survivors == 7
        display.unit(None)
        display.note("the \x1b[31m[bold]budget[/bold] is spent")
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch) -> None:
    expected = (
        "resuming: 1 of 3 units were finished before\n"
        "linf:0.1/pgd: 10 samples\n"
        "the [bold]budget[/bold] is spent\n"
    )
    assert drive(io.StringIO()) == expected
    monkeypatch.setenv("TERM", "dumb")
    assert drive(Screen()) == expected


def test_a_long_stage_reports_every_half_minute(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("robustml.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    display = display_for(stream)
    display.begin(8, 0)
    display.stage("linf:0.1/square", 10)
    for seconds in (10, 29, 31, 45, 62):
        now[0] = float(seconds)
        display.on_pass(4)
    assert (
        stream.getvalue().splitlines()
        == ["linf:0.1/square: 10 samples"] + ["linf:0.1/square: 10 still standing, 0 of 8 units done"] * 2
    )


def test_a_bar_where_there_is_one(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.setenv(name, {"NO_COLOR": "1", "COLUMNS": "100"}[name])
    text = drive(Screen())
    assert "7 standing" in text
    assert "the [bold]budget[/bold] is spent" in text
    assert "\x1b[31m" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_display_outlives_its_reader() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    assert drive(Gone()) == ""
