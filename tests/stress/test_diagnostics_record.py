"""Diagnostics of the model's state and of the record; and how a suite leaves diagnostics out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustml.classifier import BlackBox
from robustml.inputs import InputSpec
from robustml.report.verify import verify_run
from robustml.stress.diagnostics import CODES, diagnose
from robustml.stress.folder import RunFolder
from robustml.stress.ledger import Ledger
from robustml.stress.probing import PROBED
from tests.stress.toy import (
    FEATURES,
    SUITE,
    classifier,
    finding,
    labels_of,
    linear,
    only,
    points,
    records_of,
    run,
    stressed,
    target,
)


class Counts(nn.Module):
    """Keeps a buffer that counts its calls, as running statistics do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.inner(x)


class Remembers(nn.Module):
    """Keeps a list of what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.seen.append(len(x))
        return self.inner(x)


class Stubborn(nn.Module):
    """Puts its batch norm into training mode at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.norm = nn.BatchNorm1d(FEATURES, momentum=0.0).double()

    def forward(self, x: Tensor) -> Any:
        self.norm.train()
        return self.inner(x) + 0 * self.norm(x).sum()


class Caches(nn.Module):
    """Builds a table at its first call, and leaves it at that."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        if self.table is None:
            self.table = torch.zeros(3, dtype=x.dtype)
        return self.inner(x) + self.table


class Inside(nn.Module):
    """Follows its own gradient a little before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.inner(z).sum(), z)
        return self.inner(x + 1e-3 * slope)


@pytest.mark.parametrize(
    ("module", "status", "says"),
    [
        (Counts, "fail", "a forward pass changes module.calls"),
        (Stubborn, "fail", "in training mode: BatchNorm1d at 'module.norm'"),
        (Remembers, "warn", "the attribute module.seen"),
        (Inside, "warn", "the forward pass computes gradients"),
        (Caches, "pass", "0 of"),
        (linear, "pass", "0 of"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_state(tmp_path: Path, module: Any, status: str, says: str) -> None:
    x = points()
    report = stressed(tmp_path, model=classifier(module()), data=(x, labels_of(linear(), x, 3)))
    found = finding(report, "D06")
    assert found.status == status, found
    assert says in found.detail
    if status == "fail":
        assert any("D06" in reason for reason in report.distrust)


def test_answers_that_change_in_secret(tmp_path: Path) -> None:
    calls = [0]

    class Secret(nn.Module):
        """Counts where nobody looks, and answers another way from some call on."""

        def forward(self, x: Tensor) -> Any:
            calls[0] += len(x)
            return layer(x) * (1.0 if calls[0] < 1200 else 2.0)

    layer, x = linear(), points()
    report = stressed(tmp_path, model=classifier(Secret()), data=(x, labels_of(layer, x)))
    found = finding(report, "D06")
    assert found.status == "fail"
    assert found.value == 1.0


def test_a_record_without_evidence(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    run(chosen, tmp_path / "run")
    folder, plan = RunFolder.open(tmp_path / "run")
    threat = plan.bound_threats[0]

    def judged(records: list[Any]) -> tuple[str, str]:
        ledger = Ledger(plan, chosen.data.y[plan.ids], records)
        found = next(f for f in diagnose(ledger, threat) if f.code == "D21")
        return found.status, found.detail

    assert judged(folder.records)[0] == "pass"
    bare = [r.model_copy(update={"evidence": None}) if r.broken else r for r in folder.records]
    assert judged(bare) == ("fail", judged(bare)[1])
    assert "have no counterexamples" in judged(bare)[1]
    free = [r.model_copy(update={"forward": 0}) if r.stage.endswith("/apgd") else r for r in folder.records]
    assert judged(free) == ("fail", "linf:0.1/apgd has no passes on record")


def test_a_black_box_without_a_digest(tmp_path: Path) -> None:
    layer = linear()

    def predict(batch: Any) -> Any:
        with torch.no_grad():
            return layer(torch.from_numpy(batch)).numpy()

    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    named = BlackBox(predict, inputs=spec, classes=3, outputs="logits", digest="0" * 64)
    found = finding(stressed(tmp_path, model=named), "D21")
    assert found.status == "pass"
    (tmp_path / "nameless").mkdir()
    nameless = BlackBox(predict, inputs=spec, classes=3, outputs="logits")
    report = stressed(tmp_path / "nameless", model=nameless)
    assert finding(report, "D21").status == "warn"
    # What needs gradients says so.
    for code in ("D01", "D02", "D11", "D17", "D18", "D20", "D22"):
        assert finding(report, code).status == "skipped"
        assert "gives no" in finding(report, code).detail


def test_a_suite_can_leave_diagnostics_out(tmp_path: Path) -> None:
    suite = SUITE.replace("samples = 16", 'samples = 16\nskip = ["D13", "D08", "D09", "D17", "D20"]')
    report = stressed(tmp_path, suite=suite)
    for code in ("D13", "D08", "D09", "D17", "D20"):
        assert finding(report, code).status == "skipped"
        assert finding(report, code).detail == "the suite switches it off"
    assert finding(report, "D01").status == "pass"
    assert finding(report, "D21").status == "warn"
    assert "D09, D13, D17 off" in finding(report, "D21").detail
    kinds = {record.stage.partition("/")[2] for record in records_of(tmp_path / "run")}
    # The passes that only they needed are saved; those that are shared are not.
    assert not kinds & {"unbounded", "effort", "binary"}
    assert {"gradients", "state", "ordering"} <= kinds


def test_every_probe_serves_known_codes_and_all_guards_are_spoken_for(tmp_path: Path) -> None:
    assert {code for codes in PROBED.values() for code in codes} <= CODES.keys()
    assert list(CODES) == [f"D{number:02}" for number in range(1, len(CODES) + 1)]
    assert finding(stressed(tmp_path, suite=only("fgsm")), "D16").status == "skipped"
    page = (Path(__file__).parents[2] / "docs/explanation/diagnostics.md").read_text(encoding="utf-8")
    assert "<!-- generated: diagnostics -->" in page
    table = page.partition("## What they cost")[2]
    for kind, codes in PROBED.items():
        row = next(line for line in table.splitlines() if f"`{kind}`" in line)
        assert all(code in row for code in codes)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.2", "l1:0.4", "l0:2"])
def test_probes_are_replayed_to_the_same_figures(tmp_path: Path, threat: str) -> None:
    module = linear()
    x = points()
    model = classifier(module)
    chosen = target(tmp_path, model=model, data=(x, labels_of(module, x, 3)), threats=(threat,))
    run(chosen, tmp_path / "run")
    verified = verify_run(tmp_path / "run", chosen, torch.device("cpu"), rerun=999)
    assert verified.problems == ()
    assert verified.units == len(records_of(tmp_path / "run"))
