"""What the records of a run add up to, on many small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.report.build import build_report
from robustml.runs import run_target
from robustml.stress.folder import Record
from robustml.stress.ledger import Ledger
from robustml.stress.plan import Plan, stages
from tests.stress.toy import classifier, labels_of, linear, points, records_of, target

CHEAP = """
schema = 1
name = "cheap"
[[attack]]
id = "fgsm"
use = "fgsm"
[[curve.attack]]
use = "pgd"
options = { steps = 3 }
[curve]
points = [0.25, 0.5, 1.5]
[diagnostics]
samples = 8
noise_draws = 4
"""


def optimum(weights: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The smallest Linf budget that breaks each sample of a linear model, were there no bounds."""
    smallest = np.full(len(x), np.inf)
    for other in range(len(weights)):
        difference = weights[other] - weights[y]
        lead = -(x * difference).sum(1) - (bias[other] - bias[y])
        reach = np.abs(difference).sum(1)
        smallest = np.minimum(smallest, np.where(reach > 0, lead / np.maximum(reach, 1e-300), np.inf))
    return smallest


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 4),
    features=st.integers(1, 6),
    eps=st.floats(0.01, 0.4),
)
def test_figures_of_linear_models_are_consistent(
    tmp_path_factory: pytest.TempPathFactory, seed: int, classes: int, features: int, eps: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    layer = linear(seed, classes, features)
    x = points(12, features, seed)
    y = labels_of(layer, x, wrong=1)
    chosen = target(
        folder,
        model=classifier(layer, shape=(features,), classes=classes),
        data=(x, y),
        threats=(f"linf:{eps:.3g}", f"linf:{eps / 3:.3g}"),
        suite=CHEAP,
        batch=16,
    )
    plan, made = run_target(chosen, out=folder / "run", device="cpu")
    report = build_report(plan, made, chosen.data)
    weights, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    least = optimum(weights, bias, x, y)
    for threat in report.threats:
        shares = [point.robust_accuracy.count for point in threat.curve]
        assert shares == sorted(shares, reverse=True)
        assert [point.eps for point in threat.curve] == sorted(point.eps for point in threat.curve)
        upper = threat.robust_accuracy.upper
        assert upper is not None
        assert next(p for p in threat.curve if p.eps == threat.eps).robust_accuracy == upper
        assert threat.outcomes.count("s") == upper.count
        assert sum(row.broken for row in threat.attacks) == threat.outcomes.count("b")
        # No sample is broken within a budget that cannot break it.
        for letter, needed in zip(threat.outcomes, least, strict=True):
            assert letter != "b" or needed <= threat.eps * (1 + 1e-6)
    for one, other in zip(*(t.outcomes for t in report.threats), strict=True):
        assert not (one == "b" and other == "s")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, np.ndarray, list[Record]]:
    tmp_path = tmp_path_factory.mktemp("finished")
    chosen = target(tmp_path, threats=("linf:0.05", "linf:0.2", "l2:0.2"))
    plan, folder = run_target(chosen, out=tmp_path / "run", device="cpu")
    return plan, chosen.data.y, folder.records


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_of_the_records_does_not_matter(
    data: st.DataObject, finished: tuple[Plan, np.ndarray, list[Record]]
) -> None:
    plan, labels, records = finished
    one = Ledger(plan, labels, records)
    two = Ledger(plan, labels, data.draw(st.permutations(records)))
    for norm in ("linf", "l2"):
        assert np.array_equal(one.eps[norm], two.eps[norm])
    assert np.array_equal(one.predicted, two.predicted)
    counts = [
        {key: (total.broken, total.late, total.attempted) for key, total in ledger.totals.items()}
        for ledger in (one, two)
    ]
    assert counts[0] == counts[1]
    assert one.elsewhere == two.elsewhere


def changed(records: list[Record], stage: str, changes: dict[str, Any]) -> list[Record]:
    index = next(i for i, r in enumerate(records) if r.stage == stage)
    return [*records[:index], records[index].model_copy(update=changes), *records[index + 1 :]]


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("linf:0.05/apgd", {"stage": "linf:0.3/apgd"}, "not in the plan"),
        ("linf:0.05/apgd", {"chunk": 99}, "not in the plan"),
        ("linf:0.05/apgd", {"broken": [0]}, "not been given"),  # misclassified when clean
        ("linf:0.05/apgd", {"broken": [29]}, "not been given"),  # of another chunk
        ("linf:0.05/apgd", {"broken": [5, 5]}, "in order"),
        ("linf:0.05/apgd", {"attempted": 0}, "attacked 0 samples"),
        ("clean", {"labels": [0]}, "one label per sample"),
        ("clean", {"margins": []}, "one label per sample"),
    ],
)
def test_records_that_cannot_be(
    finished: tuple[Plan, np.ndarray, list[Record]], stage: str, changes: dict[str, Any], expected: str
) -> None:
    plan, labels, records = finished
    with pytest.raises(InputError, match=expected):
        Ledger(plan, labels, changed(records, stage, changes))


def test_what_is_missing_is_counted(finished: tuple[Plan, np.ndarray, list[Record]]) -> None:
    plan, labels, records = finished
    after = {r.chunk for r in records if r.stage == "linf:0.05/apgd"}
    dropped = next(r for r in records if r.stage == "linf:0.05/fgsm" and r.broken and r.chunk in after)
    left = [r for r in records if r is not dropped]
    with pytest.raises(InputError):
        # What came after had seen fewer survivors than there would have been.
        Ledger(plan, labels, left)
    ends = [r for r in records if r.stage.startswith(("clean", "linf:0.05"))]
    ledger = Ledger(plan, labels, ends)
    standing = int(ledger.standing("linf", 0.2).sum())
    assert ledger.totals["linf:0.2/fgsm"].missing == standing > 0
    assert ledger.totals["linf:0.05/fgsm"].missing == 0


def test_stages_go_from_small_budgets_to_large(finished: tuple[Plan, np.ndarray, list[Record]]) -> None:
    plan, _, _ = finished
    keys = [stage.key for stage in stages(plan)]
    assert keys[0] == "clean"
    assert keys.index("linf:0.05/fgsm") < keys.index("linf:0.05/square") < keys.index("linf:0.2/fgsm")
    curve = [s.threat.eps for s in stages(plan) if s.of == "linf:0.05" and s.kind == "curve" and s.threat]
    assert curve == [0.025, 0.075]


def test_evidence_found_at_a_larger_budgets_curve_counts_below(tmp_path: Path) -> None:
    # The curve of 0.4 passes 0.1: what it breaks there was overlooked by the suite of 0.15.
    suite = """
schema = 1
name = "weak"
[[attack]]
id = "noise"
use = "noise"
options = { draws = 1 }
[[curve.attack]]
use = "apgd"
options = { loss = "margin", steps = 10 }
[curve]
points = [0.25]
[diagnostics]
samples = 1
noise_draws = 1
"""
    chosen = target(tmp_path, suite=suite, threats=("linf:0.15", "linf:0.4"))
    plan, folder = run_target(chosen, out=tmp_path / "run", device="cpu")
    report = build_report(plan, folder, chosen.data)
    ledger = Ledger(plan, chosen.data.y, records_of(tmp_path / "run"))
    assert ledger.overlooked["linf:0.15"] > 0
    small = report.threats[0]
    assert sum(row.broken for row in small.attacks) == small.outcomes.count("b")
    assert next(d for d in small.diagnostics if d.code == "D12").status == "fail"
    with torch.no_grad():
        assert (linear()(torch.from_numpy(chosen.data.x)).argmax(1).numpy() == ledger.predicted).all()
