"""The training loop: what it learns, what it repeats to the last bit, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robustml as rml
from robustml.defenses.training import PGD, Objective, Standard, Term, harden
from robustml.defenses.training.settings import Settings
from robustml.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[3]
SPEC = rml.InputSpec(shape=(6,))


def blobs(n: int = 240, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    centers = rng.random((classes, 6)) * 0.6 + 0.2
    return np.clip(centers[y] + rng.normal(0, 0.06, (n, 6)), 0, 1).astype(np.float32), y


X, Y = blobs()


def network(seed: int = 0, *, norm: bool = False, dropout: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(6, 24)]
    layers += [nn.BatchNorm1d(24)] if norm else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(0.2)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(24, 3))


def model(**kind) -> rml.Classifier:
    return rml.Classifier(network(**kind), inputs=SPEC, classes=3)


def weights(hardened) -> dict[str, torch.Tensor]:
    return hardened.model.module.state_dict()


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


SETTINGS = {"epochs": 4, "batch_size": 32, "seed": 3}


def test_it_learns_and_keeps_the_best_epoch() -> None:
    hardened = harden(model(), (X, Y), epochs=12, batch_size=32, learning_rate=0.02)
    assert hardened.history[-1].clean > 0.95
    assert hardened.chosen == max(range(12), key=lambda e: hardened.history[e].clean) + 1
    assert not hardened.model.training


def test_adversarial_training_withstands_more() -> None:
    plain = harden(model(), (X, Y), epochs=20, batch_size=32)
    trained = harden(model(), (X, Y), objective=PGD(rml.Linf(0.12), steps=5), epochs=20, batch_size=32)
    counts = [
        rml.stress_test(h.model, blobs(150), threats=["linf:0.12"], suite="quick")
        .threats[0]
        .robust_accuracy.upper.count
        for h in (plain, trained)
    ]
    assert counts[1] > counts[0]


KINDS = {
    "sgd": {"optimizer": "sgd", "schedule": "cosine"},
    "ema": {"averaging": "ema", "schedule": "constant"},
    "swa": {"averaging": "swa", "average_from": 0.4},
    "parts": {"accumulate": 3, "clip": 1.0},
}


class Killed(BaseException):
    """Stands for the signal."""


class Fatal(nn.Module):
    """Kills the process after so many calls."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.module, self.calls = module, calls

    def forward(self, x):
        self.calls -= 1
        if self.calls == 0:
            raise Killed
        return self.module(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", [{}, {"norm": True, "dropout": True}], ids=["plain", "norm and dropout"])
def test_a_killed_run_resumes_to_the_last_bit(tmp_path, kind, net) -> None:
    objective = PGD(rml.Linf(0.05), steps=2)
    settings = {**SETTINGS, **KINDS[kind], "objective": objective}

    def made(calls: int) -> rml.Classifier:
        return rml.Classifier(Fatal(network(**net), calls), inputs=SPEC, classes=3)

    whole = harden(made(-1), (X, Y), out=tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        harden(made(150 if kind == "parts" else 60), (X, Y), out=tmp_path / "part", **settings)
    with (tmp_path / "part" / "log.jsonl").open("a") as file:
        file.write('{"number": "logged, and killed before it was saved"}\n')
    again = harden(made(-1), (X, Y), out=tmp_path / "part", resume=True, **settings)
    assert_same(weights(again), weights(whole))
    assert [e.loss for e in again.history] == [e.loss for e in whole.history]
    lines = (tmp_path / "part" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4]


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    one = harden(model(dropout=True), (X, Y), **SETTINGS)
    net = model(dropout=True)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_same(weights(harden(net, (X, Y), **SETTINGS)), weights(one))
    assert torch.equal(torch.get_rng_state(), state)


def test_other_seeds_give_other_weights() -> None:
    one, other = (weights(harden(model(), (X, Y), epochs=1, seed=seed)) for seed in (0, 1))
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_micro_batches_change_nothing_but_rounding() -> None:
    one, other = (weights(harden(model(), (X, Y), accumulate=k, **SETTINGS)) for k in (1, 4))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


def test_a_loader_is_trained_on_as_it_is(tmp_path) -> None:
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    settings = {"epochs": 6, "validation": (X, Y), "seed": 1, "learning_rate": 0.02}
    one, other = (harden(model(), loader, **settings) for _ in range(2))
    assert_same(weights(one), weights(other))
    assert one.history[-1].clean > 0.5
    assert one.provenance["data_sha256"] is None


def test_a_bare_module_is_wrapped() -> None:
    hardened = harden(network(), (X, Y), epochs=1)
    assert hardened.model.classes == 3
    assert hardened.model.inputs.shape == (6,)


@pytest.mark.parametrize("n", [5, 33, 65])
def test_no_batch_of_one_reaches_a_batch_norm(n) -> None:
    hardened = harden(model(norm=True), (X[:n], Y[:n]), epochs=2, batch_size=32, validation=None)
    assert len(hardened.history) == 2


def test_a_data_set_smaller_than_a_batch() -> None:
    assert len(harden(model(), (X[:7], Y[:7]), epochs=2, batch_size=64, validation=None).history) == 2


def test_patience_ends_a_run_that_gets_no_better() -> None:
    hardened = harden(model(), (X, Y), epochs=50, batch_size=32, patience=3, keep="clean")
    assert len(hardened.history) == hardened.chosen + 3 < 50


def test_weights_are_saved_with_their_provenance(tmp_path) -> None:
    import safetensors

    hardened = harden(model(), (X, Y), objective=PGD(rml.Linf(0.1), steps=1), epochs=1, seed=5)
    hardened.save(tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["robustml"])
        assert torch.equal(file.get_tensor("0.weight"), weights(hardened)["0.weight"])
    assert about["objective"] == {
        "name": "pgd",
        "threat": "linf:0.1",
        "steps": 1,
        "step": None,
        "ramp": 0.0,
        "clean": 0.0,
    }
    assert about["settings"]["seed"] == 5
    assert len(about["data_sha256"]) == 64


class Exploding(Standard):
    def losses(self, ask, batch, z):
        return super().losses(ask, batch, z) * torch.inf


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RunError, match="the loss of epoch 1 is"):
        harden(model(), (X, Y), objective=Exploding(), epochs=1)


def refusal(*arguments, **settings) -> str:
    with pytest.raises(InputError) as caught:
        harden(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "one-cicle"}, "did you mean 'one-cycle'"),
        ({"keep": "best"}, "keep='best'"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"validation": 1.5}, "validation=1.5"),
        ({"validation": 1e-9}, "leaves none"),
        ({"resume": True}, "resume needs the folder"),
        ({"device": "nonsense"}, "device='nonsense'"),
        ({"optimizer": lambda parameters: None}, "optimizer returned NoneType"),
    ],
)
def test_settings_that_no_run_could_have(settings, says) -> None:
    assert says in refusal(model(), (X, Y), **settings)


