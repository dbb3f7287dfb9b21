"""Models that answer at random: found out, averaged over, judged by a vote, the same however they are run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustml.api import stress_test
from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.losses import is_wrong, margin
from robustml.registry import Access, Logits
from robustml.report.model import Diagnostic, Report
from robustml.report.verify import verify_run
from robustml.runs import merge_runs, run_target
from robustml.sampling import Streams
from robustml.stress.admission import admit
from robustml.stress.folder import RunFolder
from robustml.stress.randomized import Averaged, Randomness, Seeded, seeded, take_vote
from robustml.stress.runner import Shard
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

CPU = torch.device("cpu")
PROBED = 16 * 2 + 4 * 16 * 5 + 16 * 2 + 16
"""Samples that admission asks a randomized model about, one gradient included."""


class Noisy(nn.Module):
    """A linear model with noise on its inputs or on its logits."""

    def __init__(self, scale: float = 0.05, *, on: str = "inputs", source: str = "rows") -> None:
        super().__init__()
        self.inner = linear()
        self.scale, self.on, self.source = scale, on, source

    def noise(self, like: Tensor) -> Tensor:
        if self.source == "numpy":
            return torch.from_numpy(np.random.default_rng().normal(size=tuple(like.shape)))
        shape = (1, *like.shape[1:]) if self.source == "call" else like.shape
        return torch.randn(shape, dtype=like.dtype)

    def forward(self, x: Tensor) -> Any:
        if self.on == "inputs":
            return self.inner(x + self.scale * self.noise(x))
        logits = self.inner(x)
        return logits + self.scale * self.noise(logits)


class Scripted(nn.Module):
    """Answers each copy of an input by a script."""

    def __init__(self, answers: list[int], classes: int = 3) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(torch.tensor(answers), classes).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def noisy_target(folder: Path, module: nn.Module | None = None, **changes: Any) -> Any:
    x = points()
    data = (x, labels_of(linear(), x, 3))
    return target(folder, model=classifier(module or Noisy()), data=data, **changes)


def finding(report: Report, code: str) -> Diagnostic:
    return next(d for d in report.threats[0].diagnostics if d.code == code)


def settings_of(out: Path) -> Randomness:
    randomness = RunFolder.open(out)[1].randomness
    assert randomness is not None
    return randomness


@given(st.lists(st.integers(0, 2), min_size=2, max_size=9), st.integers(0, 2))
def test_more_than_half_of_the_draws_make_it_right(answers: list[int], label: int) -> None:
    model = Seeded(classifier(Scripted(answers)), 0)
    x, y = torch.zeros(1, FEATURES, dtype=torch.float64), torch.tensor([label])
    settings = Randomness(draws=len(answers), shared=False, foreign=False)
    votes = take_vote(model, x, y, torch.tensor([7]), settings, "test")
    wins = answers.count(label)
    assert bool(is_wrong(votes.logits, y)) is (2 * wins <= len(answers))
    assert float(margin(votes.logits, y)) == pytest.approx((len(answers) - 2 * wins + 0.5) / len(answers))
    if 2 * wins <= len(answers):
        others = [answers.count(c) if c != label else -1 for c in range(3)]
        assert others[int(votes.logits.argmax())] == max(others)
    most = max(answers.count(c) for c in range(3))
    assert float(votes.flips) == pytest.approx(1 - most / len(answers))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_with_goals_half_of_the_draws_must_be_targets(answers: list[int]) -> None:
    model = Seeded(classifier(Scripted(answers, 4), classes=4), 0)
    x, y = torch.zeros(1, FEATURES, dtype=torch.float64), torch.tensor([1])
    settings = Randomness(draws=len(answers), shared=False, foreign=False)
    targets = torch.tensor([[True, False, True, False]])
    votes = take_vote(model, x, y, torch.tensor([7]), settings, "test", targets)
    hits = answers.count(0) + answers.count(2)
    assert bool(is_wrong(votes.logits, y)) is (2 * hits >= len(answers))
    if 2 * hits >= len(answers):
        assert int(votes.logits.argmax()) in {0, 2}


def test_a_vote_depends_on_the_sample_and_on_nothing_around_it() -> None:
    model = Seeded(classifier(Noisy(0.5)), 3)
    x = torch.from_numpy(points(9))
    y = torch.from_numpy(labels_of(linear(), points(9)))
    ids = torch.arange(9) + 40
    for shared in (False, True):
        settings = Randomness(draws=8, shared=shared, foreign=False)
        whole = take_vote(model, x, y, ids, settings, "test")
        some = torch.tensor([6, 2, 3])
        model.begin("elsewhere")
        part = take_vote(model, x[some], y[some], ids[some], settings, "test")
        assert torch.equal(part.logits, whole.logits[some])
        assert torch.equal(part.flips, whole.flips[some])
        assert len({tuple(row) for row in whole.logits.tolist()}) > 3
        assert not torch.equal(take_vote(model, x, y, ids, settings, "other").logits, whole.logits)


@pytest.mark.parametrize("shared", [False, True])
def test_attacks_see_the_mean_of_the_gradients_and_what_most_draws_reach(shared: bool) -> None:
    source = "call" if shared else "rows"
    x = torch.from_numpy(points(5)).requires_grad_()
    # Labels of another class: every draw is fooled for some, none for others.
    y = torch.tensor([0, 1, 2, 0, 1])

    class Bent(Noisy):
        def forward(self, z: Tensor) -> Any:
            return super().forward(z).sin()

    settings = Randomness(draws=6, eot=8, shared=shared, foreign=False)
    module = classifier(Bent(0.2, source=source))
    model = Seeded(module, 1)
    model.begin("unit")
    averaged = Averaged(model, y, settings)
    extra: list[int] = []
    averaged.on_pass = extra.append
    seen = margin(averaged(x), y)
    (gradient,) = torch.autograd.grad(seen.sum(), x)

    again = Seeded(module, 1)
    again.begin("unit")
    drawn = (
        torch.stack([again(x) for _ in range(8)]) if shared else again(x.repeat(8, 1)).unflatten(0, (8, 5))
    )
    (expected,) = torch.autograd.grad(margin(drawn.mean(0), y).sum(), x)
    torch.testing.assert_close(gradient, expected)
    leads = torch.stack([margin(one, y) for one in drawn])
    reached = leads.sort(0).values[2]  # six of eight draws reach at least this
    fooled = reached > 0
    assert 0 < int(fooled.sum()) < 5
    torch.testing.assert_close(seen[~fooled], reached[~fooled])
    assert bool((seen[fooled] <= reached[fooled]).all())
    assert extra == [6 * int(fooled.sum())]
    # A batch that it cannot tell apart gets the plain mean, and rows that were announced their own labels.
    assert averaged(x[:2]).shape == (2, 3)
    averaged.focus(torch.tensor([4, 2]))
    assert averaged(x[[4, 2]]).shape == (2, 3)


def test_random_numbers_of_the_process_stay_as_they_were(tmp_path: Path) -> None:
    x = points()
    chosen, bare, y = noisy_target(tmp_path, suite=only("fgsm")), Noisy(), labels_of(linear(), x)
    spec = InputSpec(shape=(FEATURES,), dtype="float64")
    torch.manual_seed(99)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    run(chosen, tmp_path / "run")
    stress_test(bare, (x, y), threats=["linf:0.1"], suite=str(tmp_path / "toy.toml"), inputs=spec)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # type: ignore[index]
    with seeded(CPU, 1, "a"):
        first = torch.rand(3)
    with seeded(CPU, 1, "a"):
        assert torch.equal(first, torch.rand(3))
    with seeded(CPU, 2, "a"):
        assert not torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("source", ["rows", pytest.param("call", marks=pytest.mark.slow)])
def test_same_seed_same_report_and_the_replay_agrees(tmp_path: Path, source: str) -> None:
    chosen = noisy_target(tmp_path, Noisy(0.15, source=source))
    first = run(chosen, tmp_path / "a")
    torch.manual_seed(5)
    second = run(chosen, tmp_path / "b")
    assert masked(first) == masked(second)
    assert settings_of(tmp_path / "a").shared is (source == "call")
    files = sorted(p.name for p in (tmp_path / "a" / "evidence").iterdir())
    assert files
    for name in files:
        one, other = ((tmp_path / run_ / "evidence" / name).read_bytes() for run_ in "ab")
        assert one == other
    verified = verify_run(tmp_path / "a", chosen, CPU, rerun=6)
    assert verified.problems == ()
    assert verified.counterexamples > 10
    assert verified.units == 6
    other = run(dataclasses.replace(chosen, seed=1), tmp_path / "c")
    assert masked(other)["samples"]["evidence"] != masked(first)["samples"]["evidence"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("share", [pytest.param(0.1, marks=SLOW), 0.4, pytest.param(0.8, marks=SLOW)])
def test_an_interrupted_run_goes_on_to_the_same_report(tmp_path: Path, share: float) -> None:
    whole = Counting(Noisy())
    expected = run(noisy_target(tmp_path, whole), tmp_path / "whole")
    failing = Counting(Noisy(), fail_after=PROBED + round(share * (whole.samples - PROBED)))
    with pytest.raises(KeyboardInterrupt):
        run_target(noisy_target(tmp_path, failing), out=tmp_path / "run", device="cpu")
    assert records_of(tmp_path / "run")
    report = run(noisy_target(tmp_path, Counting(Noisy())), tmp_path / "run", resume=True)
    assert masked(report) == masked(expected)


def test_shards_merge_to_the_same_report(tmp_path: Path) -> None:
    chosen = noisy_target(tmp_path)
    whole = run(chosen, tmp_path / "whole")
    paths = [tmp_path / "one", tmp_path / "two"]
    for index, path in enumerate(paths, 1):
        run_target(chosen, out=path, device="cpu", shard=Shard(index, 2))
    assert masked(merge_runs(paths, tmp_path / "merged", chosen)) == masked(whole)


@pytest.mark.parametrize(("on", "scale"), [("inputs", 0.05), pytest.param("logits", 0.1, marks=SLOW)])
def test_noise_does_not_save_a_linear_model(tmp_path: Path, on: str, scale: float) -> None:
    """Symmetric noise leaves the majority of the answers where it is, so the closed form stays."""
    x = points()
    data = (x, labels_of(linear(), x, 3))
    report = run(noisy_target(tmp_path, Noisy(scale, on=on)), tmp_path / "noisy")
    plain = run(target(tmp_path, data=data, threats=("linf:0.07", "linf:0.13")), tmp_path / "plain")
    near, far = plain.threats
    assert near.outcomes.count("b") >= 10
    for found, easy, hard in zip(report.threats[0].outcomes, near.outcomes, far.outcomes, strict=True):
        # A sample beside the boundary may lose its vote without an attacker.
        assert found in "bm" or easy != "b"
        assert found == "s" or hard != "s"
    assert report.threats[0].outcomes.count("m") <= 3 + 2
    assert sum(row.broken for row in report.threats[0].attacks) == report.threats[0].outcomes.count("b")
    assert report.randomness is not None
    assert (report.randomness.draws, report.randomness.eot) == (20, 10)
    flips = [value for r in records_of(tmp_path / "noisy") if r.stage == "clean" for value in r.flips]
    assert len(flips) == 30
    assert report.randomness.flip_rate == pytest.approx(np.mean(flips))
    assert 0 < float(np.mean(flips)) < 0.3
    assert finding(report, "D05").status == "pass"
    for shown in (str(report), report.to_html(), report.to_markdown()):
        assert "20 draws vote on each point" in " ".join(shown.split())


def test_passes_are_counted_for_every_draw(tmp_path: Path) -> None:
    counting = Counting(Noisy())
    run(noisy_target(tmp_path, counting, suite=only("fgsm"), eot=4, draws=6), tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert counting.samples == PROBED + sum(r.forward + r.checks for r in records)
    clean = [r for r in records if r.stage == "clean"]
    assert sum(r.forward for r in clean) == 30 * 7
    attack = [r for r in records if r.stage.endswith("/fgsm")]
    assert all(r.backward == 4 * r.attempted for r in attack)
    assert settings_of(tmp_path / "run") == Randomness(draws=6, eot=4, shared=False, foreign=False)


def test_random_numbers_from_elsewhere_are_flagged(tmp_path: Path) -> None:
    chosen = noisy_target(tmp_path, Noisy(source="numpy"), suite=only("fgsm"))
    report = run(chosen, tmp_path / "run")
    found = finding(report, "D05")
    assert found.status == "fail"
    assert "randomness outside of torch" in found.detail
    assert not report.trusted
    assert any("D05" in reason for reason in report.distrust)
    assert "frozen" not in next(r for r in records_of(tmp_path / "run") if "randomness" in r.stage).facts
    problems = verify_run(tmp_path / "run", chosen, CPU).problems
    assert any("come from outside of torch" in problem for problem in problems)


def test_a_steady_model_that_claims_to_be_random_is_found_out(tmp_path: Path) -> None:
    x = points()
    data = (x, labels_of(linear(), x, 3))
    chosen = target(tmp_path, data=data, suite=only("fgsm"))
    report = run(chosen, tmp_path / "steady")
    assert report.randomness is None
    assert finding(report, "D05").detail == "the model answers alike when asked again"
    assert finding(report, "D15").status == "pass"
    run(noisy_target(tmp_path, suite=only("fgsm")), tmp_path / "noisy")
    problems = verify_run(tmp_path / "noisy", chosen, CPU).problems
    assert any("it answers alike, the run says otherwise" in problem for problem in problems)


def test_noise_that_starts_beside_the_data_is_noticed() -> None:
    x = points(20)
    known = torch.from_numpy(x)

    class Beside(Noisy):
        def forward(self, z: Tensor) -> Any:
            seen = (z[:, None] == known[None]).all(2).any(1, keepdim=True)
            return torch.where(seen, self.inner(z), super().forward(z))

    from robustml.data import as_dataset

    model = classifier(Beside())
    data = as_dataset((x, labels_of(linear(), x)), model.inputs, 3)
    admitted = admit(model, data, CPU)
    assert admitted.randomness is not None
    assert "at random" in dict(admitted.findings)["determinism"]
    assert admit(classifier(linear()), data, CPU).randomness is None


def test_too_little_averaging_is_found_and_counted(tmp_path: Path) -> None:
    class Astray(Noisy):
        """Each draw has a gradient of its own, which only the mean of many is rid of."""

        def forward(self, x: Tensor) -> Any:
            sign = torch.randint(2, (len(x), 1)).to(x.dtype) * 2 - 1
            path = (x - x.detach()).sum(1, keepdim=True) * sign * 4
            return super().forward(x) + path * torch.tensor([0.0, 1.0, 2.0])

    # The other diagnostics would have broken them before.
    suite = (
        only("fgsm", 'apgd(loss = "margin", steps = 3)') + 'skip = ["D08", "D09", "D10", "D11", "D18", "D22"]'
    )
    report = run(noisy_target(tmp_path, Astray(0.02), suite=suite, eot=1, batch=64), tmp_path / "run")
    found = finding(report, "D15")
    assert found.status in {"warn", "fail"}
    assert "2 draws per step broke" in found.detail
    rows = {row.id: row for row in report.threats[0].attacks}
    assert rows["randomness"].broken > 0
    assert sum(row.broken for row in rows.values()) == report.threats[0].outcomes.count("b")


def test_a_frozen_model_that_withstands_what_the_vote_does_not(tmp_path: Path) -> None:
    class Blind(Noisy):
        def forward(self, x: Tensor) -> Any:
            return super().forward((x * 64).round() / 64)

    def corner(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Go where the linear model inside is known to lead."""
        weight = linear().weight.detach()
        away = weight[(y + 1) % 3] + weight[(y + 2) % 3] - 2 * weight[y]
        return threat.around(x).project(x + away.sign())

    with registered("corner", corner):
        chosen = noisy_target(tmp_path, Blind(), suite=only("corner"), threats=("linf:0.2",))
        report = run(chosen, tmp_path / "run")
    found = finding(report, "D15")
    assert found.status == "fail"
    fooled = re.search(r"one fixed draw is fooled on (\d+), the vote on (\d+)", found.detail)
    assert fooled is not None
    assert int(fooled[1]) < int(fooled[2]) / 2
    assert not report.trusted


