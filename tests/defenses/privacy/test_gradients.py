"""The clipped sum of per-sample gradients, in every mode, against `torch.func` and formulas of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import robustml as rml
from robustml.classifier import Classifier
from robustml.defenses.privacy.gradients import MODES, Each, Work
from robustml.defenses.privacy.probe import activations, made_up, settled
from robustml.defenses.training import (
    MART,
    PGD,
    TRADES,
    AdversarialDistillation,
    Answers,
    Batch,
    Distillation,
    Fast,
    InputGradient,
    Jacobian,
    LabelSmoothing,
    Noisy,
    Objective,
    Several,
    Standard,
    Tempered,
)
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.sampling import Coarse, Streams

CLIP = 0.7
CPU = torch.device("cpu")
SPEC = InputSpec(shape=(1, 8, 8), dtype="float64")
LINF, L2 = (threat.within(SPEC) for threat in (rml.Linf(0.1), rml.L2(0.5)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(),
        nn.Linear(8, 3),
    )  # fmt: skip


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))


class Tied(nn.Module):
    """One weight for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.same(self.first(x.flatten(1)).tanh()).tanh()
        out: Tensor = self.last(self.same(z).tanh())
        return out


NETWORKS = {"convolutional": convolutional, "linear": linear, "tied": Tied}


def model(build=linear) -> Classifier:
    torch.manual_seed(0)
    return Classifier(build().double(), inputs=SPEC, classes=3)


def batch(n: int = 6) -> Batch:
    ids = torch.arange(n)
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(x, ids % 3, ids, Coarse(Streams.derive(0, "test", ids).keys), 1.0)


def clip(norms: Tensor) -> Tensor:
    return (CLIP / norms).clamp(max=1)


def work(classifier: Classifier, objective: Objective, terms=()) -> Work:
    made = batch()
    z = objective.craft(classifier.eval(), made)
    classifier.train()
    return Work(classifier, objective, terms, made, z.detach())


def by_hand(classifier: Classifier, formula, given: Work) -> Tensor:
    """Each sample's gradient by `torch.func` from a formula of this file, clipped and summed."""
    weights = {name: p.detach() for name, p in classifier.module.named_parameters()}
    n, total = len(given.batch), 0
    for i in range(n):

        def value(w: dict[str, Tensor], i: int = i) -> Tensor:
            def ask(x: Tensor) -> Tensor:
                return functional_call(classifier.module, w, (x,))

            return formula(ask, given.batch.x[i : i + 1], given.z[i::n], given.batch.y[i : i + 1])

        flat = torch.cat([g.flatten() for g in grad(value)(weights).values()])
        total = total + flat * min(1.0, CLIP / float(flat.norm()))
    assert isinstance(total, Tensor)
    return total


def mart(ask, x, z, y) -> Tensor:
    robust, clean = softmax(ask(z), 1), softmax(ask(x), 1)
    own = robust[0, y[0]]
    other = robust[0, torch.arange(3) != y[0]].max()
    boosted = -own.log() - (1 - other).log()
    return boosted + 5 * (clean * (clean.log() - robust.log())).sum() * (1 - clean[0, y[0]])


FORMULAS = {
    "standard": (Standard(), (), lambda ask, x, z, y: cross_entropy(ask(x), y)),
    "tempered": (Tempered(5.0), (), lambda ask, x, z, y: cross_entropy(ask(x) / 5, y)),
    "noisy": (Noisy(0.2), (), lambda ask, x, z, y: cross_entropy(ask(z), y)),
    "pgd": (PGD(LINF, steps=3), (), lambda ask, x, z, y: cross_entropy(ask(z), y)),
    "pgd and clean": (
        PGD(L2, steps=3, clean=0.4),
        (),
        lambda ask, x, z, y: 0.6 * cross_entropy(ask(z), y) + 0.4 * cross_entropy(ask(x), y),
    ),
    "trades": (
        TRADES(LINF, beta=6, steps=3),
        (),
        lambda ask, x, z, y: (
            cross_entropy(ask(x), y) + 6 * kl_div(log_softmax(ask(z), 1), softmax(ask(x), 1), reduction="sum")
        ),
    ),
    "mart": (MART(LINF, beta=5, steps=3), (), mart),
    "average": (
        Several((PGD(LINF, steps=2), PGD(L2, steps=2)), mode="average"),
        (),
        lambda ask, x, z, y: (cross_entropy(ask(z[:1]), y) + cross_entropy(ask(z[1:]), y)) / 2,
    ),
    "smoothed labels": (
        PGD(LINF, steps=2),
        (LabelSmoothing(0.3),),
        lambda ask, x, z, y: cross_entropy(ask(z), y) - 0.3 * log_softmax(ask(z), 1).mean(),
    ),
}
# Ghost clipping of Opacus knows one pass per layer.
ONCE = {"standard", "tempered", "noisy", "pgd", "smoothed labels"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("network", NETWORKS)
def test_clipped_sums_are_those_of_a_gradient_function_of_one_sample(network, name, mode) -> None:
    objective, terms, formula = FORMULAS[name]
    classifier = model(NETWORKS[network])
    given = work(classifier, objective, terms)
    wanted = by_hand(classifier, formula, given)
    if mode == "ghost" and (network == "tied" or name not in ONCE):
        with pytest.raises(InputError, match="mode='ghost' is not right for this model and objective"):
            settled(mode, classifier, objective, terms, CPU)
        return
    chosen = MODES[mode](classifier)
    sums, facts = chosen.summed(given, clip)
    found = torch.cat([each.flatten() for each in sums])
    assert torch.linalg.vector_norm(found - wanted) <= 1e-5 * torch.linalg.vector_norm(wanted)
    losses, right = given.losses()
    assert facts.tolist() == pytest.approx([losses.sum().item(), right.item()])
    again = torch.cat([each.flatten() for each in chosen.summed(given, clip)[0]])
    assert torch.allclose(again, found), "a second batch begins anew"
    chosen.close()
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in classifier.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in classifier.modules())


