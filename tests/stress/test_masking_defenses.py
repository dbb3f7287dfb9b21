"""Defenses that hide the gradient, and what becomes of each under the suite `standard`.

Each is either broken as far as the network within is, or the report is not trusted and says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from tests.stress import defenses
from tests.stress.toy import finding

X = np.random.default_rng(5).random((64, defenses.FEATURES)).astype(np.float32)
SUITE = "standard"
# Samples that a model answers before it tires: after the first look of D06, and well within the run.
PATIENCE = 2000


@dataclass(frozen=True)
class Row:
    """One defense and its fate.

    Attributes:
        made: Builds it.
        broken: Whether the suite breaks it as far as the network without it.
        fails: Critical diagnostics that must fail, so that the report is not trusted.
        warns: Diagnostics that must say something.
        says: Words that the last of the diagnostics named must use.
    """

    made: Any
    broken: bool
    fails: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    says: str = ""
    outputs: Any = "logits"


TABLE = {
    "rounded inputs": Row(defenses.Rounding, True, warns=("D01", "D22"), says="masked by round"),
    "inputs cast to integers": Row(defenses.Floored, True, warns=("D01", "D22"), says="masked by cast"),
    "a graph cut at the input": Row(
        defenses.Detached, True, warns=("D01", "D02", "D22"), says="masked by detach"
    ),
    "no gradients computed": Row(
        defenses.Ungraded, True, warns=("D01", "D02", "D22"), says="masked by detach"
    ),
    "hidden signs": Row(defenses.Signs, True, warns=("D01", "D22"), says="masked by sign"),
    "saturated softmax": Row(defenses.Saturated, True, warns=("D03",), says="saturated"),
    "probabilities of exactly 0 and 1": Row(
        defenses.Certain, False, fails=("D01", "D13"), warns=("D03", "D04"), outputs="probabilities"
    ),
    "shuffled logits": Row(defenses.Shuffled, False, fails=("D02",), says="off by more than 10 %"),
    "logits that mislead": Row(defenses.Misleading, False, fails=("D10",), says="random points broke"),
    "a backward pass of zero": Row(defenses.Zeroed, False, fails=("D01", "D02", "D13")),
    "a backward pass turned round": Row(defenses.Reversed, False, fails=("D02",)),
    "ripples": Row(defenses.Shattered, False, fails=("D11",), says="broke"),
    "counts calls, then answers from memory": Row(
        lambda: defenses.Tired(PATIENCE, torch.from_numpy(X)), False, fails=("D06",), says="attribute"
    ),
    "counts calls, then hides its scores": Row(
        lambda: defenses.Fickle(PATIENCE), False, fails=("D06",), says="not what they were"
    ),
    "random noise": Row(defenses.Noisy, True),
    "gradients inside of the forward pass": Row(
        defenses.Purifying, True, warns=("D06",), says="computes gradients"
    ),
}


@cache
def _labels() -> Any:
    with torch.no_grad():
        return defenses.base()(torch.from_numpy(X)).argmax(1).numpy()


@cache
def _report(name: str | None) -> rml.Report:
    row = Row(defenses.base, True) if name is None else TABLE[name]
    module: nn.Module = row.made()
    inputs = rml.InputSpec(shape=(defenses.FEATURES,))
    model = rml.Classifier(module.eval(), inputs=inputs, classes=3, outputs=row.outputs)
    # The defenses keep the network's answers, more or less, so its labels are the truth for all.
    return rml.stress_test(model, (X, _labels()), threats=["linf:0.1"], suite=SUITE, device="cpu")


def _robust(report: rml.Report) -> float:
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    return upper.value


def test_the_network_without_a_defense_is_trusted() -> None:
    report = _report(None)
    assert report.trusted, report.distrust
    assert finding(report, "D22").status == "pass"
    assert 0.1 < _robust(report) < 0.5


@pytest.mark.parametrize("name", TABLE)
def test_a_defense_is_broken_or_not_trusted(name: str) -> None:
    row, report = TABLE[name], _report(name)
    for code in row.fails:
        assert finding(report, code).status == "fail", finding(report, code)
        assert any(code in reason for reason in report.distrust)
    for code in row.warns:
        assert finding(report, code).status in {"warn", "fail"}, finding(report, code)
    for named in (*row.fails, *row.warns)[-1:]:
        assert row.says in finding(report, named).detail
    if row.broken:
        # Where the defense keeps every answer, it may keep no sample that the network loses.
        assert _robust(report) <= _robust(_report(None)) + 0.05
    else:
        assert not report.trusted


def test_what_only_surrogates_break_is_counted_and_told() -> None:
    found = finding(_report("rounded inputs"), "D18")
    assert found.value is not None
    assert found.value > 0.3
    assert "the model's own gradient" in found.detail
