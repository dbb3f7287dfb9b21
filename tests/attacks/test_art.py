"""Attacks of the Adversarial Robustness Toolbox behind our protocol."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustml.classifier import BlackBox
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import Access, find_attack
from robustml.threats import L1, L2, Linf

SPEC = InputSpec(shape=(2, 6, 6))


@pytest.fixture(scope="module")
def digits() -> tuple[BlackBox, Tensor, Tensor]:
    """A support vector machine that gives labels only, and 6 digits that it gets right."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    data = load_digits()
    images = (data.data / 16).astype(np.float32)
    machine = SVC().fit(images[:1000], data.target[:1000])
    model = BlackBox(machine.predict, inputs=InputSpec(shape=(64,)), classes=10, outputs="labels")
    x, y = torch.from_numpy(images[1000:1006]), torch.from_numpy(data.target[1000:1006])
    assert torch.equal(model(x).argmax(1), y)
    return model, x, y


def test_looking_attacks_up_does_not_import_the_toolbox() -> None:
    code = (
        "import sys; from robustml.registry import all_attacks; all_attacks(); sys.exit('art' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("member", "access", "norms"),
    [
        ("HopSkipJump", Access.DECISION, {"linf", "l2"}),
        ("BoundaryAttack", Access.DECISION, {"linf", "l2", "l1", "l0"}),
        ("SignOPTAttack", Access.DECISION, {"linf", "l2", "l1", "l0"}),
        ("GeoDA", Access.DECISION, {"linf", "l2", "l1"}),
        ("SquareAttack", Access.SCORE, {"linf", "l2"}),
        ("ZooAttack", Access.SCORE, {"linf", "l2", "l1", "l0"}),
        ("SimBA", Access.SCORE, {"linf", "l2", "l1", "l0"}),
        ("ProjectedGradientDescent", Access.GRADIENT, {"linf", "l2", "l1"}),
        ("DeepFool", Access.GRADIENT, {"linf", "l2", "l1", "l0"}),
    ],
)
def test_access_and_norms(member, access, norms) -> None:
    attack = find_attack(f"art:{member}")
    assert (attack.access, attack.norms) == (access, norms)
    assert attack.name == f"art:{member}"
    assert attack.summary and "\n" not in attack.summary


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("HopSkipJmp", "did you mean 'HopSkipJump'"),
        ("DPatch", "does not attack classifiers but ObjectDetectorMixin"),
        ("AdversarialPatch", "returns a patch"),
        ("FeatureAdversariesPyTorch", "needs delta"),
        ("__doc__", "is not known"),
    ],
)
def test_what_cannot_run_says_why(member, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_attack(f"art:{member}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threat", [L2(1.5), Linf(0.3)], ids=lambda t: t.norm)
@pytest.mark.parametrize("options", [{}, {"max_iter": 2}], ids=["default", "small"])
def test_hop_skip_jump_needs_labels_only(run, digits, threat, options) -> None:
    model, x, y = digits
    threat = threat.within(model.inputs)
    z = run("art:HopSkipJump", model, x, y, threat, **options)
    assert threat.around(x).contains(z).all()
    assert (model(z).argmax(1) != y).sum() >= 5


def test_one_sample_at_a_time_means_no_dependence_on_the_batch(run, digits) -> None:
    model, x, y = digits
    threat, small = L2(0.9).within(model.inputs), {"max_iter": 1, "max_eval": 40, "init_eval": 10}
    ids = torch.arange(6) + 3
    whole = run("art:HopSkipJump", model, x, y, threat, ids=ids, **small)
    apart = [run("art:HopSkipJump", model, x[[i]], y[[i]], threat, ids=ids[[i]], **small) for i in (5, 2, 0)]
    assert torch.equal(whole[[5, 2, 0]], torch.cat(apart))
    assert not torch.equal(whole, run("art:HopSkipJump", model, x, y, threat, ids=ids, seed=1, **small))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("member", "options"),
    [
        ("ProjectedGradientDescent", {"max_iter": 5, "num_random_init": 1}),
        ("AutoProjectedGradientDescent", {"max_iter": 5}),
        ("FastGradientMethod", {}),
        ("DeepFool", {"max_iter": 3}),
        ("SquareAttack", {"max_iter": 10}),
        ("HopSkipJump", {"max_iter": 1, "max_eval": 20, "init_eval": 5}),
        ("SimBA", {"max_iter": 5, "attack": "px"}),
    ],
)
def test_a_run_keeps_the_rules(run, tiny_cnn, images, capfd, member, options, norm) -> None:
    attack = find_attack(f"art:{member}")
    if norm not in attack.norms:
        assert norm == "l1"
        return
    x, y = images[0][:6], images[1][:6]
    threat = {"linf": Linf(0.03), "l2": L2(0.3), "l1": L1(1.0)}[norm].within(SPEC)
    tiny_cnn.train()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), np.random.RandomState
    original = x.clone()
    z = run(attack.name, tiny_cnn, x, y, threat, **options)
    assert threat.around(x).contains(z).all()
    assert torch.equal(z, run(attack.name, tiny_cnn, x, y, threat, **options))
    assert torch.equal(x, original)
    assert tiny_cnn.training and all(parameter.grad is None for parameter in tiny_cnn.parameters())
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(
        states[1], np.random.get_state()[1]
    )
    assert states[2:] == (random.getstate(), np.random.RandomState)
    assert capfd.readouterr().out == ""


