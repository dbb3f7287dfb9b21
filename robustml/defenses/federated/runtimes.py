"""Where a federation runs: all in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import Context, RecordDict

from .apps import client_app, server_app
from .client import Client
from .environment import quiet
from .grid import InProcessGrid, identified
from .server import Server

__all__ = ["serve"]

Hostile = Mapping[int, Callable[[Any], Any]]


def serve(server: Server, clients: Sequence[Client], hostile: Hostile, runtime: str) -> None:
    """Go through the rounds of a server; its `history` and its model hold the outcome.

    Args:
        server: The server.
        clients: The clients, by number.
        hostile: By number, what makes another app of the client's honest one.
        runtime: Of `RUNTIMES`.
    """
    apps = [_app(client, hostile.get(number)) for number, client in enumerate(clients)]
    with quiet():
        _in_process(server, apps)


def _app(client: Client, corrupted: Callable[[Any], Any] | None) -> Any:
    honest = client_app(client)
    return honest if corrupted is None else corrupted(honest)


def _in_process(server: Server, apps: Sequence[Any]) -> None:
    grid = InProcessGrid(apps)
    server.contexts = grid.contexts
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with identified():
        server_app(server)(grid, context)
