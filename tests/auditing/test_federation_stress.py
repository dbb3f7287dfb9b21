"""The stress matrix of a federation: what it holds is what happened, and it can be taken up again."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from torch import nn

pytest.importorskip("flwr")

from robustml.auditing.federation import AGGREGATORS as RULES
from robustml.auditing.federation import ATTACKS as KNOWN
from robustml.auditing.federation import Cell, FederatedStress, Spread, stress_federation
from robustml.auditing.federation_chart import heat_map
from robustml.defenses.federated import ClientPrivacy
from robustml.defenses.training import PGD
from robustml.errors import InputError
from robustml.threats import Linf
from tests.attacks.trained import MNIST

ATTACKS = {
    "sign-flip": ("sign-flip", {"scale": 8.0}),
    "replacement": ("backdoor", {"target": 1}),
    "nan": ("protocol", {"kind": "nan"}),
    "away": ("drop-out", {"probability": 1.0}),
}
AGGREGATORS = {"mean": ("mean", {}), "trimmed-mean": ("trimmed-mean", {"hostile": 2})}


def blobs(seed, n):
    """Three classes of 6 by 6 images that a linear model tells apart, and whose corner is dark."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = 0.15 + 0.1 * rng.uniform(size=(n, 1, 6, 6))
    for label in range(3):
        x[y == label, :, 2 * label % 5, :3] += 0.4
    return x.clip(0, 1).astype(np.float32), y.astype(np.int64)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def stress(**more):
    options = {"attacks": ATTACKS, "aggregators": AGGREGATORS, "partitions": ["iid"], "seeds": [0, 1]}
    return stress_federation(
        linear,
        blobs(0, 660),
        blobs(1, 300),
        **{**options, **more},
        rounds=4,
        learning_rate=0.2,
        batch_size=20,
    )


@pytest.fixture(scope="module")
def found():
    return stress()


def test_attacks_break_the_mean_and_not_the_trimmed_mean(found):
    assert len(found.cells) == 2 * 5 * 2
    assert found.accuracy("none", "mean", "iid").value > 0.95
    assert found.accuracy("sign-flip", "mean", "iid").value < 0.7
    assert found.success("replacement", "mean", "iid").value > 0.8
    assert found.lost("sign-flip", "trimmed-mean", "iid").value < 0.05
    assert found.success("replacement", "trimmed-mean", "iid").value < 0.2
    assert found.success("sign-flip", "mean", "iid") is None
    assert found.baseline("sign-flip", "mean", "iid") is None
    for rule in AGGREGATORS:
        # The trigger does something to models that have never seen it, and that is measured on those.
        assert 0 <= found.baseline("replacement", rule, "iid").value < 0.2
        calm = [c for c in found.cells if c.attack == "none" and c.aggregator == rule]
        assert [cell.success for cell in calm] == [None, None]
        assert all(cell.baseline.keys() == {"replacement"} for cell in calm)
        assert all(c.baseline["replacement"][1] == sum(blobs(1, 300)[1] != 1) for c in calm)
    assert all(not cell.baseline for cell in found.cells if cell.attack != "none")
    assert found.worst("mean", "iid")[0] in {"sign-flip", "replacement"}
    assert abs(found.price("trimmed-mean", "iid").value) < 0.05
    assert found.price("mean", "iid").value == 0


def test_abuse_is_quarantined_and_costs_no_more_than_the_clients_that_are_gone(found):
    cells = [cell for cell in found.cells if cell.attack in {"nan", "away"}]
    assert all(cell.quarantined == 8 and cell.moved == 4 for cell in cells)
    for name in AGGREGATORS:
        same = [
            [cell.right for cell in found.cells if (cell.attack, cell.aggregator) == (attack, name)]
            for attack in ("nan", "away")
        ]
        assert same[0] == same[1]


def test_it_is_the_same_on_repeat_and_goes_on_from_a_journal(found, tmp_path):
    file = tmp_path / "journal.jsonl"
    few = {"attacks": {"sign-flip": ATTACKS["sign-flip"]}, "seeds": [1]}
    first = stress(**few, journal=file)
    # No backdoor is in this matrix, so that there is none to hold against anything.
    whole = [dataclasses.replace(cell, baseline={}) for cell in found.cells]
    assert all(cell in whole for cell in first.cells)
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    # What is in the journal is believed, and not done again.
    entry = json.loads(lines[0])
    entry["cell"]["right"] = 7
    file.write_text("\n".join([json.dumps(entry), *lines[1:3]]) + "\n")
    again = stress(**few, journal=file)
    assert again.cells[0].right == 7 and again.cells[1:] == first.cells[1:]
    assert len(file.read_text().splitlines()) == 4
    # A backdoor that joins them is measured without an attack, too: once more under each aggregator.
    joined = stress(attacks={k: ATTACKS[k] for k in ("sign-flip", "replacement")}, seeds=[1], journal=file)
    assert len(file.read_text().splitlines()) == 8
    assert joined.baseline("replacement", "mean", "iid") is not None
    # Of other data it says nothing.
    other = stress(**few, journal=file, clients=10)
    assert len(file.read_text().splitlines()) == 12 and other.cells[0].right != 7


