"""Does memory grow with the chunk, and not with the data?

Stress-tests images of 3x32x32 with a small network in fresh processes, once with few samples and once with
many, and compares the peak resident memory: `python benchmarks/memory.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import robustml as rml

SHAPE = (3, 32, 32)
CLASSES = 10


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, CLASSES),
        ).eval()


def peak(samples: int, suite: str, batch: int) -> tuple[float, float]:
    """Peak resident memory of one stress test in MiB, and the size of its data set."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.random((samples, *SHAPE), dtype=np.float32)
    net = network()
    with torch.no_grad():
        # The network's own answers are the labels: every sample is correct, so every attack has work.
        y = np.concatenate(
            [net(torch.from_numpy(part)).argmax(1).numpy() for part in np.split(x, samples // 100)]
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        # A tiny budget and a large one: much that survives, and much evidence.
        rml.stress_test(net, (x, y), threats=["linf:1/255"], suite=suite, out=out, batch_size=batch)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (1024 if sys.platform != "darwin" else 1024**2), x.nbytes / 1024**2


def measured(samples: int, suite: str, batch: int) -> tuple[float, float]:
    """The same in a process of its own, since a peak never goes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (samples, suite, batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    small, _ = measured(arguments.few, arguments.suite, arguments.batch)
    large, data = measured(arguments.many, arguments.suite, arguments.batch)
    print(f"{arguments.few:6} samples: peak {small:7.1f} MiB")
    print(f"{arguments.many:6} samples: peak {large:7.1f} MiB, of which the data set is {data:.1f} MiB")
    print(f"ratio without the data set: {(large - data) / small:.3f} (at most 1.2 is the aim)")


if __name__ == "__main__":
    main()
