"""Where a federation runs: all in this process, or its clients on Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict

from ...errors import InputError
from ...extras import need
from ..privacy.ledger import Ledger
from .apps import client_app, ledger_in, server_app
from .client import Client
from .environment import at_home, quiet
from .grid import InProcessGrid, answered, identified
from .outcome import UNKNOWN
from .server import Server

__all__ = ["Client", "Server", "serve"]

Hostile = Mapping[int, Callable[[Any], Any]]


def serve(server: Server, clients: Sequence[Client], hostile: Hostile, runtime: str) -> None:
    """Go through the rounds of a server; its `history` and its model hold the outcome.

    Args:
        server: The server.
        clients: The clients, by number.
        hostile: By number, what makes another app of the client's honest one.
        runtime: "in-process" or "ray".

    Raises:
        InputError: if Ray is wanted and missing.
        RunError: as `Server.run`.
    """
    with quiet():
        if runtime == "ray":
            _on_ray(server, clients, hostile)
        else:
            _in_process(server, [_app(client, n, hostile, None) for n, client in enumerate(clients)])


def _app(client: Client, number: int, hostile: Hostile, folder: Path | None) -> Any:
    path = None if folder is None else _ledger(folder, number)
    honest = client_app(client, ledger=None if path is None else lambda _: path)
    return hostile[number](honest) if number in hostile else honest


def _ledger(folder: Path, number: int) -> Path:
    return (folder / f"{number}.json").resolve()


def _in_process(server: Server, apps: Sequence[Any]) -> None:
    grid = InProcessGrid(apps)
    server.contexts = grid.contexts
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with identified():
        server_app(server)(grid, context)


class _Dispatch:
    """One app for all nodes, which does what the app of the node's partition does, and no longer than it may.

    Without an end to it, Flower would wait for a client that hangs when the run is over, and for ever.
    """

    def __init__(self, apps: Sequence[Any], deadline: float) -> None:
        self._apps = list(apps)
        self._deadline = deadline

    def __call__(self, message: Any, context: Context) -> Any:
        # Flower's own error would not say what went wrong. Silence is one: Ray has no word for it.
        app = self._apps[int(str(context.node_config["partition-id"]))]
        answer = answered(app, message, context, self._deadline)
        return answer or Message(Error(0, "no reply"), reply_to=message)


def _on_ray(server: Server, clients: Sequence[Client], hostile: Hostile) -> None:
    need("ray", extra="ray", why="runtime='ray'")
    gpus = float(any(client.device.startswith("cuda") for client in clients))
    from flwr.simulation import run_simulation

    # Below the run's folder, the paths of Ray's sockets could be longer than the system allows.
    with tempfile.TemporaryDirectory(prefix="rml-", ignore_cleanup_errors=True) as scratch:
        backend = {
            "init_args": {
                "_temp_dir": scratch,
                "include_dashboard": False,
                "log_to_driver": False,
                "logging_level": logging.ERROR,
            },
            "client_resources": {"num_cpus": 1, "num_gpus": gpus},
        }
        # What clients keep in their contexts is out of reach here, of the checkpoint and of the outcome.
        folder = (server.out or Path(scratch)) / "ledgers"
        apps = [_app(client, number, hostile, folder) for number, client in enumerate(clients)]
        with at_home(Path(scratch)), _restored("PYTHONPATH"), identified():
            run_simulation(
                server_app(server),
                _Dispatch(apps, server.deadline),  # type: ignore[arg-type]
                num_supernodes=len(apps),
                backend_config=backend,  # type: ignore[arg-type]
            )
        if any(client.privacy is not None for client in clients):
            server.ledgers = {number: _read(_ledger(folder, number)) for number in range(len(clients))}


def _read(path: Path) -> Ledger:
    try:
        return ledger_in(path)
    except InputError:
        return Ledger(UNKNOWN)


@contextlib.contextmanager
def _restored(name: str) -> Iterator[None]:
    """Put a variable of the environment back afterwards: Flower adds to it for Ray's processes."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
