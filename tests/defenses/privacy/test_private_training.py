"""Private training through `harden`: what a step does, what is refused, what survives a kill."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import robustml as rml
from robustml.defenses.privacy import DifferentialPrivacy, Ledger, prepare
from robustml.defenses.training import (
    AWP,
    PGD,
    TRADES,
    Distillation,
    Free,
    L2Weights,
    Several,
    Standard,
    harden,
)
from robustml.errors import InputError

SPEC = rml.InputSpec(shape=(6,))


def blobs(n: int = 240, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    centers = rng.random((classes, 6)) * 0.6 + 0.2
    return np.clip(centers[y] + rng.normal(0, 0.06, (n, 6)), 0, 1).astype(np.float32), y


X, Y = blobs()


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), *(middle or (nn.ReLU(),)), nn.Linear(24, 3))


def model(*middle: nn.Module) -> rml.Classifier:
    return rml.Classifier(network(*middle), inputs=SPEC, classes=3)


def private(**given) -> DifferentialPrivacy:
    return DifferentialPrivacy(**{"noise_multiplier": 1.0, "delta": 1e-4, "seed": 5, **given})


SETTINGS = {"epochs": 3, "batch_size": 40, "optimizer": "sgd", "learning_rate": 0.2, "schedule": "constant"}


def weights(hardened) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in hardened.model.module.state_dict().items()}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_it_learns_within_its_budget() -> None:
    given = {**SETTINGS, "epochs": 30, "privacy": DifferentialPrivacy(8.0, delta=1e-4, seed=1)}
    hardened = harden(model(), (X, Y), validation=blobs(300), **given)
    found = hardened.privacy
    assert hardened.history[-1].clean > 0.9
    assert 7.9 < found.epsilon <= 8
    assert (found.steps, found.sampling_rate, found.expected_batch) == (180, 40 / 240, 40)
    assert Ledger([(found.noise_multiplier, found.sampling_rate, 180)]).spent(1e-4).epsilon == found.epsilon
    assert found.neighbors == "add or remove one sample"
    assert found.randomness == "seed 1"
    assert not hardened.model.training


@pytest.mark.parametrize("mode", ["hooks", "functional", "each", "ghost"])
def test_a_step_without_noise_is_that_of_abadi(mode) -> None:
    """By hand: drawn samples, each gradient clipped, their sum over a constant, and a step of SGD."""
    seen: list[dict[str, torch.Tensor]] = []
    asked = private(
        noise_multiplier=0.0, clipping_norm=0.3, mode=mode, observer=seen.append, physical_batch=7
    )
    begun = model()
    net = network()
    net.load_state_dict(begun.module.state_dict())
    plain = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.5), "schedule": "constant", "batch_size": 40}
    hardened = harden(begun, (X, Y), privacy=asked, epochs=1, **plain)
    drawn = asked.sampler(240, 40 / 240)
    for step in range(6):
        rows = drawn.draw(step)
        sums = [torch.zeros_like(p) for p in net.parameters()]
        for i in rows:
            loss = nn.functional.cross_entropy(net(torch.from_numpy(X[i : i + 1])), torch.tensor([Y[i]]))
            found = torch.autograd.grad(loss, list(net.parameters()))
            norm = math.sqrt(sum(float(g.square().sum()) for g in found))
            for total, part in zip(sums, found, strict=True):
                total += part * min(1, 0.3 / norm)
        for total, name in zip(sums, seen[step], strict=True):
            assert torch.allclose(seen[step][name], total, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for p, total in zip(net.parameters(), sums, strict=True):
                p -= 0.5 * total / 40
    for name, value in net.state_dict().items():
        assert torch.allclose(hardened.model.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert hardened.privacy.epsilon is None, "clipping alone protects nobody"
    assert hardened.privacy.mode == mode


def test_weight_penalties_act_in_full_and_after_the_noise() -> None:
    """What depends on the weights alone needs no protection, and must be neither lost nor clipped."""
    plain = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.5), "schedule": "constant", "batch_size": 240}
    steps = {}
    for weight in (0.0, 3.0):
        before = model()
        asked = private(noise_multiplier=0.5, clipping_norm=0.01)
        start = {name: value.clone() for name, value in before.module.state_dict().items()}
        terms = (L2Weights(weight),) if weight else ()
        after = weights(harden(before, (X, Y), terms=terms, privacy=asked, epochs=1, **plain))
        steps[weight] = {name: after[name] - start[name] for name in start}
    for name in ("0.weight", "2.weight"):
        assert torch.allclose(steps[3.0][name], steps[0.0][name] - 0.5 * 3.0 * start[name], atol=1e-6)


def test_adversarial_training_leaves_no_trace_in_private_gradients() -> None:
    """The same samples with and without an attack before the step, in a ball of next to nothing."""
    seen: dict[int, list] = {0: [], 1: []}
    for steps, held in seen.items():
        objective = PGD(rml.Linf(1e-12), steps=4 * steps)
        asked = private(noise_multiplier=0.0, mode="hooks", observer=held.append)
        harden(model(), (X, Y), objective=objective, privacy=asked, **SETTINGS)
    for one, other in zip(seen[0], seen[1], strict=True):
        for name in one:
            assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_objectives_compose_with_privacy() -> None:
    several = Several((PGD(rml.Linf(0.05), steps=2), PGD(rml.L2(0.1), steps=2)), mode="average")
    for objective in (TRADES(rml.Linf(0.05), steps=2), several):
        hardened = harden(model(), (X, Y), objective=objective, privacy=private(), **SETTINGS)
        assert math.isfinite(hardened.history[-1].loss)
        assert hardened.privacy.epsilon == pytest.approx(Ledger([(1.0, 1 / 6, 18)]).spent(1e-4).epsilon)


class Killed(BaseException):
    """Stands for the signal."""


class Fatal(nn.Module):
    """Kills the process in training mode after so many calls."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.module, self.calls = module, calls

    def forward(self, x):
        self.calls -= 1
        if self.calls == 0:
            raise Killed
        return self.module(x)


