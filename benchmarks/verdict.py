"""The verdict on a real adversarially trained network: `python benchmarks/verdict.py --suite standard`."""

from __future__ import annotations

import argparse

import torch
from models import data_option, mnist, robust

import robustml as rml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x, y = mnist(arguments.data, "test", arguments.samples)
    model = rml.Classifier(robust(arguments.data), inputs=rml.InputSpec(shape=(1, 28, 28)), classes=10)
    report = rml.stress_test(
        model,
        (x, y),
        threats=[rml.Linf(0.3)],
        suite=arguments.suite,
        seed=arguments.seed,
        name="mnist_pgd",
        progress=True,
    )
    print(report)


if __name__ == "__main__":
    main()