@pytest.mark.parametrize("outputs", ["labels", "probabilities"])
def test_black_boxes_are_averaged_over_too(tmp_path: Path, outputs: Any) -> None:
    layer = Noisy()

    def predict(batch: Any) -> Any:
        with torch.no_grad():
            logits = layer(torch.from_numpy(batch))
        return logits.argmax(1).numpy() if outputs == "labels" else logits.softmax(1).numpy()

    def ask(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Try random corners until the model gives way."""
        best = x.clone()
        standing = torch.ones(len(x), dtype=torch.bool)
        for _ in range(40):
            z = threat.around(x).project(x + streams.signs(FEATURES, dtype=x.dtype))
            wrong = is_wrong(model(z), y)
            best[wrong & standing] = z[wrong & standing]
            standing &= ~wrong
        return best

    x = points()
    model = BlackBox(
        predict, inputs=InputSpec(shape=(FEATURES,), dtype="float64"), classes=3, outputs=outputs
    )
    with registered("ask", ask, access=Access.DECISION):
        chosen = target(tmp_path, model=model, data=(x, labels_of(linear(), x, 3)), suite=only("ask"))
        report = run(chosen, tmp_path / "run")
        assert verify_run(tmp_path / "run", chosen, CPU, rerun=3).problems == ()
    attack = report.threats[0].attacks[0]
    assert attack.broken > 5
    assert attack.unconfirmed <= 1
    assert (finding(report, "D15").status == "skipped") is (outputs == "labels")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 1}, "draws=1 is not a whole number from 2 to 10000"),
        ({"draws": 2.5}, "draws=2.5 is not a whole number"),
        ({"eot": 0}, "eot=0 is not a whole number from 1 to 10000"),
        ({"eot": True}, "eot=True is not a whole number"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    x = points()
    with pytest.raises(InputError, match=said):
        stress_test(classifier(Noisy()), (x, labels_of(linear(), x)), threats=["linf:0.1"], **options)


def test_another_number_of_draws_is_another_run(tmp_path: Path) -> None:
    run(noisy_target(tmp_path, suite=only("fgsm")), tmp_path / "run")
    with pytest.raises(InputError, match="its randomness is not the same"):
        run(noisy_target(tmp_path, suite=only("fgsm"), eot=2), tmp_path / "run", resume=True)
