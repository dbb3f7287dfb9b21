"""A federation in this process: what it learns, that it repeats, what it refuses."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import safetensors
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx

import robustml as rml
from robustml.defenses.federated import Guarded, InProcessGrid, client_app, parse_partition
from robustml.defenses.federated.client import Client, Proximal, derived_seed
from robustml.defenses.training import PGD, harden

from .small import data, figures, net, run, same, weights


def test_it_learns_and_says_how() -> None:
    done = run(rounds=8, epochs=3)
    assert done.history[0].clean < 0.6 < 0.8 < done.history[-1].clean
    assert [entry.number for entry in done.history] == list(range(9))
    assert done.clients == (54, 54, 54, 54)
    assert all(len(entry.clients) == 4 and entry.moved for entry in done.history[1:])
    assert done.chosen == 8
    assert done.quarantine == ()
    assert not done.model.training


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other = (run(norm=True, partition="dirichlet:0.5", seed=7) for _ in range(2))
    assert same(one.model, other.model)
    assert figures(one.history) == figures(other.history)
    assert not same(one.model, run(norm=True, partition="dirichlet:0.5", seed=8).model)


def test_nothing_is_drawn_from_or_left_in_the_global_generators() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run(rounds=1, aggregation=FedAvg(fraction_train=0.5, fraction_evaluate=0.0))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected


def test_one_client_is_training_in_the_usual_loop() -> None:
    x, y = data()
    done = run(rounds=1, given=[(x, y)])
    model = net()
    harden(
        model,
        (x, y),
        validation=None,
        device="cpu",
        epochs=1,
        batch_size=32,
        learning_rate=0.2,
        optimizer="sgd",
        schedule="constant",
        keep="last",
        seed=derived_seed(0, 1, 0),
    )
    for key, value in weights(model).items():
        torch.testing.assert_close(done.model.module.state_dict()[key], value, rtol=0, atol=1e-6)


def test_a_round_of_equal_clients_is_the_mean_of_their_models() -> None:
    x, y = data()
    parts = [(x[k::3], y[k::3]) for k in range(3)]
    done = run(rounds=1, given=parts)
    before = weights(net())
    states = [
        Client(
            net(),
            _dataset(part),
            settings={"batch_size": 32, "learning_rate": 0.2},
        ).train(before, round_=1, partition=k)[0]
        for k, part in enumerate(parts)
    ]
    for key in before:
        mean = torch.stack([state[key].double() for state in states]).mean(0)
        torch.testing.assert_close(done.model.module.state_dict()[key].double(), mean, rtol=0, atol=1e-6)


def _dataset(pair):
    from robustml.data import Dataset

    return Dataset(pair[0], pair[1].astype("int64"))


def test_an_adversarial_objective_is_trained_and_judged_by() -> None:
    threat = rml.Linf(0.05)
    plain = run(rounds=6, epochs=3)
    robust = run(rounds=6, epochs=3, objective=PGD(threat, steps=3))
    assert plain.history[-1].robust is None
    last = robust.history[-1]
    assert last.robust is not None
    assert last.robust <= last.clean
    assert robust.provenance["objective"]["name"] == "pgd"


def test_the_best_round_is_kept_if_asked_for() -> None:
    done = run(rounds=6, keep="clean", learning_rate=2.0)
    best = max(entry.clean for entry in done.history)
    assert done.history[done.chosen].clean == best
    assert done.chosen
    assert same(done.model, run(rounds=done.chosen, learning_rate=2.0).model)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["mean", "trimmed-mean", "fedadam", "centered-clipping"])
def test_every_kind_of_aggregation_moves_a_model(name: str, norm: bool) -> None:
    done = run(rounds=2, aggregation=name, norm=norm)
    assert all(entry.moved for entry in done.history[1:])
    counted = [value for key, value in weights(done.model).items() if key.endswith("num_batches_tracked")]
    assert [value.dtype for value in counted] == [torch.int64] * norm


def test_a_strategy_of_flower_is_taken_as_it_is() -> None:
    done = run(aggregation=FedAdam(eta=0.05, fraction_evaluate=0.0))
    assert done.provenance["aggregation"]["strategy"]["is"] == "FedAdam"
    assert done.provenance["aggregation"]["strategy"]["eta"] == 0.05
    assert all(entry.moved for entry in done.history[1:])


def test_fedprox_keeps_clients_near() -> None:
    def moved(mu: float) -> float:
        done = run(rounds=1, epochs=4, aggregation=FedProx(proximal_mu=mu, fraction_evaluate=0.0))
        before = weights(net())
        return sum(float((value - before[key]).square().sum()) for key, value in weights(done.model).items())

    assert moved(2.0) < 0.7 * moved(0.0)


def test_the_proximal_term_is_half_the_squared_distance() -> None:
    model = net().module
    term = Proximal(1.0, [p.detach() - 0.5 for p in model.parameters()])
    count = sum(p.numel() for p in model.parameters())
    assert float(term.penalty(model).detach()) == pytest.approx(0.125 * count, rel=1e-5)


def test_clients_may_have_one_class_and_few_samples() -> None:
    x, y = data()
    parts = [(x[y == k][:n], y[y == k][:n]) for k, n in enumerate((40, 40, 3))]
    done = run(given=parts)
    assert done.clients == (40, 40, 3)
    assert all("error" not in client for client in done.history[-1].clients)


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (lambda honest: lambda message, context: None, "no reply in time"),
        (lambda honest: lambda message, context: 1 / 0, "ZeroDivisionError"),
        (lambda honest: lambda message, context: "hello", "no message"),
    ],
    ids=["silent", "raises", "nonsense"],
)
def test_a_client_that_fails_is_left_out_and_named(hostile, reason: str) -> None:
    done = run(hostile={2: hostile})
    for entry in done.history[1:]:
        assert entry.moved
        assert [c["client"] for c in entry.clients if "error" in c] == [2]
        assert reason in entry.clients[2]["error"]


def test_a_broken_aggregate_never_reaches_the_model() -> None:
    def poisoned(honest):
        def app(message, context):
            reply = honest(message, context)
            arrays = reply.content["arrays"]
            state = {key: value * float("nan") for key, value in arrays.to_torch_state_dict().items()}
            reply.content["arrays"] = type(arrays)(state)
            return reply

        return app

    done = run(hostile={0: poisoned})
    assert all(torch.isfinite(value).all() for value in weights(done.model).values())
    assert {entry["client"] for entry in done.quarantine} == {0}
    with pytest.raises(rml.RunError, match="no round changed the model"):
        run(rounds=2, hostile=dict.fromkeys(range(4), poisoned))


def test_what_is_saved_can_be_loaded(tmp_path) -> None:
    done = run(rounds=1)
    done.save(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["robustml"])
        assert torch.equal(file.get_tensor("0.weight"), done.model.module[0].weight.detach())
    assert about["rounds"] == 1
    assert about["samples"] == [54, 54, 54, 54]
    assert about["flwr"]


def test_a_stock_server_of_flower_can_run_our_clients() -> None:
    from flwr.app import ArrayRecord

    from robustml.defenses.federated.grid import identified

    apps = [client_app(Client(net(), _dataset(data(60, seed=k)))) for k in range(2)]
    with identified():
        result = FedAvg().start(
            grid=InProcessGrid(apps), initial_arrays=ArrayRecord(weights(net())), num_rounds=2
        )
    assert set(result.train_metrics_clientapp[2]) == {"loss", "accuracy"}
    assert 0 <= result.evaluate_metrics_clientapp[2]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds=0 is not a whole number of at least 1"),
        ({"clients": None}, "clients is missing"),
        ({"clients": 500}, "are too few for clients=500"),
        ({"partition": "iidd"}, "partition='iidd' is not known; did you mean 'iid'?"),
        ({"partition": "dirichlet"}, "needs a finite number above 0"),
        ({"partition": "dirichlet:-1"}, "needs a finite number above 0"),
        ({"runtime": "rya"}, "runtime='rya' is not known; did you mean 'ray'?"),
        ({"keep": "best"}, "keep='best' is not known"),
        ({"keep": "clean", "validation": None}, "keep='clean' needs validation data"),
        ({"aggregation": "meen"}, "aggregation='meen' is not known; did you mean 'mean'?"),
        ({"deadline": float("inf")}, "deadline=inf is not a finite number of seconds"),
        ({"hostile": {4: lambda honest: honest}}, "hostile names client 4; clients are numbered 0 to 3"),
        ({"batch_sizes": 3}, "batch_sizes is not a setting of harden; did you mean 'batch_size'?"),
        ({"patience": 3}, "a federation goes through all of its rounds"),
        ({"validation": 1.5}, "validation=1.5 is not a share"),
        ({"resume": True}, "resume needs the folder"),
        ({"seed": 0.5}, "seed=0.5 is not a whole number"),
        ({"aggregation": FedAvg(min_available_nodes=9)}, "waits for 9 clients, and there are 4"),
    ],
)
def test_a_mistake_is_one_line(options, message: str) -> None:
    with pytest.raises(rml.InputError) as caught:
        run(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 3}, "clients=3 differs from the 2 data sets"),
        ({"partition": "dirichlet:1"}, "the clients' data are given"),
        ({"validation": 0.2}, "the clients' data are theirs"),
    ],
)
def test_given_data_are_not_divided_again(options, message: str) -> None:
    with pytest.raises(rml.InputError, match=message):
        run(given=[data(40), data(40, seed=1)], **options)


def test_a_bare_module_is_wrapped_and_a_guard_is_kept() -> None:
    from robustml.defenses.federated import aggregation

    guard = Guarded(aggregation("median"), quorum=3)
    done = rml.federate(net().module, data(), rounds=1, clients=4, device="cpu", aggregation=guard)
    assert done.provenance["aggregation"]["quorum"] == 3
    assert parse_partition("iid").name == done.provenance["partition"]