def test_projected_gradient_descent_agrees_with_ours(run, tiny_cnn, images) -> None:
    x, y = images
    threat = Linf(0.06).within(SPEC)
    ours = tiny_cnn(run("pgd", tiny_cnn, x, y, threat)).argmax(1) != y
    theirs = tiny_cnn(run("art:ProjectedGradientDescent", tiny_cnn, x, y, threat, max_iter=40)).argmax(1) != y
    assert 0 < theirs.sum() < len(x)
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 2


def test_the_budget_follows_the_threat_unless_given(run, tiny_cnn, images) -> None:
    x, y = images
    threat = Linf(0.05).within(SPEC)
    full = threat.around(x).distance(run("art:FastGradientMethod", tiny_cnn, x, y, threat)).amax()
    less = threat.around(x).distance(run("art:FastGradientMethod", tiny_cnn, x, y, threat, eps=0.01)).amax()
    assert full == pytest.approx(0.05, rel=1e-4)
    assert less == pytest.approx(0.01, rel=1e-4)


def test_a_wrong_sample_is_not_repaired(run, tiny_cnn, images) -> None:
    """ART would take the wrong clean prediction for the label and look for the right one."""
    x, y = images
    wrong = (y + 1) % 4
    for member in ("ProjectedGradientDescent", "HopSkipJump"):
        z = run(f"art:{member}", tiny_cnn, x, wrong, Linf(0.3).within(SPEC), max_iter=1)
        assert torch.equal(z, x)


def test_double_precision_models(run, tiny_cnn, images) -> None:
    model = tiny_cnn.double()
    x, y = images[0][:4].double(), images[1][:4]
    threat = L2(0.5).within(InputSpec(shape=(2, 6, 6), dtype="float64"))
    for member, options in (("HopSkipJump", {"max_iter": 1}), ("ProjectedGradientDescent", {"max_iter": 3})):
        z = run(f"art:{member}", model, x, y, threat, **options)
        assert z.dtype == torch.float64
        assert threat.around(x).contains(z).all()


def test_scale_and_immutable_features(run) -> None:
    spec = InputSpec(
        shape=(8,), bounds=(-5.0, 5.0), scale=tuple(0.5 * (i + 1) for i in range(8)), immutable=(0, 3)
    )
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.rand(5, 8, generator=generator), torch.randn(8, 3, generator=generator)
    y = (x @ weight).argmax(1)
    for member, options in (("HopSkipJump", {"max_iter": 2}), ("ProjectedGradientDescent", {"max_iter": 10})):
        for threat in (Linf(0.4).within(spec), L2(0.8).within(spec)):
            z = run(f"art:{member}", lambda v: v @ weight, x, y, threat, **options)
            assert threat.around(x).contains(z).all()
            assert torch.equal(z[:, [0, 3]], x[:, [0, 3]])
            assert ((z @ weight).argmax(1) != y).any()


def test_a_watching_model_is_told_the_row(run, tiny_cnn, images) -> None:
    class Watching:
        rows: list[list[int]] = []

        def focus(self, rows: Tensor) -> None:
            self.rows.append(rows.tolist())

        def __call__(self, z: Tensor) -> Tensor:
            return tiny_cnn(z)

    x, y = images[0][:3], images[1][:3]
    run("art:SimBA", Watching(), x, y, Linf(0.001).within(SPEC), max_iter=2, attack="px")
    assert Watching.rows == [[0, 1, 2], [0], [1], [2]]


def test_options(run, tiny_cnn, images) -> None:
    x, y = images
    attack = find_attack("art:HopSkipJump")
    full = attack.check({"max_iter": 3})
    assert attack.check(json.loads(json.dumps(full))) == full
    with pytest.raises(InputError, match="did you mean 'max_iter'"):
        attack.check({"max_itr": 3})
    with pytest.raises(InputError, match="did you mean 'max_iter'"):
        attack.function(tiny_cnn, x, y, threat=L2(0.5), streams=None, max_itr=3)
    for member, options in (("HopSkipJump", {"max_iter": -1}), ("SquareAttack", {"p_init": 7.0})):
        with pytest.raises(InputError, match=f"art:{member} cannot run") as caught:
            run(f"art:{member}", tiny_cnn, x[:2], y[:2], L2(0.5).within(SPEC), **options)
        assert "\n" not in str(caught.value)


def test_errors_of_the_model_pass_through(run, tiny_cnn, images) -> None:
    x, y = images
    calls = 0

    class Spent(Exception):
        pass

    def model(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise Spent
        return tiny_cnn(z)

    for member in ("HopSkipJump", "ProjectedGradientDescent"):
        calls = 0
        with pytest.raises(Spent):
            run(f"art:{member}", model, x, y, Linf(0.001).within(SPEC))


def test_a_model_without_gradient(run, tiny_cnn: nn.Module, images) -> None:
    x, y = images
    threat = Linf(0.05).within(SPEC)
    z = run("art:ProjectedGradientDescent", lambda v: tiny_cnn(v.detach()).detach(), x, y, threat, max_iter=3)
    assert threat.around(x).contains(z).all()
