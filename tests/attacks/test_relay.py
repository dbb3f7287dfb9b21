"""The relay, targeted APGD and PGD with cycles: what each is for, shown on models whose answer is known."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustml.attacks.active import Search
from robustml.attacks.evasion.relay import _FIRST, _LATER, _leg
from robustml.attacks.ranking import ranked_targets
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import L1, L2, Linf, Threat

SHARED = Path(__file__).parents[3] / "shared" / "data"


class Counted:
    """A model that counts the samples that it sees, and can be differentiated."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forward += len(x)
        logits: Tensor = self.model(x)
        return logits


def rounding(seed: int = 0) -> nn.Module:
    """A linear model behind a rounding step, which no true gradient passes."""

    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 3).double()
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.layer.weight.copy_(torch.randn(3, 20, generator=generator, dtype=torch.float64))
                self.layer.bias.copy_(-self.layer.weight.sum(1) / 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layer((x * 15).round() / 15)
            return logits

    return Rounding().requires_grad_(False)


def inputs_of(model: nn.Module, n: int, *shape: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shape", [(12,), (4, 5), (3, 6, 6)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_relay_breaks_linear_models_exactly_within_their_distance(run, classes, shape, norm) -> None:
    generator = torch.Generator().manual_seed(classes)
    layer = nn.Linear(math.prod(shape), classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        layer.bias.zero_()
    model = nn.Sequential(nn.Flatten(), layer).requires_grad_(False)
    x = torch.randn(24, *shape, generator=generator, dtype=torch.float64)
    logits = model(x)
    y = logits.argmax(1)
    gaps = layer.weight[y][:, None] - layer.weight[None]
    sizes = gaps.norm(p={"linf": 1, "l2": 2}[norm], dim=2)
    away = ((logits.gather(1, y[:, None]) - logits) / sizes).scatter(1, y[:, None], math.inf).amin(1)
    eps = float(away.median())
    kind: dict[str, type[Threat]] = {"linf": Linf, "l2": L2}
    threat = kind[norm](eps).within(InputSpec(shape=shape, bounds=(-100.0, 100.0), dtype="float64"))
    broken = model(run("relay", model, x, y, threat)).argmax(1) != y
    assert not broken[away > eps].any()
    assert broken[away < 0.98 * eps].all()


def test_relay_sees_behind_rounding_where_the_true_gradient_is_blind(run) -> None:
    model = rounding()
    x, y = inputs_of(model, 40, 20)
    threat = Linf(0.3).within(InputSpec(shape=(20,), dtype="float64"))
    found = {}
    for name, options in (
        ("apgd", {"loss": "margin", "steps": 40}),
        ("apgd", {"loss": "margin", "steps": 40, "gradient": "smooth"}),
        ("relay", {}),
    ):
        z = run(name, model, x, y, threat, **options)
        found[name, options.get("gradient")] = int((model(z).argmax(1) != y).sum())
    # Blind, it is left with the luck of its starting point.
    assert found["apgd", None] < 20
    assert found["apgd", "smooth"] == found["relay", None] == 40


def test_legs_differ_from_their_neighbors() -> None:
    legs = [_leg(number) for number in range(40)]
    assert tuple(legs[:4]) == _FIRST
    assert tuple(legs[4:10]) == _LATER
    for one, next_one in itertools.pairwise(legs):
        assert one != next_one
        assert one.start != next_one.start or one.loss is not next_one.loss
    assert {leg.rank for leg in legs if leg.loss is None} >= set(range(5))
    assert len({(leg.start, leg.smooth, leg.loss, leg.rank) for leg in legs}) > 20


def test_later_legs_are_for_the_samples_that_came_near(run, tiny_cnn, images) -> None:
    x, y = images
    threat = Linf(0.01).within(InputSpec(shape=(2, 6, 6)))
    spent = {}
    for near in (0.05, 0.5, None):
        model = Counted(tiny_cnn)
        run("relay", model, x, y, threat, near=near, legs=12)
        spent[near] = model.forward
    assert spent[0.05] < spent[0.5] < spent[None]


@pytest.mark.parametrize("name", ["relay", "apgd-t"])
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4)], ids=lambda t: t.norm)
def test_verdicts_do_not_depend_on_the_batch(run, tiny_cnn, images, name, threat) -> None:
    model, (x, y) = tiny_cnn.double(), images
    x, threat = x.double(), threat.within(InputSpec(shape=(2, 6, 6), dtype="float64"))
    options = {"legs": 7} if name == "relay" else {"steps": 15, "targets": 2}
    together = run(name, model, x, y, threat, **options)
    for rows in torch.arange(len(x)).split(5):
        alone = run(name, model, x[rows], y[rows], threat, ids=rows, **options)
        verdicts = model(alone).argmax(1) != y[rows]
        assert torch.equal(verdicts, model(together[rows]).argmax(1) != y[rows])
        torch.testing.assert_close(alone[verdicts], together[rows][verdicts], atol=1e-9, rtol=0)


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.4), L1(1.5)], ids=lambda t: t.norm)
def test_targeted_apgd_breaks_at_least_what_apgd_breaks(run, tiny_cnn, images, threat) -> None:
    x, y = images
    threat = threat.within(InputSpec(shape=(2, 6, 6)))
    plain = tiny_cnn(run("apgd", tiny_cnn, x, y, threat, steps=50)).argmax(1) != y
    aimed = tiny_cnn(run("apgd-t", tiny_cnn, x, y, threat, steps=50)).argmax(1) != y
    assert aimed.sum() >= plain.sum() > 0


