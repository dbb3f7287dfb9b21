"""Models and data so small that a whole stress test takes a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustml import registry
from robustml.api import target_of
from robustml.classifier import Classifier
from robustml.inputs import InputSpec
from robustml.registry import Access, all_attacks, attack
from robustml.report.build import build_report
from robustml.report.model import Diagnostic, Report
from robustml.runs import run_target
from robustml.stress.folder import RunFolder
from robustml.targets import Target
from robustml.threats import parse_threat

FEATURES = 6

SUITE = """
schema = 1
name = "toy"

[[attack]]
id = "fgsm"
use = "fgsm"

[[attack]]
id = "apgd"
use = "apgd"
options = { loss = "margin", steps = 8 }

[[attack]]
id = "square"
use = "square"
options = { queries = 20 }

[[curve.attack]]
use = "pgd"
options = { loss = "margin", steps = 8 }

[curve]
points = [0.5, 1.5]

[diagnostics]
samples = 16
noise_draws = 8
"""


def linear(
    seed: int = 0, classes: int = 3, features: int = FEATURES, dtype: Any = torch.float64
) -> nn.Linear:
    """A linear classifier with weights of its own seed."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features, classes).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, features, generator=generator, dtype=dtype))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return layer.requires_grad_(True)


def points(n: int = 30, features: int = FEATURES, seed: int = 1) -> np.ndarray[Any, Any]:
    """Inputs in [0, 1], drawn uniformly."""
    return np.random.default_rng(seed).random((n, features))


def labels_of(module: nn.Module, x: np.ndarray[Any, Any], wrong: int = 0) -> np.ndarray[Any, Any]:
    """What the module answers, except that the first `wrong` labels are another class."""
    with torch.no_grad():
        logits = module(torch.from_numpy(x))
    y = logits.argmax(1).numpy().copy()
    y[:wrong] = (y[:wrong] + 1) % logits.shape[1]
    return y


def classifier(
    module: nn.Module, *, shape: tuple[int, ...] = (FEATURES,), classes: int = 3, dtype: str = "float64"
) -> Classifier:
    spec = InputSpec(shape=shape, dtype=dtype)
    return Classifier(module.eval(), inputs=spec, classes=classes)


def target(
    folder: Path,
    *,
    model: Any = None,
    data: Any = None,
    threats: tuple[str, ...] = ("linf:0.1",),
    suite: str = SUITE,
    batch: int = 8,
    wrong: int = 3,
    **changes: Any,
) -> Target:
    """A target on the toy suite; by default a linear model with 30 samples, 3 of them misclassified."""
    import dataclasses

    module = linear()
    model = model or classifier(module)
    if data is None:
        x = points()
        data = (x, labels_of(module, x, wrong))
    path = folder / "toy.toml"
    path.write_text(suite)
    bound = tuple(parse_threat(text).within(model.inputs) for text in threats)
    made = target_of(model, data, name="toy")
    settings: dict[str, Any] = {"threats": bound, "suite": str(path), "batch_size": batch, **changes}
    return dataclasses.replace(made, **settings)


def run(chosen: Target, out: Path, **options: Any) -> Report:
    """Stress-test a target in a folder, without the page that takes longer to draw than the rest."""
    plan, folder = run_target(chosen, out=out, device="cpu", **options)
    report = build_report(plan, folder, chosen.data)
    report.save(out / "report.json")
    return report


def stressed(tmp_path: Path, module: nn.Module | None = None, **changes: Any) -> Report:
    """The report on a module, a linear one if none is given, on samples that it classifies but for three."""
    module = module or linear()
    x = points()
    settings: dict[str, Any] = {
        "model": classifier(module),
        "data": (x, labels_of(module, x, 3)),
        "batch": 64,
    }
    return run(target(tmp_path, **{**settings, **changes}), tmp_path / "run")


def finding(report: Report, code: str, threat: int = 0) -> Diagnostic:
    return next(d for d in report.threats[threat].diagnostics if d.code == code)


def masked(report: Report) -> dict[str, Any]:
    """The report without what a clock wrote into it."""
    data = json.loads(report.to_json())
    data["created"], data["seconds"] = "", 0
    for threat in data["threats"]:
        for row in threat["attacks"]:
            row["seconds"] = 0
    return dict(data)


def records_of(out: Path) -> list[Any]:
    return RunFolder.open(out)[0].records


class Counting(nn.Module):
    """Count the samples that go through a module; fail at a chosen one, and when asked about none."""

    def __init__(
        self, module: nn.Module, *, fail_after: int | None = None, error: Any = KeyboardInterrupt
    ) -> None:
        super().__init__()
        self.module = module
        self.samples = 0
        self.fail_after = fail_after
        self.error = error or KeyboardInterrupt()

    def forward(self, x: Tensor) -> Tensor:
        if self.fail_after is not None and self.samples >= self.fail_after:
            raise self.error
        if not len(x):
            raise ValueError("an empty batch")
        self.samples += len(x)
        answer: Tensor = self.module(x)
        return answer


@contextmanager
def registered(name: str, function: Callable[..., Tensor], **changes: Any) -> Iterator[None]:
    """An attack that is known inside of the block only."""
    all_attacks()
    facts: dict[str, Any] = {
        "access": Access.GRADIENT,
        "norms": {"linf", "l2", "l1", "l0"},
        "reference": "made for a test",
        **changes,
    }
    attack(name, **facts)(function)
    try:
        yield
    finally:
        del registry._ATTACKS[name]


def only(*attacks: str, curve: str = "") -> str:
    """A suite of attacks by name, each with its default options, or as "name(key = value)"."""
    lines = ["schema = 1", 'name = "only"']
    for text in attacks:
        name, _, options = text.partition("(")
        lines += ["[[attack]]", f'id = "{name.replace(":", "-").lower()}"', f'use = "{name}"']
        if options:
            lines.append(f"options = {{ {options.rstrip(')')} }}")
    return "\n".join(lines) + "\n" + curve + "\n[diagnostics]\nsamples = 32\nnoise_draws = 8\n"
