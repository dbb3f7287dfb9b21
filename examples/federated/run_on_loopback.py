"""A whole federation on this machine: a SuperLink and two SuperNodes, with TLS and node authentication.

Run: python examples/federated/run_on_loopback.py --out runs/federation

It makes certificates and keys, shares out the digits, starts the three services, submits the app, looks at
what has come of it (`flwr run` exits with 0 even where the app has failed), and stops everything. On several
machines the commands are the same; docs/how-to/deploy-federated.md goes through them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from robustml.defenses.federated import parse_partition
from robustml.defenses.federated.environment import SILENT

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


def certificates(folder: Path) -> None:
    """An authority of our own, and a certificate of this machine's loopback address."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, issuer: x509.Name | None, signer: Any, key: Any, *, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = x509.KeyUsage(True, False, False, False, False, ca, ca, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA256())

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = made("robustml example authority", None, ca_key, ca_key, ca=True)
    own = made("localhost", ca.subject, ca_key, key, ca=False)
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "server.crt").write_bytes(own.public_bytes(pem) + ca.public_bytes(pem))
    secret(
        folder / "server.key",
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def node_key(path: Path) -> None:
    """The key that a SuperNode proves itself by: as `ssh-keygen -t ecdsa -b 384` makes it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH
    secret(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    form = serialization.PublicFormat.OpenSSH
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, form))


def secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


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
        with (self.folder / f"{name}.log").open("wb") as log:
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


def shared_out(folder: Path, nodes: int) -> None:
    """The data of each node, and of the server."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    x = (pixels / 16).astype("float32").reshape(-1, 1, 8, 8)
    for number, rows in enumerate(parse_partition("iid").rows(y[500:], nodes, 0)):
        np.savez(folder / f"node-{number}.npz", x=x[500:][rows], y=y[500:][rows])
    np.savez(folder / "validation.npz", x=x[:500], y=y[:500])


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


def run(folder: Path, rounds: int, nodes: int, timeout: float, services: Services) -> float:
    until = time.monotonic() + timeout
    port, *node_ports = ports(2 + nodes)
    address = f"127.0.0.1:{port}"
    authority = folder / "ca.crt"
    (folder / "flower").mkdir()
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "{address}"\n'
        f'root-certificates = "{authority}"\n'
    )
    services.start(
        "superlink",
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    )
    healthy(f"https://{address}", authority, until)

    def node(name: str, number: int) -> subprocess.Popen[bytes]:
        node_key(folder / f"{name}.key")
        if name != "stranger":
            left = until - time.monotonic()
            services.flwr("supernode", "register", str(folder / f"{name}.pub"), "loopback", timeout=left)
        return services.start(
            name,
            *("flower-supernode", "--superlink", address, "--root-certificates", "ca.crt"),
            *("--auth-supernode-private-key", f"{name}.key"),
            *("--port", str(node_ports[number]), "--max-wait-time", "60"),
            *("--node-config", f'partition-id={number} data="{folder / f"{name}.npz"}"'),
        )

    stranger = node("stranger", nodes)
    for number in range(nodes):
        node(f"node-{number}", number)
    config = (
        f'rounds={rounds} clients={nodes} out="{folder / "server"}" validation="{folder / "validation.npz"}"'
    )
    services.flwr("run", str(HERE), "loopback", "--run-config", config, timeout=until - time.monotonic())
    while time.monotonic() < until:
        runs = json.loads(services.flwr("ls", "loopback", "--format", "json", timeout=60))["runs"]
        status = runs[0]["status"]
        if status.startswith("finished"):
            if status != "finished:completed":
                raise SystemExit(f"the run is {status}; see {folder / 'superlink.log'}")
            turned_away(stranger, until)
            return outcome(folder, rounds, nodes)
        time.sleep(1)
    raise SystemExit(f"the run did not end within {timeout:g} s; see {folder / 'superlink.log'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for everything")
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True)
    certificates(folder)
    shared_out(folder, 2)
    services = Services(folder)
    # An interrupt must not leave the services behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        accuracy = run(folder, options.rounds, 2, options.timeout, services)
    finally:
        services.stop()
    print(f"result: {100 * accuracy:.1f} % after {options.rounds} rounds, in {folder / 'server'}")


if __name__ == "__main__":
    main()
