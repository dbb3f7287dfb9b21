"""What `import robustml` gives: all of it, at once for people and late for the interpreter."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml import registry
from robustml.registry import Access, Logits, all_attacks
from tests.stress.toy import only

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


def test_importing_is_light() -> None:
    heavy = ["torch", "numpy", "scipy", "art", "sklearn", "matplotlib", "pydantic", "rich", "jinja2", "click"]
    program = f"import sys, robustml; dir(robustml); print([m for m in {heavy} if m in sys.modules])"
    assert run(program).strip() == "[]"


def test_every_name_is_listed_and_real() -> None:
    for name, home in rml._HOMES.items():
        assert name in dir(rml)
        value = getattr(rml, name)
        assert value is getattr(importlib.import_module(f"robustml.{home}"), name)
        assert value.__doc__
    assert rml.__version__ in dir(rml) or "__version__" in dir(rml)


def test_checkers_see_the_names_that_the_interpreter_gives() -> None:
    import ast

    tree = ast.parse((ROOT / "robustml" / "__init__.py").read_text(encoding="utf-8"))
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == rml._HOMES


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'stres_test'"):
        rml.stres_test  # noqa: B018


def test_the_first_example_of_the_design(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(only("fgsm", "apgd(steps = 4)"))
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(10, 64, generator=generator))
    x = torch.rand(24, 1, 8, 8, generator=generator)
    y = net(x).argmax(1)

    model = rml.Classifier(net, inputs=rml.InputSpec(shape=(1, 8, 8), bounds=(0, 1)), classes=10)
    report = rml.stress_test(
        model, (x, y), threats=[rml.Linf(0.01)], suite=str(tmp_path / "short.toml"), out=tmp_path / "run"
    )
    upper = report.threats[0].robust_accuracy.upper
    assert isinstance(upper, rml.Estimate)
    assert upper.low <= upper.value <= upper.high
    assert upper.value == report.threats[0].outcomes.count("s") / 24
    assert report.scores.evasion is not None
    report.save_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert isinstance(report, rml.Report)

    with torch.no_grad():
        net[1].weight.mul_(0.5)
    after = rml.stress_test(model, (x, y), threats=[rml.Linf(0.01)], suite=str(tmp_path / "short.toml"))
    rows = rml.compare(report, after)
    assert [row.figure for row in rows] == ["clean", "linf:0.01"]
    assert all(isinstance(row, rml.Comparison) for row in rows)


def test_an_attack_of_the_user_is_run_by_name(tmp_path: Path) -> None:
    all_attacks()

    @rml.attack("corner", access=Access.DECISION, norms={"linf"}, reference="the user")
    def corner(
        model: Logits, x: torch.Tensor, y: torch.Tensor, *, threat: rml.Threat, streams: rml.Streams
    ) -> torch.Tensor:
        """Go to a random corner."""
        ball = threat.around(x)
        return torch.where(streams.signs(*x.shape[1:]) > 0, ball.upper, ball.lower)

    try:
        (tmp_path / "mine.toml").write_text(only("corner"))
        net = nn.Linear(4, 3)
        with torch.no_grad():
            # What a fresh layer holds depends on the tests before; some have nothing to break.
            net.weight.copy_(torch.tensor([[1.0, -1, 1, -1], [-1, 1, 1, -1], [1, 1, -1, -1]]))
            net.bias.zero_()
        x = np.random.default_rng(0).random((20, 4)).astype(np.float32)
        with torch.no_grad():
            y = net(torch.from_numpy(x)).argmax(1)
        report = rml.stress_test(net, (x, y), threats=["linf:0.5"], suite=str(tmp_path / "mine.toml"))
    finally:
        del registry._ATTACKS["corner"]
    assert report.threats[0].attacks[0].id == "corner"
    assert report.threats[0].attacks[0].broken > 0


CONSUMER = """
import numpy as np
import torch

import robustml as rml

net = torch.nn.Linear(4, 3)
model: rml.Classifier = rml.Classifier(net, inputs=rml.InputSpec(shape=(4,), bounds=(0, 1)), classes=3)
x, y = np.zeros((5, 4), dtype=np.float32), np.zeros(5, dtype=np.int64)
report: rml.Report = rml.stress_test(model, (x, y), threats=[rml.Linf(0.3), "l2:0.5"], suite="quick")
upper: rml.Estimate | None = report.threats[0].robust_accuracy.upper
if upper is not None:
    share: float = upper.value
report.save_html("report.html")
for row in rml.compare(report, report):
    gained: int = row.difference.gained
"""


@pytest.mark.slow
def test_a_consumer_passes_the_type_checker(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(CONSUMER)
    bad.write_text(CONSUMER + "upper.value\nrml.stress_test(model, (x, y))\n")
    options = ["--strict", "--no-error-summary", f"--cache-dir={tmp_path / 'cache'}", "--config-file="]
    output, _, status = api.run([*options, "--ignore-missing-imports", str(good)])
    assert (output, status) == ("", 0)
    output, _, status = api.run([*options, "--ignore-missing-imports", str(bad)])
    assert status == 1
    assert "union-attr" in output
    assert "threats" in output
