"""A whole federation on this machine: a SuperLink and SuperNodes, with TLS and node authentication.

Run: python examples/federated/run_on_loopback.py --out runs/federation

It makes certificates and keys, shares out the digits, starts the three services, submits the app, looks at
what has come of it (`flwr run` exits with 0 even where the app has failed), and stops everything. On several
machines the commands are the same; docs/how-to/deploy-federated.md goes through them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keys import certificates, node_key

from robustml.defenses.federated import parse_partition
from robustml.defenses.federated.environment import SILENT

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


def ports(count: int) -> list[int]:
    """Free ports, at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Services:
    """The processes of the federation, each the leader of a group that goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Flower's own files, its app cache among them, stay in the folder of the run.
        self.environment = {
            **os.environ,
            **SILENT,
            "FLWR_HOME": str(folder / "flower"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        (folder / "tmp").mkdir()
        self.environment["TMPDIR"] = str(folder / "tmp")
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / arguments[0]), *arguments[1:]],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def flwr(self, *arguments: str, timeout: float) -> str:
        """Run a command of Flower's, and give back what it says."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"flwr {arguments[0]} failed: {done.stdout[-500:]} {done.stderr[-500:]}")
        return done.stdout

    def stop(self) -> None:
        """End them, the nodes first, and whatever they have started."""
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def healthy(url: str, authority: Path, until: float) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/health", context=context, timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise SystemExit(f"the SuperLink at {url} did not answer in time")


def turned_away(stranger: subprocess.Popen[bytes], until: float) -> None:
    """Make sure that a SuperNode whose key nobody knows has given up."""
    try:
        code = stranger.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise SystemExit("a SuperNode with a key that is not registered was not turned away") from None
    if code == 0:
        raise SystemExit("a SuperNode with a key that is not registered ended as if all was well")


@dataclass
class Federation:
    """The services of one federation, whose files are in a folder.

    Attributes:
        folder: Certificates, keys and data (`node-0.npz` and so on) are there; logs come to it.
        services: Which are running.
        until: When all of it has to be over, on the monotonic clock.
        ports: Of the SuperLink, and of each SuperNode.
    """

    folder: Path
    services: Services
    until: float
    ports: list[int]

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self.until - time.monotonic(), 0.1)

    def superlink(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink, and wait until it answers."""
        address, authority = f"127.0.0.1:{self.ports[0]}", self.folder / "ca.crt"
        (self.folder / "flower").mkdir(exist_ok=True)
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "{address}"\n'
            f'root-certificates = "{authority}"\n'
        )
        process = self.services.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.ports[0])),
            *("--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            # Without a database, a SuperLink that is started again knows no key, and its nodes give up.
            *("--database", str(self.folder / "superlink.db")),
        )
        healthy(f"https://{address}", authority, self.until)
        return process

    def register(self, name: str) -> None:
        """Make the key of a SuperNode known to the SuperLink."""
        key = str(self.folder / f"{name}.pub")
        self.services.flwr("supernode", "register", key, "loopback", timeout=self.left)

    def node(self, name: str, number: int) -> subprocess.Popen[bytes]:
        """Start a SuperNode, which has a key already."""
        return self.services.start(
            name,
            *("flower-supernode", "--superlink", f"127.0.0.1:{self.ports[0]}"),
            *("--root-certificates", "ca.crt", "--auth-supernode-private-key", f"{name}.key"),
            *("--port", str(self.ports[1 + number]), "--max-wait-time", "60"),
            *("--node-config", f'partition-id={number} data="{self.folder / f"{name}.npz"}"'),
        )

    def submit(self, app: Path, **config: Any) -> None:
        """Submit a run of an app, whose checkpoint, log and model come to the folder `server`."""
        out, held = self.folder / "server", self.folder / "validation.npz"
        given = {"out": str(out), "validation": str(held), **config}
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
        self.services.flwr("run", str(app), "loopback", "--run-config", text, timeout=self.left)

    def status(self) -> str:
        """Of the run that was submitted last: `flwr run` exits with 0 even where the app has failed."""
        runs = json.loads(self.services.flwr("ls", "loopback", "--format", "json", timeout=60))["runs"]
        return str(runs[0]["status"])

    def finished(self) -> None:
        """Wait until the run that was submitted last has come to its end."""
        while time.monotonic() < self.until:
            status = self.status()
            if status.startswith("finished"):
                if status != "finished:completed":
                    raise SystemExit(f"the run is {status}; see {self.folder / 'superlink.log'}")
                return
            time.sleep(1)
        raise SystemExit(f"the run did not end in time; see {self.folder / 'superlink.log'}")


def shared_out(folder: Path, nodes: int, train: tuple[Any, Any], held: tuple[Any, Any]) -> None:
    """The data of each node, and of the server."""
    x, y = train
    for number, rows in enumerate(parse_partition("iid").rows(y, nodes, 0)):
        np.savez(folder / f"node-{number}.npz", x=x[rows], y=y[rows])
    np.savez(folder / "validation.npz", x=held[0], y=held[1])


def digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Training data, and data of the server."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    x = (pixels / 16).astype("float32").reshape(-1, 1, 8, 8)
    return (x[500:], y[500:]), (x[:500], y[:500])


def outcome(folder: Path, rounds: int, nodes: int) -> float:
    """The accuracy after the last round, if every client took part in every round."""
    log = folder / "server" / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if [entry["number"] for entry in entries] != list(range(rounds + 1)):
        raise SystemExit(f"{len(entries) - 1} rounds of {rounds} were finished")
    for entry in entries[1:]:
        errors = [client["error"] for client in entry["clients"] if "error" in client]
        if errors or len(entry["clients"]) != nodes or not entry["moved"]:
            raise SystemExit(f"round {entry['number']} went wrong: {errors or entry['note']}")
    return float(entries[-1]["clean"])


@contextlib.contextmanager
def prepared(folder: Path, nodes: int, timeout: float) -> Iterator[Federation]:
    """A folder with certificates and keys, and a federation that has not begun; in the end, all stops."""
    folder.mkdir(parents=True)
    certificates(folder)
    for name in ("stranger", *(f"node-{number}" for number in range(nodes))):
        node_key(folder / f"{name}.key")
    services = Services(folder)
    try:
        yield Federation(folder, services, time.monotonic() + timeout, ports(2 + nodes))
    finally:
        services.stop()


def run(federation: Federation, app: Path, rounds: int, nodes: int, **config: Any) -> float:
    """Go through a whole run, and give back the accuracy of its model."""
    federation.superlink()
    stranger = federation.node("stranger", nodes)
    for number in range(nodes):
        federation.register(f"node-{number}")
        federation.node(f"node-{number}", number)
    federation.submit(app, rounds=rounds, clients=nodes, **config)
    federation.finished()
    turned_away(stranger, federation.until)
    return outcome(federation.folder, rounds, nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for everything")
    options = parser.parse_args()
    folder = options.out.resolve()
    # An interrupt must not leave the services behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with prepared(folder, options.nodes, options.timeout) as federation:
        shared_out(folder, options.nodes, *digits())
        accuracy = run(federation, HERE, options.rounds, options.nodes)
    print(f"result: {100 * accuracy:.1f} % after {options.rounds} rounds, in {folder / 'server'}")


if __name__ == "__main__":
    main()
