"""The runner: survivors only, nothing twice, and the same report whichever way the work was cut up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustml.errors import InputError, RunError
from robustml.registry import Logits
from robustml.runs import merge_runs, run_target, save_report
from robustml.sampling import Streams
from robustml.stress.runner import Shard, Silent
from robustml.threats import Threat
from tests.stress.toy import (
    FEATURES,
    Counting,
    classifier,
    labels_of,
    linear,
    masked,
    only,
    points,
    records_of,
    registered,
    run,
    target,
)

PROBED = 16 * 5 + 16 * 2 + 16
"""Samples asked about before a run: five calls on the data, two beside it, and one for the gradient."""


def test_attacks_see_only_survivors_in_order(tmp_path: Path) -> None:
    seen: list[tuple[str, list[list[float]]]] = []

    def spy(name: str, share: float) -> Any:
        def function(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
            """Break the samples whose first feature is small."""
            seen.append((name, x.tolist()))
            z = threat.around(x).project(1 - x)
            return torch.where((x[:, :1] < share), z, x)

        return function

    x = points()
    with registered("low", spy("low", 0.4)), registered("high", spy("high", 0.8)):
        chosen = target(tmp_path, suite=only("low", "high"), batch=100, threats=("linf:0.9",))
        report = run(chosen, tmp_path / "run")
    correct = [row for position, row in enumerate(x.tolist()) if position >= 3]
    # What comes later are diagnostics, which try the attacks on heads of their own.
    seen = seen[:2]
    assert [name for name, _ in seen] == ["low", "high"]
    assert seen[0][1] == correct  # a misclassified sample is never attacked
    broken = {p for r in records_of(tmp_path / "run") if r.stage.endswith("/low") for p in r.broken}
    assert broken
    assert seen[1][1] == [
        row for position, row in enumerate(x.tolist()) if position >= 3 and position not in broken
    ]
    low, high = report.threats[0].attacks[:2]
    assert (low.attempted, high.attempted) == (27, 27 - low.broken)
    assert report.threats[0].outcomes[:3] == "mmm"


def test_misclassified_samples_count_as_neither_robust_nor_broken(tmp_path: Path) -> None:
    report = run(target(tmp_path, wrong=5), tmp_path / "run")
    outcomes = report.threats[0].outcomes
    assert outcomes[:5] == "mmmmm"
    assert "m" not in outcomes[5:]
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    assert (upper.count, upper.total) == (outcomes.count("s"), 30)
    assert sum(row.broken for row in report.threats[0].attacks) == outcomes.count("b")


@pytest.mark.parametrize("batch", [1, 7])
def test_batch_size_changes_no_outcome(tmp_path: Path, batch: int) -> None:
    whole = run(target(tmp_path, batch=256), tmp_path / "whole")
    parts = run(target(tmp_path, batch=batch), tmp_path / "parts")
    assert whole.threats[0].outcomes == parts.threats[0].outcomes
    assert whole.threats[0].curve == parts.threats[0].curve
    assert whole.scores == parts.scores
    assert whole.threats[0].diagnostics == parts.threats[0].diagnostics
    for one, other in zip(whole.threats[0].attacks, parts.threats[0].attacks, strict=True):
        # (passes may differ: the last samples of a batch share its checks)
        assert (one.id, one.attempted, one.broken) == (other.id, other.attempted, other.broken)


def test_same_seed_same_report_and_other_seed_other_numbers(tmp_path: Path) -> None:
    first, second = (run(target(tmp_path), tmp_path / name) for name in "ab")
    assert masked(first) == masked(second)
    for name in ("journal.jsonl",):
        one, other = ((tmp_path / run_ / name).read_bytes().count(b"\n") for run_ in "ab")
        assert one == other
    files = sorted(p.name for p in (tmp_path / "a" / "evidence").iterdir())
    assert files
    for name in files:
        assert (tmp_path / "a" / "evidence" / name).read_bytes() == (
            tmp_path / "b" / "evidence" / name
        ).read_bytes()
    third = run(target(tmp_path, seed=1), tmp_path / "c")
    assert masked(third)["samples"]["evidence"] != masked(first)["samples"]["evidence"]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.45, 0.7, 0.97])
def test_an_interrupted_run_goes_on_to_the_same_report(tmp_path: Path, share: float) -> None:
    x = points()
    data = (x, labels_of(linear(), x, 3))
    undisturbed = Counting(linear())
    expected = run(target(tmp_path, model=classifier(undisturbed), data=data), tmp_path / "whole")
    # Interrupt at a call in the middle of things; the probing before the run is not the run.
    failing = Counting(linear(), fail_after=PROBED + round(share * (undisturbed.samples - PROBED)))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_target(target(tmp_path, model=classifier(failing), data=data), out=out, device="cpu")
    finished = records_of(out)
    journal = (out / "journal.jsonl").read_bytes() if finished else b""
    spent = sum(r.forward + r.checks for r in finished)
    resumed = Counting(linear())
    report = run(target(tmp_path, model=classifier(resumed), data=data), out, resume=True)
    assert masked(report) == masked(expected)
    assert (out / "journal.jsonl").read_bytes().startswith(journal)
    units = [(r.stage, r.chunk) for r in records_of(out)]
    assert len(units) == len(set(units))
    # What was finished was not computed again: the passes of both parts add up.
    assert (resumed.samples - PROBED) + spent == undisturbed.samples - PROBED


def test_resuming_a_finished_run_computes_nothing(tmp_path: Path) -> None:
    x, counting = points(), Counting(linear())
    chosen = target(tmp_path, model=classifier(counting), data=(x, labels_of(linear(), x, 3)))
    first = run(chosen, tmp_path / "run")
    before = counting.samples
    again = run(chosen, tmp_path / "run", resume=True)
    assert counting.samples - before == PROBED
    assert masked(first) == masked(again)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 5}, "seed"),
        ({"threats": ("linf:0.2",)}, "threats"),
        ({"batch": 4}, "chunk"),
        ({"samples": 20}, "requested"),
        ({"suite": only("fgsm")}, "suite"),
        ({"model": classifier(linear(7))}, "model_sha256"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    x = points()
    data = (x, labels_of(linear(), x, 3))
    run(target(tmp_path, data=data), tmp_path / "run")
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"its {field} is not the same"):
        run(target(tmp_path, data=data, **changes), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("count", [2, 3])
def test_shards_merge_to_the_same_report(tmp_path: Path, count: int) -> None:
    chosen = target(tmp_path, threats=("linf:0.1", "l2:0.2"))
    whole = run(chosen, tmp_path / "whole")
    paths = [tmp_path / f"shard{index}" for index in range(count)]
    for index, path in enumerate(paths, 1):
        run_target(chosen, out=path, device="cpu", shard=Shard(index, count))
    merged = merge_runs(paths[::-1], tmp_path / "merged", chosen)
    assert masked(merged) == masked(whole)


def test_a_missing_shard_is_not_trusted(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    run_target(chosen, out=tmp_path / "one", device="cpu", shard=Shard(1, 2))
    report = merge_runs([tmp_path / "one"], tmp_path / "merged", chosen)
    assert not report.trusted
    assert any("the clean pass is missing for 14 of 30 samples" in reason for reason in report.distrust)


def test_pass_budget_is_per_chunk_and_deterministic(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    first, second = (run(chosen, tmp_path / name, max_passes=20.0) for name in "ab")
    assert masked(first) == masked(second)
    assert not first.trusted
    partial = [row for row in first.threats[0].attacks if row.status == "partial"]
    assert partial
    assert any("pass budget ran out" in str(row.reason) for row in partial)
    for chunk in range(4):
        attacking = [
            r for r in records_of(tmp_path / "a") if r.chunk == chunk and r.stage.count("/") and r.attempted
        ]
        cost = sum(
            r.forward + 2 * r.backward
            for r in attacking
            if r.stage.split("/")[1] in {"fgsm", "apgd", "square"}
        )
        size = 8 if chunk < 3 else 6
        assert cost < 20 * size + 3 * size
    # Shards buy the same with it.
    paths = [tmp_path / "s1", tmp_path / "s2"]
    for index, path in enumerate(paths, 1):
        run_target(chosen, out=path, device="cpu", max_passes=20.0, shard=Shard(index, 2))
    assert masked(merge_runs(paths, tmp_path / "m", chosen)) == masked(first)


def test_an_unfinished_point_of_the_curve_is_not_shown(tmp_path: Path) -> None:
    # Enough for the suite, and not for both points of the curve.
    full = run(target(tmp_path, threats=("linf:0.02",)), tmp_path / "full")
    spent = [
        sum(
            r.forward + 2 * r.backward
            for r in records_of(tmp_path / "full")
            if r.chunk == 0 and r.stage.endswith(end)
        )
        for end in ("/fgsm", "/apgd", "/square", "/curve-0.5")
    ]
    budget = (sum(spent) - 1) / 8
    report = run(target(tmp_path, threats=("linf:0.02",)), tmp_path / "part", max_passes=budget)
    assert [point.eps for point in full.threats[0].curve] == [0.0, 0.01, 0.02, 0.03]
    shown = [point.eps for point in report.threats[0].curve]
    assert 0.01 not in shown
    assert 0.02 in shown


def test_time_budget_leaves_a_partial_report_that_fails_the_gate(tmp_path: Path) -> None:
    chosen = target(tmp_path, gate={"evasion": ">= 0", "clean": ">= 0"})
    report = run(chosen, tmp_path / "run", time_budget=1e-9)
    assert report.clean.accuracy.count == 27
    assert report.scores.evasion is None
    assert not report.trusted
    assert report.gate.passed is False
    assert [c.passed for c in report.gate.conditions] == [False, True]
    assert report.threats[0].robust_accuracy.upper is None
    assert report.threats[0].outcomes == ""
    assert report.threats[0].per_class == []
    assert report.threats[0].curve == []
    # Without the budget it goes on where it stopped, to the report of an undisturbed run.
    again = run(chosen, tmp_path / "run", resume=True)
    assert masked(again) == masked(run(chosen, tmp_path / "whole"))


def test_time_that_runs_out_inside_an_attack_keeps_what_it_found(tmp_path: Path) -> None:
    hurried = True

    def slow(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Visit the far corner first, then dawdle until somebody puts an end to it."""
        model(threat.around(x).project(1 - x))
        while hurried:
            model(x)
        return x

    with registered("slow", slow):
        chosen = target(tmp_path, suite=only("slow", "apgd(steps = 5)"), batch=64, threats=("linf:0.5",))
        report = run(chosen, tmp_path / "run", time_budget=1.0)
        attack = report.threats[0].attacks[0]
        assert attack.status == "partial"
        assert "time budget" in str(attack.reason)
        assert attack.broken > 0
        assert report.threats[0].outcomes.count("b") == attack.broken
        assert not report.trusted
        hurried = False
        again = run(chosen, tmp_path / "run", resume=True)
        full = run(chosen, tmp_path / "full")
    assert again.threats[0].outcomes == full.threats[0].outcomes
    assert again.threats[0].attacks[0].status == "ran"
    assert again.threats[0].attacks[0].attempted == 27  # not once more for those that were taken up again


