"""The security curve from one search: exact where the answer is known, nested, and the same after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robustml.report.model import Report
from robustml.runs import run_target
from robustml.stress.folder import RunFolder
from robustml.stress.plan import stages
from tests.report.test_verify import problems
from tests.stress.toy import Counting, classifier, labels_of, linear, masked, points, run, target

SUITE = """
schema = 1
name = "nearest"
[[attack]]
id = "relay"
use = "relay"
options = { legs = 4 }
[[curve.attack]]
use = "fmn"
options = { steps = 40 }
[curve]
points = [0.25, 0.5, 0.75, 1.5, 2.0, 3.0]
[diagnostics]
samples = 8
noise_draws = 4
"""


def needed() -> np.ndarray:
    """The smallest Linf budget that breaks each sample of the toy model within the box; NaN for mistakes."""
    layer = linear()
    x = points()
    weights, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    y = labels_of(layer, x)
    least = np.full(len(x), np.inf)
    for other in range(3):
        direction = weights[other] - weights[y]
        lead = -(x * direction).sum(1) - (bias[other] - bias[y])
        room = np.where(direction > 0, 1 - x, x)
        low, high = np.zeros(len(x)), np.ones(len(x))
        for _ in range(60):
            middle = (low + high) / 2
            enough = (np.abs(direction) * np.minimum(room, middle[:, None])).sum(1) >= lead
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        reachable = (np.abs(direction) * room).sum(1) > lead
        least = np.where((other != y) & reachable, np.minimum(least, high), least)
    least[:3] = np.nan
    return least


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("curve")
    chosen = target(folder, suite=SUITE, threats=("linf:0.04", "linf:0.1"))
    return run(chosen, folder / "run"), folder / "run"


def test_one_search_draws_the_curves_of_a_norm(made: tuple[Report, Path]) -> None:
    _, out = made
    _, plan = RunFolder.open(out)
    curves = [stage for stage in stages(plan) if stage.kind == "curve"]
    assert [stage.key for stage in curves] == ["linf:0.1/curve"]
    assert curves[0].nearest
    assert curves[0].threat is not None
    assert curves[0].threat.eps == pytest.approx(0.3)


def test_the_curve_is_that_of_the_closed_form(made: tuple[Report, Path]) -> None:
    report, _ = made
    least = needed()
    for threat in report.threats:
        assert len(threat.curve) == 8
        for point in threat.curve[1:]:
            standing = point.robust_accuracy.count
            # Nothing breaks within less than it takes; what takes five per cent less is found.
            assert standing >= np.nansum(least > point.eps * (1 + 1e-6))
            assert standing <= np.nansum(least > 0.95 * point.eps)
        counts = [point.robust_accuracy.count for point in threat.curve]
        assert counts == sorted(counts, reverse=True)
        at_eps = next(point for point in threat.curve if point.eps == threat.eps)
        assert at_eps.robust_accuracy == threat.robust_accuracy.upper


def test_what_it_finds_improves_on_what_was_known(made: tuple[Report, Path]) -> None:
    _, out = made
    folder, _ = RunFolder.open(out)
    known = np.full(30, np.inf)
    improved = 0
    for record in folder.records:
        distances = np.asarray(record.distances)
        if record.stage.endswith("/curve"):
            assert (distances < known[record.broken]).all()
            improved += len(distances)
        if record.broken:
            known[record.broken] = np.minimum(known[record.broken], distances)
    assert improved > 10


def test_a_killed_run_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    layer = Counting(linear())
    chosen = target(tmp_path, suite=SUITE, threats=("linf:0.04", "linf:0.1"), model=classifier(layer))
    whole = run(chosen, tmp_path / "counted")
    every, layer.samples = layer.samples, 0
    # Once in the middle of the search, and once in its last chunk.
    for share in (0.75, 0.9):
        layer.fail_after = int(share * every)
        with pytest.raises(KeyboardInterrupt):
            run_target(chosen, out=tmp_path / f"run{share}", device="cpu")
        layer.fail_after, layer.samples = None, 0
        again = run(chosen, tmp_path / f"run{share}", resume=True)
        assert masked(again)["threats"] == masked(whole)["threats"]
        layer.samples = 0


def test_it_verifies_and_an_altered_distance_is_found(tmp_path: Path) -> None:
    chosen = target(tmp_path, suite=SUITE)
    out = tmp_path / "run"
    run(chosen, out)
    assert problems(out, chosen) == ()
    assert problems(out, chosen, rerun=1000) == ()
    journal = out / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    row = next(
        i for i, line in enumerate(lines) if '"stage":"linf:0.1/curve"' in line and "distances" in line
    )
    head, _, tail = lines[row].partition('"distances":[')
    first = tail.split(",")[0].split("]")[0]
    lines[row] = head + '"distances":[' + repr(float(first) * 0.9) + tail[len(first) :]
    journal.write_text("".join(lines))
    assert any("distances" in problem for problem in problems(out, chosen))


def test_a_distance_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    chosen = target(tmp_path, suite=SUITE)
    out = tmp_path / "run"
    run(chosen, out)
    journal = out / "journal.jsonl"
    text = journal.read_text()
    start = text.index('"distances":[') + len('"distances":[')
    journal.write_text(text[:start] + "7.5," + text[text.index(",", start) + 1 :])
    assert any("one distance within the budget" in problem for problem in problems(out, chosen))
