"""The pieces of the stress test of a federation: what is chosen, what is kept, what is shown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from robustml.attacks.byzantine import byzantine
from robustml.auditing.federation import AGGREGATORS, ATTACKS
from robustml.auditing.federation_choice import aggregators_for, attacks_for
from robustml.auditing.federation_journal import Journal
from robustml.auditing.federation_matrix import Cell, FederatedStress
from robustml.auditing.federation_page import keep_matrix, matrix_page, matrix_table
from robustml.errors import InputError, RunError
from robustml.inputs import InputSpec

CELL = Cell("none", "mean", "iid", 0, 9, 10, 0, 0, 0, 1)
IMAGES = InputSpec((1, 8, 8))


def matrix(attack: str = "x", aggregator: str = "mean", right: int = 9, classes: int = 10) -> FederatedStress:
    cells = [Cell("none", aggregator, "iid", s, right, 10, 0, 0, 0, 1) for s in (0, 1)]
    cells += [Cell(attack, aggregator, "iid", s, s + 4, 10, 6, 8, 3, s) for s in (0, 1)]
    return FederatedStress(tuple(cells), {"classes": classes})


def test_a_journal_keeps_what_is_whole(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    first = Journal(path)
    assert not path.parent.exists()
    first.add("a", CELL)
    first.add("b", CELL)
    whole = path.read_bytes()
    for torn in range(1, len(whole.splitlines(keepends=True)[1])):
        path.write_bytes(whole[:-torn])
        again = Journal(path)
        assert again.cells == {"a": CELL}
        again.add("b", CELL)
        assert path.read_bytes() == whole
    assert Journal(path).cells == {"a": CELL, "b": CELL}


@pytest.mark.parametrize(
    "change",
    [{"right": 11}, {"right": "9"}, {"right": True}, {"total": 0}, {"tried": -1}, {"attack": 3}, {"more": 1}],
)
def test_a_journal_that_was_damaged_is_refused(tmp_path, change):
    path = tmp_path / "journal.jsonl"
    Journal(path).add("a", CELL)
    entry = json.loads(path.read_text())
    entry["cell"] |= change
    path.write_text(f"{path.read_text()}{json.dumps(entry)}\n")
    with pytest.raises(InputError, match="is damaged in line 2"):
        Journal(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="is damaged in line 1"):
        Journal(path)


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        Journal(tmp_path / "file" / "journal.jsonl").add("a", CELL)
    with pytest.raises(InputError, match="cannot be read"):
        Journal(tmp_path)


def test_all_attacks_and_aggregators_of_the_matrix_by_default():
    attacks, without = attacks_for([], IMAGES)
    assert list(attacks) == list(ATTACKS) and not without
    assert [byzantine(kind, **options).name for kind, options in attacks.values()] == [
        kind for kind, _ in ATTACKS.values()
    ]
    aggregators, unfit = aggregators_for([], 11, 2)
    assert aggregators == AGGREGATORS and not unfit
    # With one more hostile client Bulyan would need fifteen.
    aggregators, unfit = aggregators_for([], 11, 3)
    assert list(aggregators) == [name for name in AGGREGATORS if name != "bulyan"]
    assert unfit == ["bulyan: hostile=3 of clients=11 are more than it bears"]
    assert {o["hostile"] for _, o in aggregators.values() if o} == {3}


def test_every_known_name_may_be_chosen_and_is_meant_for_the_hostile_clients():
    aggregators, _ = aggregators_for(["krum", "fedmedian", "flower-krum", "mean", "mean"], 9, 2)
    assert aggregators == {
        "krum": ("krum", {"hostile": 2}),
        "fedmedian": ("fedmedian", {}),
        "flower-krum": ("flower-krum", {"num_malicious_nodes": 2}),
        "mean": ("mean", {}),
    }
    attacks, _ = attacks_for(["min-sum", "alie-1.5"], IMAGES)
    assert attacks == {"min-sum": ("min-sum", {}), "alie-1.5": ("alie", {"deviations": 1.5})}


def test_the_trigger_is_as_bright_as_inputs_may_be():
    bright = InputSpec((1, 4, 4), bounds=(0.0, 255.0))
    kind, options = attacks_for(["backdoor"], bright)[0]["backdoor"]
    x, y = byzantine(kind, **options).data(np.zeros((8, 1, 4, 4), np.float32), np.ones(8, np.int64), 2, 0)
    assert x.max() == 255 and (x.reshape(8, -1).max(1) == 255).sum() == (y == 0).sum() == 4
    rows = InputSpec((30,))
    attacks, without = attacks_for([], rows)
    assert not {"backdoor", "replacement"} & set(attacks) and len(without) == 2
    with pytest.raises(InputError, match="are none"):
        attacks_for(["replacement"], rows)


def test_plain_data_say_what_they_are_and_hold_the_figures():
    data = json.loads(json.dumps(matrix().to_dict()))
    assert FederatedStress.from_dict(data) == matrix()
    none, attacked = data["figures"]
    assert (data["schema"], none["accuracy"]["value"], none["price"]["value"]) == (
        "robustml.federation/1",
        0.9,
        0.0,
    )
    assert attacked["lost"]["value"] == pytest.approx(0.45)
    assert (attacked["success"]["value"], attacked["quarantined"], attacked["unmoved"]) == (0.75, 6, 1)
    for wrong in ({"schema": "robustml.federation/2"}, {"cells": [{"right": 1}]}, {"confidence": "high"}):
        with pytest.raises(InputError, match="schema|stress matrix"):
            FederatedStress.from_dict({**data, **wrong})


def test_a_backdoor_is_held_against_what_its_trigger_does_by_itself():
    calm = [Cell("none", "mean", "iid", s, 9, 10, 0, 0, 0, 1, {"x": (s + 1, 8)}) for s in (0, 1)]
    hit = [Cell("x", "mean", "iid", s, 5, 10, 6, 8, 0, 1) for s in (0, 1)]
    found = FederatedStress((*calm, *hit), {"classes": 10})
    assert found.baseline("x", "mean", "iid").value == pytest.approx(1.5 / 8)
    assert found.baseline("none", "mean", "iid") is None
    data = json.loads(json.dumps(found.to_dict()))
    assert FederatedStress.from_dict(data) == found
    assert [figure["baseline"] and figure["baseline"]["value"] for figure in data["figures"]] == [
        None,
        0.1875,
    ]
    assert f"{found.success('x', 'mean', 'iid')}  {found.baseline('x', 'mean', 'iid')}" in matrix_table(found)
    assert "0.75 (0.19)" in found.table()
    page = matrix_page(found, {})
    assert f"baseline {found.baseline('x', 'mean', 'iid')}" in page
    assert "backdoor 0.750, 0.188 when nobody attacks" in page
    # A matrix of before has none.
    for cell in data["cells"]:
        del cell["baseline"]
    assert FederatedStress.from_dict(data).baseline("x", "mean", "iid") is None
    # Where the trigger had nothing to turn, nothing was measured.
    data["cells"][0]["baseline"], data["cells"][1]["baseline"] = {"x": [0, 0]}, {"x": [1, 2]}
    assert FederatedStress.from_dict(data).baseline("x", "mean", "iid") is None
    for wrong in ({"x": [3, 2]}, {"x": [1]}, {"x": ["a", 2]}, {"x": [-1, 2]}):
        data["cells"][0]["baseline"] = wrong
        with pytest.raises(InputError, match="stress matrix"):
            FederatedStress.from_dict(data)


def test_the_table_has_a_line_per_place_with_every_interval():
    found = matrix()
    lines = matrix_table(found).splitlines()
    assert len(lines) == 3
    for line, place in zip(lines[1:], found.places(), strict=True):
        figures = [place.accuracy, place.lost, place.price, place.success]
        assert all(str(figure) in line for figure in figures if figure is not None)
    assert lines[2].endswith("6, 1 of 2 never moved")


def test_the_page_shows_strangers_words_as_words(tmp_path):
    found = matrix(attack="<script>x</script>", aggregator='"&$x_{1$<b>')
    page = matrix_page(found, {"target": "<img src=x>\u202e"})
    assert "<script>" not in page and "<img" not in page and "<b>" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page and "&lt;img src=x&gt;" in page
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    words = "".join(ET.fromstring(svg).itertext())
    assert "<script>x</script>" in words and '"&$x_{1$<b>' in words
    keep_matrix(tmp_path / "new", found, {"target": "t"})
    assert json.loads((tmp_path / "new" / "matrix.json").read_text())["about"] == {"target": "t"}
    assert (tmp_path / "new" / "matrix.html").read_text() == matrix_page(found, {"target": "t"})


@pytest.mark.parametrize(("right", "classes", "trusted"), [(6, 10, True), (5, 10, False), (7, 2, False)])
def test_what_has_learned_little_has_little_to_lose(right, classes, trusted):
    found = matrix(right=right, classes=classes)
    assert (found.distrust() == []) is trusted
    assert ("NOT TRUSTED" not in matrix_page(found, {})) is trusted
