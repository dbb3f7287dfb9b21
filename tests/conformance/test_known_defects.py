"""Defects that made other tools' figures wrong, each shown to be absent here.

The tools are the published attack libraries; in each of them the defect below turned a broken model into a
robust one, or the reverse, without a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustml.attacks.evasion.apgd import apgd
from robustml.inputs import InputSpec
from robustml.losses import LOSSES
from robustml.registry import Logits, all_attacks, find_attack
from robustml.sampling import Streams
from robustml.stress.suite import load_suite
from robustml.threats import Linf, Threat
from tests.stress.toy import (
    FEATURES,
    Counting,
    classifier,
    labels_of,
    linear,
    only,
    points,
    records_of,
    registered,
    run,
    target,
)

SPEC = InputSpec(shape=(FEATURES,), dtype="float64")


class Firm(nn.Module):
    """A model that no input within reach can fool, so that attacks go to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return torch.cat([logits[:, :1] * 0 + 1e3, logits[:, 1:]], dim=1)


@pytest.mark.parametrize("steps", [3, 10, 100])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_an_attack_takes_the_steps_that_the_report_declares(tmp_path: Path, steps: int, loss: str) -> None:
    x = points(6)
    data = (x, np.zeros(6, dtype=np.int64))
    suite = only(f'apgd(loss = "{loss}", steps = {steps}, restarts = 2)')
    report = run(target(tmp_path, model=classifier(Firm()), data=data, suite=suite), tmp_path / "run")
    attack = report.threats[0].attacks[0]
    assert attack.options.items() >= {"loss": loss, "steps": steps, "restarts": 2}.items()
    assert attack.passes.forward == 6 * 2 * (steps + 1)
    assert attack.passes.backward == 6 * 2 * steps


def test_built_in_suites_declare_a_hundred_steps() -> None:
    for name in ("standard", "thorough"):
        entries = [e for e in load_suite(name).attack if e.use in {"apgd", "apgd-t"}]
        assert {find_attack(e.use).check(e.options)["steps"] for e in entries} == {100}


def test_apgd_returns_its_best_point_and_not_its_last() -> None:
    visited: list[Tensor] = []
    layer = linear().requires_grad_(False)
    x = torch.from_numpy(points(12))
    y = torch.from_numpy(labels_of(linear(), x.numpy()))
    # With a lead that no step can take away, every sample stays to the end.
    lead = 50 * nn.functional.one_hot(y, 3)

    def crooked(z: Tensor) -> Tensor:
        visited.append(z.detach().clone())
        return layer(z) + lead + torch.sin(40 * z).sum(1, keepdim=True) * torch.tensor([0.5, -0.5, 0.2])

    streams = Streams.derive(0, "best", torch.arange(12))
    z = apgd(crooked, x, y, threat=Linf(0.1).within(SPEC), streams=streams, loss="margin", steps=15)
    # The very last look has no gradient: it is a chance to succeed and not in the running.
    losses = torch.stack([LOSSES["margin"](crooked(v), y) for v in visited[:16]])
    assert len(losses) == 16
    returned = LOSSES["margin"](crooked(z), y)
    assert torch.equal(returned, losses[:-1].max(0).values)
    assert (losses[-1] < returned).any()


class Rounded(nn.Module):
    """The rounding defence: one bit per feature."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.round())


def near_half(n: int = 24) -> np.ndarray[Any, Any]:
    """Inputs that a budget of 0.3 can push across the rounding threshold."""
    signs = np.random.default_rng(3).integers(0, 2, (n, FEATURES)) * 2 - 1
    return 0.5 + 0.2 * signs


@pytest.mark.parametrize(
    "attacks",
    [('apgd(loss = "margin", steps = 20)',), ("apgd(steps = 20)", "pgd(steps = 20)"), ("apgd", "square")],
)
def test_a_rounding_defence_is_broken_or_flagged(tmp_path: Path, attacks: tuple[str, ...]) -> None:
    x, layer = near_half(), linear()
    y = labels_of(layer, x.round())
    undefended = run(
        target(
            tmp_path,
            model=classifier(layer),
            data=(x, labels_of(layer, x)),
            suite=only(*attacks),
            threats=("linf:0.3",),
        ),
        tmp_path / "plain",
    )
    assert undefended.threats[0].outcomes.count("s") == 0
    chosen = target(
        tmp_path, model=classifier(Rounded(layer)), data=(x, y), suite=only(*attacks), threats=("linf:0.3",)
    )
    report = run(chosen, tmp_path / "rounded")
    failed = {d.code for d in report.threats[0].diagnostics if d.status == "fail"}
    assert "D01" in failed
    assert not report.trusted
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    if "square" in attacks:
        assert upper.value == 0


def test_an_unbounded_attack_flags_rounding_that_swallows_every_gradient(tmp_path: Path) -> None:
    # All inputs far from the threshold: a random start rounds back to where it came from.
    class Coarse(nn.Module):
        """Rounds the mean of many features, which random points cannot move."""

        def forward(self, x: Tensor) -> Tensor:
            level = x.mean(1, keepdim=True).round()
            return torch.cat([1 - level, level], dim=1) * 3

    draw = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = np.where(y[:, None] == 1, 0.95, 0.05) + draw.uniform(-0.04, 0.04, (24, 400))
    model = classifier(Coarse(), shape=(400,), classes=2)
    report = run(
        target(
            tmp_path, model=model, data=(x, y), suite=only("apgd(steps = 5)"), threats=("linf:0.1",), batch=24
        ),
        tmp_path / "run",
    )
    found = {d.code: d.status for d in report.threats[0].diagnostics}
    assert report.threats[0].outcomes == "s" * 24  # it looks perfectly robust ...
    assert found["D01"] == "fail"
    assert not report.trusted  # ... and is not believed


@contextmanager
def without_l1() -> Iterator[None]:
    """An attack, by the name of "flat", that has no L1 version."""

    def flat(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Return the inputs."""
        model(x)
        return x

    with registered("flat", flat, norms={"linf", "l2"}):
        yield


