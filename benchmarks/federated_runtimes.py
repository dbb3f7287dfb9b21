"""What the runtimes of a federation cost: `python benchmarks/federated_runtimes.py`.

The same federation (4 clients, 3 rounds, a small CNN on 4,000 images of MNIST) in one process and on Ray, in
turn, several times in one run, each from `federate` to its result, so that starting Ray counts. A run that is
not bit-identical to the first one of its runtime ends the benchmark with exit status 1. Without Ray, one
process is timed alone.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence

import torch
from command import Parser, line, positive, present
from models import data_option, mnist
from torch import nn

import robustml as rml


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument("--clients", type=positive, default=4)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--samples", type=positive, default=4000)
    parser.add_argument("--repeats", type=positive, default=3)
    given = parser.parse_args(arguments)
    present(parser, given.data, ["mnist.npz"])
    torch.set_num_threads(1)
    train, test = mnist(given.data, "train", given.samples), mnist(given.data, "test", 2000)
    runtimes = ["in-process", *(["ray"] if importlib.util.find_spec("ray") else [])]
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    accuracy: dict[str, float] = {}
    models: dict[str, set[str]] = {name: set() for name in runtimes}
    for _ in range(given.repeats):
        for name in runtimes:
            done = rml.federate(
                small(),
                train,
                clients=given.clients,
                rounds=given.rounds,
                validation=test,
                batch_size=64,
                device="cpu",
                runtime=name,
            )
            seconds[name].append(done.seconds)
            accuracy[name] = done.history[-1].clean or 0.0
            models[name].add(done.model.fingerprint())
    line(["runtime", "seconds", "ratio", "accuracy %", "same bits on repeat", "same bits as in-process"])
    line(["---", "--:", "--:", "--:", "---", "---"])
    for name in runtimes:
        ratios = [a / b for a, b in zip(seconds[name], seconds["in-process"], strict=True)]
        line(
            [
                name,
                f"{statistics.median(seconds[name]):.1f}",
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
                f"{100 * accuracy[name]:.1f}",
                len(models[name]) == 1,
                models[name] == models["in-process"],
            ]
        )
    return 0 if all(len(found) == 1 for found in models.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