def test_two_budgets_of_a_norm_are_nested(tmp_path: Path) -> None:
    report = run(target(tmp_path, threats=("linf:0.2", "linf:0.05")), tmp_path / "run")
    small, large = report.threats
    assert (small.name, large.name) == ("linf:0.05", "linf:0.2")
    assert 0 < small.outcomes.count("b") < large.outcomes.count("b")
    for one, other in zip(small.outcomes, large.outcomes, strict=True):
        assert (one, other) in {("m", "m"), ("b", "b"), ("s", "b"), ("s", "s")}
    for threat in report.threats:
        assert sum(row.broken for row in threat.attacks) == threat.outcomes.count("b")
    assert large.attacks[0].id == "carried-over"
    assert large.attacks[0].broken >= small.outcomes.count("b")
    assert large.attacks[0].broken <= large.attacks[0].attempted


def test_score_is_what_withstands_every_threat_model(tmp_path: Path) -> None:
    report = run(target(tmp_path, threats=("linf:0.05", "l2:0.1", "l1:0.3")), tmp_path / "run")
    joint = sum(set(letters) == {"s"} for letters in zip(*(t.outcomes for t in report.threats), strict=True))
    assert report.scores.evasion is not None
    assert report.scores.evasion.value == pytest.approx(100 * joint / 30)
    assert joint <= min(t.outcomes.count("s") for t in report.threats)
    assert report.scores.overall == report.scores.evasion


