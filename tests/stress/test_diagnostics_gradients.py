"""Diagnostics of the gradient: each on a model that it must flag and on one that it must not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustml.report.model import Report
from robustml.stress.folder import RunFolder
from tests.stress.toy import classifier, finding, labels_of, linear, only, points, run, stressed, target

APGD = 'apgd(loss = "margin", steps = 10)'
SMOOTH = 'apgd(loss = "margin", steps = 10, gradient = "smooth")'


class Before(nn.Module):
    """A linear classifier behind a function of the input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = linear()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.function(x))


def rounded(x: Tensor) -> Tensor:
    return (x * 9).round() / 9


def straight_through(x: Tensor) -> Tensor:
    return Through.apply(x)


class Through(torch.autograd.Function):
    """Rounding with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Opposite(torch.autograd.Function):
    """The identity with a derivative of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def squared(x: Tensor) -> Tensor:
    return x**3 + 0.1 * x


def rippled(x: Tensor) -> Tensor:
    return x + 0.15 * torch.sin(500 * x)


def report_on(tmp_path: Path, function: Any, **changes: Any) -> Report:
    return stressed(tmp_path, Before(function), **changes)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.2", "l1:0.4", "l0:2"])
@pytest.mark.parametrize("function", [squared, torch.tanh])
def test_a_gradient_is_the_derivative_of_the_loss(tmp_path: Path, function: Any, threat: str) -> None:
    found = finding(report_on(tmp_path, function, threats=(threat,)), "D02")
    assert found.status == "pass"
    assert found.value == 0.0


def test_a_gradient_is_honest_in_single_precision_too(tmp_path: Path) -> None:
    module = linear(dtype=torch.float32)
    x = points().astype("float32")
    model = classifier(module, dtype="float32")
    found = finding(
        run(target(tmp_path, model=model, data=(x, labels_of(module, x))), tmp_path / "run"), "D02"
    )
    assert found.status == "pass"
    assert found.value == 0.0


def test_features_with_a_scale_and_fixed_ones(tmp_path: Path) -> None:
    from robustml.classifier import Classifier
    from robustml.inputs import InputSpec

    spec = InputSpec(shape=(6,), dtype="float64", bounds=(0, 1), scale=[1, 2, 0.1, 1, 1, 3], immutable=(1, 4))
    model = Classifier(linear(), inputs=spec, classes=3)
    found = finding(stressed(tmp_path, model=model), "D02")
    assert found.status == "pass"
    assert found.value == 0.0


def test_a_gradient_of_the_wrong_sign(tmp_path: Path) -> None:
    report = report_on(tmp_path, Opposite.apply)
    found = finding(report, "D02")
    assert found.status == "fail"
    assert found.value == 1.0
    assert any("D02" in reason for reason in report.distrust)


def test_a_straight_through_estimator_leads_on_and_is_a_warning(tmp_path: Path) -> None:
    report = report_on(tmp_path, straight_through, suite=only(APGD))
    assert finding(report, "D02").status == "warn"
    assert report.trusted


def test_surrogates_excuse_a_gradient_that_a_suite_goes_around(tmp_path: Path) -> None:
    plain = report_on(tmp_path, Tensor.detach, suite=only(APGD))
    assert {finding(plain, code).status for code in ("D01", "D02", "D22")} == {"fail"}
    (tmp_path / "smooth").mkdir()
    smooth = report_on(tmp_path / "smooth", Tensor.detach, suite=only(SMOOTH))
    assert {finding(smooth, code).status for code in ("D01", "D02", "D22")} == {"warn"}
    assert smooth.trusted, smooth.distrust


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (rounded, "round"),
        (Tensor.detach, "detach"),
        (lambda x: (x * 9 + 0.5).long().double() / 9, "cast"),
        (lambda x: sum((x > edge / 9).double() for edge in range(1, 9)) / 9, "compare"),
    ],
    ids=["round", "detach", "cast", "compare"],
)
def test_masked_gradients_are_named_with_the_operation(tmp_path: Path, function: Any, kind: str) -> None:
    report = report_on(tmp_path, function, suite=only(APGD), threats=("linf:0.2",))
    found = finding(report, "D22")
    assert found.status == "fail"
    assert f"masked by {kind} (alone" in found.detail
    assert not report.trusted
    # What the surrogates broke is broken: the report holds counterexamples for it.
    row = next(row for row in report.threats[0].attacks if row.id == "ordering")
    assert row.broken > 0
    assert row.access == "gradient"
    gap = finding(report, "D18")
    assert gap.status == "pass"
    assert gap.value is not None
    assert found.value is not None
    assert gap.value >= found.value > 0.2


def test_without_masking_surrogates_gain_nothing(tmp_path: Path) -> None:
    report = report_on(tmp_path, torch.relu)
    assert finding(report, "D22").status == "pass"
    assert finding(report, "D22").value == 0.0
    assert finding(report, "D18").value == 0.0


def test_a_rough_loss(tmp_path: Path) -> None:
    assert finding(report_on(tmp_path, rippled), "D20").status == "warn"
    (tmp_path / "smooth").mkdir()
    assert finding(report_on(tmp_path / "smooth", squared), "D20").status == "pass"


def test_the_binarization_test_finds_a_suite_that_sees_nothing(tmp_path: Path) -> None:
    blind = report_on(tmp_path, Opposite.apply, suite=only(APGD))
    found = finding(blind, "D17")
    assert found.status == "fail"
    assert found.value is not None
    assert found.value < 0.5
    assert any("D17" in reason for reason in blind.distrust)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.2", "l1:0.4"])
def test_the_binarization_test_passes_a_suite_that_follows_the_features(tmp_path: Path, threat: str) -> None:
    suite = only(APGD, "square(queries = 50)")
    report = report_on(tmp_path, squared, suite=suite, threats=(threat,))
    found = finding(report, "D17")
    assert found.status == "pass", found
    facts = next(r.facts for r in RunFolder.open(tmp_path / "run")[0].records if r.stage.endswith("binary"))
    # Heads were made, and they are no easy prey.
    assert facts["made"] >= 10
    assert facts["by_chance"] <= 0.3 * facts["made"]


class Patches(nn.Module):
    """Applies a linear layer to parts of the input, so that its rows are not samples."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3).double()
        torch.nn.init.eye_(self.part.weight)

    def forward(self, x: Tensor) -> Any:
        return self.part(x.reshape(-1, 3)).reshape(len(x), 2, 3).sum(1)


class NoLayer(nn.Module):
    """Classifies without a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * math.pi


@pytest.mark.parametrize("module", [Patches(), NoLayer()], ids=["patches", "no layer"])
def test_without_features_there_is_no_binarization_test(tmp_path: Path, module: nn.Module) -> None:
    found = finding(stressed(tmp_path, module), "D17")
    assert found.status == "skipped"
    assert "linear layer" in found.detail
