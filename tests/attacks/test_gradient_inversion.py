"""Gradient inversion: exact where there is a closed form, and honest about where it fails."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustml.attacks.gradient_inversion import (
    closed_form,
    gradients_of,
    infer_labels,
    invert,
    psnr,
    shared_gradients,
)
from robustml.auditing.gradient_inversion import ClipAndNoise, audit_inversion
from robustml.errors import InputError
from tests.attacks.trained import MNIST


def images(n, seed=0, side=8):
    """Smooth pictures in [0, 1]: a bright blob each."""
    rng = np.random.default_rng(seed)
    grid = np.arange(side)
    centers = rng.uniform(2, side - 2, size=(n, 2))
    rows = np.exp(-((grid - centers[:, :1]) ** 2) / 3)[:, :, None]
    columns = np.exp(-((grid - centers[:, 1:]) ** 2) / 3)[:, None]
    return torch.from_numpy((rows * columns).astype(np.float32))[:, None]


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def mlp(pixels=64):
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 10)))


def smooth():
    net = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 5, 2, padding=2), nn.Sigmoid(), nn.Conv2d(8, 8, 5, 1, padding=2), nn.Sigmoid()),
            *(nn.Flatten(), nn.Linear(128, 10)),
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net.double()


Y = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def test_one_sample_comes_out_of_a_linear_layer_exactly():
    x = images(8)
    for k in range(8):
        sent = shared_gradients(mlp(), x[k : k + 1], Y[k : k + 1])
        torch.testing.assert_close(closed_form(mlp(), sent, (1, 8, 8)), x[k : k + 1], rtol=0, atol=1e-6)
        assert infer_labels(mlp(), sent).tolist() == [int(Y[k])]


def test_so_it_does_out_of_the_update_of_one_step():
    x, before = images(1), mlp()
    after = copy.deepcopy(before)
    optimizer = torch.optim.SGD(after.parameters(), lr=0.05)
    nn.functional.cross_entropy(after(x), Y[:1]).backward()
    optimizer.step()
    sent = gradients_of(before, after, 0.05)
    assert psnr(closed_form(before, sent, (1, 8, 8)), x)[0] > 60


def test_a_layer_that_does_not_see_the_input_gives_nothing():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    assert closed_form(net, shared_gradients(net, images(1), Y[:1]), (1, 8, 8)) is None
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    assert closed_form(bare, shared_gradients(bare, images(1), Y[:1]), (1, 8, 8)) is None
    with pytest.raises(InputError, match="no bias"):
        infer_labels(bare, shared_gradients(bare, images(1), Y[:1]))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_labels_of_a_batch_are_inferred_from_an_untrained_module(labels):
    y = torch.tensor(labels)
    sent = shared_gradients(mlp(), images(len(labels)), y)
    found = infer_labels(mlp(), sent, len(labels))
    # Probabilities near a tenth each leave nothing to doubt.
    assert found.tolist() == sorted(labels)


def test_dlg_finds_the_input_of_a_smooth_module():
    x, net = images(2).double(), smooth()
    for k in range(2):
        found = invert(
            net, shared_gradients(net, x[k : k + 1], Y[k : k + 1]), (1, 8, 8), match="euclidean", steps=300
        )
        assert psnr(found.x, x[k : k + 1])[0] > 60
        assert found.labels.tolist() == [int(Y[k])] and found.loss < 1e-9


def test_the_cosine_finds_the_input_of_a_relu_module_and_nothing_is_left_behind():
    x, net = images(1), mlp()
    sent = shared_gradients(net, x, Y[:1])
    state = torch.random.get_rng_state()
    found = invert(net, sent, (1, 8, 8), steps=600, variation=1e-3)
    assert psnr(found.x, x)[0] > 25
    assert torch.equal(found.x, invert(net, sent, (1, 8, 8), steps=600, variation=1e-3).x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters()) and net.training
    assert float(found.x.min()) >= 0 and float(found.x.max()) <= 1


def test_restarts_keep_the_best_one():
    x, net = images(1, seed=3).double(), smooth()
    sent = shared_gradients(net, x, Y[:1])
    better = 0
    for seed in range(4):
        losses = [
            invert(net, sent, (1, 8, 8), steps=20, restarts=restarts, seed=seed).loss
            for restarts in (1, 2, 4)
        ]
        assert losses == sorted(losses, reverse=True)
        better += losses[0] > losses[-1]
    assert better


def test_psnr_matches_in_any_order():
    x = images(3)
    noisy = x[[2, 0, 1]] + 0.1
    expected = [
        -10 * math.log10(float((n.clamp(0, 1) - t).square().mean())) for n, t in zip(x + 0.1, x, strict=True)
    ]
    np.testing.assert_allclose(psnr(noisy, x).numpy(), expected, rtol=1e-5)
    assert psnr(x, x).tolist() == [pytest.approx(120.0)] * 3


def test_the_verdict_tells_a_defense_from_an_attack_that_fails():
    x = images(6)
    defenses = {"little": ClipAndNoise(1.0, 1e-5), "much": ClipAndNoise(1.0, 1.0)}
    audit = audit_inversion(mlp(), x, Y[:6], defenses, method="closed form")
    assert audit.verdict() == audit.verdict("little") == "leaks"
    assert audit.verdict("much") == "defended"
    assert audit.control.recovered.count == 6 and audit.control.labels.count == 6
    assert "defended" in str(audit)
    # Two steps of the search find nothing, with or without noise: that is no credit to the noise.
    weak = audit_inversion(mlp(), x[:2], Y[:2], defenses, method="cosine", steps=2)
    assert weak.verdict() == weak.verdict("much") == "attack failed"
    blind = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    none = audit_inversion(blind, x[:2], Y[:2], {}, method="closed form")
    assert none.control.psnr == (-math.inf, -math.inf) and none.verdict() == "attack failed"
    with pytest.raises(InputError, match="was not tried"):
        audit.verdict("other")


def test_clipping_and_noise_are_what_they_say():
    sent = (torch.full((100, 300), 0.5), torch.zeros(500))
    clipped = ClipAndNoise(2.0, 0.0)(sent, 0)
    assert math.sqrt(sum(float(g.square().sum()) for g in clipped)) == pytest.approx(2.0)
    noisy = ClipAndNoise(2.0, 0.5)(sent, 0)
    spread = torch.cat([(a - b).flatten() for a, b in zip(noisy, clipped, strict=True)])
    assert float(spread.std()) == pytest.approx(1.0, rel=0.02)
    assert not torch.equal(noisy[0], ClipAndNoise(2.0, 0.5)(sent, 1)[0])


def test_what_makes_no_sense_is_refused():
    net, x = mlp(), images(2)
    sent = shared_gradients(net, x[:1], Y[:1])
    for options in ({"bounds": (1.0, 0.0)}, {"steps": 0}, {"match": "angle"}, {"restarts": 0}):
        with pytest.raises(InputError):
            invert(net, sent, (1, 8, 8), **options)
    for options in ({"method": "closed form", "batch": 2}, {"batch": 3}, {"method": "open"}):
        with pytest.raises(InputError):
            audit_inversion(net, x, Y[:2], {}, **options)


@pytest.mark.slow
@pytest.mark.skipif(not (MNIST / "mnist.npz").exists(), reason="needs MNIST beside the repository")
def test_pictures_of_mnist_come_out_of_the_small_cnn():
    with np.load(MNIST / "mnist.npz") as arrays:
        x = torch.from_numpy(arrays["x_test"][:2]).float().div(255)[:, None]
        y = torch.from_numpy(arrays["y_test"][:2].astype(np.int64))
    net = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
        )
    )
    audit = audit_inversion(net, x, y, {"clip 1, noise 0.1": ClipAndNoise(1.0, 0.1)}, steps=1000, restarts=3)
    assert audit.verdict() == "leaks" and audit.control.recovered.count == 2
    assert audit.verdict("clip 1, noise 0.1") == "defended"
