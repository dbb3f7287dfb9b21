"""Certificates in a run: bounds from both sides, the same however it is run, and what contradicts them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.smoothing import Smoothing, certify
from robustml.errors import InputError
from robustml.guards import Guard
from robustml.inputs import InputSpec
from robustml.report.build import build_report
from robustml.report.model import Report
from robustml.report.verify import verify_run
from robustml.runs import merge_runs, run_target
from robustml.sampling import Streams
from robustml.stress.certifying import longest, risk_of
from robustml.stress.folder import RunFolder
from robustml.stress.ledger import Ledger
from robustml.stress.runner import Shard
from robustml.stress.suite import load_suite
from robustml.threats import L0, L1, L2, Linf, Threat
from tests.stress.toy import (
    Counting,
    classifier,
    finding,
    labels_of,
    linear,
    masked,
    only,
    points,
    records_of,
    run,
    target,
)

CPU = torch.device("cpu")
SHORT = "\n[certificates]\ndraws = 300\nselect = 20\n"


def suite(*attacks: str, certificates: str = SHORT) -> str:
    """A suite of attacks whose diagnostics look at few samples, since they are not the subject here."""
    return only(*attacks).replace("samples = 32", "samples = 4") + certificates


def smoothed(module: nn.Module | None = None, sigma: float = 0.1, *more: Guard) -> rml.Guarded:
    return rml.Guarded(classifier(module or linear()), [Smoothing(sigma), *more])


def chosen(folder: Path, model: Any = None, **changes: Any) -> Any:
    x = points()
    settings: dict[str, Any] = {
        "model": model or smoothed(),
        "data": (x, labels_of(linear(), x, 3)),
        "suite": suite("fgsm", "apgd(steps = 5)", "noise(draws = 4)"),
        "threats": ("l2:0.1",),
        "draws": 40,
        "eot": 4,
    }
    return target(folder, **{**settings, **changes})


def ledger_of(out: Path, data: Any) -> Ledger:
    folder, plan = RunFolder.open(out)
    return Ledger(plan, data.y[plan.ids], folder.records)


def radii(out: Path) -> list[Any]:
    found = [record for record in records_of(out) if record.stage == "certificate"]
    return [(record.chunk, record.labels, record.radii) for record in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Report]:
    folder = tmp_path_factory.mktemp("whole")
    made = chosen(folder, threats=("l2:0.05", "l2:0.15", "linf:0.05", "l1:0.1", "l0:1"))
    return made, folder / "run", run(made, folder / "run")


def test_the_score_has_two_sides(whole: tuple[Any, Path, Report]) -> None:
    made, out, report = whole
    ledger = ledger_of(out, made.data)
    for threat in report.threats:
        upper, lower = threat.robust_accuracy.upper, threat.robust_accuracy.lower
        assert upper is not None
        assert lower is not None
        assert lower.count <= upper.count
        assert threat.undecided == (upper.count - lower.count) / 30
        assert threat.certified[0].eps == 0
        at = {point.eps: point.certified_accuracy.count for point in threat.certified}
        assert at[threat.eps] == lower.count
        counts = [point.certified_accuracy.count for point in threat.certified]
        assert counts == sorted(counts, reverse=True)
        for point in threat.curve:
            assert at.get(point.eps, 0) <= point.robust_accuracy.count
    by_name = {threat.name: threat for threat in report.threats}
    strong = by_name["l2:0.05"].robust_accuracy.lower
    assert strong is not None
    assert strong.count > 10
    section = report.certificates
    assert section is not None
    assert section.attempted == int(ledger.correct.sum())
    assert section.passes == section.attempted * 320
    assert (section.select, section.draws) == (20, 300)
    assert section.certified == int((ledger.certified.radius > 0).sum())


def test_radii_are_those_of_the_deployed_form(whole: tuple[Any, Path, Report]) -> None:
    made, out, _ = whole
    ledger = ledger_of(out, made.data)
    ids = torch.tensor(ledger.plan.ids)
    x = torch.from_numpy(made.data.x[ledger.plan.ids])
    confidence = 1 - risk_of(ledger.plan) / len(ids)
    assert confidence == pytest.approx(1 - 0.005 / 30)
    streams = Streams.derive(0, "certificate", ids)
    found = certify(smoothed(), x, select=20, draws=300, confidence=confidence, generator=streams)
    right = torch.from_numpy(ledger.correct & (found.label.numpy() == ledger.labels))
    expected = torch.where(right, found.radius, 0.0).numpy()
    assert np.array_equal(ledger.certified.radius, expected)
    # Nothing is proven beyond the closed form: half of the gap of two logits per length of their difference.
    layer = linear()
    with torch.no_grad():
        logits, weight = layer(x), layer.weight.clone()
    for row in right.nonzero()[:, 0].tolist():
        y = int(ledger.labels[row])
        gaps = [
            float((logits[row, y] - logits[row, other]) / (weight[y] - weight[other]).norm())
            for other in range(3)
            if other != y
        ]
        assert expected[row] <= max(0.0, min(gaps))


def test_misclassified_samples_and_abstentions_count_as_errors(whole: tuple[Any, Path, Report]) -> None:
    made, out, report = whole
    ledger = ledger_of(out, made.data)
    assert not (ledger.certified.radius > 0)[~ledger.correct].any()
    assert not (ledger.certified.radius > 0)[ledger.certified.abstained].any()
    section = report.certificates
    assert section is not None
    assert section.abstained > 0
    zero = report.threats[0].certified[0].certified_accuracy
    assert zero.count == section.certified <= section.attempted - section.abstained
    assert zero.total == 30


def test_the_interval_leaves_room_for_wrong_certificates(whole: tuple[Any, Path, Report]) -> None:
    from robustml.estimates import clopper_pearson

    lower = next(t for t in whole[2].threats if t.name == "l2:0.05").robust_accuracy.lower
    assert lower is not None
    low, _ = clopper_pearson(lower.count, 30, 0.955)
    assert lower.low == low < clopper_pearson(lower.count, 30, 0.95)[0]
    assert lower.confidence == 0.95


def test_a_killed_run_resumes_to_the_same_certificates(tmp_path: Path) -> None:
    expected = run(chosen(tmp_path, smoothed(Counting(linear())), batch=8), tmp_path / "whole")
    for fail_after in (2_000, 6_500, 12_000):
        module = Counting(linear(), fail_after=fail_after)
        killed = chosen(tmp_path, smoothed(module), batch=8)
        out = tmp_path / f"killed-{fail_after}"
        with pytest.raises(KeyboardInterrupt):
            run_target(killed, out=out, device="cpu")
        before = len(records_of(out))
        module.fail_after = None
        resumed = run(killed, out, resume=True)
        assert len(records_of(out)) > before
        assert radii(out) == radii(tmp_path / "whole")
        same, other = masked(resumed), masked(expected)
        # How long a batch takes is a matter of the clock.
        same["guards"]["latency"] = other["guards"]["latency"] = None
        assert same == other


def test_shards_and_batches_certify_alike(tmp_path: Path) -> None:
    made = chosen(tmp_path, batch=8)
    expected = run(made, tmp_path / "whole")
    parts = []
    for index in (1, 2):
        parts.append(tmp_path / f"part-{index}")
        run_target(made, out=parts[-1], device="cpu", shard=Shard(index, 2))
    merged = merge_runs(parts, tmp_path / "merged", made)
    assert merged.certificates == expected.certificates
    assert merged.threats[0].certified == expected.threats[0].certified
    run(chosen(tmp_path, batch=30), tmp_path / "large")
    flat = [list(itertools.chain(*(r for _, _, r in radii(tmp_path / name)))) for name in ("whole", "large")]
    assert flat[0] == flat[1]


def test_verification_draws_certificates_again(tmp_path: Path) -> None:
    made = chosen(tmp_path, batch=30)
    run(made, tmp_path / "run")
    assert verify_run(tmp_path / "run", made, CPU, rerun=100).problems == ()
    journal = tmp_path / "run" / "journal.jsonl"
    record = next(r for r in records_of(tmp_path / "run") if r.stage == "certificate")
    first = f'"radii":[{record.radii[0]!r}'
    assert first in journal.read_text()
    journal.write_text(journal.read_text().replace(first, '"radii":[0.123'))
    problems = verify_run(tmp_path / "run", made, CPU, rerun=100).problems
    assert any("sample 3: certificate: radius" in line and "says 0.123" in line for line in problems)


def test_certificates_that_were_not_replayed_are_compared_when_units_are_done_again(tmp_path: Path) -> None:
    made = chosen(tmp_path, batch=30)
    run(made, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    record = next(r for r in records_of(tmp_path / "run") if r.stage == "certificate")
    # A little is within what rounding could do to one sample, but not to one that is done again as it was.
    changed = f"{record.radii[1]!r}", f"{record.radii[1] * 1.01!r}"
    journal.write_text(journal.read_text().replace(*changed))
    build_report(RunFolder.open(tmp_path / "run")[1], RunFolder.open(tmp_path / "run")[0], made.data).save(
        tmp_path / "run" / "report.json"
    )
    assert verify_run(tmp_path / "run", made, CPU).problems == ()
    problems = verify_run(tmp_path / "run", made, CPU, rerun=100).problems
    assert any("certificate, chunk 0: done again, it differs on radii" in line for line in problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"radii": [0.1]}, "does not hold one radius per sample"),
        ({"labels": [-1] * 30}, "radius"),
        ({"attempted": 4}, "does not hold one radius per sample"),
        ({"broken": [1]}, "does not hold one radius per sample"),
    ],
)
def test_records_that_cannot_be(whole: tuple[Any, Path, Report], change: dict[str, Any], said: str) -> None:
    made, out, _ = whole
    folder, plan = RunFolder.open(out)
    damaged = [r.model_copy(update=change) if r.stage == "certificate" else r for r in folder.records]
    with pytest.raises(InputError, match=said):
        Ledger(plan, made.data.y[plan.ids], damaged)


def test_models_without_certificates_are_left_alone(tmp_path: Path) -> None:
    class Still(Guard):
        """Changes nothing."""

        name = "still"

    for number, model in enumerate((classifier(linear()), rml.Guarded(classifier(linear()), [Still()]))):
        made = chosen(tmp_path, model, draws=None, eot=None)
        report = run(made, tmp_path / f"run-{number}")
        assert report.certificates is None
        assert report.threats[0].robust_accuracy.lower is None
        assert report.threats[0].certified == []
        assert report.threats[0].undecided == report.threats[0].robust_accuracy.upper.value  # type: ignore[union-attr]
        assert finding(report, "D23").status == "skipped"
        assert finding(report, "D23").detail == "the model has no certificate"
        assert not any(record.stage == "certificate" for record in records_of(tmp_path / f"run-{number}"))


def test_a_suite_may_leave_certificates_out(tmp_path: Path) -> None:
    without = suite("fgsm", certificates="\n[certificates]\ndraws = 0\n")
    report = run(chosen(tmp_path, suite=without), tmp_path / "run")
    assert report.certificates is None
    assert finding(report, "D23").detail == "the suite asks for no certificates"
    assert load_suite("standard").certificates.draws == 1000


def test_too_few_draws_are_refused(tmp_path: Path) -> None:
    few = suite("fgsm", certificates="\n[certificates]\ndraws = 10\n")
    with pytest.raises(InputError, match="draws=10 can certify nothing at confidence 0.9998"):
        run(chosen(tmp_path, suite=few), tmp_path / "run")


def test_a_budget_of_time_leaves_a_bound_that_holds(tmp_path: Path) -> None:
    made = chosen(tmp_path)
    plan, folder = run_target(made, out=tmp_path / "run", device="cpu", time_budget=1e-9)
    ledger = Ledger(plan, made.data.y[plan.ids], folder.records)
    assert ledger.totals["certificate"].missing > 0
    assert not ledger.certified.seen.any()


class Drifting(nn.Module):
    """Answers rightly while it is asked about the data with noise, and wrongly once attacks have begun."""

    def __init__(self, honest: int) -> None:
        super().__init__()
        self.inner, self.left = linear(), honest

    def forward(self, x: Tensor) -> Any:
        self.left -= len(x)
        logits = self.inner(x)
        return logits if self.left > 0 else -logits


def test_a_certificate_that_an_attack_refutes_is_found_out(tmp_path: Path) -> None:
    # Admission, clean pass and certificates are honest; what comes then is another model.
    made = chosen(tmp_path, smoothed(Drifting(10**9)), batch=30)
    run_target(made, out=tmp_path / "count", device="cpu", time_budget=None)
    begun = 10**9 - made.model.model.module.left
    rest = sum(
        r.forward + r.checks
        for r in records_of(tmp_path / "count")
        if r.stage not in {"clean", "certificate"}
    )
    model = smoothed(Drifting(begun - rest))
    report = run(chosen(tmp_path, model, batch=30), tmp_path / "run")
    found = finding(report, "D23")
    assert found.status == "fail"
    assert "lost the recount of 300 draws, too" in found.detail
    assert not report.trusted
    assert any("D23" in reason for reason in report.distrust)
    lower, upper = report.threats[0].robust_accuracy.lower, report.threats[0].robust_accuracy.upper
    assert lower is not None
    assert upper is not None
    # A counterexample in hand is believed before a certificate.
    assert lower.count <= upper.count


def test_the_luck_of_a_small_vote_is_a_warning(tmp_path: Path) -> None:
    made = chosen(tmp_path, draws=2, eot=2, threats=("l2:0.12",), suite=suite("fgsm", "noise(draws = 50)"))
    report = run(made, tmp_path / "run")
    found = finding(report, "D23")
    assert found.status == "warn"
    assert "0 of these lost the recount" in found.detail
    assert not any("D23" in reason for reason in report.distrust)


SPECS = st.builds(
    lambda scale, immutable, dtype: InputSpec(
        shape=(5,), bounds=(-1.0, 2.0), scale=scale, immutable=immutable, dtype=dtype
    ),
    st.sampled_from([1.0, 0.5, (1.0, 2.0, 0.3, 4.0, 1.0)]),
    st.sampled_from([(), (0,), (1, 3)]),
    st.sampled_from(["float32", "float64"]),
)


@given(
    SPECS,
    st.sampled_from([Linf(0.2), Linf(0.7), L2(0.4), L1(0.9), L0(1), L0(2), L0(3)]),
    st.integers(0, 2**32 - 1),
)
def test_no_perturbation_is_longer_than_a_threat_model_says(
    spec: InputSpec, threat: Threat, seed: int
) -> None:
    bound = threat.within(spec)
    x = torch.rand(40, 5, dtype=spec.torch_dtype, generator=torch.Generator().manual_seed(seed)) * 3 - 1
    ball = bound.around(x)
    streams = Streams.derive(seed, "test", torch.arange(40))
    corners = x + streams.signs(5, dtype=x.dtype) * 10
    scale = spec.like(spec.scale, x.double())
    for z in (ball.project(corners), ball.project(2 - x)):
        assert bool(ball.contains(z).all())
        lengths = ((z.double() - x.double()) / scale).norm(dim=1)
        assert float(lengths.max()) <= longest(bound, spec)


def test_lengths_in_closed_form() -> None:
    spec = InputSpec(shape=(3, 4, 4), bounds=(0.0, 1.0))
    slack = pytest.approx
    assert longest(Linf(0.1), spec) == slack(0.1 * math.sqrt(48), rel=1e-5)
    assert longest(L2(0.5), spec) == slack(0.5, rel=1e-5)
    assert longest(L1(0.5), spec) == slack(0.5, rel=1e-5)
    assert longest(L0(9), spec) == slack(3.0, rel=1e-5)
    scaled = InputSpec(shape=(3,), bounds=(0.0, 1.0), scale=(0.5, 1.0, 2.0))
    assert longest(L0(2), scaled) == slack(math.hypot(2.0, 1.0), rel=1e-5)
    frozen = dataclasses.replace(scaled, immutable=(0,))
    assert longest(L0(2), frozen) == slack(math.hypot(1.0, 0.5), rel=1e-5)
    assert longest(Linf(0.3), frozen) == slack(0.3 * math.sqrt(2), rel=1e-5)