def test_the_table_and_plain_data(found):
    assert FederatedStress.from_dict(json.loads(json.dumps(found.to_dict()))).cells == found.cells
    lines = found.table().splitlines()
    assert lines[0] == "iid" and len(lines) == 6
    assert lines[2].count("|") == lines[4].count("|") == 9
    assert " / " in lines[4] and " / " not in lines[4].split("|")[3]


def test_the_heat_map_says_what_the_cells_say(found):
    picture = heat_map(found, "iid")
    assert picture == heat_map(found, "iid") and picture.startswith("<svg")
    assert picture.count("matrix-cell-") == 10 and "trimmed-mean, sign-flip: " in picture
    assert f"{found.accuracy('sign-flip', 'mean', 'iid')}" in picture
    with pytest.raises(InputError, match="no cell"):
        heat_map(found, "dirichlet:1")


def test_objectives_and_privacy_go_through_it():
    """Adversarial training on the clients, a private trimmed mean on the server, and hostile clients."""
    privacy = ClientPrivacy(clip=1.0, clients=11, noise_multiplier=0.01, seed=0)
    found = stress(
        attacks={"sign-flip": ATTACKS["sign-flip"]},
        aggregators={"private": ("trimmed-mean", {"hostile": 2, "privacy": privacy})},
        seeds=[0],
        objective=PGD(Linf(0.05), steps=1),
    )
    assert found.accuracy("sign-flip", "private", "iid").value > 0.9
    assert "noise_multiplier=0.01" in json.dumps(found.to_dict())


def test_a_matrix_without_the_mean_has_no_price_and_one_without_attacks_no_worst():
    cells = [Cell(name, "median", "iid", 0, 5, 10, 0, 0, 0, 1) for name in ("none", "x")]
    found = FederatedStress(tuple(cells), {})
    assert found.price("median", "iid") is None and found.worst("median", "iid")[0] == "x"
    assert FederatedStress(tuple(cells[:1]), {}).worst("median", "iid") is None
    assert FederatedStress(tuple(cells[:1]), {}).table().splitlines()[-1] == "| median | 0.500 | - | - |"


def test_intervals_over_seeds_are_students():
    spread = Spread.of([0.8, 0.82, 0.87], 0.95)
    # mean 0.83, deviation 0.036056, two degrees of freedom: 4.302653
    assert spread.value == pytest.approx(0.83)
    assert spread.high - spread.value == pytest.approx(4.302653 * 0.0360555 / math.sqrt(3), rel=1e-4)
    assert Spread.of([0.5], 0.95) == Spread(0.5, 0.0, 1.0, 1)
    cells = [Cell("none", "mean", "iid", s, r, 10, 0, 0, 0, 1) for s, r in enumerate((9, 8))]
    cells += [Cell("x", "mean", "iid", s, r, 10, 0, 0, 0, 1) for s, r in enumerate((5, 6))]
    # Seed by seed: 0.4 and 0.2.
    lost = FederatedStress(tuple(cells), {}).lost("x", "mean", "iid")
    assert lost.value == pytest.approx(0.3) and lost.count == 2


def test_what_makes_no_sense_is_refused(found):
    with pytest.raises(InputError, match="leaves no honest one"):
        stress(hostile=11)
    with pytest.raises(InputError, match="did you mean 'min-max'"):
        stress(attacks=["min-mx"])
    with pytest.raises(InputError, match="no cell"):
        found.accuracy("alie", "mean", "iid")


@pytest.mark.slow
@pytest.mark.skipif(not (MNIST / "mnist.npz").exists(), reason="needs MNIST beside the repository")
def test_robust_rules_keep_within_five_points_on_alike_clients_of_mnist():
    with np.load(MNIST / "mnist.npz") as arrays:
        train, test = (
            ((arrays[f"x_{part}"][:count] / 255).astype(np.float32)[:, None], arrays[f"y_{part}"][:count])
            for part, count in (("train", 4000), ("test", 2000))
        )
    found = stress_federation(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)),
        train,
        test,
        attacks={
            name: KNOWN[name]
            for name in ("label-flip", "sign-flip", "inner-product", "min-max", "replacement")
        },
        aggregators={name: RULES[name] for name in ("mean", "trimmed-mean", "mixing")},
        partitions=["iid"],
        seeds=[3],
        batch_size=32,
    )
    assert found.worst("mean", "iid")[1].value > 0.2
    assert found.success("replacement", "mean", "iid").value > 0.9
    for name in ("trimmed-mean", "mixing"):
        assert found.worst(name, "iid")[1].value < 0.05
        assert found.success("replacement", name, "iid").value < 0.05
