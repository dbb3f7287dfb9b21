"""What Flower is kept from doing, and what happens without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

ABSENT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import numpy as np
import robustml as rml
from tests.defenses.federated.small import data, net
"""


def python(program: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_without_flower_one_line_names_the_extra_and_the_rest_works() -> None:
    done = python(
        ABSENT
        + """
from robustml.defenses.federated import Partition, aggregation
for call in (
    lambda: rml.federate(net(), data(), clients=2),
    lambda: aggregation("mean"),
    lambda: __import__("robustml.defenses.federated", fromlist=["Server"]).Server,
):
    try:
        call()
    except rml.InputError as error:
        print(error)
print(len(Partition().rows(data()[1], 3, 0)))
print(rml.harden(net(), data(), epochs=1, device="cpu").chosen)
"""
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["3", "1"]
    assert len(lines) == 5
    for line in lines[:3]:
        assert "flwr, which is not installed" in line
        assert "robustml-hardening[federated]" in line


def test_the_package_is_light_and_switches_reports_off() -> None:
    done = python(
        "import sys, os, robustml.defenses.federated\n"
        "print([m for m in ('flwr', 'ray', 'opacus') if m in sys.modules])\n"
        "from robustml.defenses.federated import Server\n"
        "from flwr.supercore import telemetry\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])\n",
        FLWR_TELEMETRY_ENABLED="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "0 1"]


def test_reports_are_off_even_if_flower_came_first() -> None:
    done = python(
        "from flwr.supercore import telemetry\n"
        "import robustml.defenses.federated\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED)\n",
        FLWR_TELEMETRY_ENABLED="1",
    )
    assert done.stdout == "0\n", done.stderr


def test_a_run_touches_no_network_and_writes_into_its_folder_alone(tmp_path) -> None:
    home, here, scratch = (tmp_path / name for name in ("home", "here", "scratch"))
    for folder in (home, here, scratch):
        folder.mkdir()
    done = python(
        """
import socket
def refuse(*arguments, **options):
    raise SystemExit("the network was used")
socket.socket.connect = socket.create_connection = refuse
from tests.defenses.federated.small import run
run(rounds=1)
run(rounds=1, out="run")
""",
        cwd=here,
        HOME=str(home),
        TMPDIR=str(scratch),
        FLWR_HOME="",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        f"here/run/{name}" for name in ("federation.safetensors", "log.jsonl", "model.safetensors")
    }
