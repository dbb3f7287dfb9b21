"""What the SuperLink runs: rounds behind a guard, judged by data of its own, with a checkpoint after each."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context

from robustml.data import as_dataset, read_npz
from robustml.defenses.federated import Guarded, Server, aggregation, server_app

from .task import build


def server(context: Context) -> Server:
    model, config = build(), context.run_config
    held = None
    if config["validation"]:
        data = as_dataset(read_npz(config["validation"]), model.inputs, model.classes)
        held = torch.from_numpy(data.x), torch.from_numpy(data.y)
    strategy = aggregation(config["aggregation"])
    return Server(
        model,
        Guarded(strategy, nodes=config["clients"], wait=config["deadline"], seed=config["seed"]),
        config["rounds"],
        held,
        seed=config["seed"],
        deadline=config["deadline"],
        out=Path(config["out"]) if config["out"] else None,
        resume=config["resume"],
        plan={
            key: config[key]
            for key in ("aggregation", "epochs", "batch_size", "learning_rate", "seed", "clients")
        },
        show=True,
    )


app = server_app(server)
