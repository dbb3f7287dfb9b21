"""
Find out whether a model gives away what it was trained on
==========================================================

Trains a network on scikit-learn's digits, one label in ten wrong as happens in real data, until it knows most
of them by heart. Then an attacker tries to tell the images it was trained on from others of the same kind:
from one answer each, with networks that he trained himself for comparison, and from the label alone.

Time: about fifteen seconds, with ``--quick`` about seven. No download.

Expected output: one line per attack and, last, a line such as ``result: rmia-online, the strongest of 8
attacks, has an advantage of 0.378 [0.232, 0.457]: privacy score 54.3``, in one line.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import robustml as rml
from robustml.auditing import MembershipAudit, audit_membership, train_references


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def show(found: MembershipAudit) -> None:
    for result in found.results:
        rate = result.tpr[0]
        caught = rate.tpr if rate.tpr is not None else rate.reason
        print(f"{result.attack:>16}: AUC {result.auc}, of the members found at 1 % false alarms: {caught}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Audit a small network for membership inference.")
    parser.add_argument("--quick", action="store_true", help="fewer samples, fewer reference models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder in which the reference models are kept for the next time")
    args = parser.parse_args(argv)

    digits = load_digits()
    rng = np.random.default_rng(args.seed)
    size = 300 if args.quick else 600
    rows = rng.permutation(len(digits.target))[: 2 * size]
    x, y = (digits.images[rows] / 16).astype(np.float32)[:, None], digits.target[rows]
    wrong = rng.random(len(y)) < 0.1
    y = np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
    members, others = (x[:size], y[:size]), (x[size:], y[size:])

    training = {"epochs": 40, "batch_size": 32, "learning_rate": 0.01, "validation": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        net = build()
    target = rml.harden(net, members, seed=args.seed + 100, **training).model

    # %%
    # With answers alone, the attacker can say that a sample is a member if the model is sure of its label.
    # That mostly says which samples are easy.
    print("without reference models")
    show(audit_membership(target, members, others, seed=args.seed))

    # %%
    # Reference models, trained in the same way on random halves of all samples, tell how sure a model is of a
    # sample that it was trained on, and of one that it was not. They are worth more than anything else.
    with tempfile.TemporaryDirectory() as temporary:
        references = train_references(
            build,
            members,
            others,
            count=4 if args.quick else 8,
            out=Path(args.out or temporary) / "references",
            seed=args.seed,
            **training,
        )
    found = audit_membership(target, members, others, references=references, seed=args.seed)
    print(f"with {len(references)} reference models")
    show(found)
    worst = found[found.strongest.auc_by].most_exposed
    if worst is not None:
        print(f"of the most exposed tenth: AUC {worst.auc}, {worst.members} members")

    # %%
    # A service that answers with a label alone leaks as well.
    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return target(torch.from_numpy(batch)).argmax(1).numpy()

    service = rml.BlackBox(predict, inputs=target.inputs, classes=10, outputs="labels")
    print("from labels alone")
    show(audit_membership(service, members, others, seed=args.seed))

    most = found.strongest
    print(
        f"result: {most.advantage_by}, the strongest of {most.attacks} attacks, has an advantage of "
        f"{most.advantage}: privacy score {found.score:.1f}"
    )


if __name__ == "__main__":
    main()
