"""What a user gets from the distributions: every module, the data files, a command that starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA = (
    "robustml/py.typed",
    "robustml/defenses/training/recipes/*.toml",
    "robustml/report/templates/*",
    "robustml/stress/suites/*.toml",
)


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "robustml/__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def _package_files() -> set[str]:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "robustml").rglob("*.py")}
    data = {path.relative_to(ROOT).as_posix() for pattern in DATA for path in ROOT.glob(pattern)}
    return modules | data


def _run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from the sdist, in a copy so that nothing is written beside the code."""
    source = tmp_path_factory.mktemp("source") / "tree"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "_build")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    out = tmp_path_factory.mktemp("dist")
    result = _run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source), cwd=source
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.mark.slow
def test_sdist_holds_the_package(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _package_files() - names == set()
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == _package_files()


@pytest.mark.slow
def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert f"Name: robustml-hardening\nVersion: {_version()}\n" in inside["METADATA"]
    assert "robustml = robustml.cli:main" in inside["entry_points.txt"]
    assert inside["top_level.txt"].split() == ["robustml"]
    assert "License-Expression: Apache-2.0" in inside["METADATA"]


@pytest.mark.slow
def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    installed = _run(*pip, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    where = _run(
        sys.executable,
        "-c",
        "import robustml; print(robustml.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert where.stdout.strip().startswith(str(target))
    answer = _run(sys.executable, "-m", "robustml", "--help", cwd=tmp_path, PYTHONPATH=str(target))
    assert answer.returncode == 0, answer.stderr
    assert "stress" in answer.stdout
    listed = _run(sys.executable, "-m", "robustml", "list", "attacks", cwd=tmp_path, PYTHONPATH=str(target))
    assert listed.returncode == 0, listed.stderr
    assert "apgd" in listed.stdout


@pytest.mark.parametrize("wing", ["attacks", "defenses"])
def test_top_level_names_lead_to_the_wings(wing: str) -> None:
    link = ROOT / wing
    if link.is_symlink():
        assert link.resolve() == ROOT / "robustml" / wing
    else:
        # A checkout without symbolic links holds their target as text.
        assert link.read_text(encoding="utf-8").strip() == f"robustml/{wing}"


def test_a_stray_import_fails_instead_of_loading_a_second_copy() -> None:
    result = _run(sys.executable, "-c", "import attacks", cwd=ROOT, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode != 0
    assert "ImportError" in result.stderr or "ModuleNotFoundError" in result.stderr


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert pins == sorted(pins, key=str.upper)


def test_constraints_meet_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines) if v}
    declared = [
        *PROJECT["dependencies"],
        *(d for extra in PROJECT["optional-dependencies"].values() for d in extra),
    ]
    wanted = [r for r in map(Requirement, declared) if r.name not in {"robustml-hardening", "setuptools"}]
    unmet = [str(r) for r in wanted if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))]
    assert unmet == []


def test_documents_agree_on_the_version() -> None:
    assert f"version: {_version()}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(
        rf"^## {re.escape(_version())}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
