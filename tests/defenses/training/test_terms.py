"""Regularizers: values against formulas, gradients against differences, and each in training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training import (
    PGD,
    Answers,
    InputGradient,
    Jacobian,
    L1Weights,
    L2Weights,
    LabelSmoothing,
    SpectralNorm,
    Standard,
    harden,
)
from robustml.errors import InputError, RunError
from tests.defenses.training.tiny import CLASSES, SHAPE, assert_derivative, batch, smooth, term_losses

TERMS = [
    L1Weights(0.01),
    L2Weights(0.01, biases=True),
    InputGradient(0.1),
    Jacobian(0.1, projections=2),
    LabelSmoothing(0.1),
    SpectralNorm(0.01),
]


def matrices(model: rml.Classifier) -> list[torch.Tensor]:
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


def jacobian(model: rml.Classifier, x: torch.Tensor) -> torch.Tensor:
    """Of the logits, row by row: (classes, features)."""
    found = torch.autograd.functional.jacobian(lambda row: model(row[None])[0], x)
    return found.reshape(CLASSES, -1)


@pytest.mark.parametrize("biases", [False, True])
def test_penalties_of_weights_are_their_norms(biases: bool) -> None:
    model = smooth()
    counted = [p for p in model.parameters() if biases or p.ndim == 2]
    values = np.concatenate([p.detach().numpy().ravel() for p in counted])
    assert L1Weights(1.0, biases=biases).penalty(model).item() == pytest.approx(np.abs(values).sum())
    assert L2Weights(1.0, biases=biases).penalty(model).item() == pytest.approx((values**2).sum() / 2)


def test_frozen_weights_do_not_count() -> None:
    model = smooth()
    model.module[1].requires_grad_(False)
    kept = model.module[3].weight
    assert L2Weights(1.0).penalty(model).item() == pytest.approx(kept.square().sum().item() / 2)
    model.requires_grad_(False)
    assert all(term.penalty(model) is None for term in (L1Weights(1.0), L2Weights(1.0), SpectralNorm(1.0)))


def test_the_l2_penalty_is_weight_decay_with_sgd() -> None:
    x, y = batch(48).x.numpy(), np.arange(48) % 3
    settings = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "validation": None}
    one = harden(smooth(), (x, y), terms=[L2Weights(0.03, biases=True)], **settings)
    other = harden(smooth(), (x, y), weight_decay=0.03, **settings)
    plain = harden(smooth(), (x, y), **settings)
    for mine, theirs, bare in zip(
        one.model.parameters(), other.model.parameters(), plain.model.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-12)
        assert not torch.allclose(mine, bare, atol=1e-4)


def test_the_input_gradient_is_that_of_the_cross_entropy() -> None:
    model, made = smooth(), batch()
    found = term_losses(model, InputGradient(1.0), made)
    for i in range(len(made)):
        slope = (torch.softmax(model(made.x[i : i + 1])[0], 0) - torch.eye(CLASSES)[made.y[i]]) @ jacobian(
            model, made.x[i]
        )
        assert found[i].item() == pytest.approx(slope.square().sum().item())


def test_features_count_as_attackers_feel_them() -> None:
    scale = (1.0, 2.0, 0.5, 3.0, 1.0)
    model, plain, made = smooth(scale=scale, immutable=[0, 4]), smooth(), batch()
    x = made.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(plain(x), made.y, reduction="sum"), x)
    wanted = (slope * torch.tensor(scale))[:, 1:4].square().sum(1)
    assert torch.allclose(term_losses(model, InputGradient(1.0), made), wanted, atol=1e-12)


def test_the_jacobian_is_estimated_without_bias() -> None:
    model, made = smooth(), batch(3)
    exact = torch.stack([jacobian(model, row).square().sum() / 2 for row in made.x])
    found = term_losses(model, Jacobian(1.0, projections=3000), made)
    assert torch.allclose(found, exact, rtol=0.1)
    # The mean of few is as near as the spread of so many allows.
    singles = torch.stack([term_losses(model, Jacobian(1.0), batch(3, seed=s, x=made.x)) for s in range(400)])
    error = singles.std(0) / math.sqrt(len(singles))
    assert ((singles.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("term", [InputGradient(1.0), Jacobian(1.0), LabelSmoothing(1.0)])
def test_a_sample_has_its_own_value(term) -> None:
    model, made, fewer = smooth(), batch(), batch(3)
    fewer.x, fewer.y = made.x[:3], made.y[:3]
    assert torch.allclose(term_losses(model, term, made)[:3], term_losses(model, term, fewer), atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothing_is_that_of_torch_up_to_a_factor(smoothing: float) -> None:
    model, made = smooth(), batch()
    term = LabelSmoothing.by(smoothing)
    both = Standard().losses(Answers(model), made, made.x) + term.weight * term_losses(model, term, made)
    wanted = nn.functional.cross_entropy(model(made.x), made.y, label_smoothing=smoothing, reduction="none")
    assert torch.allclose((1 - smoothing) * both, wanted, atol=1e-12)


def test_smoothing_asks_the_model_nothing_that_it_has_answered() -> None:
    model, made = smooth(), batch()
    ask = Answers(model)
    objective = PGD(rml.Linf(0.1).within(model.inputs), steps=1)
    z = objective.craft(model, made)
    objective.losses(ask, made, z)
    before = len(ask._known)
    LabelSmoothing(0.1).losses(ask, made, z)
    assert len(ask._known) == before == 1


def test_spectral_norms_are_those_of_the_decomposition() -> None:
    model = smooth()
    wanted = sum(np.linalg.svd(w.detach().numpy(), compute_uv=False)[0] ** 2 for w in matrices(model)) / 2
    assert SpectralNorm(1.0).penalty(model).item() == pytest.approx(wanted)


def test_a_convolution_counts_as_the_matrix_of_its_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    found = math.sqrt(2 * SpectralNorm(1.0).penalty(layer).item())
    kernel = layer.weight.detach().reshape(3, -1).numpy()
    assert found == pytest.approx(np.linalg.svd(kernel, compute_uv=False)[0])
    # As an operator on images it may be larger, by no more than the docstring says.
    units = torch.eye(2 * 6 * 6, dtype=torch.float64).view(-1, 2, 6, 6)
    operator = np.linalg.svd(layer(units).detach().flatten(1).numpy(), compute_uv=False)[0]
    assert found < operator <= 3 * found
    turned = nn.ConvTranspose2d(3, 2, 3, bias=False).double()
    with torch.no_grad():
        turned.weight.copy_(layer.weight)
    rows = turned.weight.detach().transpose(0, 1).reshape(2, -1).numpy()
    wanted = np.linalg.svd(rows, compute_uv=False)[0] ** 2 / 2
    assert SpectralNorm(1.0).penalty(turned).item() == pytest.approx(wanted)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_gradients_are_those_of_finite_differences(term) -> None:
    model = smooth()

    def value() -> torch.Tensor:
        penalty = term.penalty(model)
        return term_losses(model, term, batch()).sum() if penalty is None else penalty

    assert_derivative(model, value, tolerance=1e-5)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_training_goes_down_what_it_adds(term) -> None:
    x = batch(60).x.numpy()
    y = x[:, :CLASSES].argmax(1)
    settings = {"epochs": 15, "batch_size": 16, "learning_rate": 0.05, "validation": None}
    least = math.log(CLASSES) if term.name == "label-smoothing" else 0.0
    heavy = type(term)(**{**vars(term), "weight": 3.0})
    with_it, without = (harden(smooth(), (x, y), terms=terms, **settings) for terms in ([heavy], []))
    assert all(np.isfinite(epoch.loss) for epoch in with_it.history)
    assert with_it.provenance["terms"] == [{"name": term.name, **vars(heavy)}]

    def value(model: rml.Classifier) -> float:
        penalty = term.penalty(model)
        made = batch(60)
        return (term_losses(model, term, made).mean() if penalty is None else penalty).item() - least

    assert value(with_it.model) < 0.8 * value(without.model)


@pytest.mark.parametrize("shape", [SHAPE, (2, 4), (1, 3, 3)])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_shapes_and_empty_batches(term, shape) -> None:
    model = smooth(shape=shape)
    for n in (0, 1, 4):
        found = term.losses(Answers(model), batch(n, shape), batch(n, shape).x)
        assert found is None or (found.shape == (n,) and found.isfinite().all())
        assert (found is None) == (term.penalty(model) is not None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: L1Weights(-1.0), "weight=-1.0 is not a finite number of at least 0"),
        (lambda: SpectralNorm(float("inf")), "weight=inf"),
        (lambda: InputGradient(True), "weight=True"),
        (lambda: Jacobian(1.0, projections=0), "projections=0 is not a whole number of at least 1"),
        (lambda: LabelSmoothing.by(1.0), "smoothing=1.0 is not a share"),
    ],
)
def test_mistakes_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_broken_weights_end_the_run() -> None:
    model = smooth()
    with torch.no_grad():
        model.module[1].weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite|is nan"):
        harden(model, (batch(40).x.numpy(), np.arange(40) % 3), terms=[SpectralNorm(0.1)], epochs=1)
