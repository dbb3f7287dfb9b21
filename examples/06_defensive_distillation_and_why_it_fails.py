"""
Defensive distillation, and why it fails
========================================

Trains a small network on scikit-learn's digits by defensive distillation at temperature 100 (Papernot et al.
2016), attacks it the way that made it look robust, and then the way that does not.

Time: about half a minute, with ``--quick`` about ten seconds. No download.

Expected output: two reports as cards on the terminal and, last, a line such as
``result: distilled, PGD on the cross-entropy leaves 82.0 %, the truth is at most 36.0 % [31.8, 40.4] under
linf:0.1``, in one line. The first figure is the one that a naive evaluation reports.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import robustml as rml
from robustml.defenses.training import distill

# %%
# The naive evaluation: projected gradient descent that goes up the cross-entropy, and nothing else.

NAIVE = """
schema = 1
name = "naive"

[[attack]]
id = "pgd"
use = "pgd"
options = { loss = "ce", steps = 40 }
"""


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Distill a small network, and attack it twice.")
    parser.add_argument("--quick", action="store_true", help="fewer samples and a shorter suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for the runs: report, journal, adversarial examples")
    args = parser.parse_args(argv)

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    train, test = (images[:1297], digits.target[:1297]), (images[1297:], digits.target[1297:])

    # %%
    # A teacher learns the labels with its logits divided by 100; a student learns the teacher's probabilities
    # with its own divided by 100; and the student is deployed without the division.
    settings = {"epochs": 15, "batch_size": 64, "learning_rate": 0.01, "seed": args.seed}
    student = distill(build(args.seed), train, temperature=100.0, **settings).model
    with torch.no_grad():
        logits = student(torch.from_numpy(test[0]))
    first, second = logits.topk(2, dim=1).values.T
    saturated = float((torch.softmax(logits, 1).amax(1) == 1).float().mean())
    print(
        f"The largest logit leads by {(first - second).median():.0f}; the largest probability is exactly 1 on"
    )
    print(f"{100 * saturated:.0f} % of the images: the cross-entropy is flat there, and PGD stands still.")

    # %%
    # The same model, data and budget, attacked twice. The suites of robustml hold attacks on differences of
    # logits, which a factor of 100 does not change.
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        naive = Path(folder) / "naive.toml"
        naive.write_text(NAIVE, encoding="utf-8")
        for name, suite in {"naive": naive, "full": "quick" if args.quick else "standard"}.items():
            reports[name] = rml.stress_test(
                student,
                test,
                threats=[rml.Linf(0.1)],
                suite=suite,
                samples=100 if args.quick else None,
                seed=args.seed,
                out=Path(args.out) / name if args.out else None,
            )
            print(reports[name])

    # %%
    # The diagnostics know the symptom (D01: no usable gradient; D03: saturated outputs), and with the naive
    # suite they say that its figure is not to be trusted.
    for name, report in reports.items():
        found = [
            f"{d.code} {d.status}" for d in report.threats[0].diagnostics if d.status in {"warn", "fail"}
        ]
        print(f"{name}: {', '.join(found)}; {'trusted' if report.trusted else 'not to be trusted'}")
    # The diagnostics of the naive run break some samples by themselves; what PGD alone has left is this.
    pgd = reports["naive"].threats[0].attacks[0]
    apparent = 100 * (pgd.attempted - pgd.broken) / reports["naive"].clean.accuracy.total
    threat = reports["full"].threats[0]
    true = f"the truth is at most {threat.robust_accuracy.upper} under {threat.name}"
    print(f"result: distilled, PGD on the cross-entropy leaves {apparent:.1f} %, {true}")


if __name__ == "__main__":
    main()
