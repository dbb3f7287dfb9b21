"""Sample-level privacy in a federation: one ledger per client, over rounds and restarts."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, Context, RecordDict

import robustml as rml
from robustml.defenses.federated import ClientPrivacy, aggregation
from robustml.defenses.federated.apps import client_app, ledger_of
from robustml.defenses.federated.client import Client
from robustml.defenses.federated.grid import InProcessGrid, identified
from robustml.defenses.federated.runtimes import serve
from robustml.defenses.federated.server import Server
from robustml.defenses.privacy import DifferentialPrivacy, Ledger
from robustml.defenses.training import PGD

from .small import data, figures, net, run, same
from .test_federate import _dataset

NOISY = DifferentialPrivacy(noise_multiplier=1.0, seed=1, mode="functional")


def test_the_ledger_of_five_rounds_is_that_of_one_run_of_them_all() -> None:
    done = run(rounds=5, privacy=NOISY, given=[data(128), data(160, seed=1)])
    # 128 samples in batches of 32: four steps a round at a rate of 1/4; 160: five steps at 1/5.
    expected = {
        "0": Ledger([(1.0, 0.25, 20)]).spent(1e-5).epsilon,
        "1": Ledger([(1.0, 0.2, 25)]).spent(1e-5).epsilon,
    }
    spent = done.privacy["samples"]
    assert spent["by_client"] == pytest.approx(expected, rel=1e-9)
    assert spent["epsilon"] == max(expected.values())
    once = Ledger([(1.0, 0.25, 4)]).spent(1e-5).epsilon
    assert spent["epsilon"] > 1.5 * once
    assert [entry.clients[0]["epsilon"] for entry in done.history[1:]] == sorted(
        entry.clients[0]["epsilon"] for entry in done.history[1:]
    )


def test_five_rounds_are_not_one_round_for_ever() -> None:
    """A fresh accountant in each round says 5.44 for ever; what is spent after five is 9.23."""
    one, five = ([(0.8, 0.1, 10)] * rounds for rounds in (1, 5))
    assert Ledger(one).spent(1e-5, ("rdp",)).epsilon == pytest.approx(5.44, abs=0.005)
    assert Ledger(five).spent(1e-5, ("rdp",)).epsilon == pytest.approx(9.23, abs=0.005)


def test_a_client_says_what_five_rounds_cost() -> None:
    privacy = DifferentialPrivacy(noise_multiplier=0.8, seed=1, mode="functional")
    parts = [data(100), data(100, seed=1)]
    done = run(rounds=5, privacy=privacy, given=parts, batch_size=10)
    history = [(0.8, 0.1, 50)]
    assert done.privacy["samples"]["epsilon"] == Ledger(history).spent(1e-5).epsilon
    assert done.privacy["samples"]["epsilon"] <= Ledger(history).spent(1e-5, ("rdp",)).epsilon


def test_killing_and_resuming_keeps_the_ledger(tmp_path) -> None:
    options = {"privacy": NOISY, "partition": "dirichlet:2"}
    whole = run(rounds=4, **options)
    run(rounds=2, out=tmp_path / "run", **options)
    rest = run(rounds=4, out=tmp_path / "run", resume=True, **options)
    assert rest.privacy == whole.privacy
    assert same(rest.model, whole.model)
    assert figures(rest.history) == figures(whole.history)


@pytest.mark.slow
def test_an_epsilon_lasts_for_all_rounds_and_no_longer() -> None:
    budget = DifferentialPrivacy(3.0, seed=2, mode="functional")
    parts = [data(96), data(64, seed=1)]
    done = run(rounds=3, privacy=budget, given=parts)
    spent = done.privacy["samples"]["by_client"]
    assert all(2.9 < value <= 3.0 for value in spent.values())
    # A server that goes on is left alone.
    clients = [
        Client(net(), _dataset(part), settings={"batch_size": 32}, privacy=budget, rounds=2) for part in parts
    ]
    server = Server(net(), _mean(), 4)
    serve(server, clients, {}, "in-process")
    assert [len([c for c in entry.clients if "error" in c]) for entry in server.history] == [0, 0, 0, 2, 2]
    assert "leaves no room" in server.history[3].clients[0]["error"]
    assert [entry.moved for entry in server.history] == [False, True, True, False, False]


def _mean():
    from robustml.defenses.federated import Guarded, aggregation

    return Guarded(aggregation("mean"))


def test_clients_and_rounds_have_noise_of_their_own() -> None:
    client = Client(net(), _dataset(data(64)), settings={"batch_size": 32}, privacy=NOISY)
    seeds = {
        client._private(NOISY, {"batch_size": 32, "epochs": 1}, round_, partition, None).seed
        for round_ in range(1, 5)
        for partition in range(5)
    }
    assert len(seeds) == 20
    system = DifferentialPrivacy(noise_multiplier=1.0)
    assert client._private(system, {"batch_size": 32, "epochs": 1}, 1, 1, None).seed is None


def test_what_is_not_protected_is_not_told() -> None:
    done = run(rounds=1, privacy=NOISY)
    assert {key for client in done.history[1].clients for key in client} == {
        "client",
        "num-examples",
        "epsilon",
        "delta",
    }
    assert done.history[1].loss is None
    assert done.provenance["clients"] is None
    assert done.provenance["spent"]["samples"]["epsilon"] == done.privacy["samples"]["epsilon"]


def test_a_file_keeps_what_was_spent_in_other_runs(tmp_path) -> None:
    path = tmp_path / "ledger.json"
    client = Client(net(), _dataset(data(64)), settings={"batch_size": 32}, privacy=NOISY)
    app = client_app(client, ledger=lambda context: path)
    for _ in range(2):
        server = Server(net(), _mean(), 2)
        with identified():
            server.run(InProcessGrid([app]))
    # Two runs of two rounds of two steps.
    assert Ledger.from_dict(json.loads(path.read_text())).history == [(1.0, 0.5, 8)]
    path.write_text("{}")
    server = Server(net(), _mean(), 1)
    with identified(), pytest.raises(rml.RunError, match="is not a ledger|not what a ledger writes"):
        server.run(InProcessGrid([app]))


def test_a_context_without_a_ledger_has_spent_nothing() -> None:
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    assert ledger_of(context).history == []
    context.state["ledger"] = ConfigRecord({"json": '{"history": [[1.0, 0.5, 3]]}', "mode": "each"})
    assert ledger_of(context).steps == 3


def test_adversarial_private_and_robust_in_one_call() -> None:
    def reversed_(honest):
        def app(message, context):
            reply = honest(message, context)
            start = message.content["arrays"].to_torch_state_dict()
            state = reply.content["arrays"].to_torch_state_dict()
            kind = type(reply.content["arrays"])
            reply.content["arrays"] = kind({key: start[key] - 4 * (state[key] - start[key]) for key in start})
            return reply

        return app

    done = run(
        rounds=4,
        objective=PGD(rml.Linf(0.05), steps=2),
        privacy=DifferentialPrivacy(noise_multiplier=0.6, seed=3, mode="functional"),
        aggregation="trimmed-mean",
        hostile={3: reversed_},
        learning_rate=0.5,
    )
    assert done.history[-1].robust is not None
    assert done.history[-1].clean > done.history[0].clean
    assert done.privacy["samples"]["epsilon"] > 0
    assert done.provenance["hostile"].keys() == {"3"}


def test_what_whole_clients_are_promised_is_in_the_provenance(tmp_path) -> None:
    privacy = ClientPrivacy(clip=0.7, clients=4, noise_multiplier=0.3, delta=1e-6, seed=2)
    done = run(rounds=1, aggregation=aggregation("median", privacy=privacy))
    told = done.provenance["aggregation"]["strategy"]
    assert told["privacy"] == {"is": "ClientPrivacy", **privacy.to_dict()}
    assert (told["privacy"]["clip"], told["privacy"]["delta"]) == (0.7, 1e-6)
    # So that a run is not resumed under another promise.
    run(rounds=1, aggregation=aggregation("median", privacy=privacy), out=tmp_path / "run")
    less = ClientPrivacy(clip=0.7, clients=4, noise_multiplier=0.1, delta=1e-6, seed=2)
    with pytest.raises(rml.InputError, match="aggregation"):
        run(rounds=2, aggregation=aggregation("median", privacy=less), out=tmp_path / "run", resume=True)


def test_what_privacy_cannot_do_is_refused_before_anything_is_trained() -> None:
    from robustml.defenses.training import Free

    with pytest.raises(rml.InputError, match="privacy cannot be accounted for it"):
        run(privacy=NOISY, objective=Free(rml.Linf(0.05)))
    with pytest.raises(rml.InputError, match="precision"):
        run(privacy=NOISY, precision="bfloat16")
    with pytest.raises(rml.InputError, match="normalises over the batch"):
        run(rounds=1, privacy=NOISY, norm=True)
