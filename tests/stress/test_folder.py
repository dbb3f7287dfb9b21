"""The run folder: nothing is lost, nothing is believed that does not fit, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustml.errors import InputError, RunError
from robustml.runs import make_plan
from robustml.stress.folder import Evidence, Record, RunFolder, merge
from robustml.stress.plan import Plan
from tests.stress.toy import target


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(
        target(tmp_path), torch.device("cpu"), confidence=0.95, max_passes=None, redact=False, command="test"
    )


def evidence(*positions: int, seed: int = 0) -> Evidence:
    n, draw = len(positions), np.random.default_rng(seed)
    return Evidence(
        position=np.array(positions, dtype=np.int64),
        x=draw.random((n, 6)),
        label=draw.integers(3, size=n),
        margin=draw.random(n),
        distance=draw.random(n),
    )


def record(chunk: int = 0, *broken: int, stage: str = "linf:0.1/apgd", **changes: Any) -> Record:
    return Record(stage=stage, chunk=chunk, attempted=8, broken=list(broken), **changes)


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_is_appended_is_read_back(tmp_path: Path, plan: Plan) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    kept = evidence(1, 4)
    stored = folder.append(record(0, 1, 4, facts={"claims": 2.0}, seconds=0.25), kept)
    folder.append(record(1))
    again, same = RunFolder.open(tmp_path / "run")
    assert same == plan
    assert again.records == folder.records == [stored, record(1)]
    assert stored.evidence is not None
    for name, column in vars(again.read_evidence(stored)).items():
        assert np.array_equal(column, getattr(kept, name))
    content = (tmp_path / "run" / stored.evidence).read_bytes()
    assert stored.sha256 == hashlib.sha256(content).hexdigest()


def test_evidence_has_the_same_bytes_every_time(tmp_path: Path, plan: Plan) -> None:
    digests = set()
    for number in range(8):
        folder = RunFolder.create(tmp_path / f"run{number}", plan)
        digests.add(folder.append(record(0, 1, 4), evidence(1, 4)).sha256)
    assert len(digests) == 1


def test_a_torn_last_line_is_dropped_and_overwritten_later(tmp_path: Path, plan: Plan) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    folder.append(record(0))
    journal = tmp_path / "run" / "journal.jsonl"
    whole = journal.read_bytes()
    torn = whole + b'{"stage":"linf:0.1/apgd","chunk":1,"attem'
    journal.write_bytes(torn)
    again, _ = RunFolder.open(tmp_path / "run")
    assert again.records == [record(0)]
    assert journal.read_bytes() == torn  # looking changes nothing
    again.append(record(2))
    assert journal.read_bytes().startswith(whole)
    assert RunFolder.open(tmp_path / "run")[0].records == [record(0), record(2)]


def test_a_record_cut_anywhere_is_dropped_whole(tmp_path: Path, plan: Plan) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    for chunk in range(3):
        folder.append(record(chunk))
    journal = tmp_path / "run" / "journal.jsonl"
    whole = journal.read_bytes()
    for end in range(len(whole)):
        journal.write_bytes(whole[:end])
        found = RunFolder.open(tmp_path / "run")[0].records
        assert len(found) == whole[:end].count(b"\n")


@pytest.mark.parametrize(
    "damage",
    [
        b'{"stage": "x", chunk}',
        b"[1, 2]",
        b"",
        b"\xff\xfe",
        b'{"stage": "x", "chunk": -1}',
        b'{"stage": "x", "chunk": 0, "chunck": 1}',
        b'{"stage": "x", "chunk": 0, "seconds": 1e999}',
        b"[" * 100_000,
        b'{"stage": "x", "chunk": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, plan: Plan, damage: bytes) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    folder.append(record(0))
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + damage + b"\n")
    folder_after = refusal(RunFolder.open, tmp_path / "run")
    assert "line 2" in folder_after


def test_a_journal_that_is_a_folder(tmp_path: Path, plan: Plan) -> None:
    RunFolder.create(tmp_path / "run", plan)
    (tmp_path / "run" / "journal.jsonl").mkdir()
    assert "journal.jsonl" in refusal(RunFolder.open, tmp_path / "run")


@given(data=st.data())
def test_digests_change_with_any_byte(data: st.DataObject) -> None:
    kept = evidence(3, 5, 6)
    before = kept.digests()
    name = data.draw(st.sampled_from(sorted(vars(kept))))
    row = data.draw(st.integers(0, 2))
    column = getattr(kept, name)
    raw = column[row : row + 1].view(np.uint8).reshape(-1)
    place = data.draw(st.integers(0, raw.size - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    after = kept.digests()
    assert [a != b for a, b in zip(before, after, strict=True)] == [index == row for index in range(3)]


@pytest.mark.parametrize(
    "name",
    ["../plan.json", "evidence/../../x", "/etc/hostname", "evidence/sub/x", "plan.json", "", "evidence"],
)
def test_evidence_outside_the_folder_is_refused(tmp_path: Path, plan: Plan, name: str) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    assert "not a file of the evidence folder" in refusal(folder.read_evidence, record(0, 1, evidence=name))


def test_evidence_that_is_not_what_the_record_says(tmp_path: Path, plan: Plan) -> None:
    from safetensors.numpy import save_file

    folder = RunFolder.create(tmp_path / "run", plan)
    stored = folder.append(record(0, 1, 4), evidence(1, 4))
    assert "one row per" in refusal(folder.read_evidence, stored.model_copy(update={"broken": [1]}))
    path = tmp_path / "run" / str(stored.evidence)
    columns = dict(vars(evidence(1, 4)))
    save_file({**columns, "margin": np.array(1.0)}, path)
    assert "cannot be read" in refusal(folder.read_evidence, stored)
    save_file({**columns, "more": columns["x"]}, path)
    assert "cannot be read" in refusal(folder.read_evidence, stored)
    path.write_bytes(b"junk")
    assert "cannot be read" in refusal(folder.read_evidence, stored)
    path.unlink()
    assert "cannot be read" in refusal(folder.read_evidence, stored)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "run").mkdir()
    RunFolder.create(tmp_path / "run", plan)  # an empty one is fine
    before = (tmp_path / "run" / "plan.json").read_bytes()
    assert "not empty" in refusal(RunFolder.create, tmp_path / "run", plan)
    assert (tmp_path / "run" / "plan.json").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    refusal(RunFolder.create, tmp_path / "file", plan)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_cannot_be(tmp_path: Path, plan: Plan, name: str) -> None:
    with pytest.raises((InputError, RunError)) as caught:
        RunFolder.create(tmp_path / name, plan)
    assert len(str(caught.value).splitlines()) == 1


def test_a_place_that_cannot_be_written_is_a_run_error(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write") as caught:
        RunFolder.create(tmp_path / "file" / "run", plan)
    assert len(str(caught.value).splitlines()) == 1


def test_a_journal_that_cannot_be_written_is_a_run_error(tmp_path: Path, plan: Plan) -> None:
    folder = RunFolder.create(tmp_path / "run", plan)
    (tmp_path / "run" / "journal.jsonl").mkdir()
    with pytest.raises(RunError, match="journal"):
        folder.append(record(0))
    assert folder.records == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("ids", [2, 1]), ("ids", [1, 1]), ("ids", [10**6]), ("ids", []), ("chunk", 0), ("confidence", 2)],
)
def test_a_plan_that_cannot_be(tmp_path: Path, plan: Plan, key: str, value: Any) -> None:
    RunFolder.create(tmp_path / "run", plan)
    path = tmp_path / "run" / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert key in refusal(RunFolder.open, tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"{}", b"[" * 100_000])
def test_a_plan_that_is_none(tmp_path: Path, plan: Plan, content: bytes) -> None:
    RunFolder.create(tmp_path / "run", plan)
    (tmp_path / "run" / "plan.json").write_bytes(content)
    assert "plan.json" in refusal(RunFolder.open, tmp_path / "run")
    assert "not a run folder" in refusal(RunFolder.open, tmp_path / "nowhere")


def shards(tmp_path: Path, plan: Plan) -> list[Path]:
    paths = [tmp_path / "first", tmp_path / "second"]
    for number, path in enumerate(paths):
        folder = RunFolder.create(path, plan)
        folder.append(record(number, number), evidence(number))
    return paths


def test_shards_come_together_with_the_same_files(tmp_path: Path, plan: Plan) -> None:
    paths = shards(tmp_path, plan)
    merged = merge(paths, tmp_path / "both")
    originals = [RunFolder.open(path)[0].records[0] for path in paths]
    assert merged.records == originals
    assert RunFolder.open(tmp_path / "both")[0].records == originals
    for path, original in zip(paths, originals, strict=True):
        name = str(original.evidence)
        assert (tmp_path / "both" / name).read_bytes() == (path / name).read_bytes()


def test_shards_that_do_not_belong_together(tmp_path: Path, plan: Plan) -> None:
    first, second = shards(tmp_path, plan)
    assert "holds chunks" in refusal(merge, [first, first], tmp_path / "a")
    RunFolder.create(tmp_path / "other", plan.model_copy(update={"seed": 1}))
    assert "not a shard of the same run" in refusal(merge, [first, tmp_path / "other"], tmp_path / "b")
    assert "nothing to merge" in refusal(merge, [], tmp_path / "c")
    assert "not empty" in refusal(merge, [first, second], second)
