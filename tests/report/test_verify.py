"""Replaying a run: the honest one passes, and every kind of tampering is found and named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from robustml.errors import InputError
from robustml.report.build import build_report
from robustml.report.verify import Verification, verify_run
from robustml.stress.folder import Evidence, RunFolder
from robustml.targets import Target
from tests.stress.toy import classifier, labels_of, linear, points, run, target

CPU = torch.device("cpu")
SUITE = """
schema = 1
name = "short"
[[attack]]
id = "fgsm"
use = "fgsm"
[[attack]]
id = "apgd"
use = "apgd"
options = { loss = "margin", steps = 5 }
[[curve.attack]]
use = "pgd"
options = { steps = 3 }
[curve]
points = [0.5]
[diagnostics]
samples = 8
noise_draws = 4
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Target]:
    folder = tmp_path_factory.mktemp("honest")
    x = points(14)
    chosen = target(folder, data=(x, labels_of(linear(), x, 2)), suite=SUITE, threats=("linf:0.1",))
    run(chosen, folder / "run")
    return folder / "run", chosen


@pytest.fixture
def copied(honest: tuple[Path, Target], tmp_path: Path) -> tuple[Path, Target]:
    shutil.copytree(honest[0], tmp_path / "run")
    return tmp_path / "run", honest[1]


def problems(path: Path, chosen: Target, **options: Any) -> tuple[str, ...]:
    found = verify_run(path, chosen, CPU, **options)
    assert isinstance(found, Verification)
    assert found.passed is not bool(found.problems)
    for problem in found.problems:
        assert len(problem.splitlines()) == 1
    return found.problems