@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("mode", ["hooks", "auto"])
def test_a_killed_run_resumes_with_its_ledger(tmp_path, seed, mode) -> None:
    asked = private(seed=seed, mode=mode, noise_multiplier=0.8)
    given = {**SETTINGS, "epochs": 6, "privacy": asked, "objective": PGD(rml.Linf(0.05), steps=2)}

    def made(calls: int) -> rml.Classifier:
        return rml.Classifier(Fatal(network(nn.ReLU(), nn.Dropout(0.1)), calls), inputs=SPEC, classes=3)

    whole = harden(made(-1), (X, Y), out=tmp_path / "whole", **given)
    with pytest.raises(Killed):
        harden(made(80), (X, Y), out=tmp_path / "part", **given)
    resumed = harden(made(-1), (X, Y), out=tmp_path / "part", resume=True, **given)
    assert resumed.privacy.epsilon == whole.privacy.epsilon
    assert resumed.privacy.steps == whole.privacy.steps == 36
    if seed is not None and resumed.privacy.mode == whole.privacy.mode:
        assert_same(weights(resumed), weights(whole))
    elif seed is None:
        assert not torch.equal(*(each["module.0.weight"] for each in map(weights, (resumed, whole))))


def test_a_run_stops_before_it_exceeds_its_limit(tmp_path) -> None:
    asked = private(max_epsilon=2.0)
    hardened = harden(model(), (X, Y), privacy=asked, out=tmp_path / "run", **{**SETTINGS, "epochs": 50})
    assert hardened.privacy.epsilon <= 2
    assert Ledger([(1.0, 1 / 6, hardened.privacy.steps + 1)]).spent(1e-4).epsilon > 2
    assert len(hardened.history) == math.ceil(hardened.privacy.steps / 6) < 50
    again = harden(
        model(), (X, Y), privacy=asked, out=tmp_path / "run", resume=True, **{**SETTINGS, "epochs": 50}
    )
    assert again.privacy == hardened.privacy
    assert_same(weights(again), weights(hardened))


