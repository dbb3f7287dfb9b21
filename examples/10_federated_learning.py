"""
Federated learning: clients keep their data
===========================================

Four clients hold scikit-learn's digits between them, and a server trains one network on all of it without
seeing any (McMahan et al. 2017), by Flower's own messages and strategies in this process. Compared are data
that are alike at every client with data that are not, plain with adversarial and with private training. The
adversarially trained model is stress-tested.

Time: about two minutes, with ``--quick`` about half a minute. No download. Needs the extras ``federated`` and
``privacy``.

Expected output: a line for each federation and, last, a line such as ``result: four clients, trained
adversarially, at most 68.0 % [59.9, 75.4] under linf:0.1``, in one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import robustml as rml
from robustml.defenses.privacy import DifferentialPrivacy
from robustml.defenses.training import PGD


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train one network on the data of four clients.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer samples, a shorter suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for checkpoints, models and the report")
    args = parser.parse_args(argv)

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    train, test = (images[:1297], digits.target[:1297]), (images[1297:], digits.target[1297:])
    threat = rml.Linf(0.1)
    rounds = 6 if args.quick else 20

    def federation(name: str, **options: Any) -> Any:
        done = rml.federate(
            build(args.seed),
            train,
            clients=4,
            rounds=rounds,
            **{"epochs": 2, "batch_size": 32, "learning_rate": 0.05, **options},
            seed=args.seed,
            out=Path(args.out) / name if args.out else None,
        )
        last = done.history[-1]
        robust = "" if last.robust is None else f", {100 * last.robust:.1f} % under a short attack"
        print(f"{name}: clients of {done.clients} images, {100 * last.clean:.1f} % correct{robust}")
        return done

    # %%
    # A tenth of the data is the server's, by which it judges each round. The rest is split at random; and
    # then so that most of a client's images show a few of the digits. What each client learns pulls the model
    # its way, and the mean of all pulls is worth less.
    federation("alike")
    federation("unlike", partition="dirichlet:0.3")

    # %%
    # Clients train by the same loop as `harden`, so every objective works: here each trains on the worst
    # points around its images. With an out folder, a killed run goes on with `resume=True`, to the same bits.
    robust = federation("adversarial", objective=PGD(threat, steps=5), aggregation="trimmed-mean")

    # %%
    # With privacy, each client keeps a ledger over all rounds. What counts is the client that has spent most.
    budget = DifferentialPrivacy(noise_multiplier=0.8, seed=args.seed, mode="functional")
    private = federation("private", privacy=budget, epochs=1, learning_rate=0.3)
    spent = private.privacy["samples"]
    epsilon = f"epsilon {spent['epsilon']:.2f} at delta {spent['delta']:g}"
    print(f"privacy: client {spent['client']} has spent {epsilon}, the others less")

    report = rml.stress_test(
        robust.model,
        test,
        threats=[threat],
        suite="quick" if args.quick else "standard",
        samples=150 if args.quick else None,
        seed=args.seed,
        out=Path(args.out) / "report" if args.out else None,
    )
    if not report.trusted:
        print("these figures are not to be trusted:", "; ".join(report.distrust))
    upper = report.threats[0].robust_accuracy.upper
    print(f"result: four clients, trained adversarially, at most {upper} under {threat.name}")


if __name__ == "__main__":
    main()
