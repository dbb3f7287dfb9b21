"""Our verdict beside AutoAttack's: `python benchmarks/verdict.py --suite standard --autoattack CHECKOUT`.

Prints one row of a Markdown table per model. All passes are counted by hooks on the network itself, for both
sides alike: ours over the whole run (checks, curve and diagnostics included) and, from the report, over the
attacks of the suite alone. Progress goes to stderr. Without `--autoattack` and without `--cache` the table
holds our figures only.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from models import data_option
from reference import NAMES, Passes, Reference, counted, reference
from zoo import Case, load

import robustml as rml

OURS = ["model", "threat", "clean", "ours", "passes of the whole run", "passes of the attacks"]
THEIRS = ["AutoAttack", "its passes", "it costs", "only it breaks", "only we break"]


@dataclass(frozen=True)
class Verdict:
    """What a suite left standing, and what it cost."""

    clean: int
    standing: frozenset[int]
    whole: Passes
    attacks: Passes
    seconds: float


def judged(case: Case, suite: str, *, seed: int, batch: int) -> Verdict:
    """Run one of our suites on all images of a case."""
    shape = tuple(case.x.shape[1:])
    model = rml.Classifier(case.net, inputs=rml.InputSpec(shape=shape), classes=case.classes)
    begun = time.perf_counter()
    with counted(case.net) as whole:
        report = rml.stress_test(
            model,
            (case.x, case.y),
            threats=[case.threat],
            suite=suite,
            seed=seed,
            batch_size=batch,
            name=case.name,
            device="cpu",
            progress=True,
        )
    seconds = time.perf_counter() - begun
    (result,) = report.threats
    show(report)
    attacks = Passes(
        sum(ran.passes.forward for ran in result.attacks), sum(ran.passes.backward for ran in result.attacks)
    )
    rows = zip(report.samples.ids, result.outcomes, strict=True)
    standing = frozenset(row for row, outcome in rows if outcome == "s")
    return Verdict(report.clean.accuracy.count, standing, whole, attacks, seconds)


def show(report: rml.Report) -> None:
    """Say on stderr what each attack did, and whether the report can be trusted."""
    (result,) = report.threats
    for ran in result.attacks:
        print(
            f"  {ran.id:20} {ran.status:8} {ran.attempted:5} attacked {ran.broken:5} broken "
            f"{ran.passes.forward:9} forward {ran.passes.backward:9} backward {ran.seconds:8.1f} s",
            file=sys.stderr,
        )
    print(f"  {report.verdict}", file=sys.stderr)
    for reason in report.distrust:
        print(f"  not trusted: {reason}", file=sys.stderr)


def row(case: Case, ours: Verdict, theirs: Reference | None) -> list[str]:
    """One line of the table; passes are forward / backward / forward + 2 x backward, per image."""
    count = len(case.x)
    cells = [
        case.name,
        case.threat,
        f"{ours.clean} of {count}",
        str(len(ours.standing)),
        ours.whole.per(count),
        ours.attacks.per(count),
    ]
    if theirs is None:
        return cells
    left = frozenset(theirs.standing)
    times = [f"{theirs.passes.cost / passes.cost:.1f}" for passes in (ours.whole, ours.attacks)]
    return [
        *cells,
        str(len(left)),
        theirs.passes.per(count),
        f"{times[0]} x the run, {times[1]} x the attacks",
        listed(ours.standing - left),
        listed(left - ours.standing),
    ]


def listed(rows: frozenset[int], most: int = 12) -> str:
    """How many images, and which."""
    if not rows:
        return "0"
    more = ", …" if len(rows) > most else ""
    return f"{len(rows)} ({', '.join(map(str, sorted(rows)[:most]))}{more})"


def line(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--model", choices=[*NAMES, "all"], default="mnist_pgd")
    parser.add_argument("--zoo", type=Path, help="folder that benchmarks/zoo.py wrote")
    parser.add_argument("--autoattack", type=Path, help="checkout of the repository of AutoAttack")
    parser.add_argument("--cache", type=Path, help="folder that keeps AutoAttack's results, one JSON a model")
    parser.add_argument("--samples", type=int, help="test images; 1,000 of mnist_pgd, 500 otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compared = arguments.autoattack is not None or arguments.cache is not None
    columns = [*OURS, *(THEIRS if compared else [])]
    line(columns)
    line(["---"] * len(columns))
    for name in NAMES if arguments.model == "all" else [arguments.model]:
        case = load(name, arguments.zoo, arguments.data, arguments.samples)
        print(f"{name}: {len(case.x)} images under {case.threat}", file=sys.stderr)
        ours = judged(case, arguments.suite, seed=arguments.seed, batch=arguments.batch)
        print(f"  {ours.seconds:.1f} s", file=sys.stderr)
        theirs = None
        if compared:
            # Always with its seed 0 and batch 256, so that the seeds of ours can vary against one result.
            theirs = reference(case, arguments.autoattack, arguments.cache, seed=0, batch=256)
        line(row(case, ours, theirs))


if __name__ == "__main__":
    main()