class Decoy(nn.Module):
    """Class 1 has the second largest logit everywhere and cannot be reached; class 2 can."""

    def forward(self, x: Tensor) -> Tensor:
        rise = x[:, 0]
        return torch.stack([torch.zeros_like(rise), rise * 1e-3 - 0.1, 2 * rise - 1.0], dim=1)


def test_targets_are_ranked_by_distance_and_not_by_logit(run) -> None:
    model = Decoy()
    x = torch.full((5, 3), 0.2, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    threat = Linf(0.5).within(InputSpec(shape=(3,), dtype="float64"))
    search = Search(model, x, y, threat, Streams.derive(0, "t", torch.arange(5)))
    ranked, logits = ranked_targets(search, x, count=9)
    assert ranked.tolist() == [[2, 1]] * 5
    torch.testing.assert_close(logits, model(x))
    # One target is enough where it is the right one, also for the margin, which follows the decoy.
    z = run("apgd-t", model, x, y, threat, targets=1, steps=10)
    assert (model(z).argmax(1) == 2).all()


@pytest.mark.parametrize("classes", [2, 3, 30])
def test_ranking_looks_at_no_more_classes_than_it_is_told(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    layer = nn.Linear(4, classes).double().requires_grad_(False)
    layer.weight.copy_(torch.randn(classes, 4, generator=generator, dtype=torch.float64))
    x = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    y = layer(x).argmax(1)
    threat = L2(0.5).within(InputSpec(shape=(4,), dtype="float64"))
    search = Search(layer, x, y, threat, Streams.derive(0, "t", torch.arange(6)))
    ranked, _ = ranked_targets(search, x, count=9)
    assert ranked.shape == (6, min(9, classes - 1))
    assert (ranked != y[:, None]).all()
    leads = layer(x).gather(1, y[:, None]) - layer(x).gather(1, ranked)
    away = leads / (layer.weight[ranked] - layer.weight[y][:, None]).norm(dim=2)
    assert (away.diff(dim=1) >= -1e-12).all()


def test_pgd_stops_in_a_cycle_with_the_same_verdict(run, tiny_cnn, images) -> None:
    x, y = images
    threat = Linf(0.03).within(InputSpec(shape=(2, 6, 6)))
    options = {"steps": 200, "step_size": 0.25, "loss": "margin"}
    broken, spent = {}, {}
    for cycles in (False, True):
        model = Counted(tiny_cnn)
        z = run("pgd", model, x, y, threat, cycles=cycles, **options)
        broken[cycles], spent[cycles] = (tiny_cnn(z).argmax(1) != y).tolist(), model.forward
    assert broken[True] == broken[False]
    assert 0 < sum(broken[True]) < len(x)
    assert spent[True] < spent[False] / 2


@pytest.mark.slow
def test_relay_leaves_less_standing_than_autoattack_for_a_thirtieth_of_its_passes() -> None:
    """AutoAttack, standard: 855 of 1,000 for 6,779 forward and 1,667 backward passes per image."""
    weights, arrays = SHARED / "mnist_pgd.safetensors", SHARED / "mnist.npz"
    if not weights.exists():
        pytest.skip("the trained network is not beside the repository")
    import numpy as np

    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    net.load_state_dict(load_file(weights))
    net.requires_grad_(False)
    with np.load(arrays, allow_pickle=False) as data:
        x = torch.from_numpy(data["x_test"][:1000]).float().div(255)[:, None]
        y = torch.from_numpy(data["y_test"][:1000].astype(np.int64))
    passes = [0, 0]

    def model(z: Tensor) -> Tensor:
        logits: Tensor = net(z)
        passes[0] += len(z)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passes.__setitem__(1, passes[1] + len(gradient)))
        return logits

    right = (net(x).argmax(1) == y).nonzero()[:, 0]
    threat = Linf(0.3).within(InputSpec(shape=(1, 28, 28)))
    attack = find_attack("relay").function
    standing = 0
    for rows in right.split(256):
        streams = Streams.derive(0, "relay", rows)
        z = attack(model, x[rows], y[rows], threat=threat, streams=streams)
        assert threat.around(x[rows]).contains(z).all()
        standing += int((net(z).argmax(1) == y[rows]).sum())
    cost = (passes[0] + 2 * passes[1]) / len(x)
    assert standing <= 850, json.dumps({"standing": standing, "cost": cost})
    assert cost <= 10_113 / 30
