"""The two Flower apps: the same ones in this process, on Ray, and on a SuperLink with SuperNodes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...errors import InputError, brief
from ...files import write_atomic
from ..privacy.ledger import Ledger
from .client import Client
from .server import Server

__all__ = ["client_app", "ledger_in", "ledger_of", "server_app"]

MakeClient = Callable[[Context], Client]
MakeServer = Callable[[Context], Server]


def client_app(make: Client | MakeClient, *, ledger: Callable[[Context], Path] | None = None) -> ClientApp:
    """A client as a Flower app.

    What its privacy has cost is in `context.state`, which ends with the run; a node that takes part in
    several runs on the same data needs a file for it.

    Args:
        make: The client; or what makes it of the node's context, whose `node_config` says what the node was
            started with and whose `run_config` says what `flwr run` was.
        ledger: The file for what privacy has cost, of the context; no file if None.
    """
    app = ClientApp()

    def ready(context: Context) -> Client:
        return make if isinstance(make, Client) else make(context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        partition = _number(context.node_config.get("partition-id", 0), "partition-id")
        path = None if ledger is None else ledger(context)
        spent = ledger_of(context, path)
        mode = _mode(context)
        try:
            state, figures = ready(context).train(
                _weights(message),
                round_=_number(config.get("server-round"), "server-round"),
                partition=partition,
                mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
                ledger=spent,
                mode=mode,
            )
            mode = str(figures.pop("mode", ""))
        finally:
            # Before the weights leave; and where training was broken off, the steps that it had made count.
            _remember(context, path, spent, mode or "")
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


def ledger_of(context: Context, path: Path | None = None) -> Ledger:
    """What the privacy of a client has cost until now.

    Args:
        context: Of the client.
        path: The file, if there is one: it holds what was spent in other runs, too.

    Raises:
        InputError: for a file that is no ledger: it is not the same as nothing spent.
    """
    if path is not None and path.exists():
        return ledger_in(path)
    kept = context.state.get("ledger")
    return Ledger.from_dict(json.loads(str(kept["json"]))) if isinstance(kept, ConfigRecord) else Ledger()


def ledger_in(path: Path) -> Ledger:
    """What a client has written down of the cost of its privacy; nothing is spent where there is no file.

    Raises:
        InputError: for a file that is no ledger.
    """
    if not path.exists():
        return Ledger()
    try:
        return Ledger.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a ledger: {brief(str(error))}") from None


def _mode(context: Context) -> str | None:
    """How the gradients of samples were taken before: finding out again might come to another answer."""
    kept = context.state.get("ledger")
    return (str(kept["mode"]) or None) if isinstance(kept, ConfigRecord) else None


def _remember(context: Context, path: Path | None, ledger: Ledger, mode: str) -> None:
    if ledger.history:
        text = json.dumps(ledger.to_dict())
        context.state["ledger"] = ConfigRecord({"json": text, "mode": mode})
        if path is not None:
            write_atomic(path, text)


def _weights(message: Message) -> dict[str, Any]:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return dict(arrays.to_torch_state_dict())


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name}={brief(value)} is not a whole number of at least 0")
    return value


def _finite(figures: dict[str, Any]) -> dict[str, int | float | list[int] | list[float]]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
