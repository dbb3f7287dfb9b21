"""Each diagnostic on a case that it must flag and on one that it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustml.classifier import BlackBox, Classifier
from robustml.inputs import InputSpec
from robustml.registry import Logits
from robustml.sampling import Streams
from robustml.stress.diagnostics import CODES
from robustml.threats import Threat
from tests.stress.toy import (
    FEATURES,
    SUITE,
    classifier,
    finding,
    labels_of,
    linear,
    only,
    points,
    registered,
    stressed,
)


class Round(nn.Module):
    """Round the inputs, and hide the gradient by it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.round())


class Scale(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) * self.factor


def test_every_code_is_reported_once_and_explained(tmp_path: Path) -> None:
    report = stressed(tmp_path)
    assert [d.code for d in report.threats[0].diagnostics] == sorted(CODES)
    for diagnostic in report.threats[0].diagnostics:
        # Nobody gave a twin, and there is no guard to take apart or to certify anything.
        assert diagnostic.status == ("skipped" if diagnostic.code in {"D14", "D16", "D23"} else "pass"), (
            diagnostic
        )
        assert diagnostic.detail
        assert diagnostic.remedy
    assert report.trusted
    assert report.distrust == []


def test_rounding_hides_the_gradient(tmp_path: Path) -> None:
    report = stressed(tmp_path, Round(linear()), suite=only("fgsm", 'apgd(loss = "margin", steps = 10)'))
    assert finding(report, "D01").status == "fail"
    assert finding(report, "D01").value == 1.0
    assert not report.trusted
    assert any("D01" in reason for reason in report.distrust)


def test_an_unbounded_attack_that_gets_nowhere(tmp_path: Path) -> None:
    class Deaf(nn.Module):
        """Answers by the first feature; gradient attacks see another model."""

        def forward(self, x: Tensor) -> Tensor:
            answer = torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], dim=1)
            shown = torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1)
            return shown + (answer - shown).detach()

    x = points(40, 2)
    y = (x[:, 0] <= 0.5).astype(int)
    model = classifier(Deaf(), shape=(2,), classes=2)
    report = stressed(tmp_path, model=model, data=(x, y), suite=only("fgsm"), threats=("linf:0.05",))
    found = finding(report, "D13")
    assert found.status == "fail"
    assert found.value is not None
    assert found.value > 0.6
    assert not report.trusted


def test_a_constant_answer_may_stand(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x[:, 0] + 2, 0 * x[:, 0]], dim=1)

    x = points(20, 2)
    y = [0] * 12 + [1] * 8
    model = classifier(Constant(), shape=(2,), classes=2)
    report = stressed(tmp_path, model=model, data=(x, torch.tensor(y)))
    assert finding(report, "D13").status == "pass"
    assert not report.trusted  # and yet it is worth nothing
    assert any("largest class" in reason for reason in report.distrust)


@pytest.mark.parametrize(("loss", "status"), [("ce", "fail"), ("margin", "warn"), ("dlr", "warn")])
def test_saturated_outputs_need_a_margin_loss(tmp_path: Path, loss: str, status: str) -> None:
    suite = only(f'apgd(loss = "{loss}", steps = 3)')
    module = Scale(linear(), 1e4)
    assert finding(stressed(tmp_path, module, suite=suite, threats=("linf:0.01",)), "D03").status == status


def test_outputs_that_are_not_logits(tmp_path: Path) -> None:
    module = nn.Sequential(linear(), nn.Softmax(dim=1))
    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    model = Classifier(module, inputs=spec, classes=3, outputs="probabilities")
    found = finding(stressed(tmp_path, linear(), model=model), "D04")
    assert found.status == "warn"
    assert "probabilities" in found.detail


def test_a_success_that_is_not_returned_is_rescued_and_counted(tmp_path: Path) -> None:
    def forgetful(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Visit the far corner and return the input."""
        model(threat.around(x).project(1 - x))
        return x

    with registered("forgetful", forgetful):
        report = stressed(tmp_path, suite=only("forgetful"), threats=("linf:0.4",))
    found = finding(report, "D07")
    attack = report.threats[0].attacks[0]
    assert found.status == "warn"
    assert found.value == attack.rescued > 0
    assert attack.broken == attack.rescued
    assert "forgetful" in found.detail
    assert report.threats[0].outcomes.count("b") >= attack.broken


def test_a_suite_weaker_than_one_step_is_found_out_and_its_misses_count(tmp_path: Path) -> None:
    report = stressed(tmp_path, suite=only("noise(draws = 1)"), threats=("linf:0.1",))
    found = finding(report, "D10")
    assert found.status == "fail"
    assert not report.trusted
    row = report.threats[0].attacks[-1]
    assert row.id == "ordering"
    assert row.broken > 0
    # A counterexample that the harness holds in its hands is never counted as robust.
    assert sum(r.broken for r in report.threats[0].attacks) == report.threats[0].outcomes.count("b")


def test_random_points_that_beat_the_suite(tmp_path: Path) -> None:
    def idle(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Do nothing."""
        return x

    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    layer = linear()

    def predict(batch: Any) -> Any:
        with torch.no_grad():
            return layer(torch.from_numpy(batch)).argmax(1).numpy()

    from robustml.registry import Access

    with registered("idle", idle, access=Access.DECISION):
        model = BlackBox(predict, inputs=spec, classes=3, outputs="labels")
        report = stressed(tmp_path, model=model, suite=only("idle"), threats=("linf:0.4",))
    assert finding(report, "D10").status == "fail"
    assert finding(report, "D01").status == "skipped"
    assert report.threats[0].outcomes.count("b") > 0


def test_a_suite_that_overlooks_smaller_budgets(tmp_path: Path) -> None:
    curve = '[[curve.attack]]\nuse = "apgd"\noptions = { steps = 20 }\n[curve]\npoints = [0.9]\n'
    suite = only("noise(draws = 1)", curve=curve).replace("samples = 32", "samples = 1")
    report = stressed(tmp_path, suite=suite, threats=("linf:0.15",))
    found = finding(report, "D12")
    assert found.status == "fail"
    assert not report.trusted
    late = next(row for row in report.threats[0].attacks if row.id == "curve-0.9")
    assert late.broken > 0
    assert sum(row.broken for row in report.threats[0].attacks) == report.threats[0].outcomes.count("b")


def test_a_model_that_answers_by_the_batch(tmp_path: Path) -> None:
    class Shy(nn.Module):
        """Answers differently when it is asked about one sample alone."""

        def forward(self, x: Tensor) -> Any:
            logits = layer(x)
            return -logits if len(x) == 1 else logits

    def one_by_one(model: Any, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Ask about the first three samples alone."""
        for row in range(3):
            model.focus(torch.tensor([row]))
            model(x[row : row + 1])
        return x

    layer, x = linear(), points()
    with registered("one-by-one", one_by_one):
        report = stressed(
            tmp_path,
            model=classifier(Shy()),
            data=(x, labels_of(layer, x)),
            suite=only("one-by-one"),
            threats=("linf:0.001",),
        )
    found, attack = finding(report, "D19"), report.threats[0].attacks[0]
    assert (attack.broken, attack.unconfirmed) == (0, 3)
    assert found.status == "fail"
    assert found.value == pytest.approx(0.1)
    assert not report.trusted


def test_suite_of_the_tests_is_sound(tmp_path: Path) -> None:
    report = stressed(tmp_path, suite=SUITE, threats=("linf:0.1", "l2:0.2", "l1:0.4"))
    assert report.trusted
    for index in range(3):
        assert finding(report, "D19", index).value == 0.0
