"""
Validate tabular inputs
=======================

Puts input validation in front of a classifier of tumors: columns, types, ranges and a distance to the
training data, learned from clean data. Raw tables come in through it, what is refused has a reason that
machines read, a monitor counts, and the guarded model is stress-tested by attacks that know the guard.

Time: about half a minute, with ``--quick`` about ten seconds. No download.

Expected output: a line for each refused row, the counters, whether the inputs have drifted, and last a line
such as ``result: bare at most 14.1 %, guarded at most 12.1 % under linf:0.1``. Validation keeps broken inputs
out. It does not make a model robust: attacks stay within what it accepts, and what it rejects of clean inputs
counts as an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import robustml as rml
from robustml.defenses.guards import Monitor, Validate

# %%
# A change of a feature counts in units of its range, so that one budget suits areas and angles alike.


def load(seed: int) -> tuple[rml.InputSpec, list[tuple[np.ndarray, np.ndarray]]]:
    data = load_breast_cancer()
    low, high = data.data.min(0), data.data.max(0)
    room = 0.5 * (high - low)
    inputs = rml.InputSpec(
        shape=(30,),
        bounds=(tuple(low - room), tuple(high + room)),
        mean=tuple(data.data.mean(0)),
        std=tuple(data.data.std(0)),
        scale=tuple(high - low),
        features=tuple(str(name) for name in data.feature_names),
    )
    order = np.random.default_rng(seed).permutation(len(data.data))
    x, y = data.data[order].astype(np.float32), data.target[order].astype(np.int64)
    return inputs, [(x[part], y[part]) for part in (slice(0, 300), slice(300, 420), slice(420, None))]


def train(inputs: rml.InputSpec, x: np.ndarray, y: np.ndarray, seed: int) -> rml.Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    model = rml.Classifier(net, inputs=inputs, classes=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(200):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Validate tabular inputs and attack the guarded model.")
    parser.add_argument("--quick", action="store_true", help="a shorter suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for the runs: reports, journals, adversarial examples")
    args = parser.parse_args(argv)

    inputs, (learn, reference, test) = load(args.seed)
    model = train(inputs, *learn, args.seed)

    validate = Validate.fit(learn[0], fpr=0.02)
    guarded = rml.Guarded(model, guards=[validate])
    rate, low, high = validate.false_rejections
    print(f"refuses {100 * rate:.0f} % of clean inputs [{100 * low:.0f}, {100 * high:.0f}]")

    # A table with four rows as it may come from a form: the first is in order.
    table = {name: column[:4].tolist() for name, column in zip(inputs.features, reference[0].T, strict=True)}
    table["mean radius"][1] = "12 mm"
    table["mean texture"][2] = float("nan")
    table["mean area"][3] = 1e9
    monitor = Monitor(guarded, reference[0])
    for rejection in monitor.predict(table).rejections:
        print(rejection.text)
    del table["mean area"]
    print(*(rejection.text for rejection in monitor.predict(table).rejections))
    print(monitor.counters()["reasons"])

    # Later inputs against the reference; then a sensor breaks.
    monitor.predict(test[0])
    print(monitor.drift(window=len(test[0])))
    drifted = test[0].copy()
    drifted[:, inputs.features.index("mean area")] *= 1.3
    monitor.predict(drifted)
    print(monitor.drift(window=len(drifted)))

    found = {}
    for name, attacked in (("bare", model), ("guarded", guarded)):
        report = rml.stress_test(
            attacked,
            test,
            threats=[rml.Linf(0.1)],
            suite="quick" if args.quick else "standard",
            seed=args.seed,
            out=Path(args.out) / name if args.out else None,
        )
        print(f"{name}: clean {report.clean.accuracy}")
        found[name] = 100 * report.threats[0].robust_accuracy.upper.value
    print(
        f"result: bare at most {found['bare']:.1f} %, guarded at most {found['guarded']:.1f} % "
        f"under {report.threats[0].name}"
    )


if __name__ == "__main__":
    main()
