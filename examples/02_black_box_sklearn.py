"""
Attack models that have no gradient
===================================

A random forest gives scores and no gradient: the Square attack breaks it by random search. A support vector
machine that answers with nothing but a label is broken by HopSkipJump, taken from the Adversarial Robustness
Toolbox. Both are stress-tested by the same call as a network.

Time: about a minute, with ``--quick`` about twenty seconds. No download.

Expected output: for each model a card and a line with its clean and robust accuracy, and last a line such as
``result: forest at most 5.5 %, svm at most 24.0 % under linf:0.2``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

import robustml as rml

# %%
# The inputs are vectors of 64 grey levels; a model that takes vectors is attacked as such.

INPUTS = rml.InputSpec(shape=(64,), bounds=(0.0, 1.0))
THREAT = rml.Linf(0.2)


def measure(
    name: str, model: rml.BlackBox, data: object, args: argparse.Namespace, samples: int
) -> rml.Report:
    report = rml.stress_test(
        model,
        data,
        threats=[THREAT],
        suite="quick" if args.quick else "standard",
        samples=samples,
        seed=args.seed,
        out=Path(args.out) / name if args.out else None,
    )
    print(report)
    print(
        f"{name}: clean {report.clean.accuracy}, robust at most {report.threats[0].robust_accuracy.upper}\n"
    )
    return report


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Stress-test scikit-learn models as black boxes.")
    parser.add_argument("--quick", action="store_true", help="fewer samples and a shorter suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for the runs: reports, journals, adversarial examples")
    args = parser.parse_args(argv)

    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    train, test = slice(0, 1297), slice(1297, None)
    data = (x[test], digits.target[test])

    # With scores: attacks that need a gradient are listed in the report as skipped, with the reason.
    forest = RandomForestClassifier(100, random_state=args.seed).fit(x[train], digits.target[train])
    scores = rml.BlackBox.from_sklearn(forest, inputs=INPUTS)
    first = measure("forest", scores, data, args, samples=50 if args.quick else 200)

    # With labels only, every sample costs thousands of queries: a few samples, and so a wide interval.
    svm = SVC(gamma="scale").fit(x[train], digits.target[train])
    labels = rml.BlackBox.from_sklearn(svm, inputs=INPUTS, labels_only=True)
    second = measure("svm", labels, data, args, samples=10 if args.quick else 25)

    forest_robust, svm_robust = (100 * r.threats[0].robust_accuracy.upper.value for r in (first, second))
    print(
        f"result: forest at most {forest_robust:.1f} %, svm at most {svm_robust:.1f} % "
        f"under {first.threats[0].name}"
    )


if __name__ == "__main__":
    main()
