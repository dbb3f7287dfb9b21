"""Distillation: what the losses are, that the teacher is left alone, and that the masking is seen through."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training import (
    PGD,
    AdversarialDistillation,
    Answers,
    Distillation,
    Tempered,
    distill,
    harden,
)
from robustml.defenses.training.adversarial import Bounded
from robustml.errors import InputError
from robustml.targets.builtin import build
from tests.attacks.trained import MNIST
from tests.defenses.training.tiny import SHAPE, assert_derivative, batch, losses, smooth
from tests.stress.toy import only

THREAT = rml.Linf(0.1)


def softmax(rows: torch.Tensor) -> torch.Tensor:
    powers = rows.exp()
    return powers / powers.sum(1, keepdim=True)


def test_the_loss_is_the_cross_entropy_of_both_at_the_temperature() -> None:
    teacher, student, made = smooth(1), smooth(2), batch()
    found = losses(student, Distillation(teacher, 7.0), made)
    soft, hard = softmax(teacher(made.x) / 7), softmax(student(made.x) / 7)
    assert torch.allclose(found, -(soft * hard.log()).sum(1), atol=1e-12)


def test_the_teacher_is_trained_at_the_temperature() -> None:
    model, made = smooth(1), batch()
    chosen = softmax(model(made.x) / 7)[torch.arange(7), made.y]
    assert torch.allclose(losses(model, Tempered(7.0), made), -chosen.log(), atol=1e-12)


def test_robust_soft_labels_are_those_of_the_input_as_it_is() -> None:
    teacher, student, made = smooth(1), smooth(2), batch()
    objective = AdversarialDistillation(THREAT.within(student.inputs), steps=3, teacher=teacher)
    z = objective.craft(student.eval(), batch())
    found = objective.losses(Answers(student), made, z)
    soft = softmax(teacher(made.x))

    def apart(x: torch.Tensor) -> torch.Tensor:
        return (soft * (soft / softmax(student(x))).log()).sum(1)

    assert torch.allclose(found, 5 / 6 * apart(z) + 1 / 6 * apart(made.x), atol=1e-12)
    assert (apart(z) > apart(made.x)).all()  # the attack has gone up
    assert ((z - made.x).abs() <= 0.1 + 1e-12).all()
    assert ((z >= 0) & (z <= 1)).all()


@pytest.mark.parametrize("kind", ["tempered", "distillation", "adversarial"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    teacher, student, made = smooth(1), smooth(2), batch()
    objective = {
        "tempered": Tempered(3.0),
        "distillation": Distillation(teacher, 3.0),
        "adversarial": AdversarialDistillation(THREAT.within(student.inputs), steps=2, teacher=teacher),
    }[kind]
    z = objective.craft(student, made)
    assert_derivative(student, lambda: objective.losses(Answers(student), made, z).sum())


def test_what_may_not_change_does_not() -> None:
    spec = {"immutable": [0], "integer": [1], "one_hot": [[2, 3]], "bounds": (0.0, 1.0)}
    teacher, student = smooth(1, **spec), smooth(2, **spec)
    x = torch.tensor([[0.3, 1.0, 1.0, 0.0, 0.5], [0.6, 0.0, 0.0, 1.0, 0.2]], dtype=torch.float64)
    objective = AdversarialDistillation(rml.L2(1.5), steps=4, teacher=teacher).within(student.inputs)
    z = objective.craft(student.eval(), batch(2, x=x))
    assert torch.equal(z[:, 0], x[:, 0])
    assert torch.equal(z[:, 1:4], z[:, 1:4].round())
    assert torch.equal(z[:, 2:4].sum(1), torch.ones(2, dtype=torch.float64))
    assert not torch.equal(z, x)


def test_the_teacher_is_left_alone() -> None:
    teacher = smooth(1).train()
    before = copy.deepcopy(teacher.state_dict())
    student, x = smooth(2), batch(40).x
    y = np.arange(40) % 3
    for objective in (Distillation(teacher, 5.0), AdversarialDistillation(THREAT, steps=2, teacher=teacher)):
        hardened = harden(student, (x, y), objective=objective, epochs=2, batch_size=16)
        assert all(np.isfinite(epoch.loss) for epoch in hardened.history)
        assert hardened.provenance["objective"]["teacher"] == teacher.fingerprint()
        assert not any(p.requires_grad for p in objective.teacher.parameters())
        assert not objective.teacher.training
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_model_may_be_its_own_teacher() -> None:
    model, x = smooth(1), batch(40).x
    soft = model(x).detach().clone()
    objective = Distillation(model, 5.0)
    harden(model, (x, np.arange(40) % 3), objective=objective, epochs=2, learning_rate=0.1)
    assert torch.equal(objective.teacher(x), soft)


def test_binding_does_not_copy_the_teacher_again() -> None:
    objective = AdversarialDistillation(THREAT, teacher=smooth(1))
    assert objective.within(smooth(2).inputs).teacher is objective.teacher
    assert isinstance(objective, Bounded)


def test_both_stages_are_resumed_to_the_last_bit(tmp_path) -> None:
    x, y = batch(60).x.numpy(), np.arange(60) % 3
    settings = {"temperature": 20.0, "epochs": 3, "batch_size": 16}
    whole = distill(smooth(1), (x, y), out=tmp_path / "run", **settings)
    again = distill(smooth(1), (x, y), out=tmp_path / "run", resume=True, **settings)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"teacher", "student"}
    assert whole.model.fingerprint() == again.model.fingerprint()
    assert whole.provenance["teacher"]["objective"] == {"name": "tempered", "temperature": 20.0}
    assert whole.provenance["objective"]["teacher"] != whole.model.fingerprint()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Distillation(smooth(1), 0.0), "temperature=0.0 is not a finite number above 0"),
        (lambda: Tempered(True), "temperature=True is not a finite number above 0"),
        (lambda: Distillation(nn.Linear(2, 2)), "teacher is Linear; wrap it in rml.Classifier"),
        (lambda: AdversarialDistillation(THREAT, teacher=smooth(1), clean=2), "clean=2 is not a share"),
        (lambda: AdversarialDistillation(rml.L0(1), teacher=smooth(1)), "threat is L0"),
        (lambda: distill(smooth(1), None, temperature=float("nan")), "temperature=nan"),
        (lambda: distill(smooth(1), None, objective=PGD(THREAT)), "objective cannot be chosen"),
    ],
)
def test_mistakes_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_a_teacher_of_something_else_is_refused() -> None:
    x, y = batch(20).x.numpy(), np.arange(20) % 3
    other = rml.Classifier(
        nn.Linear(5, 4).double(), inputs=rml.InputSpec(shape=SHAPE, dtype="float64"), classes=4
    )
    with pytest.raises(InputError, match="teacher has 4 classes, the model 3"):
        harden(smooth(1), (x, y), objective=Distillation(other))
    with pytest.raises(InputError, match=r"teacher takes \(6,\), the model \(5,\)"):
        harden(smooth(1), (x, y), objective=Distillation(smooth(1, (6,))))


@pytest.fixture(scope="module")
def digits():
    parts = build("digits")
    assert parts.train is not None
    return parts


def untrained(parts) -> rml.Classifier:
    net = copy.deepcopy(parts.model.module)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in net:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return rml.Classifier(net, inputs=parts.model.inputs, classes=10)


@pytest.mark.slow
def test_defensive_distillation_fools_naive_attacks_and_not_the_standard_suite(digits, tmp_path) -> None:
    student = distill(
        untrained(digits),
        (digits.train.x, digits.train.y),
        epochs=15,
        batch_size=64,
        learning_rate=0.01,
        keep="last",
    )
    naive = tmp_path / "naive.toml"
    naive.write_text(only('pgd(loss = "ce", steps = 40)'))
    data = (digits.data.x[:200], digits.data.y[:200])
    reports = [
        rml.stress_test(student.model, data, threats=["linf:0.1"], suite=suite)
        for suite in (naive, "standard")
    ]
    assert reports[0].clean.accuracy.value > 0.9
    # Diagnostics of the naive run break samples too; what counts here is what PGD says.
    pgd = reports[0].threats[0].attacks[0]
    assert pgd.attack == "pgd"
    apparent = (pgd.attempted - pgd.broken) / len(data[1])
    assert apparent >= reports[1].threats[0].robust_accuracy.upper.value + 0.3
    flags = {d.code for d in reports[1].threats[0].diagnostics if d.status in {"warn", "fail"}}
    assert flags & {"D01", "D03"}
    assert not reports[0].trusted


@pytest.mark.slow
@pytest.mark.skipif(not (MNIST / "mnist.npz").exists(), reason="needs MNIST beside the repository")
def test_defensive_distillation_fools_naive_attacks_on_mnist_too(tmp_path) -> None:
    with np.load(MNIST / "mnist.npz", allow_pickle=False) as arrays:
        x, y = arrays["x_train"][:10000], arrays["y_train"][:10000].astype(np.int64)
        data = (arrays["x_test"][:300] / np.float32(255))[:, None], arrays["y_test"][:300].astype(np.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
        )
    train = ((x / np.float32(255))[:, None], y)
    student = distill(net, train, epochs=4, learning_rate=0.005, keep="last")
    naive = tmp_path / "naive.toml"
    naive.write_text(only('pgd(loss = "ce", steps = 40)'))
    apart, full = (
        rml.stress_test(student.model, data, threats=["linf:0.1"], suite=suite)
        for suite in (naive, "standard")
    )
    pgd = apart.threats[0].attacks[0]
    apparent = (pgd.attempted - pgd.broken) / 300
    assert full.clean.accuracy.value > 0.9
    assert apparent >= full.threats[0].robust_accuracy.upper.value + 0.3
    assert {d.code for d in full.threats[0].diagnostics if d.status in {"warn", "fail"}} & {"D01", "D03"}


@pytest.mark.slow
def test_a_robust_teacher_makes_a_robust_student(digits) -> None:
    train = (digits.train.x, digits.train.y)
    settings = {"epochs": 10, "batch_size": 64, "learning_rate": 0.005}
    teacher = harden(untrained(digits), train, objective=PGD(THREAT, steps=5), **settings).model
    objective = AdversarialDistillation(THREAT, steps=5, teacher=teacher)
    student = harden(untrained(digits), train, objective=objective, **settings).model
    data = (digits.data.x[:200], digits.data.y[:200])
    lost, kept = (
        rml.stress_test(model, data, threats=[THREAT], suite="quick").threats[0].robust_accuracy.upper
        for model in (digits.model, student)
    )
    assert kept.low > lost.high
