"""What guards cost and what they are worth: `python benchmarks/guards.py`.

Each guard stands alone before an undefended network, for MNIST and for the 8 by 8 digits that come with
scikit-learn, and is stress-tested at several budgets. Printed are clean accuracy, the share of clean images
that is rejected, how much of what fools the network without the guard it stops while the attacker does not
know of it, robust accuracy under attackers who do not know of the guard and under those who do, and the time
that a batch takes beside the bare network in the same run. Guards that learn are fitted on clean images that
are neither trained nor tested on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from command import Parser, line, positive, present
from models import data_option, mnist, undefended

import robustml as rml
from robustml.report.parts import ThreatResult
from robustml.targets import load_target
from robustml.targets.guarding import made

THREATS = {"mnist": ("linf:0.2", "l2:1.5", "l2:3"), "digits": ("linf:0.05", "linf:0.1")}
FITTED = 2000
GUARDS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "validate": [{"guard": "validate", "mode": "reject", "fpr": 0.05}],
    "bit-depth 1": [{"guard": "bit-depth", "bits": 1}],
    "bit-depth 3": [{"guard": "bit-depth", "bits": 3}],
    "median 2": [{"guard": "median", "size": 2}],
    "median 3": [{"guard": "median", "size": 3}],
    "non-local-means": [{"guard": "non-local-means"}],
    "jpeg 50": [{"guard": "jpeg", "quality": 50}],
    "smoothing 0.25": [{"guard": "smoothing", "sigma": 0.25}],
    "squeeze-detector": [{"guard": "squeeze-detector", "fpr": 0.05}],
    "density, logits": [{"guard": "density", "fpr": 0.05}],
    "density, input": [{"guard": "density", "layer": "input", "fpr": 0.05}],
    "median 2, squeeze-detector": [
        {"guard": "median", "size": 2},
        {"guard": "squeeze-detector", "fpr": 0.05},
    ],
}


@dataclass(frozen=True)
class Bench:
    """A network with its data: what is tested, and clean images for guards to learn from."""

    model: rml.Classifier
    tested: tuple[torch.Tensor, torch.Tensor]
    clean: tuple[torch.Tensor, torch.Tensor]


def benches(names: Sequence[str], given: Any) -> Iterator[tuple[str, Bench]]:
    if "mnist" in names:
        net = undefended(given.data)
        model = rml.Classifier(net, inputs=rml.InputSpec(shape=(1, 28, 28)), classes=10)
        # The halves of the test set were written by different people; a threshold holds for more of the same.
        x, y = mnist(given.data, "test", 10_000)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        tested, clean = order[: given.samples], order[given.samples : given.samples + FITTED]
        yield "mnist", Bench(model, (x[tested], y[tested]), (x[clean], y[clean]))
    if "digits" in names:
        target = load_target("digits")
        x, y = torch.from_numpy(target.data.x), torch.from_numpy(target.data.y)
        rest = slice(given.samples, None)
        yield "digits", Bench(target.model, (x[: given.samples], y[: given.samples]), (x[rest], y[rest]))


def guarded(bench: Bench, chosen: list[dict[str, Any]]) -> rml.Guarded | rml.Classifier:
    guards: list[rml.Guard] = []
    (x, y), model = bench.clean, bench.model
    for entry in chosen:
        options = {key: value for key, value in entry.items() if key != "guard"}
        each = made(entry["guard"], options, model=model, x=x, y=y)
        each.attach(model.inputs)
        guards.append(each)
        with torch.no_grad():
            x = torch.cat([each(part) for part in torch.split(x, 256)])
    return rml.Guarded(model, guards) if guards else model


def row(name: str, guard: str, report: rml.Report, threat: ThreatResult) -> list[str]:
    section, upper = report.guards, threat.robust_accuracy.upper
    assert upper is not None
    cells = [name, guard, threat.name, str(report.clean.accuracy)]
    if section is None:
        return [*cells, "-", "-", "-", str(upper), "1", "yes" if report.trusted else "no"]
    rejected = f"{100 * section.rejected.value:.1f} %" if section.rejected else "-"
    unaware = threat.unaware
    if unaware is None:
        return [*cells, rejected, "-", "-", str(upper), f"{section.latency:.2g}", "no"]
    fooled = report.clean.accuracy.count - unaware.bare.count
    through = report.clean.accuracy.count - unaware.robust_accuracy.count
    stopped = f"{100 * (1 - through / fooled):.1f} % of {fooled}" if fooled else "-"
    return [
        *cells,
        rejected,
        stopped,
        str(unaware.robust_accuracy),
        str(upper),
        f"{section.latency:.2g}",
        "yes" if report.trusted else "no",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument("--on", nargs="+", choices=list(THREATS), default=list(THREATS), help="default: both")
    parser.add_argument("--guard", nargs="+", choices=list(GUARDS), metavar="NAME", help="default: all")
    parser.add_argument("--samples", type=positive, default=300)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--threads", type=positive, default=1)
    given = parser.parse_args(arguments)
    if "mnist" in given.on:
        present(parser, given.data, ["mnist.npz"])
    torch.set_num_threads(given.threads)
    heads = ["network", "guard", "within", "clean accuracy", "clean rejected", "stopped, unaware"]
    line([*heads, "robust, unaware", "robust, aware", "time", "trusted"])
    line(["---"] * 3 + ["--:"] * 6 + ["---"])
    for name, bench in benches(given.on, given):
        for guard in given.guard or GUARDS:
            model = guarded(bench, GUARDS[guard])
            print(f"{name}: {guard}", file=sys.stderr)
            report = rml.stress_test(
                model, bench.tested, threats=THREATS[name], suite=given.suite, select="first"
            )
            for threat in report.threats:
                line(row(name, guard, report, threat))
            for reason in report.distrust:
                print(f"    not trusted: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