def test_a_ledger_goes_on_over_runs() -> None:
    ledger = Ledger()
    figures = [
        harden(model(), (X, Y), privacy=private(seed=seed), ledger=ledger, **SETTINGS).privacy.epsilon
        for seed in range(3)
    ]
    assert figures[0] < figures[1] < figures[2]
    assert figures[2] == Ledger([(1.0, 1 / 6, 54)]).spent(1e-4).epsilon
    with pytest.raises(InputError, match=r"epsilon=1 cannot be reached .* is spent already"):
        harden(model(), (X, Y), privacy=DifferentialPrivacy(1.0, delta=1e-4), ledger=ledger, **SETTINGS)
    with pytest.raises(InputError, match=r"max_epsilon=1 leaves no room .* is spent already"):
        harden(model(), (X, Y), privacy=private(max_epsilon=1.0), ledger=ledger, **SETTINGS)


def test_batches_vary_and_may_be_empty_and_sums_are_divided_by_a_constant() -> None:
    seen: list[dict[str, torch.Tensor]] = []
    asked = private(noise_multiplier=0.0, observer=seen.append)
    hardened = harden(model(), (X[:30], Y[:30]), privacy=asked, **{**SETTINGS, "epochs": 4, "batch_size": 1})
    assert len(seen) == 120 == hardened.privacy.steps
    empty = [all(not value.any() for value in each.values()) for each in seen]
    # One sample of 30 at each of 30 steps: about a third of the steps take none.
    assert 20 < sum(empty) < 70
    assert hardened.privacy.sampling_rate == 1 / 30


def test_physical_batches_change_nothing_but_rounding() -> None:
    found = [
        weights(harden(model(), (X, Y), privacy=private(physical_batch=size, mode="hooks"), **SETTINGS))
        for size in (3, None)
    ]
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-6)


def test_memory_bounds_what_is_worked_on_at_once() -> None:
    wide = rml.Classifier(
        nn.Sequential(nn.Linear(6, 60_000), nn.ReLU(), nn.Linear(60_000, 3)), inputs=SPEC, classes=3
    )
    asked = private(memory=32, mode="hooks")
    hardened = harden(wide, (X, Y), privacy=asked, **{**SETTINGS, "epochs": 1})
    # Twice 2.4 MB of gradients and twice 0.5 MB of activations per sample.
    assert 4 <= hardened.privacy.physical_batch <= 7


def test_what_is_published_does_not_tell_the_data(tmp_path) -> None:
    hardened = harden(model(), (X, Y), privacy=private(), **SETTINGS)
    hardened.save(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["robustml"])
    assert about["data_sha256"] is None
    assert about["privacy"] == hardened.privacy.to_dict()
    assert len(hardened.history) == hardened.chosen == 3, "nothing private chooses an epoch"
    assert hardened.history[0].clean is None


def test_an_activation_in_place_is_trained_as_any_other() -> None:
    found = [
        weights(harden(model(nn.ReLU(inplace=inplace)), (X, Y), privacy=private(mode="hooks"), **SETTINGS))
        for inplace in (True, False)
    ]
    assert_same(*found)


def test_batch_normalization_is_refused_and_can_be_replaced() -> None:
    normalised = model(nn.BatchNorm1d(24), nn.ReLU())
    with pytest.raises(InputError, match=r"layer '1' normalises over the batch.*prepare"):
        harden(normalised, (X, Y), privacy=private(), **SETTINGS)
    replaced = prepare(normalised)
    assert isinstance(normalised.module[1], nn.BatchNorm1d)
    layer = replaced.module[1]
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_channels // layer.num_groups >= 4
    hardened = harden(replaced, (X, Y), privacy=private(), **SETTINGS)
    assert hardened.privacy.epsilon > 0


@pytest.mark.parametrize(("channels", "groups"), [(7, 7), (64, 32), (3, 3)])
def test_images_keep_four_values_in_a_group(channels, groups) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(channels * 4, 3),
    )
    made = prepare(rml.Classifier(net, inputs=rml.InputSpec(shape=(1, 4, 4)), classes=3))
    assert made.module[1].num_groups == groups
    assert not made.module[2].inplace


