"""What an attack costs beyond its forward and backward passes, and how many of them it needs.

Each attack is timed against a bare loop of exactly the same passes (the same batch sizes in the same order,
weights frozen, nothing but the model), in turn, several times; the median ratio is printed. Run it with one
thread on an otherwise idle machine: `python benchmarks/overhead.py`.
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

CASES = [("pgd", {"steps": 40}), ("apgd", {"loss": "ce"}), ("apgd", {"loss": "margin"}), ("apgd", {"loss": "dlr"})]


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


def run(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, name: str, options: dict[str, object]) -> None:
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
    print(f"overhead over the bare passes, batch {batch}, median of {repeats} (lowest, highest)")
    for name, options in CASES:
        ratios = []
        for repeat in range(repeats):
            start = (repeat * batch) % (len(x) - batch + 1)
            part, labels = x[start : start + batch], y[start : start + batch]
            tape = Tape(model)
            run(tape, part, labels, name, options)
            before = timed(lambda calls=tape.calls: floor(model, part, labels, calls))
            spent = timed(lambda: run(model, part, labels, name, options))
            after = timed(lambda calls=tape.calls: floor(model, part, labels, calls))
            ratios.append(2 * spent / (before + after))
        shown = " ".join(f"{key}={value}" for key, value in options.items())
        median = statistics.median(ratios)
        print(f"  {name:5} {shown:12} {median:.3f}  ({min(ratios):.3f}, {max(ratios):.3f})")


def passes(model: rml.Classifier, x: Tensor, y: Tensor, batch: int) -> None:
    print(f"passes per sample on an undefended network, {len(x)} images, batch {batch}")
    for name, options in CASES:
        forward = backward = 0
        for part, labels in zip(x.split(batch), y.split(batch), strict=True):
            tape = Tape(model)
            run(tape, part, labels, name, options)
            forward += sum(size for size, _ in tape.calls)
            backward += sum(size for _, size in tape.calls)
        shown = " ".join(f"{key}={value}" for key, value in options.items())
        print(f"  {name:5} {shown:12} {forward / len(x):.2f} forward, {backward / len(x):.2f} backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
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
