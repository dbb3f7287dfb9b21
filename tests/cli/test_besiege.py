"""`robustml besiege`: hostile clients, what each attack takes, and a run that can be taken up again."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from robustml.auditing.federation import FederatedStress
from robustml.cli import cli

SMALL = ("--clients", "3", "--hostile", "1", "--rounds", "1", "--seeds", "1", "--partition", "iid")
TWO = ("--aggregation", "mean", "--aggregation", "median", "--attack", "sign-flip")


@pytest.fixture
def ready(bench, monkeypatch):
    """The tiny target with something to train on; commands are run in its folder."""
    monkeypatch.chdir(bench.folder)
    np.savez(bench.folder / "train.npz", x=np.tile(bench.x, (4, 1, 1, 1)), y=np.tile(bench.y, 4))
    bench.edit('test = "test.npz"', 'test = "test.npz"\ntrain = "train.npz"')
    return bench


def journal(out: str = "out") -> list[bytes]:
    path = Path(out) / "federations.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def test_digits_from_one_command_to_a_table_a_page_and_data(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "digits",
        "--clients=4",
        "--hostile=1",
        "--rounds=2",
        "--epochs=3",
        "--seeds=1",
        "--partition=iid",
    ]
    words += ["--learning-rate=0.2", "--batch-size=16", "--aggregation=mean", "--aggregation=trimmed-mean"]
    words += ["--attack=sign-flip", "--attack=replacement", "--out=out"]
    done = command("besiege", *words)
    assert done.code == 0, done.err
    found = FederatedStress.from_dict(json.loads(Path("out/matrix.json").read_bytes()))
    assert len(found.cells) == 6 and {cell.total for cell in found.cells} == {500}
    assert found.accuracy("none", "mean", "iid").value > 0.6
    assert found.lost("sign-flip", "mean", "iid").value > found.lost("sign-flip", "trimmed-mean", "iid").value
    assert found.success("replacement", "mean", "iid").value > 0.9
    # One line per place, with each figure of it and its interval.
    table = done.out.splitlines()
    assert re.split(r"\s{2,}", table[0])[:4] == ["partition", "aggregator", "attack", "accuracy"]
    for line, place in zip(table[1:7], found.places(), strict=True):
        assert re.split(r"\s{2,}", line)[:4] == ["iid", place.aggregator, place.attack, str(place.accuracy)]
    assert str(found.success("replacement", "mean", "iid")) in table[3]
    assert str(found.baseline("replacement", "mean", "iid")) in table[3]
    assert found.baseline("replacement", "mean", "iid").value < 0.3
    assert str(found.price("trimmed-mean", "iid")) in table[4]
    assert "6/6 iid, seed 0, trimmed-mean, replacement: accuracy " in done.err
    check_page(Path("out/matrix.html").read_text(), found)


def check_page(page: str, found: FederatedStress) -> None:
    """All figures are on it, and nothing is loaded or run."""
    assert page.startswith("<!doctype html>") and page.count("<svg") == 1
    assert not re.search(r"<script|<link|<img|@import|(?:src|href)=\"(?!#)|url\((?!#)", page)
    for place in found.places():
        assert str(place.accuracy) in page
        assert f"{place.aggregator}, {place.attack}: {place.accuracy}" in page
    assert f"backdoor {found.success('replacement', 'mean', 'iid')}" in page
    assert f"baseline {found.baseline('replacement', 'mean', 'iid')}" in page


def test_json_alone_and_nothing_left_behind_without_a_folder(command, ready) -> None:
    before = sorted(path.name for path in ready.folder.iterdir())
    done = command("besiege", ".", *SMALL, *TWO, "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert (data["schema"], data["about"]["target"]) == ("robustml.federation/1", "target")
    assert [f["attack"] for f in data["figures"]] == ["none", "sign-flip", "none", "sign-flip"]
    assert data["settings"]["clients"] == 3 and "one seed" not in done.out
    assert sorted(path.name for path in ready.folder.iterdir() if path.name != "__pycache__") == before


def test_a_recipe_and_the_seeds_reach_the_clients(command, ready) -> None:
    words = ["--clients=3", "--hostile=1", "--rounds=1", "--seeds=2", "--seed=5", "--partition=iid"]
    words += ["--aggregation=median", "--attack=drop-out", "--recipe=pgd", "--epochs=2", "--json"]
    done = command("besiege", ".", *words)
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert [cell["seed"] for cell in data["cells"]] == [5, 5, 6, 6]
    assert data["settings"]["settings"]["epochs"] == 2
    assert "PGD(" in data["settings"]["settings"]["objective"]
    assert all(figure["price"] is None for figure in data["figures"])


def test_names_are_all_by_default_and_what_cannot_be_is_said(command, ready) -> None:
    done = command("besiege", ".", *SMALL, "--attack", "drop-out", "--json")
    assert done.code == 0, done.err
    found = FederatedStress.from_dict(json.loads(done.out))
    assert "left out: bulyan: hostile=1 of clients=3 are more than it bears" in done.err
    assert "bulyan" not in found.names("aggregator") and "trimmed-mean" in found.names("aggregator")
    assert found.settings["aggregators"]["trimmed-mean"] == ["trimmed-mean", {"hostile": 1}]


def test_an_attack_that_stops_a_federation_is_a_result(command, ready) -> None:
    words = ("--clients", "3", "--hostile", "2", "--rounds", "1", "--seeds", "1", "--partition", "iid")
    done = command("besiege", ".", *words, "--aggregation", "mean", "--attack", "protocol", "--out", "out")
    assert done.code == 0, done.err
    assert "1 of 1 never moved" in done.out
    assert "Federations that were stopped altogether: 1." in Path("out/matrix.html").read_text()


def test_a_model_that_learned_nothing_is_not_called_robust(command, ready) -> None:
    done = command("besiege", ".", *SMALL, *TWO, "--learning-rate", "1e-9", "--out", "out")
    assert done.code == 0, done.err
    assert done.out.startswith("NOT TRUSTED: mean, iid: when nobody attacks, its accuracy of 0.")
    data = json.loads(Path("out/matrix.json").read_bytes())
    assert [line.partition(":")[0] for line in data["distrust"]] == ["mean, iid", "median, iid"]
    page = Path("out/matrix.html").read_text()
    assert "<title>NOT TRUSTED: " in page and page.count("nearer to guessing") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--aggregation", "medain"], "aggregation='medain' is not known; did you mean 'median'?"),
        (["--attack", "sign-flop"], "attack='sign-flop' is not known; did you mean 'sign-flip'?"),
        (
            ["--aggregation", "bulyan"],
            "'bulyan' cannot be used: hostile=1 of clients=3 are more than it bears",
        ),
        (["--partition", "dirichlet:x"], "needs a finite number above 0"),
        (["--hostile", "3"], "--hostile 3 of --clients 3 leaves no honest one"),
        (["--hostile", "0"], "'--hostile': 0 is not in the range"),
        (["--clients", "5000"], "are too few for clients=5000"),
        (["--rounds", "none"], "'none' is not a valid integer"),
        (["--seeds", "0"], "'--seeds': 0 is not in the range"),
        (["--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["--learning-rate", "nan"], "nan is not"),
        (["--confidence", "1"], "'--confidence'"),
        (["--recipe", "distill"], "trains a teacher first"),
        (["--recipe", "pdg"], "did you mean"),
        (["--out", "robustml.toml"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(refused, ready, flags, said: str) -> None:
    assert said in refused("besiege", ".", *SMALL, "--out", "out", *flags)
    assert not Path("out").exists()


def test_folders_that_hold_something_else_are_refused(refused, command, ready) -> None:
    assert "--resume needs --out" in refused("besiege", ".", *SMALL, *TWO, "--resume")
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    assert "is not empty" in refused("besiege", ".", *SMALL, *TWO, "--out", "other")
    line = refused("besiege", ".", *SMALL, *TWO, "--out", "other", "--resume")
    assert "holds no federations.jsonl" in line
    Path("other/federations.jsonl").write_text('{"key": "x", "cell": {"right": 7}}\n')
    line = refused("besiege", ".", *SMALL, *TWO, "--out", "other", "--resume")
    assert "is damaged in line 1" in line


def test_nothing_to_train_on_and_a_backdoor_in_rows_are_refused(refused, bench) -> None:
    assert "names nothing to train on" in refused("besiege", bench.folder, *SMALL, *TWO)
    line = refused("besiege", "breast-cancer", *SMALL, "--attack", "backdoor")
    assert "puts its trigger on images; inputs of shape (30,) are none" in line


def stopped(process, lines: int) -> None:
    limit = time.monotonic() + 120
    while len(journal()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(ready, start, command) -> None:
    words = ("besiege", ".", *SMALL, *TWO)
    process = start(*words, "--out", "out", cwd=ready.folder, env={"NET_PAUSE": "0.02"})
    stopped(process, 2)
    process.kill()
    process.communicate()
    kept = b"".join(line for line in journal() if line.endswith(b"\n"))
    assert not Path("out/matrix.json").exists()
    # A kill in the middle of a write leaves part of a line.
    Path("out/federations.jsonl").write_bytes(kept + b'{"key": "0123", "cel')
    done = command(*words, "--out", "out", "--resume")
    assert done.code == 0, done.err
    assert b"".join(journal()).startswith(kept) and len(journal()) == 4
    assert command(*words, "--out", "undisturbed").code == 0
    for name in ("matrix.json", "matrix.html", "federations.jsonl"):
        assert Path("out", name).read_bytes() == Path("undisturbed", name).read_bytes()


def test_an_interrupt_says_how_to_go_on(ready, start, finished, command, words_after) -> None:
    flags = (*SMALL, *TWO, "--out", "out")
    process = start("besiege", ".", *flags, cwd=ready.folder, env={"NET_PAUSE": "0.02"})
    stopped(process, 1)
    process.send_signal(signal.SIGINT)
    outcome = finished(process)
    assert (outcome.code, outcome.out) == (130, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("interrupted; what was finished is kept, continue with: robustml besiege ")
    kept = b"".join(journal())
    done = command(*words_after(last, "continue with: "))
    assert done.code == 0, done.err
    assert b"".join(journal()).startswith(kept) and len(journal()) == 4


def test_a_finished_matrix_can_be_added_to(ready, command) -> None:
    words = ("besiege", ".", *SMALL, *TWO, "--out", "out")
    assert command(*words).code == 0
    before = b"".join(journal())
    assert command(*words, "--seeds", "2", "--attack", "drop-out", "--resume").code == 0
    assert b"".join(journal()).startswith(before) and len(journal()) == 12
    found = FederatedStress.from_dict(json.loads(Path("out/matrix.json").read_bytes()))
    assert len(found.cells) == 12 and found.accuracy("drop-out", "mean", "iid").count == 2


def test_the_command_is_listed() -> None:
    assert "besiege" in cli.commands
