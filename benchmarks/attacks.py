"""Attacks of several libraries on the same images at the same budget: `python benchmarks/attacks.py`.

One row for each attack and library, beside the floor: a bare loop of the same forward and backward passes
with frozen weights, timed in turn with the attack. Passes are counted by hooks on the network, per attacked
image; the images that the network gets wrong are attacked by nobody, count as not robust, and at distance 0.
Every point that comes back is checked here: inside the ball and the box (tolerance 1e-6), finite, and what
the network says of it in float32; nobody's own count is used. What is outside counts as no success, and is
noted.

- "robust": standing at the budget (Linf 0.3, L2 1.5), of all images.
- "success", "median": of a minimum-norm attack, at any distance; the median norm over all images.
- "seconds": for the attacked images, the median of the repeats. The first turn, in which the passes are
  noted, is left out of times and ratios unless it is the only one.
- "ratio": seconds over those of the floor, the median of the paired ratios.

The weights are as a user has them, so that libraries that compute gradients of them pay for it; `--frozen`
takes that out. Nothing but robustml and its dependencies is needed: what is not installed is listed with the
line that installs it. Slow attacks run on fewer images (column N) unless `--samples` says how many; on one
core PGD takes a minute for all libraries, everything more than an hour, half of which is HopSkipJump of ART.
The exit status is 1 if an attack of robustml stopped with an error or left its ball.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from command import Parser, line, positive, present
from floor import CLOCKS, Call, Clock, Tape, Turns, floor, passes, pool_for
from models import data_option, mnist, robust, undefended
from peers import JOBS, LIBRARIES, Batch, Entry, Job, Library
from torch import Tensor, nn

HEADS = ["attack", "library", "N", "robust %", "success %", "median", "seconds"]
COSTS = ["forward", "backward", "ratio", "note"]
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Data:
    """The images of one job that the network gets right, their positions, and how many others there are."""

    x: Tensor
    y: Tensor
    ids: Tensor
    wrong: int

    @property
    def count(self) -> int:
        return len(self.x) + self.wrong


@dataclass(frozen=True)
class Outcome:
    """What a library did with the images of a job."""

    distances: Tensor
    """Of each attacked image's point if the network gets it wrong there, infinite otherwise (n,)."""
    outside: int
    forward: int
    backward: int
    turns: Turns


def correct(net: nn.Module, x: Tensor, y: Tensor) -> Data:
    right = predictions(net, x) == y
    return Data(x[right], y[right], right.nonzero()[:, 0], int((~right).sum()))


def predictions(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in x.split(256)])


def checked(net: nn.Module, data: Data, z: Tensor, job: Job) -> tuple[Tensor, int]:
    """The distance of each point that is a success, infinite for the others, and how many were invalid."""
    if z.shape != data.x.shape:
        raise ValueError(f"{tuple(z.shape)} came back for {tuple(data.x.shape)}")
    z = z.detach().float()
    flat = (z.double() - data.x.double()).flatten(1)
    distance = torch.linalg.vector_norm(flat, ord=torch.inf if job.norm == "linf" else 2, dim=1)
    pixels = z.flatten(1)
    valid = pixels.isfinite().all(1)
    valid &= (pixels.amin(1) >= -TOLERANCE) & (pixels.amax(1) <= 1 + TOLERANCE)
    if not job.minimum:
        valid &= distance <= job.eps + TOLERANCE
    broken = valid & (predictions(net, torch.nan_to_num(z)) != data.y)
    faults = ~valid if job.strict else ~valid & (distance <= job.eps)
    return torch.where(broken, distance, torch.inf), int(faults.sum())


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random states that other libraries draw from, put back afterwards; prints go to stderr."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def attacked(
    entry: Entry, loaded: Any, net: nn.Module, data: Data, job: Job, *, batch: int, seed: int
) -> Tensor:
    """Run one attack on all the images, batch by batch."""
    found = []
    with seeded(seed):
        for rows in torch.arange(len(data.x)).split(batch):
            part = Batch(net, data.x[rows], data.y[rows], data.ids[rows], job.eps, seed)
            found.append(entry.run(loaded, part))
    return torch.cat(found)


def measured(
    entry: Entry, loaded: Any, tape: Tape, data: Data, job: Job, *, batch: int, repeats: int, clock: Clock
) -> Outcome:
    """Attack and floor in turn; what comes back the first time is checked."""
    turns, first = Turns(), Turns()
    warm_up(tape.net, data.x[:batch])
    points: list[Tensor] = []

    def attack() -> None:
        points[:] = [attacked(entry, loaded, tape, data, job, batch=batch, seed=0)]

    with tape.recording() as noted:
        first.attack.append(clock(attack))
    calls: list[Call] = list(noted)
    if not calls:
        raise ValueError("no pass of the network was seen")
    pool = pool_for(data.x, calls)
    distances, outside = checked(tape.net, data, points[0], job)
    first.bare.append(clock(lambda: floor(tape.net, pool, calls)))
    for _ in range(repeats - 1):
        turns.attack.append(clock(attack))
        turns.bare.append(clock(lambda: floor(tape.net, pool, calls)))
    return Outcome(distances, outside, *passes(calls), turns if turns.bare else first)