def test_data_that_cannot_be_trained_on(tmp_path) -> None:
    assert "class 0 only" in refusal(model(), (X[:10], np.zeros(10, dtype=int)))
    assert "outside [0, 2]" in refusal(model(), (X, Y + 1))
    assert "empty" in refusal(model(), (X[:0], Y[:0]))
    assert "without batches" in refusal(model(), [])
    assert "give a pair" in refusal(network(), 3)
    assert "at least 2" in refusal(model(norm=True), (X[:2], Y[:2]), validation=0.5)
    assert "too small for a model that normalises" in refusal(model(norm=True), (X, Y), batch_size=1)
    frozen = model()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    assert "nothing can be trained" in refusal(frozen, (X, Y))


def test_a_folder_that_holds_something_else(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "not empty" in refusal(model(), (X, Y), out=tmp_path)
    assert "nothing to resume" in refusal(model(), (X, Y), out=tmp_path, resume=True)
    fresh = harden(model(), (X, Y), out=tmp_path / "new", epochs=1, resume=True)
    again = harden(model(), (X, Y), out=tmp_path / "run", epochs=1)
    assert_same(weights(fresh), weights(again))
    assert "its settings" in refusal(model(), (X, Y), out=tmp_path / "run", epochs=2, resume=True)
    assert "its data_sha256" in refusal(model(), (1 - X, Y), out=tmp_path / "run", epochs=1, resume=True)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "not a checkpoint" in refusal(model(), (X, Y), out=tmp_path / "run", epochs=1, resume=True)


WORKER = """
import sys, torch
from torch import distributed
sys.path[:0] = {paths!r}
from test_loop import X, Y, model
import robustml as rml
from robustml.defenses.training import PGD, harden
torch.set_num_threads(1)
if distributed.is_torchelastic_launched():
    distributed.init_process_group("gloo")
settings = dict(epochs=3, batch_size=37, optimizer="sgd", out={out!r})
hardened = harden(model(), (X, Y), objective=PGD(rml.Linf(0.05), steps=3), **settings)
rank = distributed.get_rank() if distributed.is_initialized() else 0
torch.save(hardened.model.module.state_dict(), {out!r} + f"/rank{{rank}}.pt")
if distributed.is_initialized():
    distributed.destroy_process_group()
"""


def test_two_processes_end_with_the_weights_of_one(tmp_path) -> None:
    found = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        script = tmp_path / f"train{count}.py"
        script.write_text(WORKER.format(paths=[str(ROOT), str(Path(__file__).parent)], out=str(out)))
        launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [sys.executable, *launcher, str(script)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[count] = [torch.load(path, weights_only=True) for path in sorted(out.glob("rank*.pt"))]
    assert [len(states) for states in found.values()] == [1, 2]
    # 18 steps of 37 samples, with a remainder that cannot be halved.
    assert_same(found[2][0], found[2][1])
    for name, value in found[1][0].items():
        torch.testing.assert_close(found[2][0][name], value, atol=1e-5, rtol=0)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
        "rank0.pt",
        "rank1.pt",
    ]


def test_what_is_public_is_described() -> None:
    assert issubclass(PGD, Objective)
    assert Term.penalty(object(), nn.Linear(1, 1)) is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_is_that_of_torch_however_gradients_lie_in_memory(optimizer) -> None:
    """Also for a parameter that has no gradient in the first step."""

    def stepped(make) -> torch.Tensor:
        draw = torch.Generator().manual_seed(5)
        first, late = (nn.Parameter(torch.randn(6, 9, generator=draw)) for _ in range(2))
        made = make([first, late])
        for step in range(4):
            first.grad = torch.randn(9, 6, generator=draw).t()
            late.grad = torch.randn(6, 9, generator=draw) if step else None
            made.step()
        return torch.stack([first.detach(), late.detach()])

    ours = Settings(optimizer=optimizer, learning_rate=0.05, weight_decay=0.01).make_optimizer
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, 0.9, nesterov=True, weight_decay=0.01, fused=False),
        "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01, fused=False),
    }
    torch.testing.assert_close(stepped(ours), stepped(kinds[optimizer]), atol=1e-5, rtol=1e-5)
