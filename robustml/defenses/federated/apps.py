"""The two Flower apps: the same ones in this process, on Ray, and on a SuperLink with SuperNodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...errors import InputError, brief
from .client import Client
from .server import Server

__all__ = ["client_app", "server_app"]

MakeClient = Callable[[Context], Client]
MakeServer = Callable[[Context], Server]


def client_app(make: Client | MakeClient) -> ClientApp:
    """A client as a Flower app.

    Args:
        make: The client; or what makes it of the node's context, whose `node_config` says what the node was
            started with and whose `run_config` says what `flwr run` was.
    """
    app = ClientApp()

    def ready(context: Context) -> Client:
        return make if isinstance(make, Client) else make(context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        partition = _number(context.node_config.get("partition-id", 0), "partition-id")
        state, figures = ready(context).train(
            _weights(message),
            round_=_number(config.get("server-round"), "server-round"),
            partition=partition,
            mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
        )
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord(state),
                    "metrics": MetricRecord(_finite(figures)),
                    # The server sorts replies by it, so that sums have the same last bit each time.
                    "client": ConfigRecord({"partition": partition}),
                }
            ),
            reply_to=message,
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        figures = ready(context).evaluate(_weights(message))
        return Message(RecordDict({"metrics": MetricRecord(_finite(figures))}), reply_to=message)

    return app


def server_app(make: Server | MakeServer) -> ServerApp:
    """A server as a Flower app.

    Args:
        make: The server; or what makes it of the context of the run.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server = make if isinstance(make, Server) else make(context)
        server.run(grid)

    return app


def _weights(message: Message) -> dict[str, Any]:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return dict(arrays.to_torch_state_dict())


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name}={brief(value)} is not a whole number of at least 0")
    return value


def _finite(figures: dict[str, float]) -> dict[str, int | float | list[int] | list[float]]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
