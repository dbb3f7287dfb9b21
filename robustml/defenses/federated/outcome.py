"""What comes out of a federation: a model, how it came about, and what was spent on privacy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import __version__
from ...classifier import Classifier
from ...errors import RunError
from ...files import write_atomic
from ..privacy.ledger import Ledger

if TYPE_CHECKING:
    from flwr.app import Context

    from .rounds import Round
    from .server import Server

__all__ = ["UNKNOWN", "Federated", "Unmoved", "outcome", "write_model"]

UNKNOWN = ((0.0, 1.0, 1),)
"""A step without noise, whose epsilon is infinite: the ledger of a client that has none that can be read."""


class Unmoved(RunError):
    """No round has changed the model, which is what it was at first."""


@dataclass(frozen=True)
class Federated:
    """A model that was trained by a federation, and how it came about.

    Attributes:
        model: In evaluation mode, with the weights of the round that was kept.
        history: One entry per round, and one before the first.
        chosen: The number of the round whose weights it has.
        seconds: Of the whole call.
        clients: How many samples each client has.
        privacy: What was spent: for "samples", of the client that has spent most, with the epsilon of each in
            `by_client`; for "clients", by the rule that protects whole ones. None where nothing is promised.
        quarantine: Replies that the server refused, in turn, with the reason.
        provenance: Everything that decides the outcome, and the versions, as plain data.
    """

    model: Classifier
    history: tuple[Round, ...]
    chosen: int
    seconds: float
    clients: tuple[int, ...]
    privacy: dict[str, dict[str, Any] | None]
    quarantine: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the provenance in their header.

        Raises:
            RunError: if the file cannot be written.
        """
        write_model(self.model, self.provenance, path)

    def figures(self) -> dict[str, Any]:
        """What a report says of the federation, as plain data."""
        aggregation = self.provenance["aggregation"]["strategy"]
        rounds = [
            {
                "number": entry.number,
                "clean": entry.clean,
                "robust": entry.robust,
                "failed": sum("error" in client for client in entry.clients),
                "moved": entry.moved,
            }
            for entry in self.history
        ]
        spent = {
            what: None if found is None else {"client": None, **found} for what, found in self.privacy.items()
        }
        for found in spent.values():
            if found is not None:
                found.pop("by_client", None)
        return {
            "samples": list(self.clients),
            "partition": self.provenance["partition"],
            "aggregation": str(aggregation.get("rule", aggregation)["is"]),
            "hostile": sorted(map(int, self.provenance["hostile"])),
            "kept": self.chosen,
            "history": rounds,
            "quarantined": len(self.quarantine),
            "sample_privacy": spent["samples"],
            "client_privacy": spent["clients"],
        }


def write_model(model: Classifier, provenance: dict[str, Any], path: str | Path) -> None:
    """Write the weights of a model as safetensors, with how it came about in their header.

    Raises:
        RunError: if the file cannot be written.
    """
    import safetensors.torch

    state = model.module.state_dict()
    tidy = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    write_atomic(path, safetensors.torch.save(tidy, {"robustml": json.dumps(provenance)}))


def outcome(server: Server, plan: dict[str, Any], seconds: float) -> Federated:
    """What a server has come to.

    Args:
        server: After its rounds.
        plan: What decided the outcome, as plain data.
        seconds: What it took.
    """
    import flwr

    spent = {"samples": _spent(server, plan["privacy"]), "clients": _spent_on_clients(server)}
    if plan["privacy"] is not None:
        # A digest of private data would let anybody check a guess at them.
        plan = {**plan, "clients": None}
    provenance = {
        **plan,
        "rounds": server.rounds,
        "chosen": server.chosen,
        "robustml": __version__,
        "torch": torch.__version__,
        "flwr": flwr.__version__,
        "spent": spent,
    }
    return Federated(
        server.model.eval(),
        tuple(server.history),
        server.chosen,
        round(seconds, 3),
        tuple(plan["samples"]),
        spent,
        tuple(_quarantined(server)),
        provenance,
    )


def _spent(server: Server, privacy: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the clients' ledgers say, where they can be read; else the most that the clients have said."""
    if privacy is None:
        return None
    delta = float(privacy["delta"])
    kept = dict(server.ledgers) or {n: _kept(context) for n, context in enumerate(server.contexts.values())}
    epsilons = {number: ledger.spent(delta).epsilon for number, ledger in kept.items()}
    if not kept:
        told = [entry for past in server.history for entry in past.clients if "epsilon" in entry]
        for entry in told:
            # What was spent only grows, whoever says less.
            epsilons[entry["client"]] = max(entry["epsilon"], epsilons.get(entry["client"], 0.0))
    worst = max(epsilons, key=lambda number: epsilons[number], default=None)
    finite = {number: value if math.isfinite(value) else None for number, value in epsilons.items()}
    return {
        "epsilon": None if worst is None else finite[worst],
        "delta": delta,
        "client": worst,
        "by_client": {str(number): value for number, value in sorted(finite.items())},
    }


def _kept(context: Context) -> Ledger:
    from .apps import ledger_of

    try:
        return ledger_of(context)
    except Exception:  # a client may put anything there, and what cannot be read is no small number
        return Ledger(UNKNOWN)


def _spent_on_clients(server: Server) -> dict[str, Any] | None:
    spent = getattr(getattr(server.strategy, "strategy", None), "spent", None)
    found = None if spent is None else spent()
    return None if found is None else {"epsilon": found[0], "delta": found[1]}


def _quarantined(server: Server) -> Iterator[dict[str, Any]]:
    """The guard's log, with the numbers of clients in place of nodes."""
    for entry in getattr(server.strategy, "quarantine", ()):
        node = entry["node"]
        yield {"round": entry["round"], "client": server.names.get(node, node), "reason": entry["reason"]}