def warm_up(net: nn.Module, x: Tensor) -> None:
    floor(net, x, [Call(len(x), len(x)), Call(len(x))])


def cells(data: Data, job: Job, outcome: Outcome, note: str) -> list[str]:
    """The figures of one row."""
    norms = torch.cat([torch.zeros(data.wrong, dtype=torch.float64), outcome.distances])
    standing = int((norms > job.eps + TOLERANCE).sum())
    success = f"{100 * float(outcome.distances.isfinite().double().mean()):.1f}" if job.minimum else ""
    middle = float(np.median(norms.numpy())) if job.minimum else 0.0
    median = ("none" if np.isinf(middle) else f"{middle:.3f}") if job.minimum else ""
    outside = f"{outcome.outside} points outside ball or box" if outcome.outside else ""
    return [
        str(data.count),
        f"{100 * standing / data.count:.1f}",
        success,
        median,
        f"{outcome.turns.seconds:.1f}",
        f"{outcome.forward / len(data.x):.1f}",
        f"{outcome.backward / len(data.x):.1f}",
        f"{outcome.turns.ratio:.2f}",
        "; ".join(part for part in (outside, note) if part),
    ]


def row(name: str, library: Library, tape: Tape, data: Data, given: argparse.Namespace) -> bool:
    """Measure one attack of one library and print its row; False if it stopped or left its ball."""
    job, entry = JOBS[name], library.entries[name]
    title = f"{library.title} {version(library)}"
    print(f"{job.title}: {title}, {data.count} images", file=sys.stderr)
    try:
        outcome = measured(
            entry,
            library.load(),
            tape,
            data,
            job,
            batch=given.batch,
            repeats=given.repeats,
            clock=CLOCKS[given.clock],
        )
    except Exception as error:  # one library's failure is a row, not the end of the table
        reason = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
        line([job.title, title, data.count, *[""] * 7, f"stopped: {reason[:200]}"])
        return False
    line([job.title, title, *cells(data, job, outcome, entry.note)])
    return not outcome.outside


def version(library: Library) -> str:
    try:
        return metadata.version(library.distribution)
    except metadata.PackageNotFoundError:
        return ""


def absent(library: Library) -> str | None:
    """Why a library cannot be used, if it cannot."""
    try:
        library.load()
    except ImportError as error:
        return f"- {library.title} is not installed: `{library.install}` ({error})."
    return None


def compare(given: argparse.Namespace, net: nn.Module) -> int:
    """Print the table; returns the exit status."""
    tape = Tape(net).eval()
    wanted = [LIBRARIES[name] for name in given.library]
    reasons = {library.name: absent(library) for library in wanted}
    x, y = mnist(given.data, "test", max(given.samples or JOBS[name].samples for name in given.attack))
    line([*HEADS, *COSTS])
    line(["---"] * 2 + ["--:"] * 8 + ["---"])
    status = 0
    for name in given.attack:
        count = given.samples or JOBS[name].samples
        data = correct(net, x[:count], y[:count])
        for library in wanted:
            if name not in library.entries:
                continue
            if reasons[library.name]:
                line([JOBS[name].title, library.title, data.count, *[""] * 7, "not installed"])
            elif not row(name, library, tape, data, given) and library.name == "robustml":
                status = 1
    if missing := [reason for reason in reasons.values() if reason]:
        print("\n".join(["", *missing]))
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument(
        "--attack",
        nargs="+",
        choices=list(JOBS),
        default=list(JOBS),
        metavar="NAME",
        help=f"of {', '.join(JOBS)}; default: all of them",
    )
    parser.add_argument(
        "--library",
        nargs="+",
        choices=list(LIBRARIES),
        default=list(LIBRARIES),
        metavar="NAME",
        help=f"of {', '.join(LIBRARIES)}; default: all of them",
    )
    parser.add_argument(
        "--model",
        choices=("mnist_pgd", "plain"),
        default="mnist_pgd",
        help="adversarially trained, or one plain epoch",
    )
    parser.add_argument("--samples", type=positive, help="test images; default: by attack")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--repeats", type=positive, default=3, help="turns; default: 3")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, on a machine that others use too",
    )
    parser.add_argument("--frozen", action="store_true", help="freeze the weights for every library")
    given = parser.parse_args(arguments)
    needed = ["mnist.npz", *(["mnist_pgd.safetensors"] if given.model == "mnist_pgd" else [])]
    present(parser, given.data, needed)
    torch.set_num_threads(given.threads)
    net = (robust if given.model == "mnist_pgd" else undefended)(given.data)
    if given.frozen:
        net.requires_grad_(False)
    return compare(given, net)


if __name__ == "__main__":
    sys.exit(main())
