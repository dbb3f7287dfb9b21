"""What an attack costs beyond its forward and backward passes: `python benchmarks/overhead.py`.

Every gradient attack of robustml and Square, under each of its norms, is timed on one batch of the
adversarially trained network against a bare loop of exactly the same passes (the same batch sizes in the same
order, weights frozen, nothing but the network), in turn, several times. Printed are the ratio of the best
times, which other work on the machine disturbs least, the median of the paired ratios, and the range of the
middle half of them, which says how noisy it was. So that the batch stays about whole, the budgets are small
enough for most samples to stand, and minimum-norm attacks go on within them; the mean size of a pass is
printed, too. One thread; run it on an otherwise idle machine, or with `--clock cpu`. With `--passes` it
counts the passes of PGD and APGD on an undefended network instead, where samples leave the batch early.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import torch
from command import Parser, line, positive, present
from floor import CLOCKS, Clock, Tape, Turns, floor, in_turn, passes, pool_for
from models import data_option, mnist, robust, undefended
from natives import NORMS, Case, cases, named, run
from torch import Tensor

import robustml as rml
from robustml.registry import Access, all_attacks

EPS = {"linf": 0.2, "l2": 0.5, "l1": 3.0, "l0": 20.0}
"""Budgets at which most samples of the adversarially trained network stand."""


def overhead(
    model: rml.Classifier, tape: Tape, x: Tensor, y: Tensor, case: Case, repeats: int, clock: Clock
) -> tuple[Turns, float]:
    """Seconds of the bare passes and of the attack, in turn, and how many samples a pass holds."""
    eps = EPS[case.norm]
    with tape.recording() as calls:
        run(model, x, y, case, eps=eps)
    pool = pool_for(x, calls)
    bare, attack = (lambda: floor(tape.net, pool, calls)), (lambda: run(model, x, y, case, eps=eps))
    return in_turn(bare, attack, repeats, clock), passes(calls)[0] / len(calls)


def table(
    model: rml.Classifier, tape: Tape, x: Tensor, y: Tensor, wanted: list[Case], repeats: int, clock: Clock
) -> None:
    line(["attack", "norm", "options", "mean batch", "ms of the floor", "best", "median", "middle half"])
    line(["---"] * 3 + ["--:"] * 5)
    for case in wanted:
        print(f"{case.name} {case.norm} {case.shown}", file=sys.stderr)
        turns, size = overhead(model, tape, x, y, case, repeats, clock)
        low, high = middle(turns.ratios)
        bare = 1000 * statistics.median(turns.bare)
        figures = [
            f"{size:.0f}",
            f"{bare:.0f}",
            f"{turns.best:.3f}",
            f"{turns.ratio:.3f}",
            f"{low:.3f} to {high:.3f}",
        ]
        line([case.name, case.norm, case.shown, *figures])


def middle(values: list[float]) -> tuple[float, float]:
    """The range of the middle half."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def on_a_weak_model(
    model: rml.Classifier, tape: Tape, x: Tensor, y: Tensor, batch: int, wanted: list[Case]
) -> None:
    """Passes per sample where nearly every sample is broken at once."""
    line(["attack", "norm", "options", "forward", "backward"])
    line(["---"] * 3 + ["--:"] * 2)
    for case in wanted:
        with tape.recording() as calls:
            for part, labels in zip(x.split(batch), y.split(batch), strict=True):
                run(model, part, labels, case)
        figures = [f"{count / len(x):.2f}" for count in passes(calls)]
        line([case.name, case.norm, case.shown, *figures])


def main(arguments: Sequence[str] | None = None) -> int:
    native = named({Access.GRADIENT, Access.SCORE})
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument(
        "--attack", nargs="+", choices=list(all_attacks()), metavar="NAME", help="default: as above"
    )
    parser.add_argument("--norm", nargs="+", choices=NORMS, default=NORMS, help="default: all of them")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="default: wall")
    parser.add_argument("--passes", action="store_true", help="count passes on an undefended network instead")
    given = parser.parse_args(arguments)
    present(parser, given.data, ["mnist.npz", "mnist_pgd.safetensors"])
    torch.set_num_threads(given.threads)
    tape = Tape(undefended(given.data) if given.passes else robust(given.data))
    model = rml.Classifier(tape, inputs=rml.InputSpec(shape=(1, 28, 28)), classes=10)
    x, y = mnist(given.data, "test", 1000 if given.passes else given.batch)
    wanted = cases(given.attack or (["pgd", "apgd"] if given.passes else native), given.norm)
    with model.ready(torch.device("cpu")):
        if given.passes:
            on_a_weak_model(model, tape, x, y, given.batch, wanted)
        else:
            table(model, tape, x, y, wanted, given.repeats, CLOCKS[given.clock])
    return 0


if __name__ == "__main__":
    sys.exit(main())
