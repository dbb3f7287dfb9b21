"""Federated learning on Flower: clients keep their data, and the server outlives clients that lie or crash.

Flower is an optional dependency (the extra `federated`). Nothing here imports it before it is needed, and
importing this package keeps it from reporting to its makers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .aggregation import AGGREGATORS, aggregation
from .dp import ClientPrivacy
from .environment import flower, switch_off
from .federation import federate
from .outcome import Federated
from .partition import Partition, parse_partition

if TYPE_CHECKING:
    from .apps import client_app, server_app
    from .client import Client
    from .grid import InProcessGrid
    from .guarding import Guarded
    from .rounds import Round
    from .server import Server

__all__ = [
    "AGGREGATORS",
    "Client",
    "ClientPrivacy",
    "Federated",
    "Guarded",
    "InProcessGrid",
    "Partition",
    "Round",
    "Server",
    "aggregation",
    "client_app",
    "federate",
    "parse_partition",
    "server_app",
]

_HOMES = {
    "Client": "client",
    "Guarded": "guarding",
    "InProcessGrid": "grid",
    "Round": "rounds",
    "Server": "server",
    "client_app": "apps",
    "server_app": "apps",
}

switch_off()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    flower()
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
