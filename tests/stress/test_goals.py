"""Runs with goals: only targets count, for every kind of attack, and all that is derived from it agrees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.api import stress_test
from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.goals import parse_goals
from robustml.inputs import InputSpec
from robustml.losses import is_wrong, margin
from robustml.registry import Access, Logits
from robustml.report.model import Report
from robustml.report.verify import verify_run
from robustml.runs import merge_runs, run_target
from robustml.sampling import Streams
from robustml.stress.aiming import Aimed, outcome, towards
from robustml.stress.folder import RunFolder
from robustml.stress.runner import Shard
from robustml.threats import Threat
from tests.stress.test_randomized import Noisy
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

CPU = torch.device("cpu")
CLASSES = 4
EPS = 0.2


def module() -> Any:
    return linear(classes=CLASSES)


def aimed_target(folder: Path, *goals: str, model: Any = None, wrong: int = 3, **changes: Any) -> Any:
    x = points(40)
    y = labels_of(module(), x, wrong)
    model = model or classifier(module(), classes=CLASSES)
    chosen = target(folder, model=model, data=(x, y), threats=(f"linf:{EPS}",), **changes)
    return dataclasses.replace(chosen, goals=parse_goals(goals, chosen.class_names).texts)


def reachable(goals: list[str], eps: float = EPS) -> dict[int, bool]:
    """For each concerned sample, whether a target can win anywhere in the box: a linear programme."""
    from scipy.optimize import linprog

    x = points(40)
    y = labels_of(module(), x)
    table = parse_goals(goals, [str(label) for label in range(CLASSES)]).table
    weight = module().weight.detach().numpy()
    bias = module().bias.detach().numpy()
    found = {}
    for row in np.flatnonzero(table.any(1)[y]):
        box = list(zip(np.maximum(x[row] - eps, 0), np.minimum(x[row] + eps, 1), strict=True))
        best = -np.inf
        for one in np.flatnonzero(table[y[row]]):
            # The largest lead of a target over every class that is none.
            rest = np.flatnonzero(~table[y[row]])
            above = np.hstack([weight[rest] - weight[one], np.ones((len(rest), 1))])
            answer = linprog(
                [0.0] * FEATURES + [-1.0], above, bias[one] - bias[rest], bounds=[*box, (None, None)]
            )
            best = max(best, -answer.fun)
        found[int(row)] = best > 0
    return found


def letters(report: Report) -> dict[int, str]:
    return dict(zip(report.samples.ids, report.threats[0].outcomes, strict=True))


GOALS = [["*->0"], ["1->2"], ["0->3", "1->3", "*->2"], ["0->1", "0->2", "2->3"]]


@pytest.mark.parametrize("goals", GOALS, ids=" ".join)
def test_what_is_left_is_what_no_point_of_the_box_turns_into_a_target(
    tmp_path: Path, goals: list[str]
) -> None:
    report = run(aimed_target(tmp_path, *goals, wrong=0), tmp_path / "run")
    truth = reachable(goals)
    assert True in truth.values()
    found = letters(report)
    assert found == {row: "b" if broken else "s" for row, broken in truth.items()}
    assert report.goals == goals
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    assert upper.total == len(truth)
    survivors = "survives" if upper.count == 1 else "survive"
    assert report.verdict.startswith(
        f"Of {len(truth)} test inputs with a goal, {upper.count} {survivors} every attempt to turn them into "
    )
    for shown in (str(report), report.to_html(), report.to_markdown()):
        assert "Goals" in shown
    for code in ("D10", "D12", "D19"):
        assert next(d for d in report.threats[0].diagnostics if d.code == code).status in {"pass", "skipped"}
    assert next(d for d in report.threats[0].diagnostics if d.code == "D13").status == "skipped"


@pytest.mark.parametrize("goals", GOALS[2:], ids=" ".join)
def test_evidence_answers_a_target_and_a_replay_agrees(tmp_path: Path, goals: list[str]) -> None:
    chosen = aimed_target(tmp_path, *goals)
    report = run(chosen, tmp_path / "run")
    table = parse_goals(goals, chosen.class_names).table
    folder, plan = RunFolder.open(tmp_path / "run")
    assert plan.goals == goals
    y, seen = chosen.data.y[plan.ids], 0
    for record in folder.records:
        if record.broken:
            evidence = folder.read_evidence(record)
            answers = chosen.model(torch.from_numpy(evidence.x)).argmax(1).numpy()
            assert (answers == evidence.label).all()
            assert table[y[evidence.position], answers].all()
            assert (evidence.margin > 0).all()
            assert record.broken == sorted(record.broken)
            seen += len(answers)
    assert seen >= report.threats[0].outcomes.count("b") > 3
    verified = verify_run(tmp_path / "run", chosen, CPU, rerun=8)
    assert verified.problems == ()
    assert verified.counterexamples == seen
    # With another goal in the plan the evidence, or the choice of samples, no longer fits.
    lines = (tmp_path / "run" / "plan.json").read_text().replace(f'"{goals[0]}"', '"3->0"')
    (tmp_path / "run" / "plan.json").write_text(lines)
    said = " ".join(verify_run(tmp_path / "run", chosen, CPU).problems)
    assert "its samples are not those" in said or "the model is not fooled" in said


def test_misclassified_samples_are_not_counted_as_robust(tmp_path: Path) -> None:
    plain = run(aimed_target(tmp_path, "*->0", wrong=8), tmp_path / "run")
    assert plain.threats[0].outcomes.count("m") >= 4
    assert all(letter == "m" for row, letter in letters(plain).items() if row < 8)


@pytest.mark.slow
def test_goals_are_at_most_as_easy_as_any_mistake(tmp_path: Path) -> None:
    anything = letters(run(aimed_target(tmp_path), tmp_path / "any"))
    for number, goals in enumerate(GOALS):
        found = letters(run(aimed_target(tmp_path, *goals), tmp_path / str(number)))
        assert all(anything[row] == "b" for row, letter in found.items() if letter == "b")
    every = [f"*->{label}" for label in range(CLASSES)]
    assert letters(run(aimed_target(tmp_path, *every), tmp_path / "every")) == anything


@pytest.mark.parametrize("access", ["probabilities", "labels"])
def test_attacks_that_see_scores_or_labels_reach_for_the_target(tmp_path: Path, access: Any) -> None:
    layer = module()

    def predict(batch: Any) -> Any:
        with torch.no_grad():
            logits = layer(torch.from_numpy(batch))
        return logits.argmax(1).numpy() if access == "labels" else logits.softmax(1).numpy()

    def ask(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Try random corners until the model gives way."""
        best = x.clone()
        for _ in range(200):
            z = threat.around(x).project(x + streams.signs(FEATURES, dtype=x.dtype))
            wrong = is_wrong(model(z), y)
            best[wrong] = z[wrong]
        return best

    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    model = BlackBox(predict, inputs=spec, classes=CLASSES, outputs=access)
    goals = ["0->1", "2->1", "1->3"]
    with registered("ask", ask, access=Access.DECISION):
        suite = only("ask") if access == "labels" else only("square(queries = 300)")
        chosen = aimed_target(tmp_path, *goals, model=model, suite=suite, wrong=0)
        report = run(chosen, tmp_path / "run")
        assert verify_run(tmp_path / "run", chosen, CPU, rerun=3).problems == ()
    truth, found = reachable(goals), letters(report)
    assert all(truth[row] for row, letter in found.items() if letter == "b")
    assert sum(letter == "b" for letter in found.values()) >= 0.8 * sum(truth.values()) > 2


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_an_interrupted_run_with_goals_goes_on_to_the_same_report(tmp_path: Path, share: float) -> None:
    goals = GOALS[3]
    whole = Counting(module())
    expected = run(
        aimed_target(tmp_path, *goals, model=classifier(whole, classes=CLASSES)), tmp_path / "whole"
    )
    failing = Counting(module(), fail_after=200 + round(share * (whole.samples - 200)))
    with pytest.raises(KeyboardInterrupt):
        run_target(
            aimed_target(tmp_path, *goals, model=classifier(failing, classes=CLASSES)),
            out=tmp_path / "run",
            device="cpu",
        )
    assert records_of(tmp_path / "run")
    chosen = aimed_target(tmp_path, *goals, model=classifier(Counting(module()), classes=CLASSES))
    assert masked(run(chosen, tmp_path / "run", resume=True)) == masked(expected)
    with pytest.raises(InputError, match="its goals is not the same"):
        run(dataclasses.replace(chosen, goals=("0->1",)), tmp_path / "run", resume=True)


