"""Every figure of a report, worked out again by hand from the journal and the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from robustml.errors import InputError
from robustml.report.build import build_report
from robustml.report.model import Report
from robustml.stress.folder import RunFolder
from robustml.targets import Target
from tests.stress.toy import classifier, linear, points, records_of, run, target

THREATS = ("linf:0.1", "linf:0.05", "l2:0.2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, Target]:
    folder = tmp_path_factory.mktemp("build")
    chosen = target(folder, threats=THREATS, gate={"evasion": ">= 10", "clean": ">= 50"})
    return run(chosen, folder / "run"), folder / "run", chosen


def smallest(out: Path, norm: str) -> np.ndarray:
    """The smallest budget within which each sample broke, from the evidence files alone."""
    found = np.full(30, np.inf)
    for record in records_of(out):
        if record.stage.startswith(norm + ":") and record.broken:
            name, _, step = record.stage.partition("/")
            eps = float(name.partition(":")[2])
            if step.startswith("curve-"):
                eps *= float(step.removeprefix("curve-"))
            columns = load_file(out / str(record.evidence))
            rows = columns["position"]
            found[rows] = np.minimum(found[rows], np.minimum(columns["distance"], eps))
    return found


def test_every_figure_by_hand(made: tuple[Report, Path, Target]) -> None:
    report, out, chosen = made
    x, y = chosen.data.x, chosen.data.y
    with torch.no_grad():
        correct = linear()(torch.from_numpy(x)).argmax(1).numpy() == y
    assert report.clean.accuracy.count == correct.sum() == 27
    assert report.clean.accuracy.value == 0.9
    joint = np.ones(30, dtype=bool)
    assert [t.name for t in report.threats] == ["l2:0.2", "linf:0.05", "linf:0.1"]
    for threat in report.threats:
        broken = smallest(out, threat.norm) <= threat.eps
        assert not (broken & ~correct).any()
        standing = correct & ~broken
        joint &= standing
        letters = np.where(standing, "s", np.where(correct, "b", "m"))
        assert threat.outcomes == "".join(letters)
        upper = threat.robust_accuracy.upper
        assert upper is not None
        assert (upper.count, upper.total) == (standing.sum(), 30)
        assert upper.value == standing.sum() / 30 == threat.undecided
        assert upper.low <= upper.value <= upper.high
        for row in threat.per_class:
            members = y == row.label
            assert (row.total, row.correct) == (members.sum(), (members & correct).sum())
            assert row.robust == (members & standing).sum()
            clean = next(r for r in report.clean.per_class if r.label == row.label)
            assert (clean.total, clean.correct, clean.robust) == (row.total, row.correct, None)
        for point in threat.curve:
            still = correct & ~(smallest(out, threat.norm) <= point.eps * (1 + 1e-9))
            assert point.robust_accuracy.count == still.sum()
        assert sum(row.broken for row in threat.attacks) == (correct & broken).sum()
    assert report.scores.evasion is not None
    assert report.scores.evasion.value == pytest.approx(100 * joint.sum() / 30)
    assert report.verdict.startswith(f"Of 30 test inputs, {joint.sum()} survive")


def test_attack_rows_by_hand(made: tuple[Report, Path, Target]) -> None:
    report, out, _ = made
    records = records_of(out)
    for threat in report.threats:
        for row in threat.attacks:
            own = [r for r in records if r.stage == f"{threat.name}/{row.id}"]
            if row.id == "carried-over":
                continue
            assert row.attempted == sum(r.attempted for r in own)
            assert row.passes.forward == sum(r.forward for r in own)
            assert row.passes.backward == sum(r.backward for r in own)
            assert row.seconds == pytest.approx(sum(r.seconds for r in own), abs=1e-3)
            if not row.id.startswith("curve"):
                assert row.broken == sum(len(r.broken) for r in own)
    small, large = report.threats[1:]
    assert large.attacks[0].id == "carried-over"
    assert small.outcomes.count("b") <= large.attacks[0].broken <= large.outcomes.count("b")
    assert report.seconds == pytest.approx(sum(r.seconds for r in records), abs=1e-3)


def test_the_most_fragile_by_hand(made: tuple[Report, Path, Target]) -> None:
    report, out, chosen = made
    for threat in report.threats:
        least = smallest(out, threat.norm)
        count = min(12, threat.outcomes.count("b"))
        assert len(threat.fragile) == count
        expected = sorted(least[np.isfinite(least)].tolist())[:count]
        assert [f.eps for f in threat.fragile] == pytest.approx(expected, abs=1e-6)
        keys = [(f.eps, f.distance) for f in threat.fragile]
        assert keys == sorted(keys)
        for shown in threat.fragile:
            assert shown.label == chosen.data.y[shown.sample]
            assert shown.predicted != shown.label
            assert 0 < shown.distance <= shown.eps + 1e-6
            assert shown.changes
            for change in shown.changes:
                index = int(change.feature.split()[1])
                assert change.before == pytest.approx(chosen.data.x[shown.sample, index])
                assert change.after != change.before


def test_evidence_is_listed(made: tuple[Report, Path, Target]) -> None:
    report, out, _ = made
    files = {f"evidence/{p.name}" for p in (out / "evidence").iterdir()}
    assert {file.path for file in report.samples.evidence} == files
    counts = Counter({str(r.evidence): len(r.broken) for r in records_of(out) if r.evidence})
    assert {file.path: file.samples for file in report.samples.evidence} == counts


def test_a_report_is_a_pure_function_of_the_folder(made: tuple[Report, Path, Target]) -> None:
    report, out, chosen = made
    folder, plan = RunFolder.open(out)
    assert build_report(plan, folder, chosen.data, created=report.created).to_json() == report.to_json()


def test_redaction_keeps_inputs_out(tmp_path: Path) -> None:
    report = run(target(tmp_path), tmp_path / "run", redact=True)
    assert report.threats[0].fragile
    for shown in report.threats[0].fragile:
        assert shown.picture is None
        assert shown.changes == []


def test_pictures_of_images(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), linear(features=16))
    x = points(10, 16).reshape(10, 1, 4, 4)
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(1).numpy()
    report = run(target(tmp_path, model=classifier(net, shape=(1, 4, 4)), data=(x, y)), tmp_path / "run")
    pictures = [shown.picture for shown in report.threats[0].fragile]
    assert pictures
    assert all(picture is not None and picture.original != picture.adversarial for picture in pictures)


def test_nothing_right_is_nothing_robust(tmp_path: Path) -> None:
    x = points(9)
    with torch.no_grad():
        y = (linear()(torch.from_numpy(x)).argmax(1).numpy() + 1) % 3
    report = run(target(tmp_path, data=(x, y)), tmp_path / "run")
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    assert upper.count == 0
    assert report.threats[0].outcomes == "m" * 9
    assert not report.trusted  # no better than naming the largest class
    assert all(d.status in {"skipped", "pass"} for d in report.threats[0].diagnostics)


def test_evidence_that_is_gone(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    run(chosen, tmp_path / "run")
    folder, plan = RunFolder.open(tmp_path / "run")
    for file in (tmp_path / "run" / "evidence").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        build_report(plan, folder, chosen.data)


def test_evidence_elsewhere_is_not_read(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    run(chosen, tmp_path / "run")
    folder, plan = RunFolder.open(tmp_path / "run")
    folder.records = [
        r.model_copy(update={"evidence": f"../{r.evidence}"}) if r.evidence else r for r in folder.records
    ]
    with pytest.raises(InputError, match="not a file of the evidence folder"):
        build_report(plan, folder, chosen.data)
