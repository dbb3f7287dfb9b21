"""Every example runs from start to end and says what came out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
# What the last line says and which file is left, where it is no figure of a stress test.
OTHERS = {
    "08_private_training": (
        r"result: epsilon in \[(\d\.\d\d|not resolvable), [78]\.\d\d\] at delta 1e-05, accuracy .* % \[.*\] "
        r"against \d\d\.\d % without privacy, privacy score \d\d\.\d",
        "report.json",
    ),
    "09_audit_membership": (
        r"result: [\w-]+, the strongest of \d attacks, .* 0\.\d+ \[.*\]: privacy score \d+\.\d",
        "references.json",
    ),
    "11_hostile_clients": (
        r"result: the worst attack takes 0\.\d+ from the mean and -?0\.\d+ from the trimmed mean, .*",
        "matrix.json",
    ),
}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_to_expect(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text.split('"""')[1]
    assert len(text.splitlines()) <= 120
    assert all(word in header for word in ("Time:", "Expected output:", "result:"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, str(path), "--quick", "--seed", "1", "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    usual = r"result: .*at most \d+\.\d %.* under linf:0\.\d", "report.json"
    line, file = OTHERS.get(path.stem, usual)
    assert re.fullmatch(line, result.stdout.splitlines()[-1])
    assert list(out.rglob(file))
