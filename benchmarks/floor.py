"""The floor that attacks are timed against: a bare loop of exactly the same forward and backward passes.

A `Tape` around the network notes the passes of an attack, whoever makes them; `floor` makes the same ones
again (the same batch sizes in the same order, weights frozen, nothing but the network); `in_turn` times both
one after the other, several times, since on most machines only neighbors in time can be compared.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["CLOCKS", "Call", "Clock", "Tape", "Turns", "floor", "in_turn", "passes", "pool_for"]


@dataclass
class Call:
    """One forward pass: of how many samples, and how many gradients of its logits followed."""

    size: int
    backward: int = 0

    def note(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


class Tape(nn.Module):
    """A network that notes every forward pass and the backward passes that follow it.

    A backward pass is noted when it reaches the logits, once for each gradient that is asked for.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls: list[Call] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        call = Call(len(x))
        self.calls.append(call)
        if logits.requires_grad:
            logits.register_hook(call.note)
        return logits

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """The calls made within."""
        self.calls = calls = []
        yield calls
        self.calls = []


def passes(calls: Sequence[Call]) -> tuple[int, int]:
    """Samples that went forward, and gradients that came back."""
    return sum(call.size for call in calls), sum(call.backward for call in calls)


def pool_for(x: Tensor, calls: Sequence[Call]) -> Tensor:
    """Samples enough for the largest of the calls: attacks may put several points of each through at once."""
    largest = max((call.size for call in calls), default=0)
    return x.repeat(-(-largest // len(x)), *[1] * (x.dim() - 1)) if largest > len(x) else x


@contextlib.contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def floor(net: nn.Module, pool: Tensor, calls: Sequence[Call]) -> None:
    """The bare passes: a call whose logits were differentiated several times is so here, too."""
    with _frozen(net):
        for call in calls:
            batch = pool[: call.size]
            if not call.backward:
                with torch.no_grad():
                    net(batch)
                continue
            batch = batch.detach().requires_grad_()
            scores = net(batch)
            times = -(-call.backward // call.size)
            for turn in range(times):
                torch.autograd.grad(
                    scores[:, turn % scores.shape[1]].sum(), batch, retain_graph=turn < times - 1
                )


Clock = Callable[[Callable[[], object]], float]
"""Runs something and says how many seconds it took."""


def _wall(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _processor(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _cuda(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


CLOCKS: dict[str, Clock] = {"wall": _wall, "cpu": _processor, "cuda": _cuda}
""""wall" is what a user waits; "cpu", the processor time of this process, is what can still be compared on a
machine that others use as well; "cuda" are events on the device."""


@dataclass
class Turns:
    """Seconds of the bare passes and of the attack, pair by pair."""

    bare: list[float] = field(default_factory=list)
    attack: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return sorted(spent / least for spent, least in zip(self.attack, self.bare, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the paired ratios."""
        return statistics.median(self.ratios)

    @property
    def best(self) -> float:
        """The ratio of the best times, which other work on the machine disturbs least."""
        return min(self.attack) / min(self.bare)

    @property
    def seconds(self) -> float:
        return statistics.median(self.attack)


def in_turn(bare: Callable[[], object], attack: Callable[[], object], repeats: int, clock: Clock) -> Turns:
    """Time both, one after the other, several times."""
    turns = Turns()
    for _ in range(repeats):
        turns.bare.append(clock(bare))
        turns.attack.append(clock(attack))
    return turns
