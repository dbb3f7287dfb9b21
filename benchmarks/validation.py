"""What validation costs beside the forward pass of a small network; prints one line per guard.

$ python benchmarks/validation.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import robustml as rml
from robustml.defenses.guards import Validate


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of several runs, after two that warm up."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time validation against a small network.")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    ).eval()
    images = rng.integers(0, 256, (2000, 1, 28, 28)).astype(np.float32) / np.float32(255)
    x = torch.from_numpy(images[: args.batch])
    guards = {
        "bounds": Validate(discrete=False),
        "bounds, levels": Validate(),
        "bounds, levels, ranges, distance": Validate.fit(images),
    }
    with torch.no_grad():
        for name, guard in guards.items():
            guard.attach(rml.InputSpec(shape=(1, 28, 28), levels=256))
            forward = seconds(lambda: net(x), args.rounds)
            taken = seconds(lambda guard=guard: (guard.score(x), guard(x)), args.rounds)
            print(f"{name}: {1e3 * taken:.2f} ms, {100 * taken / forward:.1f} % of {1e3 * forward:.1f} ms")
    table = rng.normal(size=(args.rows, 20))
    for name, rows in (("clean", table), ("all NaN", np.full_like(table, np.nan))):
        guard = Validate.fit(table[:5000])
        guard.attach(rml.InputSpec(shape=(20,), bounds=(-100.0, 100.0)))
        print(f"{args.rows} rows of 20, {name}: {seconds(lambda g=guard, r=rows: g.check(r), 3):.2f} s")


if __name__ == "__main__":
    main()
