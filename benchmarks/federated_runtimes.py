"""What the runtimes of a federation cost: `python benchmarks/federated_runtimes.py`.

The same federation (4 clients, 3 rounds, a small CNN on 4,000 images of MNIST) in one process and on Ray, in
turn, several times in one run, each from `federate` to its result, so that starting Ray counts. A run that is
not bit-identical to the first one of its runtime ends the benchmark with exit status 1. Without Ray, one
process is timed alone. Then, once, the app of examples/federated with the same task and the same shards on a
SuperLink with as many SuperNodes on loopback, with TLS and node authentication, timed from the first service
to the last round. `--no-deployment` leaves that out.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import federated_task
import safetensors.torch
import torch
from command import Parser, line, positive, present
from models import data_option, mnist

import robustml as rml

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "federated"

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Measured:
    """What came of one runtime."""

    seconds: list[float] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    accuracy: float = 0.0

    def add(self, seconds: float, accuracy: float, model: str) -> None:
        self.seconds.append(seconds)
        self.models.add(model)
        self.accuracy = accuracy


def federated(train: Pair, test: Pair, given: Namespace, runtime: str, found: Measured) -> None:
    done = rml.federate(
        federated_task.build(),
        train,
        clients=given.clients,
        rounds=given.rounds,
        validation=test,
        device="cpu",
        runtime=runtime,
        **federated_task.TRAINING,
    )
    found.add(done.seconds, done.history[-1].clean or 0.0, done.model.fingerprint())


def deployed(train: Pair, test: Pair, given: Namespace, found: Measured) -> None:
    """The same on services of their own, all of which end with it."""
    sys.path.insert(0, str(EXAMPLE))
    from run_on_loopback import prepared, run, shared_out  # the script of the example

    with tempfile.TemporaryDirectory(prefix="rml-") as scratch:
        app, folder = Path(scratch) / "app", Path(scratch) / "run"
        shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__", "keys.py", "run_*"))
        shutil.copy(federated_task.__file__, app / "digits_federation" / "task.py")
        with prepared(folder, given.clients, given.timeout) as federation:
            shared_out(folder, given.clients, _arrays(train), _arrays(test))
            begun = time.perf_counter()
            accuracy = run(federation, app, given.rounds, given.clients, **federated_task.TRAINING)
            seconds = time.perf_counter() - begun
        model = federated_task.build()
        model.module.load_state_dict(safetensors.torch.load_file(folder / "server" / "model.safetensors"))
    found.add(seconds, accuracy, model.fingerprint())


def _arrays(pair: Pair) -> tuple[Any, Any]:
    return pair[0].numpy(), pair[1].numpy()


def table(found: dict[str, Measured]) -> None:
    line(["runtime", "seconds", "ratio", "accuracy %", "same bits on repeat", "same bits as in-process"])
    line(["---", "--:", "--:", "--:", "---", "---"])
    base = found["in-process"]
    for name, measured in found.items():
        # What ran once is held against the median.
        others = base.seconds if len(measured.seconds) > 1 else [statistics.median(base.seconds)]
        ratios = [a / b for a, b in zip(measured.seconds, others, strict=True)]
        spread = f" ({min(ratios):.1f} to {max(ratios):.1f})" if len(ratios) > 1 else ""
        line(
            [
                name,
                f"{statistics.median(measured.seconds):.1f}",
                f"{statistics.median(ratios):.1f}{spread}",
                f"{100 * measured.accuracy:.1f}",
                len(measured.models) == 1 if len(measured.seconds) > 1 else "ran once",
                measured.models == base.models,
            ]
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument("--clients", type=positive, default=4)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--samples", type=positive, default=4000)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--no-deployment", dest="deployment", action="store_false")
    parser.add_argument("--timeout", type=positive, default=600, help="seconds for the whole deployment")
    given = parser.parse_args(arguments)
    present(parser, given.data, ["mnist.npz"])
    torch.set_num_threads(1)
    train, test = mnist(given.data, "train", given.samples), mnist(given.data, "test", 2000)
    runtimes = ["in-process", *(["ray"] if importlib.util.find_spec("ray") else [])]
    found = {name: Measured() for name in runtimes}
    for _ in range(given.repeats):
        for name in runtimes:
            federated(train, test, given, name, found[name])
    if given.deployment:
        found["deployment"] = Measured()
        deployed(train, test, given, found["deployment"])
    table(found)
    return 0 if all(len(measured.models) == 1 for measured in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
