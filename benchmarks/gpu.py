"""Does an attack keep the device waiting: `python benchmarks/gpu.py`.

Every attack of robustml works on a ResNet-18 for images of 3x32x32 with random weights (the images are
noise, the labels the network's own answers), and two things are measured. First how often it makes the host
wait for the device between two forward passes: by the check who still stands, which is made at every fourth
step at first, every eighth later, and anew in each restart; and by everything else, which should be next to
nothing.
Then its time over the floor, a bare loop of the same passes, in turn, the median of the pairs.

On a CUDA device the batch is 1,000, torch itself reports what waits, and times are taken with events on the
device. Budgets are so small that no sample is broken, and minimum-norm attacks go on within theirs, so that
the batch stays whole; runs are short, so that the check weighs more in them than it does in long ones.

Without one it runs on the CPU with a narrow network and a small batch. The attack then goes the ways that it
goes on a device, and the count is of the calls that would wait, by name (`syncs.py` lists them). It shows
which attacks synchronise and where; it does not show what waits below the level of torch's operations or in
copies between devices. The times are those of a CPU: on a network and a batch of this size they show nothing
but that the script works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from command import Parser, line, positive
from floor import CLOCKS, Tape, Turns, floor, in_turn, pool_for
from models import resnet18
from natives import NORMS, Case, cases, named, run
from syncs import Steps, Ticking, watching
from torch import Tensor

import robustml as rml
from robustml.registry import Access, all_attacks, find_attack

HEADS = ["attack", "norm", "steps", "synchronisations per step: others", "steps with others", "check"]
MOST = {"steps": 32, "later_steps": 12, "queries": 100, "legs": 6}
"""How long the runs are; what is shorter stays as it is."""
EPS = {"linf": 1e-4, "l2": 1e-4, "l1": 1e-4, "l0": 1.0}


def images(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=generator).to(device)


def shortened(wanted: list[Case]) -> list[Case]:
    """One short run of each attack and norm."""
    found: dict[tuple[str, str], Case] = {}
    for case in wanted:
        options = dict(case.options)
        for option, _, default in find_attack(case.name).parameters():
            if option in MOST:
                options[option] = min(options.get(option, default), MOST[option])
        found.setdefault((case.name, case.norm), Case(case.name, case.norm, options))
    return list(found.values())


def counted(ticking: Ticking, model: rml.Classifier, x: Tensor, y: Tensor, case: Case) -> Steps:
    with watching(ticking, x.device) as steps:
        run(model, x, y, case, eps=EPS[case.norm])
    return steps.finish()


def timed(tape: Tape, model: rml.Classifier, x: Tensor, y: Tensor, case: Case, repeats: int) -> Turns:
    with tape.recording() as calls:
        run(model, x, y, case, eps=EPS[case.norm])
    pool = pool_for(x, calls)
    clock = CLOCKS["cuda" if x.device.type == "cuda" else "cpu"]
    return in_turn(
        lambda: floor(tape.net, pool, calls),
        lambda: run(model, x, y, case, eps=EPS[case.norm]),
        repeats,
        clock,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = Parser(__doc__)
    parser.add_argument(
        "--attack", nargs="+", choices=list(all_attacks()), metavar="NAME", help="default: all"
    )
    parser.add_argument("--norm", nargs="+", choices=NORMS, default=NORMS, help="default: all of them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=positive, help="default: 1000 on CUDA, 4 on the CPU")
    parser.add_argument("--width", type=positive, help="of the network; default: 64 on CUDA, 8 on the CPU")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--places", action="store_true", help="list the lines that synchronise on stderr")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not cuda:
        parser.error("--device cuda: there is no CUDA device; leave it out to run on the CPU")
    compare(given)
    return 0


def compare(given: argparse.Namespace) -> None:
    """Print the table."""
    device = torch.device(given.device)
    on_device = device.type == "cuda"
    if not on_device:
        torch.set_num_threads(1)
    net = resnet18(given.width or (64 if on_device else 8))
    tape = Tape(net)
    ticking = Ticking(tape)
    spec = rml.InputSpec(shape=(3, 32, 32))
    model = rml.Classifier(ticking, inputs=spec, classes=10)
    x = images(given.batch or (1000 if on_device else 4), device)
    where = (
        torch.cuda.get_device_name() if on_device else "CPU: the count is a stand-in, the time means little"
    )
    print(f"{where}; batch {len(x)}; torch {torch.__version__}", file=sys.stderr)
    line([*HEADS, "overhead"])
    line(["---"] * 2 + ["--:"] * 5)
    with model.ready(device):
        with torch.no_grad():
            y = model(x).argmax(1)
        for case in shortened(cases(given.attack or named(set(Access)), given.norm)):
            print(f"{case.name} {case.norm} {case.shown}", file=sys.stderr)
            steps = counted(ticking, model, x, y, case)
            turns = timed(tape, model, x, y, case, given.repeats)
            row(case, steps, turns)
            if given.places:
                for place, count in sorted(steps.places.items()):
                    print(f"  {place}: {count}", file=sys.stderr)


def row(case: Case, steps: Steps, turns: Turns) -> None:
    others, checks = f"{steps.rate(steps.others):.2f}", f"{steps.rate(steps.checks):.2f}"
    figures = [others, f"{100 * steps.share:.0f} %", checks]
    line([case.name, case.norm, len(steps), *figures, f"{turns.ratio:.2f}"])


if __name__ == "__main__":
    sys.exit(main())