def test_no_attack_runs_under_a_norm_that_it_does_not_have(tmp_path: Path) -> None:
    with without_l1():
        report = run(target(tmp_path, suite=only("flat"), threats=("l1:0.5",)), tmp_path / "run")
    attack = report.threats[0].attacks[0]
    assert (attack.status, attack.reason) == ("skipped", "it has no l1 version")
    assert (attack.attempted, attack.passes.forward) == (0, 0)
    assert not any(r.stage == "l1:0.5/flat" for r in records_of(tmp_path / "run"))
    assert report.threats[0].robust_accuracy.upper is None
    assert report.scores.evasion is None
    assert report.scores.overall is None
    assert not report.trusted
    assert "not measured" in report.verdict
    assert report.threats[0].outcomes == ""
    assert report.threats[0].per_class == []
    assert report.threats[0].curve == []


def test_what_diagnostics_break_does_not_measure_the_rest(tmp_path: Path) -> None:
    # The curve and the probes run under l1 and break some samples; the suite itself cannot run.
    curve = '[[curve.attack]]\nuse = "pgd"\n[curve]\npoints = [0.5]\n'
    with without_l1():
        chosen = target(tmp_path, suite=only("flat", curve=curve), threats=("l1:0.5",))
        report = run(chosen, tmp_path / "run")
    assert any(row.broken for row in report.threats[0].attacks)
    assert report.threats[0].robust_accuracy.upper is None
    assert not report.trusted


def test_every_attack_refuses_the_norms_that_it_did_not_declare() -> None:
    for name, attack in all_attacks().items():
        assert attack.norms, name
        assert attack.norms <= {"linf", "l2", "l1", "l0"}
    assert "l1" not in find_attack("art:SquareAttack").norms


def test_a_mistake_that_is_repaired_is_no_success(tmp_path: Path) -> None:
    asked: list[int] = []

    def repairing(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams) -> Tensor:
        """Move everything to where the model is right."""
        asked.extend(model(x).argmax(1).eq(y).tolist())
        return threat.around(x).project(x.flip(0))

    layer, x = linear(), points()
    y = labels_of(layer, x, wrong=10)
    with registered("repairing", repairing):
        chosen = target(tmp_path, data=(x, y), suite=only("repairing"), batch=64, threats=("linf:0.000001",))
        report = run(chosen, tmp_path / "run")
    assert len(asked) >= 20
    assert all(asked)  # the misclassified were not even shown to it
    assert report.threats[0].outcomes == "m" * 10 + "s" * 20
    upper = report.threats[0].robust_accuracy.upper
    assert upper is not None
    assert (upper.count, upper.total) == (20, 30)
    assert report.threats[0].attacks[0].broken == 0


@pytest.mark.parametrize("norm", ["linf:0.1", "l2:0.2", "l1:0.5", "l0:1"])
@pytest.mark.parametrize("name", sorted(all_attacks()))
def test_a_verdict_does_not_depend_on_the_company(name: str, norm: str) -> None:
    from robustml.threats import parse_threat

    attack = find_attack(name)
    threat = parse_threat(norm).within(SPEC)
    if threat.norm not in attack.norms:
        return
    short = {"steps": 6, "queries": 15, "draws": 5, "restarts": 2, "iterations": 6}
    options = {key: value for key, value in short.items() if key in {n for n, _, _ in attack.parameters()}}
    layer = linear().requires_grad_(False)
    x = torch.from_numpy(points(9))
    y = torch.from_numpy(labels_of(linear(), x.numpy()))
    ids = torch.arange(9)

    def attacked(rows: Tensor) -> Tensor:
        streams = Streams.derive(0, name, ids[rows])
        return attack.function(layer, x[rows].clone(), y[rows], threat=threat, streams=streams, **options)

    together = attacked(torch.arange(9))
    wrong = layer(together).argmax(1) != y
    for row in range(9):
        alone = attacked(torch.tensor([row]))
        assert (layer(alone).argmax(1) != y[row]).item() == wrong[row].item()
        assert torch.equal(alone[0], together[row])
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    assert torch.equal(attacked(order), together[order])


def test_the_harness_spends_nothing_on_what_is_broken(tmp_path: Path) -> None:
    counting = Counting(linear())
    x = points()
    chosen = target(
        tmp_path, model=classifier(counting), data=(x, labels_of(linear(), x)), threats=("linf:0.9",)
    )
    report = run(chosen, tmp_path / "run")
    assert report.threats[0].outcomes == "b" * 30
    later = [row for row in report.threats[0].attacks if row.id == "square"]
    assert later[0].attempted == 0