def test_a_norm_that_erases_its_data_is_an_error() -> None:
    few = rml.Classifier(
        nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)), inputs=SPEC, classes=3
    )
    with pytest.raises(InputError, match="normalises 3 values of a sample, which is too few"):
        prepare(few)
    # Four groups of one value each, as opacus would make of it: all that is left of an input is 0.
    erased = rml.Classifier(
        nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(4, 4), nn.Linear(4, 3)), inputs=SPEC, classes=3
    )
    with pytest.raises(InputError, match=r"layer 'module\.1' erases its data"):
        prepare(erased)


def loader(**more) -> DataLoader:
    return DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=40, **more)


REFUSED = {
    "a loader, which is not Poisson": (lambda: {"train": loader(shuffle=True)}, "train is a loader"),
    "a weighted sampler": (
        lambda: {"train": loader(sampler=WeightedRandomSampler([1.0] * 240, 80))},
        "train is a loader",
    ),
    "replays": (lambda: {"objective": Free(rml.Linf(0.1))}, "makes several steps on one batch"),
    "moved weights": (
        lambda: {"objective": AWP(PGD(rml.Linf(0.1)))},
        "unclipped gradient of the whole batch",
    ),
    "a teacher": (lambda: {"objective": Distillation(model(), 5.0)}, "learns from a teacher"),
    "held-out samples": (lambda: {"validation": 0.1}, "validation=0.1 would hold out private samples"),
    "a batch of more than all": (lambda: {"batch_size": 500}, "batch_size=500 is more than the 240"),
    "a large delta": (lambda: {"privacy": private(delta=0.01)}, "delta=0.01 is not below one over"),
    "bfloat16": (lambda: {"precision": "bfloat16"}, "precision='bfloat16' rounds gradients"),
    "parts": (lambda: {"accumulate": 2}, "accumulate has no use with privacy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_break_the_guarantee_is_refused(name) -> None:
    made, says = REFUSED[name]
    given = {"train": (X, Y), "privacy": private(), **SETTINGS, **made()}
    net = model()
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    with pytest.raises(InputError, match=says):
        harden(net, given.pop("train"), **given)
    assert_same(net.module.state_dict(), before)


def test_a_public_teacher_is_taken_at_its_word() -> None:
    hardened = harden(
        model(),
        (X, Y),
        objective=Distillation(model(), 5.0),
        privacy=private(teacher_is_public=True),
        **SETTINGS,
    )
    assert hardened.privacy.epsilon > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "exactly one of epsilon and noise_multiplier"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one of epsilon and noise_multiplier"),
        ({"epsilon": 0}, "epsilon=0 is not a finite number above 0"),
        ({"epsilon": math.inf}, "epsilon=inf is not a finite number"),
        ({"noise_multiplier": -1}, "noise_multiplier=-1 is not a finite number of at least 0"),
        ({"epsilon": 1, "delta": 1}, "delta=1 is not a finite number above 0 and below 1"),
        ({"epsilon": 1, "clipping_norm": 0}, "clipping_norm=0 is not"),
        ({"epsilon": 1, "max_epsilon": 2}, "max_epsilon goes with noise_multiplier"),
        ({"epsilon": 1, "mode": "ghosts"}, "mode='ghosts' is not known; did you mean 'ghost'"),
        ({"epsilon": 1, "physical_batch": 0}, "physical_batch=0 is not a whole number of at least 1"),
        ({"epsilon": 1, "memory": None}, "memory=None is not a whole number"),
        ({"epsilon": 1, "seed": 1.5}, "seed=1.5 is not a whole number"),
    ],
)
def test_settings_that_mean_nothing(given, says) -> None:
    with pytest.raises(InputError, match=says):
        DifferentialPrivacy(**given)


def test_nothing_is_left_on_the_model_when_training_fails() -> None:
    class Failing(Standard):
        def losses(self, ask, batch, z):
            if len(batch) > 4 and batch.progress > 0.3:
                raise Killed
            return super().losses(ask, batch, z)

    net = model()
    with pytest.raises(Killed):
        harden(net, (X, Y), objective=Failing(), privacy=private(mode="hooks"), **SETTINGS)
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())
    assert not any(hasattr(p, "grad_sample") for p in net.parameters())