def test_shards_with_goals_merge_to_the_same_report_whatever_the_batch(tmp_path: Path) -> None:
    chosen = aimed_target(tmp_path, *GOALS[2])
    whole = run(chosen, tmp_path / "whole")
    paths = [tmp_path / "one", tmp_path / "two"]
    for index, path in enumerate(paths, 1):
        run_target(chosen, out=path, device="cpu", shard=Shard(index, 2))
    assert masked(merge_runs(paths, tmp_path / "merged", chosen)) == masked(whole)
    other = run(dataclasses.replace(chosen, batch_size=64), tmp_path / "other")
    assert other.threats[0].outcomes == whole.threats[0].outcomes


def test_a_budget_is_shared_by_the_groups(tmp_path: Path) -> None:
    chosen = aimed_target(tmp_path, *GOALS[3], suite=only("apgd(steps = 40)"), batch_size=64)
    report = run(chosen, tmp_path / "run", max_passes=30.0)
    attack = next(r for r in records_of(tmp_path / "run") if r.stage.endswith("/apgd"))
    assert attack.status == "passes"
    assert attack.forward + 2 * attack.backward < 33 * len(report.samples.ids)
    assert not report.trusted


def test_a_randomized_model_is_aimed_at_by_vote(tmp_path: Path) -> None:
    goals = GOALS[2]
    noisy = Noisy(0.01)
    noisy.inner = module()
    chosen = aimed_target(tmp_path, *goals, model=classifier(noisy, classes=CLASSES), wrong=0)
    report = run(chosen, tmp_path / "run")
    assert report.randomness is not None
    easy, hard = reachable(goals, 0.8 * EPS), reachable(goals, 1.2 * EPS)
    found = letters(report)
    assert sum(letter == "b" for letter in found.values()) > 5
    for row, letter in found.items():
        assert letter in "bm" or not easy[row]
        assert letter != "b" or hard[row]
    assert verify_run(tmp_path / "run", chosen, CPU, rerun=4).problems == ()


