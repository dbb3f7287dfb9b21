"""The query detector: its distances, its rate, its memory, its state; and attacks on a service behind it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import robustml as rml
from robustml.defenses.guards import QueryDetector
from tests.defenses import service

PLAIN = rml.InputSpec(shape=(6,))
WIDE = rml.InputSpec(shape=(300,), bounds=(-10, 10))


def uniform(n: int, seed: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).random((n, size)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> QueryDetector:
    return QueryDetector.fit(service.digits()[0], inputs=service.INPUTS, history=200)


def fresh(detector: QueryDetector) -> QueryDetector:
    """The same detector with nothing in its memory."""
    options = ("threshold", "k", "history", "clients", "encoding", "width", "seed")
    return QueryDetector(detector.inputs, **{name: getattr(detector, name) for name in options})


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 6), st.integers(0, 12), st.floats(0.05, 0.6))
def test_flags_are_those_of_the_definition(sizes: list[int], k: int, more: int, threshold: float) -> None:
    """Query by query, and however the queries are cut into batches."""
    history = k + more
    detector = QueryDetector(PLAIN, threshold=threshold, k=k, history=history)
    x = uniform(sum(sizes), 0)
    got = [detector.observe("a", part) for part in np.split(x, np.cumsum(sizes))[: len(sizes)]]
    wanted = []
    for place in range(len(x)):
        past = x[max(0, place - history) : place]
        if len(past) < k:
            wanted.append(False)
            continue
        distances = NearestNeighbors(n_neighbors=k).fit(past).kneighbors(x[place : place + 1])[0]
        wanted.append(bool(distances.mean() < threshold))
    assert np.concatenate([np.zeros(0, bool), *got]).tolist() == wanted
    assert detector.counts("a") == {"queries": len(x), "flagged": sum(wanted)}


def test_a_batch_may_be_longer_than_what_is_compared_at_once() -> None:
    x = uniform(2000, 1)
    whole, parts = (QueryDetector(PLAIN, threshold=0.25, k=3, history=300) for _ in range(2))
    flags = whole.observe("a", x)
    assert flags.tolist() == [bool(parts.observe("a", row)[0]) for row in x[:, None]]
    assert 0 < flags.sum() < 2000


def test_codes_keep_distances_and_bounds_do_not_count() -> None:
    """The squared distance is kept on average, with a relative standard deviation of sqrt(2 / width)."""
    x = torch.from_numpy(uniform(200, 2, 300)) * 20 - 10
    codes = QueryDetector(WIDE, threshold=1, width=200)._codes(x).double()
    assert codes.shape == (200, 200)
    ratio = (torch.pdist(codes) / torch.pdist(x.double() / 20)).square()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    assert float(ratio.std()) == pytest.approx(0.1, abs=0.02)
    other = QueryDetector(WIDE, threshold=1, width=200, seed=1)._codes(x).double()
    assert not torch.allclose(codes, other)


def test_pooled_codes_are_means_of_cells() -> None:
    x, _, _, _ = service.digits()
    detector = QueryDetector(service.INPUTS, threshold=1, encoding="pool", width=16)
    torch.testing.assert_close(detector._codes(x[:5]), x[:5].view(5, 4, 2, 4, 2).mean((2, 4)).flatten(1))


def test_the_rate_of_clean_traffic_is_the_chosen_one() -> None:
    """Over many fits, each with clients whose full histories and next queries are fresh."""
    rates, inside = [], 0
    rng = np.random.default_rng(3)
    for _ in range(30):
        x = rng.random((700, 6)).astype(np.float32)
        detector = QueryDetector.fit(x, inputs=PLAIN, fpr=0.05, history=50, k=10)
        flagged = total = 0
        for client in range(20):
            flags = detector.observe(str(client), rng.random((250, 6)).astype(np.float32))[50:]
            flagged, total = flagged + int(flags.sum()), total + len(flags)
        rates.append(flagged / total)
        low, high = detector.calibration.interval
        inside += low <= rates[-1] <= high
    # 350 fresh queries against seven histories: 17 of 351 are allowed.
    assert np.mean(rates) == pytest.approx(17 / 351, abs=0.008)
    assert inside >= 25


def test_clean_digits_pass(fitted: QueryDetector) -> None:
    _, _, clean, _ = service.digits()
    detector = fresh(fitted)
    flags = np.concatenate([detector.observe("a", clean), detector.observe("b", clean.flip(0))])
    assert fitted.calibration.samples == 999 and flags.sum() <= 4  # 0.1 % of 1194; 5 have a chance of 1 %
    assert detector.counts() == {"queries": 1194, "flagged": int(flags.sum()), "clients": 2, "forgotten": 0}


def attempts(name: str, detector: QueryDetector, n: int, **options: object) -> list[service.Attempt]:
    _, _, x, y = service.digits()
    right = (service.trained()(x).argmax(1) == y).nonzero().flatten()[:n].tolist()
    assert len(right) == n
    return [service.attempt(name, detector, x[i : i + 1], y[i : i + 1], **options) for i in right]


@pytest.mark.parametrize("name", service.ATTACKS)
def test_an_attack_by_one_client_is_caught(fitted: QueryDetector, name: str) -> None:
    """What takes an attack more than a hundred queries is caught before; sooner, some get through."""
    free = attempts(name, QueryDetector(service.INPUTS, threshold=1e-9), 12, queries=400)
    found = attempts(name, fresh(fitted), 12, queries=400)
    assert not any(one.caught for one in free)
    late = [one for one, other in zip(found, free, strict=True) if other.queries > 100]
    assert len(late) >= 6 and all(one.caught and one.queries <= 100 for one in late)
    assert all(one.caught or one.broken for one in found)
    assert sum(one.broken for one in found) <= sum(one.broken for one in free)


@pytest.mark.parametrize("name", ["square", "rays"])
def test_many_accounts_get_through(fitted: QueryDetector, name: str) -> None:
    """The limit: each account may ask k times, so that 300 queries need six of them."""
    free = attempts(name, QueryDetector(service.INPUTS, threshold=1e-9), 8, queries=300)
    found = attempts(name, fresh(fitted), 8, queries=300, accounts=20)
    assert [(one.broken, one.caught) for one in found] == [(one.broken, False) for one in free]
    assert any(one.broken for one in found)


def test_queries_among_noise_get_through(fitted: QueryDetector) -> None:
    free = attempts("square", QueryDetector(service.INPUTS, threshold=1e-9), 6, queries=150)
    found = attempts("square", fresh(fitted), 6, queries=150, hide=9)
    assert [(one.broken, one.caught) for one in found] == [(one.broken, False) for one in free]


def test_noise_on_each_query_hides_the_attack_and_blinds_it(fitted: QueryDetector) -> None:
    generator = torch.Generator().manual_seed(1)

    def noisy(z: Tensor, _number: int) -> Tensor:
        return z + 0.3 * torch.randn(z.shape, generator=generator)

    found = attempts("square", fresh(fitted), 8, queries=200, change=noisy)
    assert not any(one.caught for one in found)
    assert sum(one.broken for one in found) <= 2


def test_memory_is_bounded() -> None:
    detector = QueryDetector(WIDE, threshold=0.1, k=2, history=20, clients=3)
    for name in ("a", "b", "c", "a", "d"):
        detector.observe(name, uniform(50, 1, 300))
    assert list(detector._known) == ["c", "a", "d"]  # b was heard of least lately
    assert {len(each.codes) for each in detector._known.values()} == {20}
    # A view would keep all that it is cut from.
    assert {each.codes.untyped_storage().nbytes() for each in detector._known.values()} == {20 * 64 * 4}
    assert detector.counts()["queries"] == 250
    assert detector.counts()["clients"] == 3 and detector.counts()["forgotten"] == 1
    assert detector.counts("b") == {"queries": 0, "flagged": 0}
    detector.forget("a")
    detector.forget("nobody")
    assert list(detector._known) == ["c", "d"] and detector.counts()["queries"] == 250


def test_threads_lose_nothing() -> None:
    detector = QueryDetector(PLAIN, threshold=0.3, k=5, history=100, clients=50)
    x = uniform(100, 4)

    def work(number: int) -> None:
        for row in x[:, None]:
            detector.observe("shared", row)
            detector.observe(f"own {number}", row)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert detector.counts("shared")["queries"] == 600 and detector.counts()["queries"] == 1200
    alone = QueryDetector(PLAIN, threshold=0.3, k=5, history=100)
    alone.observe("one", x)
    assert all(detector.counts(f"own {number}") == alone.counts("one") for number in range(6))


@pytest.mark.parametrize("encoding", ["project", "pool"])
def test_its_state_goes_through_a_file(tmp_path, encoding) -> None:
    x, _, clean, _ = service.digits()
    detector = QueryDetector.fit(
        x, inputs=service.INPUTS, history=150, encoding=encoding, width=16, seed=5, clients=2, k=20
    )
    for name in ("a", "b", 'c "é"\n'):
        detector.observe(name, clean[:100])
    detector.save(tmp_path / "q.safetensors")
    again = QueryDetector.load(tmp_path / "q.safetensors")
    assert again.counts() == detector.counts() and list(again._known) == list(detector._known)
    assert (again.threshold, again.calibration) == (detector.threshold, detector.calibration)
    for name in ("b", "a"):
        near = clean[:1].repeat(60, 1, 1, 1) + 0.01 * torch.rand(60, 1, 8, 8)
        flags = detector.observe(name, near)
        assert flags.any() and again.observe(name, near).tolist() == flags.tolist()
    QueryDetector(PLAIN, threshold=1).save(tmp_path / "empty.safetensors")
    assert QueryDetector.load(tmp_path / "empty.safetensors").counts()["clients"] == 0


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "f"
    with pytest.raises(rml.InputError, match="is not a safetensors file"):
        QueryDetector.load(path)
    path.write_bytes(b"no")
    with pytest.raises(rml.InputError, match="is not a safetensors file"):
        QueryDetector.load(path)
    save_file({"codes": torch.zeros(1)}, path)
    with pytest.raises(rml.InputError, match="is no query detector"):
        QueryDetector.load(path)
    detector = QueryDetector(PLAIN, threshold=1)
    detector.observe("a", uniform(3, 0))
    detector.save(path)
    # The same number of bytes, so that only what they say is wrong.
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b", 3, 0, 3]", b", 3, 0, 9]"))
    assert path.read_bytes() != whole
    with pytest.raises(rml.InputError, match="is damaged"):
        QueryDetector.load(path)


def test_a_refused_batch_leaves_no_trace() -> None:
    detector = QueryDetector(PLAIN, threshold=0.3, k=2)
    for batch in (
        np.full((3, 6), np.nan),
        np.zeros((3, 5)),
        np.zeros(6),
        [[0.0] * 6],
        np.zeros((1, 6), complex),
    ):
        with pytest.raises(rml.InputError, match="^x (holds|has|is)"):
            detector.observe("a", batch)
    for client in ("", 3, None):
        with pytest.raises(rml.InputError, match="is not a name"):
            detector.observe(client, uniform(1, 0))
    assert detector.counts() == {"queries": 0, "flagged": 0, "clients": 0, "forgotten": 0}
    assert detector.observe("a", np.zeros((0, 6))).shape == (0,)


def test_numbers_as_large_as_there_are_do_not_blind_it() -> None:
    detector = QueryDetector(rml.InputSpec(shape=(300,), dtype="float64"), threshold=0.3, k=2)
    detector.observe("a", np.full((2, 300), 1.7e308) * np.array([[1.0], [-1.0]]))
    same = np.full((3, 300), 0.5)
    assert detector.observe("a", same).tolist() == [False, False, True]


def test_what_it_refuses() -> None:
    x = uniform(100, 0)
    fit, make = QueryDetector.fit, QueryDetector
    for call, message in [
        (lambda: fit(x, inputs=PLAIN), "fpr=0.001 with history=1000 needs 1999 inputs; 100 came"),
        (lambda: fit(x, inputs=PLAIN, fpr=0), "fpr=0 is not a share between 0 and 1"),
        (lambda: fit(x[:1].repeat(100, 0), inputs=PLAIN, fpr=0.1, history=60), "drop the copies"),
        (lambda: fit(x[:, :5], inputs=PLAIN), r"x has shape \(100, 5\)"),
        (lambda: make(PLAIN, threshold=0), "threshold=0 is not a number above 0"),
        (lambda: make(PLAIN, threshold=1, k=0), "k=0 is not a whole number of at least 1"),
        (lambda: make(PLAIN, threshold=1, history=49), "history=49 is shorter than k=50"),
        (
            lambda: make(PLAIN, threshold=1, encoding="pol"),
            "encoding='pol' is not known; did you mean 'pool'",
        ),
        (lambda: make(PLAIN, threshold=1, encoding="pool"), "works on images"),
        (lambda: make((6,), threshold=1), "inputs is tuple, not an InputSpec"),
    ]:
        with pytest.raises(rml.InputError, match=message):
            call()
