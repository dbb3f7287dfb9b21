"""The stress matrix of federated learning: `python benchmarks/federated.py`.

Attack by aggregator by heterogeneity, with the price when nobody attacks: 11 clients of which 2 collude,
6 rounds of one epoch (two for the CNN), 4,000 training and 2,000 test samples of MNIST, three seeds. A
cell is the accuracy of the final model, with half of an interval over the seeds (Student); after a
slash, the share of other classes that a backdoor's trigger turns into its target, and in brackets the
same of the model that nobody has attacked. "price" is what an aggregator costs when nobody attacks,
against the mean; "worst loss" is what the worst attack takes from the accuracy that it has without one.
A run with a journal can be interrupted, and goes on from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from command import Parser, positive, present
from models import data_option, mnist
from torch import nn

from robustml.auditing.federation import AGGREGATORS, ATTACKS, stress_federation
from robustml.auditing.federation_page import keep_matrix

# With the usual learning rate the CNN jumps about after six rounds, which hides a loss of a few points.
TRAINING = {"mlp": {"batch_size": 32}, "cnn": {"batch_size": 32, "epochs": 2, "learning_rate": 0.02}}
QUICK = ("label-flip", "sign-flip", "min-max", "replacement", "protocol")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def main() -> None:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument("--net", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--aggregators", nargs="*", default=list(AGGREGATORS), choices=list(AGGREGATORS))
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--partitions", nargs="*", default=["iid", "dirichlet:0.3"])
    parser.add_argument("--quick", action="store_true", help="one seed and the attacks that matter most")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--out", type=Path, help="a folder for the matrix as JSON and as a page")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    attacks = [name for name in chosen.attacks if not chosen.quick or name in QUICK]
    present(parser, chosen.data, ["mnist.npz"])

    found = stress_federation(
        {"mlp": mlp, "cnn": cnn}[chosen.net],
        mnist(chosen.data, "train", 4000),
        mnist(chosen.data, "test", 2000),
        attacks={name: ATTACKS[name] for name in attacks},
        aggregators={name: AGGREGATORS[name] for name in chosen.aggregators},
        partitions=chosen.partitions,
        rounds=chosen.rounds,
        seeds=range(1 if chosen.quick else chosen.seeds),
        journal=chosen.journal,
        tell=lambda cell: print(cell, file=sys.stderr, flush=True),
        **TRAINING[chosen.net],
    )
    print(found.table())
    print()
    print(found.verdict())
    if chosen.out:
        keep_matrix(chosen.out, found, {"target": f"MNIST, {chosen.net}"})


if __name__ == "__main__":
    main()