LABELS = st.integers(0, 4)


@given(st.lists(st.integers(-2, 2), min_size=5, max_size=5), LABELS, st.sets(LABELS, min_size=1))
def test_logits_are_wrong_exactly_where_the_answer_is_a_target(
    values: list[int], label: int, wanted: set[int]
) -> None:
    wanted = wanted - {label} or {(label + 1) % 5}
    logits, y = torch.tensor([values], dtype=torch.float64), torch.tensor([label])
    targets = torch.tensor([[one in wanted for one in range(5)]])
    seen = outcome(logits, y, targets)
    answer = int(logits.argmax())
    assert bool(is_wrong(seen, y)) is (answer in wanted)
    if answer in wanted:
        assert int(seen.argmax()) == answer
    gap = max(values[one] for one in wanted) - max(v for one, v in enumerate(values) if one not in wanted)
    assert float(margin(seen, y)) == pytest.approx(gap)
    pair = towards(logits, targets[0])
    assert float(margin(pair, torch.zeros(1, dtype=torch.int64))) == gap


def test_the_aimed_model_has_the_targeted_margin_and_its_gradient() -> None:
    layer = module()
    x = torch.from_numpy(points(6)).requires_grad_()
    targets = torch.tensor([False, True, False, True])
    pair = Aimed(layer, targets)(x)
    (gradient,) = torch.autograd.grad((pair[:, 1] - pair[:, 0]).sum(), x)
    logits = layer(x)
    best, other = logits[:, [1, 3]].argmax(1) * 2 + 1, logits[:, [0, 2]].argmax(1) * 2
    torch.testing.assert_close(gradient, layer.weight[best] - layer.weight[other])
    nan = torch.full((1, 4), 1.0)
    nan[0, 2] = torch.nan
    assert bool(is_wrong(outcome(nan, torch.tensor([0]), targets[None]), torch.tensor([0])))


def test_goals_from_python(tmp_path: Path) -> None:
    x = points(40)
    data = (x, labels_of(module(), x))
    path = tmp_path / "suite.toml"
    path.write_text(only("fgsm"))
    settings: dict[str, Any] = {"threats": ["linf:0.2"], "suite": path, "class_names": ["a", "b", "c", "d"]}
    model = classifier(module(), classes=CLASSES)
    report = stress_test(model, data, goals=["a->b", "*->d"], **settings)
    assert report.goals == ["a->b", "*->d"]
    assert "goals=['0->1', '*->3']" in report.command
    assert Report.from_json(report.to_json()) == report
    assert set(np.asarray(data[1])[report.samples.ids]) == {0, 1, 2}
    with pytest.raises(InputError, match="'e' is not the name of a class"):
        stress_test(model, data, goals=["a->e"], **settings)
    with pytest.raises(InputError, match="samples=40 is more than the"):
        stress_test(model, data, goals=["*->d"], samples=40, **settings)