DOUBLE = {
    "input gradient": (Standard(), (InputGradient(0.5),)),
    "jacobian": (Standard(), (Jacobian(0.5),)),
    "aligned": (Fast(LINF), ()),
}


@pytest.mark.parametrize("name", DOUBLE)
def test_losses_with_gradients_in_them_are_taken_one_sample_at_a_time(name) -> None:
    objective, terms = DOUBLE[name]
    classifier = model()
    chosen = settled("auto", classifier, objective, terms, CPU)
    assert chosen.name == "each"
    with pytest.raises(InputError, match="mode='hooks' is not right for this model and objective"):
        settled("hooks", classifier, objective, terms, CPU)


@pytest.mark.parametrize("made", [Distillation, AdversarialDistillation])
def test_a_teacher_is_nothing_that_is_trained(made) -> None:
    torch.manual_seed(7)
    teacher = Classifier(linear().double(), inputs=SPEC, classes=3)
    objective = made(teacher, 5.0) if made is Distillation else made(threat=LINF, teacher=teacher, steps=2)
    classifier = model()
    given = work(classifier, objective)
    reference = torch.cat([s.flatten() for s in Each(classifier).summed(given, clip)[0]])
    for name in ("hooks", "functional"):
        mode = MODES[name](classifier)
        found = torch.cat([s.flatten() for s in mode.summed(given, clip)[0]])
        mode.close()
        assert torch.allclose(found, reference, rtol=1e-9, atol=1e-12)


class Stacked(Objective):
    """Clean and adversarial inputs in one batch of 2n, the way that adversarial training is often written."""

    name = "stacked"

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        return PGD(LINF, steps=2).craft(model, batch)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        clean, robust = ask.model(torch.cat([batch.x, z])).chunk(2)
        each = cross_entropy(clean, batch.y, reduction="none") + cross_entropy(
            robust, batch.y, reduction="none"
        )
        return each / 2


def test_views_in_one_batch_are_one_contribution_of_their_sample() -> None:
    classifier, objective = model(), Stacked()
    with pytest.raises(InputError, match="mode='hooks' is not right"):
        settled("hooks", classifier, objective, (), CPU)
    chosen = settled("auto", classifier, objective, (), CPU)
    given = work(classifier, objective)
    wanted = by_hand(
        classifier, lambda ask, x, z, y: (cross_entropy(ask(x), y) + cross_entropy(ask(z), y)) / 2, given
    )
    found = torch.cat([each.flatten() for each in chosen.summed(given, clip)[0]])
    assert torch.linalg.vector_norm(found - wanted) <= 1e-5 * torch.linalg.vector_norm(wanted)
    chosen.close()


class Weighted(Objective):
    """Cross-entropy with class weights, over their sum in the batch."""

    name = "weighted"

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[batch.y]
        return weights / weights.sum() * cross_entropy(ask(batch.x), batch.y, reduction="none")


class Follower(Objective):
    """Views that lean on the mean of the batch."""

    name = "follower"

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        return (batch.x + batch.x.mean(0, keepdim=True)) / 2

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return cross_entropy(ask(z), batch.y, reduction="none")


@pytest.mark.parametrize(
    ("objective", "says"),
    [(Weighted(), "another loss when others"), (Follower(), "another view of a sample")],
)
def test_samples_that_depend_on_one_another_are_refused(objective, says) -> None:
    with pytest.raises(InputError, match=says):
        settled("auto", model(), objective, (), CPU)


def test_a_frozen_layer_takes_no_part() -> None:
    classifier = model()
    classifier.module[1].requires_grad_(False)
    given = work(classifier, Standard())
    sums = {}
    for name, kind in MODES.items():
        mode = kind(classifier)
        sums[name] = torch.cat([s.flatten() for s in mode.summed(given, clip)[0]])
        mode.close()
    assert len(sums["each"]) == 16 + 16 + 16 * 3 + 3
    for found in sums.values():
        assert torch.allclose(found, sums["each"], rtol=1e-9, atol=1e-12)


def test_made_up_inputs_are_within_their_space() -> None:
    inside = made_up(model(), 8, CPU).x
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= 1
    assert inside.std() > 0.2


def test_activations_are_counted_in_bytes() -> None:
    # The input is kept for the weights of the first layer, its output for the derivative of tanh.
    net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    classifier = Classifier(net, inputs=InputSpec(shape=(5,), dtype="float64"), classes=3)
    assert activations(classifier, CPU) == 8 * (5 + 32)
