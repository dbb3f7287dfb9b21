"""The shape of the repository: direction of imports, sizes, light imports, nothing of one machine in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".md", ".rst", ".toml", ".txt", ".cff", ".yaml", ".yml", ".j2", ".css", ".json", ""}
HEAVY = ("torch", "scipy", "art", "matplotlib", "sklearn", "pandas", "opacus", "flwr", "onnxruntime")


def _repository_files() -> list[Path]:
    """What git tracks or would track; everything but caches where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [
            p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)
        ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


FILES = _repository_files()
CODE = [path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.suffix in TEXT else ""


def _matches(pattern: str, paths: list[Path]) -> list[str]:
    return [f"{_name(path)}: {hit.group(0)}" for path in paths for hit in re.finditer(pattern, _text(path))]


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(_text(path))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_there_is_code_to_check() -> None:
    assert {"robustml/errors.py", "robustml/threats.py"} <= {_name(path) for path in CODE}


def test_imports_run_one_way() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_wings_use_relative_imports() -> None:
    wings = [path for path in CODE if _name(path).startswith(("robustml/attacks/", "robustml/defenses/"))]
    assert _matches(r"(?m)^\s*(from|import) robustml\b.*", wings) == []


def test_files_stay_short() -> None:
    long = {_name(path): len(_text(path).splitlines()) for path in CODE}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_functions_fit_a_screen() -> None:
    sizes = {
        f"{_name(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in CODE
        for node in _functions(path)
    }
    assert {name: lines for name, lines in sizes.items() if lines > 90} == {}


def _toothless(path: Path) -> list[str]:
    """Tests that neither assert anything nor call a function of their file that does."""
    sources = {node.name: ast.get_source_segment(_text(path), node) or "" for node in _functions(path)}
    biting = [name for name, source in sources.items() if re.search(r"\bassert|\braises\(|\bwarns\(", source)]
    calls = re.compile("|".join(rf"\b{name}\b" for name in biting) or r"(?!)")
    return [name for name, source in sources.items() if name.startswith("test_") and not calls.search(source)]


def test_every_test_can_fail() -> None:
    tests = [path for path in FILES if _name(path).startswith("tests/") and path.name.startswith("test_")]
    toothless = {_name(path): _toothless(path) for path in tests}
    assert {name: functions for name, functions in toothless.items() if functions} == {}


def test_nothing_names_this_machine() -> None:
    # A checkout directly below the root of the file system, or a home there, would match everything.
    here = [f"{path}/" for path in (ROOT.parent, Path.home()) if len(str(path)) > 3]
    pattern = "|".join([*map(re.escape, here), r"/(?:home|Users)/\w+/"])
    assert _matches(pattern, FILES) == []


def test_nothing_names_a_package_host() -> None:
    pattern = r"(?:index-url|find-links|registry)\s*[=:]\s*[\"']?(?:https?|file)://|https?://[^\s\"']*/simple/?|\.whl[#]sha256"
    assert _matches(pattern, FILES) == []


def test_no_document_installs_the_other_project() -> None:
    assert _matches(r"pip install\s+['\"]?robustml(?![-\w])", FILES) == []


def test_nothing_is_left_for_later() -> None:
    assert _matches(r"\b(?:TODO|FIXME|XXX|raise NotImplementedError)\b", CODE) == []


def test_no_large_files() -> None:
    assert {_name(path) for path in FILES if path.stat().st_size > 500_000} == set()


@pytest.mark.parametrize(
    "start",
    [
        "import robustml",
        "import robustml; dir(robustml)",
        "import robustml.cli",
        "import sys; sys.argv[1:] = ['--help']; from robustml.cli import main; main()",
        "import sys; sys.argv[1:] = ['stress', '--help']; from robustml.cli import main; main()",
        "import sys; sys.argv[1:] = ['besiege', '--help']; from robustml.cli import main; main()",
        "import robustml.report",
        "import robustml.schema, robustml.errors, robustml.extras",
    ],
)
def test_starting_is_light(start: str) -> None:
    loaded = f"print('loaded', [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    program = f"import atexit, sys\natexit.register(lambda: {loaded})\n{start}\n"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "loaded []"
