"""The same app in this process, on Ray, and on a SuperLink with SuperNodes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import robustml as rml
from robustml.defenses.privacy import DifferentialPrivacy

from .small import figures, run, same

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "federated"
HAS_RAY = importlib.util.find_spec("ray") is not None


def test_a_missing_ray_is_one_line() -> None:
    if HAS_RAY:
        assert run(rounds=1, runtime="in-process").chosen == 1
        return
    with pytest.raises(rml.InputError, match=r"runtime='ray' needs ray, .*\[ray\]"):
        run(runtime="ray")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray")
def test_ray_comes_to_the_same_model(tmp_path) -> None:
    def silent(honest):
        def app(message, context):
            raise OSError("gone")

        return app

    options = {"partition": "dirichlet:0.5", "norm": True, "hostile": {1: silent}}
    here, there = run(**options), run(runtime="ray", **options)
    assert same(here.model, there.model)
    assert [e.clean for e in here.history] == [e.clean for e in there.history]
    assert all("gone" in entry.clients[-1]["error"] for entry in there.history[1:])
    privacy = DifferentialPrivacy(noise_multiplier=1.0, seed=1, mode="functional")
    here = run(rounds=3, privacy=privacy)
    run(rounds=2, privacy=privacy, runtime="ray", out=tmp_path / "run")
    there = run(rounds=3, privacy=privacy, runtime="ray", out=tmp_path / "run", resume=True)
    assert same(here.model, there.model)
    assert figures(here.history) == figures(there.history)
    assert here.privacy == there.privacy


def _processes(mark: str) -> list[tuple[int, str]]:
    """Processes that were started for a run, by what their environment says."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment and int(process.name) != os.getpid():
            found.append((int(process.name), command.replace(b"\0", b" ").decode(errors="replace")))
    return found


def _left_behind(mark: str) -> list[str]:
    return [command for _, command in _processes(mark)]


@contextlib.contextmanager
def _example():
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_deployment_on_loopback_comes_to_the_same_accuracy_and_leaves_nothing_running(tmp_path) -> None:
    out, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run_on_loopback.py"), "--out", str(out), "--timeout", "360"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=460,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _left_behind(str(out / "flower")) == []
    assert list(home.iterdir()) == []
    assert not list(EXAMPLE.rglob("*.fab"))

    entries = [json.loads(line) for line in (out / "server" / "log.jsonl").read_text().splitlines()]
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    with _example():
        from digits_federation.task import build
    nodes = [np.load(out / f"node-{number}.npz") for number in range(2)]
    held = np.load(out / "validation.npz")
    here = rml.federate(
        build(),
        [(node["x"], node["y"]) for node in nodes],
        rounds=3,
        epochs=2,
        batch_size=32,
        learning_rate=0.05,
        validation=(held["x"], held["y"]),
        device="cpu",
    )
    assert here.history[-1].clean > 0.8
    for local, remote in zip(here.history, entries, strict=True):
        assert remote["clean"] == pytest.approx(local.clean, abs=0.02)
    state = safetensors.torch.load_file(out / "server" / "model.safetensors")
    for key, value in here.model.module.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)


def _entries(folder: Path) -> list[dict]:
    log = folder / "server" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_deployment_goes_on_after_its_server_and_its_superlink_were_killed(tmp_path) -> None:
    """The nodes stay, the run is submitted again with resume=true, and it ends as if nothing had happened."""
    with _example():
        from digits_federation.task import build
        from run_on_loopback import HERE, digits, outcome, prepared, shared_out
    folder, rounds = tmp_path / "run", 5
    mark = str(folder / "flower")
    with prepared(folder, 2, 360) as federation:

        def until(number: int) -> None:
            while len(_entries(folder)) <= number:
                assert federation.left > 1, "the rounds did not come in time"
                time.sleep(0.2)

        shared_out(folder, 2, *digits())
        link = federation.superlink()
        for number in range(2):
            federation.register(f"node-{number}")
            federation.node(f"node-{number}", number)
        federation.submit(HERE, rounds=rounds, clients=2)
        until(1)
        (server,) = (pid for pid, command in _processes(mark) if "flwr-serverapp" in command)
        os.kill(server, signal.SIGKILL)
        before = len(_entries(folder))
        federation.submit(HERE, rounds=rounds, clients=2, resume=True)
        until(before)
        os.killpg(link.pid, signal.SIGKILL)
        link.wait()
        federation.superlink()
        # Its ServerApp has lost its SuperLink, and ends; as long as it lives, the folder is its own.
        while any("flwr-serverapp" in command for _, command in _processes(mark)):
            assert federation.left > 1, "the server of a dead SuperLink lives on"
            time.sleep(0.5)
        done = len(_entries(folder)) - 1
        assert 2 <= done < rounds
        federation.submit(HERE, rounds=rounds, clients=2, resume=True)
        federation.finished()
        accuracy = outcome(folder, rounds, 2)
    limit = time.monotonic() + 30
    while _left_behind(mark) and time.monotonic() < limit:
        time.sleep(0.5)
    assert _left_behind(mark) == []
    nodes, held = [np.load(folder / f"node-{n}.npz") for n in range(2)], np.load(folder / "validation.npz")
    here = rml.federate(
        build(),
        [(node["x"], node["y"]) for node in nodes],
        rounds=rounds,
        epochs=2,
        batch_size=32,
        learning_rate=0.05,
        validation=(held["x"], held["y"]),
        device="cpu",
    )
    assert accuracy == pytest.approx(here.history[-1].clean, abs=0.02)
    state = safetensors.torch.load_file(folder / "server" / "model.safetensors")
    for key, value in here.model.module.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_deployment_that_fails_says_so(tmp_path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(EXAMPLE / "run_on_loopback.py"),
            "--out",
            str(tmp_path / "run"),
            "--timeout",
            "1",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "did not answer in time" in done.stderr
    assert _left_behind(str(tmp_path / "run" / "flower")) == []