def rewrite(out: Path, chosen: Target, change: Any) -> None:
    """Tamper with the records, then make all else consistent with them, as a careful forger would."""
    records = change(RunFolder.open(out)[0].records)
    lines = [record.model_dump_json(exclude_defaults=True) for record in records]
    (out / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    rebuild(out, chosen)


def rebuild(out: Path, chosen: Target) -> None:
    folder, plan = RunFolder.open(out)
    build_report(plan, folder, chosen.data).save(out / "report.json")


def forged_evidence(out: Path, record: Any, **columns: Any) -> dict[str, Any]:
    """Write other evidence for a record, with digests to match."""
    held = load_file(out / record.evidence)
    evidence = Evidence(**{**held, **columns})
    content = save(dict(vars(evidence)), metadata={"unit": f"{record.stage} {record.chunk}"})
    (out / record.evidence).write_bytes(content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "digests": evidence.digests()}


def first_broken(records: list[Any]) -> int:
    return next(i for i, r in enumerate(records) if r.broken and r.stage == "linf:0.1/fgsm")


def test_an_honest_run_passes_on_any_batch_and_again(honest: tuple[Path, Target]) -> None:
    found = verify_run(*honest, CPU, rerun=100)
    assert found.passed
    assert found.samples == 14
    folder, _ = RunFolder.open(honest[0])
    assert found.counterexamples == sum(len(r.broken) for r in folder.records) > 0
    assert found.units == len(folder.records)
    assert verify_run(*honest, CPU, rerun=3).units == 3


def test_looking_changes_nothing(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert problems(out, chosen) == ()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def evidence_files(out: Path) -> list[Path]:
    return sorted((out / "evidence").iterdir())


def test_any_byte_of_the_evidence(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    file = evidence_files(out)[0]
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    places = [*range(0, header, 7), *range(header, len(content), 11), len(content) - 1]
    record = next(r for r in RunFolder.open(out)[0].records if r.evidence == f"evidence/{file.name}")
    samples = {str(position) for position in record.broken}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x15
        file.write_bytes(bytes(damaged))
        found = problems(out, chosen)
        assert found, place
        named = [p for p in found if file.name in p or record.stage in p]
        assert named, place
        if place >= header:
            assert any(set(re.findall(r"sample (\d+)", p)) & samples for p in named), place
    file.write_bytes(content)
    assert problems(out, chosen) == ()


def test_evidence_that_is_gone_names_its_samples(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    folder, _ = RunFolder.open(out)
    record = next(r for r in folder.records if r.evidence)
    (out / str(record.evidence)).unlink()
    found = problems(out, chosen)
    assert any(f"samples {record.broken[0]}" in p for p in found)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif isinstance(value, (int, float, str)):
        yield path


def altered(value: Any, draw: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.integers(0, 1000).filter(lambda other: other != value))
    if isinstance(value, float):
        return draw(st.sampled_from([value / 2 + 0.001, value * (1 + 1e-9) + 1e-9]))
    return draw(st.sampled_from([value + "x", value[1:] if value else "y"]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_figure_of_the_report(copied: tuple[Path, Target], data: st.DataObject) -> None:
    out, chosen = copied
    original = (out / "report.json").read_text()
    report = json.loads(original)
    paths = [path for path in leaves(report) if path != ("created",)]
    path = data.draw(st.sampled_from(paths))
    parent = report
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = altered(parent[path[-1]], data.draw)
    (out / "report.json").write_text(json.dumps(report))
    try:
        found = problems(out, chosen)
        name = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")
        assert any(problem.startswith(f"report: {name} is ") for problem in found), found
    except InputError as error:
        # Some changes make it no report at all, which is also said in one line.
        found = (str(error),)
    finally:
        (out / "report.json").write_text(original)
    assert found


def test_another_weight(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    for size, expected in ((1.5, r"^sample \d+: the model answers \d by"), (1e-9, r"^model: SHA-256")):
        layer = linear()
        with torch.no_grad():
            layer.weight[0, 0] += size
        found = problems(out, dataclasses.replace(chosen, model=classifier(layer)))
        assert any(re.match(expected, problem) for problem in found)
        assert any(problem.startswith("model: SHA-256") for problem in found)
    assert problems(out, chosen) == ()


def test_other_data_cannot_be_replayed(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    x = chosen.data.x.copy()
    x[0, 0] += 1e-9
    other = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, x=x))
    found = verify_run(out, other, CPU)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("data: SHA-256")
    assert (found.samples, found.counterexamples) == (0, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("access", "decision"), ("outputs", "probabilities"), ("parameters", 5), ("classes", 4)],
)
def test_a_plan_about_another_model(copied: tuple[Path, Target], key: str, value: Any) -> None:
    out, chosen = copied
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, key: value}))
    assert any(p.startswith(f"model: {key} of the target") for p in problems(out, chosen))


def test_a_forged_clean_prediction(copied: tuple[Path, Target]) -> None:
    out, chosen = copied

    def flatter(records: list[Any]) -> list[Any]:
        first = records[0]
        labels = [int(chosen.data.y[0]), *first.labels[1:]]
        return [
            first.model_copy(update={"labels": labels, "margins": [1.0, *first.margins[1:]]}),
            *records[1:],
        ]

    folder, _ = RunFolder.open(out)
    lines = [r.model_dump_json(exclude_defaults=True) for r in flatter(folder.records)]
    (out / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    assert any(p.startswith("sample 0: the model answers") for p in problems(out, chosen))


def test_a_survivor_that_was_broken_is_found_by_doing_it_again(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    stage = {"linf:0.1/fgsm", "linf:0.1/apgd", "linf:0.1/curve-0.5", "linf:0.1/ordering"}

    def acquit(records: list[Any]) -> list[Any]:
        """Claim that nothing in chunk 1 was ever broken."""
        clean = next(r for r in records if r.stage == "clean" and r.chunk == 1)
        standing = len(clean.labels)
        forged = []
        for r in records:
            if r.chunk == 1 and r.stage in stage:
                changes: dict[str, Any] = {
                    "broken": [],
                    "digests": [],
                    "distances": [],
                    "evidence": None,
                    "sha256": None,
                }
                if r.stage != "linf:0.1/ordering":
                    changes["attempted"] = standing
                r = r.model_copy(update=changes)
            forged.append(r)
        done = {r.stage for r in forged if r.chunk == 1}
        template = next(r for r in forged if r.stage == "linf:0.1/fgsm" and r.chunk == 1)
        extra = [
            template.model_copy(update={"stage": s}) for s in sorted(stage - done - {"linf:0.1/ordering"})
        ]
        return forged + extra

    before = json.loads((out / "report.json").read_text())["threats"][0]["outcomes"]
    rewrite(out, chosen, acquit)
    after = json.loads((out / "report.json").read_text())["threats"][0]["outcomes"]
    assert after.count("s") > before.count("s")
    assert problems(out, chosen) == ()  # all that is left is consistent ...
    found = problems(out, chosen, rerun=1000)  # ... until it is done again
    freed = {str(i) for i, (b, a) in enumerate(zip(before, after, strict=True)) if (b, a) == ("b", "s")}
    named = {n for p in found if "done again" in p for n in re.findall(r"\d+", p.partition("samples")[2])}
    assert named & freed


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("linf:0.1/gradients", {"facts": {"probed": 8.0, "ce": 0.0, "margin": 0.0, "every": 3.0}}),
        ("linf:0.1/unbounded", {"facts": {"probed": 1.0, "standing": 1.0}}),
        ("linf:0.1/fgsm", {"forward": 1}),
    ],
)
def test_forged_facts_are_found_by_doing_it_again(
    copied: tuple[Path, Target], stage: str, changes: dict[str, Any]
) -> None:
    out, chosen = copied
    rewrite(
        out,
        chosen,
        lambda records: [r.model_copy(update=changes) if r.stage == stage else r for r in records],
    )
    assert problems(out, chosen) == ()
    found = problems(out, chosen, rerun=1000)
    assert any(p.startswith(stage) and next(iter(changes)) in p for p in found)


def forge(out: Path, chosen: Target, columns: Any) -> tuple[str, ...]:
    """Replace columns of the first evidence file, and everything that vouches for it."""

    def change(records: list[Any]) -> list[Any]:
        index = first_broken(records)
        held = load_file(out / str(records[index].evidence))
        updates = forged_evidence(out, records[index], **columns(held))
        return [*records[:index], records[index].model_copy(update=updates), *records[index + 1 :]]

    rewrite(out, chosen, change)
    return problems(out, chosen)


def sample_of(out: Path) -> str:
    folder, plan = RunFolder.open(out)
    return f"sample {plan.ids[folder.records[first_broken(folder.records)].broken[0]]}: "


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (lambda held: {"x": held["x"] * 0 + 0.5}, "not within the budget"),
        (lambda held: {"x": held["x"] + 5}, "not within the budget"),
        (lambda held: {"distance": held["distance"] / 2}, "its distance is"),
        (lambda held: {"margin": held["margin"] + 1}, "it fools the model by"),
        (lambda held: {"margin": held["margin"] * np.nan}, "it fools the model by"),
        (lambda held: {"label": (held["label"] + 1) % 3}, "the model does not answer"),
        (lambda held: {"label": held["label"] + 100}, "the model does not answer"),
    ],
)
def test_forged_evidence(copied: tuple[Path, Target], columns: Any, expected: str) -> None:
    out, chosen = copied
    name = sample_of(out)
    found = forge(out, chosen, columns)
    assert any(p.startswith(name) and expected in p for p in found), found


