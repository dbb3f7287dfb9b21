"""The conformance suite: robustml passes it, and every case of it can be failed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from known_defects import CASES, Case, Unsupported, run_case
from known_defects.adapters import ADAPTERS

from robustml.registry import all_attacks
from tests.conformance.broken import BROKEN, Right

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "conformance.md"

MISSING = {
    "nearest-of-two": "a stress test wants one point within a budget; nothing merges distances",
}
"""What robustml may have nothing for."""

WAITING = {
    "ensemble-budget": "no targeted attack in the suite standard",
    "decoy": "no targeted attack in the suite standard",
    "nearest-cw": "carlini-wagner",
    "cw-alone": "carlini-wagner",
    "nearest-ddn": "ddn",
    "nearest-fmn": "fmn",
    "ead-alone": "ead",
}
"""What is unsupported for as long as the attack is not in the registry; the adapter decides that."""

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_robustml_passes(case: Case) -> None:
    result = run_case(case, ADAPTERS["robustml"]())
    if result.status == "unsupported":
        assert case.name in MISSING | WAITING, result.detail
        assert case.name in MISSING or WAITING[case.name] not in all_attacks(), result.detail
        pytest.skip(result.detail)
    assert result.status == "passed", result.detail


@each_case
def test_a_library_with_the_defect_fails(case: Case) -> None:
    result = run_case(case, BROKEN[case.name]())
    assert result.status == "failed", result.detail
    # By what it did, and not because it could not be run; these two defects are errors.
    assert result.detail.startswith("raises") == (case.name in {"squeezing", "robust-accuracy"})


@each_case
def test_a_library_without_the_defect_passes(case: Case) -> None:
    result = run_case(case, Right())
    assert result.status == "passed", result.detail


def test_every_defect_has_a_case() -> None:
    assert {case.defect for case in CASES} == set(range(1, 11))
    assert len({case.name for case in CASES}) == len(CASES)
    assert BROKEN.keys() == {case.name for case in CASES}
    assert not MISSING.keys() & WAITING.keys()


def test_what_is_missing_is_unsupported_and_what_crashes_is_not() -> None:
    class Nothing(Right):
        def pgd(self, *arguments: object, **options: object) -> torch.Tensor:
            raise Unsupported("no PGD here")

        def square(self, *arguments: object, **options: object) -> torch.Tensor:
            raise Unsupported("no Square here")

        def apgd(self, *arguments: object, **options: object) -> torch.Tensor:
            raise RuntimeError("out of luck\nand more")

    found = {case.name: run_case(case, Nothing()) for case in CASES if case.name.endswith(("-steps", "-l1"))}
    assert (found["pgd-steps"].status, found["pgd-steps"].detail) == ("unsupported", "no PGD here")
    assert found["square-l1"].status == "unsupported"
    assert (found["apgd-steps"].status, found["apgd-steps"].detail) == (
        "failed",
        "raises RuntimeError: out of luck",
    )


def test_a_case_leaves_the_random_state_alone_and_starts_from_its_own() -> None:
    (case,) = (case for case in CASES if case.name == "restarts-keep-success")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = run_case(case, Right())
    np.random.rand()
    middle = np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert run_case(case, Right()) == first
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == middle


ART = {
    "pgd-steps": "passed",
    "apgd-steps": "passed",
    "silent-success": "failed",
    "declared-backward": "failed",
    "hidden-gradient": "failed",
    "square-l1": "failed",
    "repaired-mistake": "failed",
    "restarts-keep-success": "passed",
    "restarts-keep-mistake": "failed",
    "squeezing": "failed",
    "precision": "passed",
    "robust-accuracy": "passed",
    "resume": "unsupported",
    "default-budgets": "failed",
    "normalization": "passed",
}


@pytest.mark.skipif(
    metadata.version("adversarial-robustness-toolbox") != "1.20.1", reason="the page speaks of ART 1.20.1"
)
@pytest.mark.parametrize("name", sorted(ART))
def test_what_the_page_says_of_the_toolbox_holds(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    result = run_case(case, ADAPTERS["art"]())
    assert result.status == ART[name], result.detail
    shown = {"passed": "pass", "failed": "**fail**", "unsupported": "–"}[result.status]
    assert _page_rows()[name]["ART"] == shown


def _page_rows() -> dict[str, dict[str, str]]:
    """The table of the page: case to library (without its version) to cell."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    titles = [cell.strip().partition(" ")[0] for cell in lines[0].strip("|").split("|")][2:]
    rows = {}
    for line in lines[2:]:
        _, name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = dict(zip(titles, cells, strict=True))
    return rows


def test_the_page_holds_every_case_and_its_meaning() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert _page_rows().keys() == {case.name for case in CASES}
    for case in CASES:
        assert re.search(rf"^- `{case.name}`: ", text, re.MULTILINE), case.name
    assert not any(row["robustml"] == "**fail**" for row in _page_rows().values())


def test_the_command_prints_a_table_and_names_what_is_not_installed(tmp_path: Path) -> None:
    # An empty package in front of the real one, if there is one: it has no version, as if it were not there.
    (tmp_path / "torchattacks.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "conformance.py"), "--case", "precision", "--passes"]
    result = subprocess.run(
        [*command, "--library", "robustml", "--library", "torchattacks"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "| 6 | `precision` | pass | not installed |" in result.stdout
    assert "- torchattacks: `pip install --no-deps torchattacks==3.5.1` (not here)." in result.stdout
    assert "`precision`: float32 data, the model is shown float32." in result.stdout
