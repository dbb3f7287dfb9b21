"""A client that answers too late, or never: the round ends at its deadline, and the run goes on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import threading
import time

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord

import robustml as rml
from robustml.defenses.federated.alarm import Overdue, bounded
from robustml.defenses.federated.grid import InProcessGrid, identified
from robustml.defenses.federated.guarding import Guarded
from robustml.defenses.privacy import DifferentialPrivacy, Ledger
from tests.defenses.federated import small
from tests.defenses.federated.scene import HONEST, honest, weights
from tests.defenses.federated.test_guarding import NAMES, made

DEADLINE = 0.4  # seconds; an honest client of the scene needs a thousandth
HAS_ALARM = hasattr(signal, "setitimer")
alarmed = pytest.mark.skipif(not HAS_ALARM, reason="the system has no alarm for processes")


def late(message, context):
    """It gets its answer out in spite of everything, but too late."""
    until = time.monotonic() + 1.5 * DEADLINE
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            time.sleep(0.05)
    return honest(message, context)


def loops(message, context):
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


def sleeps(message, context):
    time.sleep(1e8)


def locked(message, context):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def clings(message, context):
    """It cleans up for ever, too."""
    try:
        time.sleep(1e8)
    finally:
        time.sleep(1e8)


SLOW = {"late": late, "loops": loops, "sleeps": sleeps, "locked": locked, "clings": clings}
PAIRS = [
    *[(name, kind) for name in NAMES for kind in ("late", "loops")],
    *[("mean", kind) for kind in ("sleeps", "locked", "clings")],
]


def timed(strategy, apps):
    start = ArrayRecord({key: Array(value) for key, value in weights().items()})
    with identified():
        found = strategy.start(InProcessGrid(apps), start, num_rounds=1, timeout=DEADLINE)
    return {key: value.numpy() for key, value in found.arrays.items()}


@alarmed
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_silence_until_the_deadline_neither_ends_the_run_nor_moves_the_model(name, kind):
    guard = Guarded(made(name))
    # It is the first to be asked, so that all others wait for it.
    found = timed(guard, [SLOW[kind], *[honest] * HONEST])
    assert [(entry["node"], entry["reason"]) for entry in guard.quarantine] == [(2, "no reply in time")]
    assert guard.rounds[0].applied

    def absent(message, context):
        return None

    expected = timed(Guarded(made(name)), [absent, *[honest] * HONEST])
    start = weights()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
        assert np.abs(value - start[key]).max() > 1e-3


@alarmed
def test_everybody_gets_the_whole_deadline_each_round() -> None:
    guard = Guarded(made("mean"))
    timed(guard, [loops, honest, sleeps, honest, honest])
    assert guard.rounds[0].accepted == (3, 5, 6)


@alarmed
def test_a_federation_outlives_a_client_that_hangs_and_goes_on_as_if_it_were_absent() -> None:
    def hanging(honest):
        return loops

    def absent(honest):
        return lambda message, context: None

    gone = small.run(rounds=2, hostile={1: absent})
    slow = small.run(rounds=2, hostile={1: hanging}, deadline=1.0)  # the second, for whatever takes time once
    assert small.same(slow.model, gone.model)
    assert [entry["client"] for entry in slow.quarantine] == [1, 1]
    assert slow.history[1].clients[1] == {"client": 1, "error": "no reply in time"}


@alarmed
@pytest.mark.slow
def test_what_a_client_has_spent_before_it_hung_stays_spent(tmp_path) -> None:
    """The weights have not left it, but who knows what else has: the ledger has the worst case."""
    privacy = DifferentialPrivacy(noise_multiplier=1.0, seed=1, mode="functional")

    def hanging(honest):
        def app(message, context):
            honest(message, context)
            time.sleep(1e8)

        return app

    options = {"rounds": 2, "privacy": privacy, "deadline": 3.0}
    out = tmp_path / "run"
    usual = small.run(**options)
    slow = small.run(hostile={1: hanging}, out=out, **options)
    assert slow.privacy["samples"]["by_client"] == usual.privacy["samples"]["by_client"]
    again = small.run(hostile={1: hanging}, out=out, resume=True, **{**options, "rounds": 3})
    more = small.run(**{**options, "rounds": 3})
    assert again.privacy["samples"]["by_client"] == more.privacy["samples"]["by_client"]


@alarmed
def test_steps_that_were_made_before_the_alarm_are_in_the_ledger(tmp_path) -> None:
    """Training itself hangs, in the middle of its second epoch."""
    from flwr.app import ConfigRecord, Message, RecordDict

    from robustml.defenses.federated.apps import client_app, ledger_of
    from robustml.defenses.federated.client import Client
    from robustml.defenses.privacy import engine

    path = tmp_path / "ledger.json"
    x, y = small.data(64)
    client = Client(
        small.net(),
        rml.data.Dataset(x, y.astype("int64")),
        settings={"batch_size": 32, "epochs": 3},
        privacy=DifferentialPrivacy(noise_multiplier=1.0, seed=1, mode="functional"),
    )
    # Two steps an epoch: after the third, the ledger's own clock stops.
    steps = Ledger.step

    def stuck(self, *arguments):
        steps(self, *arguments)
        if self.steps == 3 and arguments == (1.0, 0.5):
            time.sleep(1e8)

    assert engine.Ledger is Ledger
    content = RecordDict(
        {
            "arrays": ArrayRecord(dict(small.net().module.state_dict())),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    grid = InProcessGrid([client_app(client, ledger=lambda context: path)])
    with pytest.MonkeyPatch.context() as patch, identified():
        patch.setattr(Ledger, "step", stuck)
        replies = grid.send_and_receive([Message(content, 2, "train")], timeout=5.0)
    assert replies == []
    assert ledger_of(grid.contexts[2]).history == [(1.0, 0.5, 3)]
    assert Ledger.from_dict(json.loads(path.read_text())).history == [(1.0, 0.5, 3)]


@alarmed
def test_the_alarm_of_somebody_else_is_put_back() -> None:
    rung: list[str] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append("theirs"))
    kept = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        assert bounded(0.1, lambda: time.sleep(1e8)) is None
        assert rung == []
        assert 0.2 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.41
        time.sleep(0.6)
        assert rung == ["theirs"]
        # One that is due before ours keeps its turn, and rings for itself.
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        bounded(30.0, lambda: time.sleep(0.2))
        assert rung == ["theirs"] * 2
        # And one that becomes due because nothing else ends what hangs.
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        bounded(0.1, lambda: _stubborn(1.0))
        assert rung == ["theirs"] * 3
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)
        signal.signal(signal.SIGALRM, before)


def _stubborn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            time.sleep(0.05)


@alarmed
def test_nothing_rings_afterwards_and_errors_pass() -> None:
    before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[1]
    assert bounded(5.0, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        bounded(5.0, lambda: 1 / 0)
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[1]) == before
    assert not issubclass(Overdue, Exception)


@alarmed
def test_one_limit_within_another() -> None:
    def inner():
        assert bounded(0.1, lambda: time.sleep(1e8)) is None
        return "inner"

    assert bounded(10.0, inner) == "inner"
    begun = time.monotonic()
    assert bounded(0.2, lambda: bounded(60.0, lambda: time.sleep(1e8))) is None
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("seconds", [None, 1e300, float("inf")])
def test_without_a_limit_that_means_anything_there_is_none(seconds) -> None:
    assert bounded(seconds, lambda: "done") == "done"


def test_outside_of_the_main_thread_who_is_late_is_not_heard_and_not_stopped() -> None:
    """As on a system without alarms."""
    guard = Guarded(made("mean"))
    ended: list[str] = []

    def slow(message, context):
        time.sleep(1.5 * DEADLINE)
        ended.append("it went on")
        return honest(message, context)

    thread = threading.Thread(target=timed, args=(guard, [slow, *[honest] * HONEST]))
    thread.start()
    thread.join()
    assert ended == ["it went on"]
    assert [entry["reason"] for entry in guard.quarantine] == ["no reply in time"]


@alarmed
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_outlives_a_client_that_hangs() -> None:
    def hanging(honest):
        return lambda message, context: time.sleep(1e8)

    done = small.run(rounds=2, runtime="ray", hostile={1: hanging}, deadline=20.0)
    here = small.run(rounds=2, hostile={1: lambda honest: lambda message, context: None})
    assert [entry.moved for entry in done.history] == [False, True, True]
    assert len({entry["client"] for entry in done.quarantine}) == 1
    assert [entry["reason"] for entry in done.quarantine] == ["no reply in time"] * 2
    assert small.same(done.model, here.model)