def test_an_attack_that_fails_stops_the_run_with_one_line_and_keeps_the_rest(tmp_path: Path) -> None:
    def failing(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Fail."""
        raise ZeroDivisionError("on\npurpose")

    with registered("failing", failing):
        chosen = target(tmp_path, suite=only("fgsm", "failing"))
        with pytest.raises(RunError) as caught:
            run(chosen, tmp_path / "run")
    assert str(caught.value) == "linf:0.1/failing, chunk 0: ZeroDivisionError: on purpose"
    stages = [r.stage for r in records_of(tmp_path / "run")]
    assert stages == ["clean"] * 4 + ["linf:0.1/before"] * 4 + ["linf:0.1/fgsm"] * 4


@pytest.mark.parametrize("shape", [(), (3,), (8, FEATURES, 1)])
def test_an_attack_that_returns_something_else(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def odd(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Return another shape."""
        return torch.zeros(shape)

    with registered("odd", odd), pytest.raises(RunError, match="returned shape"):
        run(target(tmp_path, suite=only("odd")), tmp_path / "run")


def test_an_attack_cannot_change_the_labels_or_the_inputs(tmp_path: Path) -> None:
    def meddling(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Overwrite the arguments."""
        y += 1
        x.fill_(0.5)
        return x

    x = points()
    y = labels_of(linear(), x)
    with registered("meddling", meddling):
        report = run(
            target(tmp_path, data=(x, y), suite=only("meddling"), threats=("linf:0.001",)), tmp_path / "r"
        )
    assert report.threats[0].attacks[0].broken == 0
    assert np.array_equal(x, points())


def test_the_observer_hears_every_pass_and_unit(tmp_path: Path) -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.units = self.done = self.passes = 0
            self.finished: list[Any] = []

        def begin(self, units: int, done: int) -> None:
            self.units, self.done = units, done

        def on_pass(self, samples: int) -> None:
            self.passes += samples

        def unit(self, record: Any) -> None:
            self.finished.append(record)

    listener = Listener()
    plan, folder = run_target(target(tmp_path), out=tmp_path / "run", device="cpu", observer=listener)
    assert len(listener.finished) == listener.units
    assert listener.passes == sum(r.forward for r in folder.records if r.stage != "clean")
    again = Listener()
    run_target(target(tmp_path), out=tmp_path / "run", device="cpu", observer=again, resume=True)
    assert again.done == len(folder.records)
    assert again.passes == 0
    assert save_report(plan, folder, target(tmp_path).data).trusted in {True, False}


def test_samples_keep_their_verdict_in_a_selection(tmp_path: Path) -> None:
    chosen = target(tmp_path)
    whole = run(chosen, tmp_path / "whole")
    part = run(dataclasses.replace(chosen, samples=12), tmp_path / "part")
    letters = dict(zip(whole.samples.ids, whole.threats[0].outcomes, strict=True))
    assert part.threats[0].outcomes == "".join(letters[row] for row in part.samples.ids)
