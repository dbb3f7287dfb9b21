"""
Guard a model, and attack it through its guards
===============================================

Puts two guards before a small network that knows scikit-learn's digits: one that keeps three bits of each
pixel, and one that rejects images whose prediction changes when they are squeezed (Xu et al. 2018). Then it
measures what that is worth to an attacker who does not know of the guards, and to one who does.

Time: about a minute, with ``--quick`` about ten seconds. No download.

Expected output: the report as a card on the terminal and, last, a line such as
``result: unaware attackers leave 91.0 %, aware ones at most 52.0 % [45.0, 59.0] under linf:0.1``. The first
figure is the one that most papers on such guards report; the second one is the one that holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import robustml as rml
from robustml.defenses.guards import BitDepth, SqueezeDetector

# %%
# The network is the one of the built-in target ``digits``; of its 500 test images a half is attacked, and the
# guard that learns gets the other half. What it learns of must be neither trained on nor tested.


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Guard a model and attack it through its guards.")
    parser.add_argument("--quick", action="store_true", help="fewer samples and a shorter suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for the run: report, journal, adversarial examples")
    args = parser.parse_args(argv)

    target = rml.load_target("digits")
    x, y = torch.from_numpy(target.data.x), torch.from_numpy(target.data.y)
    clean, tested = x[250:], (x[:250], y[:250])

    # %%
    # A guarded model is a model: it predicts, it is attacked as one, and it is saved and loaded as one.
    squeezers = [{"guard": "bit-depth", "bits": 2}, {"guard": "median", "size": 2}]
    guards = [BitDepth(3), SqueezeDetector.fit(target.model, clean, fpr=0.05, squeezers=squeezers)]
    guarded = rml.Guarded(target.model, guards)
    rejected = guarded(tested[0]).argmax(1) == guarded.classes
    print(f"{int(rejected.sum())} of {len(rejected)} clean images are rejected")

    # %%
    # Success means *accepted and misclassified*; a clean image that is rejected counts as an error.
    report = rml.stress_test(
        guarded,
        tested,
        threats=[rml.Linf(0.1)],
        suite="quick" if args.quick else "standard",
        samples=100 if args.quick else None,
        seed=args.seed,
        out=args.out,
    )
    print(report)
    if not report.trusted:
        print("the figures are not to be trusted:", "; ".join(report.distrust))

    threat = report.threats[0]
    assert threat.unaware is not None
    unaware = f"{100 * threat.unaware.robust_accuracy.value:.1f} %"
    aware = f"aware ones at most {threat.robust_accuracy.upper} under {threat.name}"
    print(f"result: unaware attackers leave {unaware}, {aware}")


if __name__ == "__main__":
    main()