def test_evidence_that_fools_nobody(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    name = sample_of(out)
    folder, _ = RunFolder.open(out)
    positions = folder.records[first_broken(folder.records)].broken
    clean = chosen.data.x[positions]
    found = forge(out, chosen, lambda held: {"x": clean, "distance": held["distance"] * 0})
    assert any(p.startswith(name) and "the model is not fooled" in p for p in found)


def test_numbers_that_are_none_break_no_replay(copied: tuple[Path, Target]) -> None:
    out, chosen = copied

    def change(records: list[Any]) -> list[Any]:
        index = first_broken(records)
        held = load_file(out / str(records[index].evidence))
        updates = forged_evidence(out, records[index], distance=held["distance"] * np.nan)
        return [*records[:index], records[index].model_copy(update=updates), *records[index + 1 :]]

    folder, _ = RunFolder.open(out)
    lines = [r.model_dump_json(exclude_defaults=True) for r in change(folder.records)]
    (out / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    assert any("its distance is" in p and "nan" in p for p in problems(out, chosen))


@pytest.mark.parametrize(
    "columns",
    [
        {"x": np.zeros((1, 2))},
        {"position": np.zeros(40, dtype=np.int64)},
        {"distance": np.array(1.0)},
        {"label": np.zeros((0,), dtype=np.int64)},
    ],
)
def test_evidence_of_another_shape(copied: tuple[Path, Target], columns: dict[str, Any]) -> None:
    out, chosen = copied
    folder, _ = RunFolder.open(out)
    record = folder.records[first_broken(folder.records)]
    held = load_file(out / str(record.evidence))
    (out / str(record.evidence)).write_bytes(save({**held, **columns}))
    assert any("fgsm" in p for p in problems(out, chosen))


def test_a_record_of_an_attack_that_cannot_run(tmp_path: Path) -> None:
    suite = SUITE.replace('use = "fgsm"', 'use = "square"')
    chosen = target(tmp_path, suite=suite, threats=("l0:2",))
    run(chosen, tmp_path / "run")
    assert problems(tmp_path / "run", chosen) == ()

    def invent(records: list[Any]) -> list[Any]:
        return [*records, records[-1].model_copy(update={"stage": "l0:2/fgsm", "chunk": 0})]

    rewrite(tmp_path / "run", chosen, invent)
    assert any("l0:2/fgsm cannot run at all" in p for p in problems(tmp_path / "run", chosen))


def test_a_journal_that_does_not_fit(copied: tuple[Path, Target]) -> None:
    out, chosen = copied
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (out / "journal.jsonl").write_text("".join(lines[:-1]))
    assert problems(out, chosen)
    (out / "journal.jsonl").write_text("".join([*lines, lines[-1].replace("linf:0.1/", "linf:0.7/")]))
    assert any("is not in the plan" in p for p in problems(out, chosen))


def test_nothing_that_the_folder_names_is_imported(copied: tuple[Path, Target], tmp_path: Path) -> None:
    out, chosen = copied
    module = tmp_path / "trap_named_in_a_run.py"
    module.write_text("raise SystemExit('executed')")
    sys.path.insert(0, str(tmp_path))
    try:
        plan = json.loads((out / "plan.json").read_text())
        for key in ("target", "model_name", "data_name", "command"):
            plan[key] = "trap_named_in_a_run:build"
        (out / "plan.json").write_text(json.dumps(plan))
        rebuild(out, chosen)
        assert problems(out, chosen, rerun=2) == ()
        plan["suite"]["attack"][0]["use"] = "trap_named_in_a_run:build"
        (out / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(InputError, match="not known"):
            verify_run(out, chosen, CPU)
    finally:
        sys.path.remove(str(tmp_path))
    assert "trap_named_in_a_run" not in sys.modules


@pytest.mark.parametrize(("name", "named"), [("plan.json", "plan.json"), ("report.json", "cannot read")])
def test_a_folder_without_its_files(copied: tuple[Path, Target], name: str, named: str) -> None:
    out, chosen = copied
    (out / name).unlink()
    with pytest.raises(InputError) as caught:
        verify_run(out, chosen, CPU)
    assert named in str(caught.value)
