"""What an attack costs beyond its forward and backward passes, and how many of them it needs.

Each attack is timed against a bare loop of exactly the same passes (the same batch sizes in the same order,
weights frozen, nothing but the model), in turn, several times. Printed are the ratio of the best times, which
other work on the machine disturbs least, and the median of the paired ratios. One thread; run it on an
otherwise idle machine: `python benchmarks/overhead.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from models import data_option, mnist, robust, undefended
from torch import Tensor, nn

import robustml as rml
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.stress.meter import Meter

CASES: list[tuple[str, dict[str, object]]] = [
    ("pgd", {"steps": 40}),
    *(("apgd", {"loss": loss}) for loss in ("ce", "margin", "dlr")),
]


class Tape:
    """A model that notes the batch size of each forward pass, and whether a backward one followed."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.calls: list[list[int]] = []

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        call = [len(x), 0]
        self.calls.append(call)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: call.__setitem__(1, len(gradient)))
        return logits


def floor(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, calls: list[list[int]]) -> None:
    """The bare passes."""
    for size, backward in calls:
        batch = x[:size]
        if backward:
            batch = batch.detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(batch), y[:size], reduction="sum")
            torch.autograd.grad(loss, batch)
        else:
            with torch.no_grad():
                model(batch)


def run(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, name: str, options: dict[str, object]
) -> None:
    """One attack on one batch, as the harness runs it: through the meter that counts and watches."""
    threat = rml.Linf(0.3).within(rml.InputSpec(shape=tuple(x.shape[1:])))
    ball = threat.around(x)
    streams = Streams.derive(0, name, torch.arange(len(x)))
    find_attack(name).function(Meter(model, ball, y), x, y, threat=threat, streams=streams, **options)


def timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def overhead(model: rml.Classifier, x: Tensor, y: Tensor, batch: int, repeats: int) -> None:
    print(f"time over that of the bare passes, batch {batch}, {repeats} turns each")
    part, labels = x[:batch], y[:batch]
    for name, options in CASES:
        tape = Tape(model)
        run(tape, part, labels, name, options)
        bare, attack = measure(model, part, labels, name, options, tape.calls, repeats)
        paired = statistics.median(spent / floor for spent, floor in zip(attack, bare, strict=True))
        print(
            f"  {name:5} {shown(options):12} best {min(attack) / min(bare):.3f}  median of pairs {paired:.3f}"
        )


def measure(
    model: rml.Classifier,
    x: Tensor,
    y: Tensor,
    name: str,
    options: dict[str, object],
    calls: list[list[int]],
    repeats: int,
) -> tuple[list[float], list[float]]:
    """Seconds of the bare passes and of the attack, in turn."""
    bare, attack = [], []
    for _ in range(repeats):
        bare.append(timed(lambda: floor(model, x, y, calls)))
        attack.append(timed(lambda: run(model, x, y, name, options)))
    return bare, attack


def shown(options: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def passes(model: rml.Classifier, x: Tensor, y: Tensor, batch: int) -> None:
    print(f"passes per sample on an undefended network, {len(x)} images, batch {batch}")
    for name, options in CASES:
        forward = backward = 0
        for part, labels in zip(x.split(batch), y.split(batch), strict=True):
            tape = Tape(model)
            run(tape, part, labels, name, options)
            forward += sum(size for size, _ in tape.calls)
            backward += sum(size for _, size in tape.calls)
        print(
            f"  {name:5} {shown(options):12} {forward / len(x):.2f} forward, {backward / len(x):.2f} backward"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x, y = mnist(arguments.data, "test", 1000)
    spec = rml.InputSpec(shape=(1, 28, 28))
    model = rml.Classifier(robust(arguments.data), inputs=spec, classes=10)
    weak = rml.Classifier(undefended(arguments.data), inputs=spec, classes=10)
    device = torch.device("cpu")
    with model.ready(device), weak.ready(device):
        overhead(model, x, y, arguments.batch, arguments.repeats)
        passes(weak, x, y, arguments.batch)


if __name__ == "__main__":
    main()
