"""A target small enough to attack in a second, and two ways to run the command on it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from robustml import cli

ROOT = Path(__file__).resolve().parents[2]

MODEL = '''
import os
import time

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        time.sleep(float(os.environ.get("NET_PAUSE", "0")))
        return self.layers(x)


def build():
    """A net that can be slowed down from outside without becoming another one."""
    return Net().eval()
'''

SUITE = """
schema = 1
name = "tiny"
[[attack]]
id = "fgsm"
use = "fgsm"
[[attack]]
id = "pgd"
use = "pgd"
options = { steps = 3 }
[curve]
points = [0.5]
attack = [{ use = "fgsm" }]
[diagnostics]
samples = 8
noise_draws = 3
"""

TARGET = """
schema = 1
[model]
factory = "model.py:build"
weights = "weights.safetensors"
classes = 3
[inputs]
shape = [1, 4, 4]
bounds = [0.0, 1.0]
[data]
test = "test.npz"
[stress]
suite = "tiny.toml"
threats = ["linf:0.05"]
batch_size = 8
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


class Bench:
    """The tiny target in a folder of its own, where commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        draw = torch.Generator().manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
        self.x = torch.rand(40, 1, 4, 4, generator=draw).numpy()
        self.y = layers(torch.from_numpy(self.x)).argmax(1).numpy()
        self.y[:2] = (self.y[:2] + 1) % 3
        weights = {f"layers.{key}": value for key, value in layers.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "weights.safetensors")
        (folder / "model.py").write_text(MODEL)
        (folder / "tiny.toml").write_text(SUITE)
        (folder / "robustml.toml").write_text(TARGET)
        self.save(self.x, self.y)

    def save(self, x: Any, y: Any, **more: Any) -> None:
        np.savez(self.folder / "test.npz", x=x, y=y, **more)

    def edit(self, old: str, new: str, file: str = "robustml.toml") -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(tuple(f"ROBUSTML_{verb.upper()}_" for verb in cli.cli.commands)):
            monkeypatch.delenv(name)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path / "target")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line in this process."""

    def run(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["robustml", *map(str, words)])
        capsys.readouterr()
        code = cli._run()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture
def refused(command: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must be refused, and hand back the line that says why."""

    def run(*words: str | Path, code: int = 2) -> str:
        outcome = command(*words)
        assert outcome.code == code, outcome
        assert outcome.out == ""
        assert len(outcome.errors) == 1, outcome.err
        return outcome.errors[0]

    return run


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """The command line in a process of its own; what is still running at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def popen(*words: str | Path, **settings: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, **settings}
        line = [sys.executable, "-m", "robustml", *map(str, words)]
        running.append(subprocess.Popen(line, env=environment, text=True, encoding="utf-8", **settings))
        return running[-1]

    yield popen
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def finished(process: subprocess.Popen[str], seconds: float = 240) -> Outcome:
    """Wait for a process that `start` started."""
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out or "", err or "")


@pytest.fixture(name="finished")
def finished_fixture() -> Callable[..., Outcome]:
    return finished


@pytest.fixture
def figures() -> Callable[[Path], dict[str, Any]]:
    """A report as data, without what differs from run to run: the date and the seconds."""

    def read(path: Path) -> dict[str, Any]:
        data = json.loads((path / "report.json").read_bytes())
        del data["created"], data["seconds"]
        for threat in data["threats"]:
            for attack in threat["attacks"]:
                del attack["seconds"]
        return data

    return read


@pytest.fixture
def words_after() -> Callable[[str, str], list[str]]:
    """The words of the command that a message ends with, without the program."""

    def split(message: str, marker: str) -> list[str]:
        words = shlex.split(message.partition(marker)[2])
        assert words[0] == "robustml"
        return words[1:]

    return split


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    Bench(folder / "target")
    line = [sys.executable, "-m", "robustml", "stress", "target", "--out", "run"]
    done = subprocess.run(
        line,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def made(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a target and a finished run of it, `run`, to read or to damage."""
    folder = tmp_path / "made"
    shutil.copytree(_made, folder)
    monkeypatch.chdir(folder)
    return folder
