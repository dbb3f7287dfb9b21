"""A federation that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM

import robustml as rml
from robustml.defenses.federated import Client, Guarded, InProcessGrid, Server, aggregation, client_app
from robustml.defenses.federated.grid import identified
from robustml.defenses.federated.state import packed, unpacked
from robustml.defenses.training import PGD

from .small import data, figures, net, run, same
from .test_federate import _dataset

KILLED = """
import sys, torch
torch.set_num_threads(1)
from tests.defenses.federated.small import run
run(rounds=500, out=sys.argv[1], partition="dirichlet:0.5", aggregation="centered-clipping")
"""

STRATEGIES = {
    "mean": lambda: "mean",
    "centered-clipping": lambda: "centered-clipping",
    "adam": lambda: FedAdam(fraction_train=0.5, fraction_evaluate=0.0),
    "momentum": lambda: FedAvgM(server_momentum=0.9, fraction_evaluate=0.0),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_going_on_gives_the_same_bits(tmp_path, name: str) -> None:
    make = STRATEGIES[name]
    options = {"norm": True, "partition": "dirichlet:0.5", "objective": PGD(rml.Linf(0.05), steps=1)}
    whole = run(rounds=4, aggregation=make(), **options)
    run(rounds=2, aggregation=make(), out=tmp_path / "run", **options)
    rest = run(rounds=4, aggregation=make(), out=tmp_path / "run", resume=True, **options)
    assert same(whole.model, rest.model)
    assert figures(whole.history) == figures(rest.history)
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 5


@pytest.mark.slow
def test_a_killed_server_goes_on_from_its_last_round(tmp_path) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = out / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not log.exists() or log.read_text().count("\n") < 5):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = log.read_text().count("\n")
    assert 5 <= done < 500
    rounds = done + 3
    options = {"partition": "dirichlet:0.5", "aggregation": "centered-clipping"}
    rest = run(rounds=rounds, out=out, resume=True, **options)
    whole = run(rounds=rounds, **options)
    assert same(whole.model, rest.model)
    assert figures(whole.history) == figures(rest.history)


def test_a_run_goes_on_only_as_it_began(tmp_path) -> None:
    out = tmp_path / "run"
    run(rounds=1, out=out)
    for changed, name in (
        ({"seed": 1}, "aggregation|clients|settings"),
        ({"learning_rate": 0.1}, "settings"),
        ({"aggregation": "median"}, "aggregation"),
        ({"partition": "dirichlet:9"}, "clients|partition"),
    ):
        with pytest.raises(rml.InputError, match=rf"cannot be resumed: its ({name}) is"):
            run(rounds=2, out=out, resume=True, **changed)
    with pytest.raises(rml.InputError, match="already exists and is not empty"):
        run(rounds=2, out=out)
    run(rounds=2, out=out, resume=True)
    with pytest.raises(rml.InputError, match="has 2 rounds already"):
        run(rounds=1, out=out, resume=True)


def test_something_else_is_not_resumed(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(rml.InputError, match=r"holds no federation\.safetensors"):
        run(out=tmp_path / "run", resume=True)
    (tmp_path / "run" / "federation.safetensors").write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(rml.InputError, match="is not a checkpoint"):
        run(out=tmp_path / "run", resume=True)


def test_what_clients_keep_is_kept(tmp_path) -> None:
    def counting(honest):
        def app(message, context):
            kept = context.state.get("seen")
            seen = [*kept["rounds"], message.content["config"]["server-round"]] if kept else [1]
            context.state["seen"] = MetricRecord({"rounds": seen})
            reply = honest(message, context)
            reply.content["metrics"]["loss"] = len(seen)
            return reply

        return app

    out = tmp_path / "run"
    run(rounds=2, out=out, hostile={1: counting})
    done = run(rounds=3, out=out, resume=True, hostile={1: counting})
    assert [entry.clients[1]["loss"] for entry in done.history[1:]] == [1, 2, 3]


def test_a_server_whose_clients_live_elsewhere_goes_on_too(tmp_path) -> None:
    """As on a SuperLink: another server process, other nodes, and nothing but the folder in common."""

    def served(rounds: int, out, *, resume: bool) -> Server:
        settings = {"batch_size": 32, "learning_rate": 0.2}
        apps = [client_app(Client(net(), _dataset(data(60, seed=k)), settings=settings)) for k in range(3)]
        strategy = Guarded(aggregation("centered-clipping"), nodes=3)
        server = Server(net(), strategy, rounds, out=out, resume=resume, plan={"task": "small"})
        with identified():
            server.run(InProcessGrid(apps))
        return server

    whole = served(4, tmp_path / "whole", resume=False)
    served(2, tmp_path / "run", resume=False)
    rest = served(4, tmp_path / "run", resume=True)
    assert same(whole.model, rest.model)
    assert figures(whole.history) == figures(rest.history)
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(state["0.weight"], whole.model.module[0].weight)


@pytest.mark.skipif(os.name != "posix", reason="folders are not locked there")
def test_two_servers_do_not_work_in_one_folder(tmp_path) -> None:
    """One whose SuperLink has died may still be alive when the run is submitted again."""
    out = tmp_path / "run"
    said: list[str] = []

    def meanwhile(honest):
        def app(message, context):
            with pytest.raises(rml.RunError, match="another server is at work in .*run"):
                run(rounds=2, out=out, resume=True)
            said.append((out / "log.jsonl").read_text())
            return honest(message, context)

        return app

    done = run(rounds=1, out=out, hostile={1: meanwhile})
    # The second one has not touched the log.
    assert [text.count("\n") for text in said] == [1]
    assert done.history[-1].moved
    assert sorted(path.name for path in out.iterdir()) == [
        "federation.safetensors",
        "log.jsonl",
        "model.safetensors",
    ]


def test_states_of_all_kinds_come_back() -> None:
    state = RecordDict(
        {
            "a": ArrayRecord({"w": Array(np.arange(3, dtype="int64")), "v": Array(np.float32([[0.1]]))}),
            "m": MetricRecord({"n": 3, "x": 0.1, "many": [0.1, 2.5]}),
            "c": ConfigRecord({"s": "é", "b": b"\x00\xff", "t": True, "l": ["a", "b"]}),
        }
    )
    value = {"state": state, 3: (np.float64(0.3), None, [np.zeros((0, 2))], torch.ones(2))}
    tensors: dict[str, torch.Tensor] = {}
    back = unpacked(packed(value, "it", tensors), tensors)
    assert back["state"]["m"] == state["m"]
    assert back["state"]["c"] == state["c"]
    for key, array in state["a"].items():
        again = back["state"]["a"][key].numpy()
        assert again.dtype == array.numpy().dtype
        assert np.array_equal(again, array.numpy())
    scalar, nothing, arrays, tensor = back[3]
    assert isinstance(scalar, np.float64)
    assert scalar == 0.3
    assert nothing is None
    assert arrays[0].shape == (0, 2)
    assert torch.equal(tensor, torch.ones(2))


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(rml.InputError, match=r"it\.f is function"):
        packed({"f": lambda: None}, "it", {})


def test_a_strategy_that_is_given_by_name_or_made_by_hand_is_the_same_run(tmp_path) -> None:
    run(rounds=1, out=tmp_path / "run", aggregation="median")
    done = run(rounds=2, out=tmp_path / "run", resume=True, aggregation=aggregation("median"))
    assert len(done.history) == 3
    assert len(data()[0]) == 240
