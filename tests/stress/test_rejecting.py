"""A rejection is one more class: what that means to attacks, votes and goals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import robustml as rml
from robustml.guards import Guard
from robustml.losses import is_wrong, margin
from robustml.stress.rejecting import Accepting, accepted
from tests.stress.toy import (
    FEATURES,
    Counting,
    classifier,
    finding,
    labels_of,
    linear,
    only,
    points,
    run,
    target,
)

SPEC = rml.InputSpec(shape=(FEATURES,), dtype="float64")


class Limit(Guard):
    """Rejects inputs whose mean is above a limit."""

    name = "limit"
    rejects = True

    def __init__(self, limit: float = 0.5, sharp: float = 1.0) -> None:
        super().__init__()
        self.limit, self.sharp = limit, sharp

    def score(self, x, model):
        return (x.flatten(1).mean(1) - self.limit) * self.sharp


class Noisy(Guard):
    """Adds noise."""

    name = "noisy"
    random = True

    def forward(self, x):
        return x + 0.02 * torch.randn_like(x)


class Levels(Guard):
    """Rounds to so many levels."""

    name = "levels"

    def __init__(self, levels: int = 4, sign: float = 1.0) -> None:
        super().__init__()
        self.levels, self.sign = levels, sign

    def forward(self, x):
        return (x * self.levels).round() / self.levels

    def surrogate(self, x):
        return self.sign * x


values = st.integers(-3, 3).map(float)


@given(
    st.integers(2, 5).flatmap(lambda c: arrays.arrays(np.float64, (6, c + 1), elements=values)),
    st.integers(0, 1),
)
def test_accepted_is_wrong_exactly_where_an_input_is_accepted_and_misclassified(logits, label) -> None:
    logits, y = torch.from_numpy(logits), torch.full((6,), label)
    answer = logits.argmax(1)
    folded = accepted(logits, y)
    assert folded.shape == (6, logits.shape[1] - 1)
    assert torch.equal(is_wrong(folded, y), (answer != y) & (answer != logits.shape[1] - 1))
    best = logits[:, :-1].scatter(1, y[:, None], -torch.inf).amax(1)
    rivals = torch.maximum(logits[:, label], logits[:, -1])
    torch.testing.assert_close(margin(folded, y), best - rivals, atol=1e-9, rtol=0)


def test_accepted_passes_gradients_of_the_label_or_of_the_rejection() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 0.0, 4.0]], requires_grad=True)
    y = torch.zeros(2, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(margin(accepted(logits, y), y).sum(), logits)
    assert torch.equal(gradient, torch.tensor([[-1.0, 1.0, 0.0], [0.0, 1.0, -1.0]]))


def test_a_number_that_is_none_counts_against_the_model() -> None:
    logits = torch.tensor([[1.0, torch.nan, 5.0]])
    assert is_wrong(accepted(logits, torch.tensor([0])), torch.tensor([0])).all()


def test_rows_that_cannot_be_matched_tell_nothing_where_they_are_rejected() -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 0.0]])
    opponent = Accepting(lambda x: logits, torch.tensor([0, 0, 0]))
    assert torch.equal(opponent(torch.zeros(2, 1)), torch.tensor([[0.0, 0.0], [1.0, 2.0]]))


def guarded(*guards: Guard, classes: int = 3, module=None) -> rml.Guarded:
    return rml.Guarded(classifier(module or linear(classes=classes), classes=classes), guards)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["gradient", "score", "decision"])
def test_a_stress_test_counts_accepted_mistakes_only(tmp_path, classes, kind) -> None:
    module = linear(classes=classes)
    x = points(40)
    y = labels_of(module, x)
    inner = classifier(module, classes=classes)
    if kind != "gradient":

        def predict(batch):
            with torch.no_grad():
                logits = module(torch.from_numpy(batch))
            return logits.argmax(1).numpy() if kind == "decision" else logits.numpy()

        inner = rml.BlackBox(
            predict, inputs=SPEC, classes=classes, outputs="labels" if kind == "decision" else "logits"
        )
    model = rml.Guarded(inner, [Limit(0.5)])
    attack = {
        "gradient": "pgd(loss = 'margin')",
        "score": "square(queries = 200)",
        "decision": "rays(queries = 200)",
    }
    chosen = target(
        tmp_path, model=model, data=(x, y), suite=only(attack[kind]), threats=("linf:0.3",), wrong=0
    )
    report = run(chosen, tmp_path / "run")
    rejected = x.mean(1) > 0.5
    assert report.clean.accuracy.count == int((~rejected).sum())
    assert report.guards is not None
    assert report.guards.rejected.count == int(rejected.sum())
    assert report.guards.bare_accuracy.count == 40
    upper = report.threats[0].robust_accuracy.upper
    # The exact figure: a linear model, and a limit that is linear as well.
    assert upper.count >= _withstand(module, x[~rejected], y[~rejected], classes)
    assert upper.count < report.clean.accuracy.count
    evidence = report.threats[0]
    assert evidence.outcomes.count("b") == report.clean.accuracy.count - upper.count


def _withstand(module, x, y, classes) -> int:
    """How many samples no perturbation within 0.3 turns into an accepted mistake, by linear programming."""
    from scipy.optimize import linprog

    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    count = 0
    for row, label in zip(x, y, strict=True):
        broken = False
        for other in set(range(classes)) - {int(label)}:
            gap = weight[other] - weight[label]
            bounds = [(max(v - 0.3, 0), min(v + 0.3, 1)) for v in row]
            solved = linprog(-gap, A_ub=[np.full(len(row), 1 / len(row))], b_ub=[0.5], bounds=bounds)
            broken |= solved.success and -solved.fun + bias[other] - bias[label] > 1e-9
        count += not broken
    return count


def test_gradient_attacks_reach_what_linear_programming_allows(tmp_path) -> None:
    module, x = linear(), points(60)
    y = labels_of(module, x)
    suite = only("apgd(loss = 'margin', steps = 100)", "apgd-t(steps = 50, targets = 2)")
    chosen = target(
        tmp_path, model=guarded(Limit(0.5)), data=(x, y), suite=suite, threats=("linf:0.3",), wrong=0
    )
    report = run(chosen, tmp_path / "run")
    kept = x.mean(1) <= 0.5
    exact = _withstand(module, x[kept], y[kept], 3)
    assert exact <= report.threats[0].robust_accuracy.upper.count <= exact + 1


def test_goals_do_not_take_a_rejection_for_a_success(tmp_path) -> None:
    x = points(40)
    module = linear()
    y = labels_of(module, x)
    suite = only("apgd(loss = 'margin', steps = 50)")
    reports = [
        run(
            target(
                tmp_path,
                model=guarded(*guards),
                data=(x, y),
                suite=suite,
                threats=("linf:0.3",),
                wrong=0,
                goals=("*->0",),
            ),
            tmp_path / f"run{len(guards)}",
        )
        for guards in ((Limit(10.0),), (Limit(10.0), Limit(-1.0)))
    ]
    open_one, closed = reports
    assert open_one.threats[0].robust_accuracy.upper.count < len(open_one.samples.ids)
    # A model that rejects everything is never wrong under attack, and never right without one.
    assert closed.clean.accuracy.count == 0


def test_a_model_that_rejects_everything_scores_nothing(tmp_path) -> None:
    x = points(20)
    report = run(
        target(tmp_path, model=guarded(Limit(-1.0)), data=(x, labels_of(linear(), x)), wrong=0),
        tmp_path / "run",
    )
    assert report.clean.accuracy.count == 0
    assert report.scores.evasion.value == 0
    assert report.guards.rejected.count == 20
    assert not report.trusted


def test_randomized_models_that_reject(tmp_path) -> None:
    x = points(24)
    module = linear(dtype=torch.float64)
    y = labels_of(module, x)
    suite = only("pgd(loss = 'margin', steps = 20)")
    chosen = target(
        tmp_path,
        model=guarded(Noisy(), Limit(0.5)),
        data=(x, y),
        suite=suite,
        threats=("linf:0.08",),
        wrong=0,
        draws=10,
        eot=4,
        batch=64,
    )
    report = run(chosen, tmp_path / "run")
    near = np.abs(x.mean(1) - 0.5) < 0.03
    assert report.randomness is not None
    count = report.clean.accuracy.count
    assert count <= int((x.mean(1) < 0.53).sum())
    assert count >= int(((x.mean(1) <= 0.5) & ~near).sum()) - 3
    assert 0 < report.threats[0].robust_accuracy.upper.count < count


@pytest.mark.parametrize("guards", [(Levels(3),), (Limit(0.6),), (Levels(3), Limit(0.6))], ids=str)
def test_who_knows_of_the_guards_breaks_no_less(tmp_path, guards) -> None:
    x = points(60)
    chosen = target(
        tmp_path,
        model=guarded(*guards),
        data=(x, labels_of(linear(), x)),
        threats=("linf:0.1", "linf:0.2"),
        wrong=3,
    )
    report = run(chosen, tmp_path / "run")
    for threat in report.threats:
        assert threat.unaware is not None
        assert threat.robust_accuracy.upper.count <= threat.unaware.robust_accuracy.count
        assert threat.unaware.bare.count <= threat.unaware.robust_accuracy.count
    assert report.guards.latency > 0
    text = str(report)
    assert "who do not know of the guards" in text.replace("\n", " ")


def test_a_wrong_surrogate_is_named(tmp_path) -> None:
    x = points(60)
    right, wrong = (
        run(
            target(
                tmp_path,
                model=guarded(Levels(6, sign)),
                data=(x, labels_of(linear(), x)),
                threats=("linf:0.2",),
                batch=64,
            ),
            tmp_path / f"run{sign}",
        )
        for sign in (1.0, -1.0)
    )
    assert finding(right, "D16").status == "pass"
    assert finding(right, "D02").status != "fail"
    assert finding(wrong, "D02").status == "fail" or finding(wrong, "D16").status == "fail"
    assert "levels" in finding(wrong, "D16").detail
    assert not wrong.trusted


def test_a_run_on_a_guarded_model_replays_and_resumes(tmp_path) -> None:
    from robustml.report.verify import verify_run
    from robustml.runs import run_target
    from tests.stress.toy import masked

    x = points(30)
    data = (x, labels_of(linear(), x))

    def made(module) -> rml.Guarded:
        return guarded(Levels(3), Limit(0.6), module=module)

    run(target(tmp_path, model=made(linear()), data=data), tmp_path / "plain")
    whole = run(target(tmp_path, model=made(Counting(linear())), data=data), tmp_path / "whole")
    found = verify_run(
        tmp_path / "plain", target(tmp_path, model=made(linear()), data=data), torch.device("cpu"), rerun=5
    )
    assert found.passed, found.problems
    unguarded = target(tmp_path, model=classifier(linear()), data=data)
    found = verify_run(tmp_path / "plain", unguarded, torch.device("cpu"))
    assert any("guards" in problem for problem in found.problems)
    counting = Counting(linear(), fail_after=3000)
    try:
        run(target(tmp_path, model=made(counting), data=data), tmp_path / "part")
    except KeyboardInterrupt:
        counting.fail_after = None
        run_target(
            target(tmp_path, model=made(counting), data=data),
            out=tmp_path / "part",
            device="cpu",
            resume=True,
        )
    resumed = run(target(tmp_path, model=made(counting), data=data), tmp_path / "part", resume=True)
    ours, theirs = masked(resumed), masked(whole)
    for report in (ours, theirs):
        report["guards"]["latency"] = 0
        report["target"]["model"]["sha256"] = ""
    assert ours == theirs
