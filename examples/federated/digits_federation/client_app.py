"""What each SuperNode runs. It is started with --node-config 'partition-id=0 data="/where/its/data.npz"'."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from robustml.data import as_dataset, read_npz
from robustml.defenses.federated import Client, client_app

from .task import build


def client(context: Context) -> Client:
    model, config = build(), context.run_config
    data = as_dataset(read_npz(context.node_config["data"]), model.inputs, model.classes)
    return Client(
        model,
        data,
        settings={key: config[key] for key in ("epochs", "batch_size", "learning_rate")},
        seed=config["seed"],
        # privacy=DifferentialPrivacy(epsilon=8), for its samples, over all rounds together
        rounds=config["rounds"],
    )


# What privacy has cost outlives the run, beside the data.
app = client_app(client, ledger=lambda context: Path(context.node_config["data"]).with_suffix(".ledger.json"))
