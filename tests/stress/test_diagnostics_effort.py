"""Diagnostics of effort: doubled steps, black boxes and twins that find what the suite did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustml.errors import InputError
from robustml.registry import Access, Logits
from robustml.report.verify import verify_run
from robustml.sampling import Streams
from robustml.stress.probing import doubled, effort_of
from robustml.stress.suite import AttackEntry, load_suite
from robustml.threats import Threat
from tests.stress.test_diagnostics_gradients import Before, Opposite
from tests.stress.toy import (
    classifier,
    finding,
    labels_of,
    linear,
    only,
    points,
    records_of,
    registered,
    run,
    stressed,
    target,
)


def lazy(model: Logits, x: Tensor, y: Tensor, *, threat: Threat, streams: Streams, steps: int = 3) -> Tensor:
    """Take a good step, but only if given many."""
    ball = threat.around(x)
    model(x)
    if steps <= 3:
        return x
    point = x.clone().requires_grad_()
    logits = model(point)
    best = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
    (slope,) = torch.autograd.grad(-best.sum(), point)
    return ball.advance(x, ball.ascent(slope), ball.eps)


def test_twice_the_steps_break_more(tmp_path: Path) -> None:
    # The probes that come first would leave nothing to find.
    suite = only("lazy").replace("[diagnostics]", '[diagnostics]\nskip = ["D10", "D11", "D18", "D22"]')
    with registered("lazy", lazy):
        report = stressed(tmp_path, suite=suite, threats=("linf:0.2",))
    found = finding(report, "D09")
    assert found.status == "fail"
    assert "lazy with twice its steps (6)" in found.detail
    row = next(row for row in report.threats[0].attacks if row.id == "effort")
    assert row.broken == round((found.value or 0) * row.attempted) > 3
    assert not report.trusted


def test_an_attack_that_is_done_gains_nothing_from_more_steps(tmp_path: Path) -> None:
    report = stressed(tmp_path, suite=only('apgd(loss = "margin", steps = 10)'))
    assert finding(report, "D09").status == "pass"
    assert finding(report, "D08").status == "pass"


def test_a_loss_that_still_rises(tmp_path: Path) -> None:
    slow = only('pgd(loss = "margin", steps = 12, step_size = 0.001)')
    found = finding(stressed(tmp_path, suite=slow, threats=("linf:0.02",)), "D08")
    assert found.status == "fail"
    assert found.value is not None
    assert found.value > 0.9


def test_the_strongest_attack_is_doubled() -> None:
    def entry(use: str, **options: Any) -> AttackEntry:
        return AttackEntry(id=use, use=use, options=options)

    suite = load_suite("quick")
    entries = [entry("fgsm"), entry("square", queries=900), entry("pgd", steps=20, restarts=3)]
    suite = suite.model_copy(update={"attack": [*entries, entry("apgd", steps=50)]})
    chosen = doubled(suite, Access.GRADIENT, "linf")
    assert chosen is not None
    assert (chosen.use, chosen.options) == ("pgd", {"steps": 40, "restarts": 2})
    assert effort_of(chosen) == 80
    chosen = doubled(suite, Access.SCORE, "linf")
    assert chosen is not None
    assert (chosen.use, chosen.options) == ("square", {"queries": 1800})
    assert doubled(suite, Access.DECISION, "linf") is None


def test_a_black_box_attack_of_the_suite_that_wins(tmp_path: Path) -> None:
    suite = only('apgd(loss = "margin", steps = 10)', "square(queries = 100)")
    report = stressed(tmp_path, Before(Opposite.apply), suite=suite, threats=("linf:0.15",))
    found = finding(report, "D11")
    assert found.status == "fail"
    square = next(row for row in report.threats[0].attacks if row.id == "square")
    assert square.broken > 3
    assert f"broke {square.broken} of the {square.attempted} samples" in found.detail
    first = next(r for r in records_of(tmp_path / "run") if r.stage.endswith("/square")).broken[0]
    assert f"samples {first}, " in found.detail
    assert not report.trusted


def test_a_black_box_attack_is_tried_where_the_suite_has_none(tmp_path: Path) -> None:
    report = stressed(tmp_path, Before(Opposite.apply), suite=only("fgsm"), threats=("linf:0.15",))
    found = finding(report, "D11")
    assert found.status == "fail"
    assert "and a probe 0 of" not in found.detail


def test_black_box_attacks_that_gain_nothing(tmp_path: Path) -> None:
    report = stressed(tmp_path)
    assert finding(report, "D11").status == "pass"
    assert finding(report, "D11").value == 0.0


def twins(tmp_path: Path, twin: Any) -> Any:
    """A target whose model sends gradient attacks astray, with a twin."""
    module = Before(Opposite.apply)
    x = points()
    model = classifier(module)
    data = (x, labels_of(module, x))
    return target(
        tmp_path, model=model, data=data, suite=only("fgsm"), threats=("linf:0.15",), batch=64, twin=twin
    )


def test_what_fools_the_twin_fools_the_model(tmp_path: Path) -> None:
    suite = only("fgsm").replace("noise_draws = 8", 'noise_draws = 1\nskip = ["D09", "D08", "D11"]')
    chosen = twins(tmp_path, classifier(linear()))
    (tmp_path / "toy.toml").write_text(suite)
    report = run(chosen, tmp_path / "run")
    found = finding(report, "D14")
    assert found.status == "fail"
    row = next(row for row in report.threats[0].attacks if row.id == "transfer")
    assert row.broken > 3
    assert row.attack == "inputs made against the twin"
    assert verify_run(tmp_path / "run", chosen, torch.device("cpu"), rerun=99).passed
    # Another twin than that of the run is noticed.
    other = twins(tmp_path, classifier(linear(seed=5)))
    assert "twin" in verify_run(tmp_path / "run", other, torch.device("cpu")).problems[0]


def test_an_unrelated_twin_tells_nothing_new(tmp_path: Path) -> None:
    report = stressed(
        tmp_path, twin=classifier(linear(seed=9)), suite=only('apgd(loss = "margin", steps = 20)')
    )
    assert finding(report, "D14").status == "pass"


@pytest.mark.parametrize("twin", ["a name", nn.Linear(6, 3)], ids=["text", "module"])
def test_a_twin_from_python(twin: Any) -> None:
    from robustml.api import stress_test

    x = points(20).astype("float32")
    module = linear(dtype=torch.float32)
    data = (x, labels_of(module, x))
    if isinstance(twin, str):
        with pytest.raises(InputError, match=r"twin is str; give a torch\.nn\.Module"):
            stress_test(module, data, threats=["linf:0.01"], suite="quick", twin=twin)
    else:
        report = stress_test(module, data, threats=["linf:0.01"], suite="quick", twin=twin)
        assert finding(report, "D14").status == "pass"
        assert "twin=twin" in report.command


def test_a_twin_from_a_target_file(tmp_path: Path) -> None:
    from robustml.targets import load_target

    build = "from torch import nn\n\ndef build():\n    return nn.Linear(6, 3)\n"
    (tmp_path / "model.py").write_text(build)
    np.savez(tmp_path / "test.npz", x=points().astype("float32"), y=np.zeros(30, dtype=np.int64))
    lines = ["schema = 1", "[model]", 'factory = "model.py:build"', "classes = 3", 'twin = "model.py:build"']
    rest = ["[inputs]", "shape = [6]", "[data]", 'test = "test.npz"']
    (tmp_path / "robustml.toml").write_text("\n".join([*lines, *rest]))
    loaded = load_target(tmp_path)
    assert loaded.twin is not None
    assert (loaded.twin.classes, loaded.twin.inputs) == (3, loaded.model.inputs)
    (tmp_path / "robustml.toml").write_text("\n".join([*lines[:-1], 'twin_weights = "a.safetensors"', *rest]))
    with pytest.raises(InputError, match="twin_weights go with twin"):
        load_target(tmp_path)
