"""Corruptions in a run: measured on every sample, journalled, resumed to the same bits, and replayed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustml.classifier import BlackBox, Classifier
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import all_corruptions, find_corruption, find_transformations
from robustml.report.build import build_report
from robustml.report.model import Report
from robustml.report.verify import verify_run
from robustml.runs import merge_runs, run_target
from robustml.sampling import Streams
from robustml.stress.folder import RunFolder
from robustml.stress.runner import Shard
from robustml.stress.suite import load_suite
from robustml.targets import Target
from tests.stress.toy import Counting, masked, points, records_of, run, target

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
N = 30
SUITE = """
schema = 1
name = "weather"
[[attack]]
id = "noise"
use = "noise"
options = { draws = 2 }
[diagnostics]
samples = 4
noise_draws = 2
[corruptions]
kinds = ["shot-noise", "motion-blur", "fog", "jpeg", "saturate"]
severities = [1, 3, 5]
[[corruptions.worst]]
use = "spatial"
options = { rotation = 8.0, translation = 0.04, rotations = 3, translations = 3 }
"""


class Net(nn.Module):
    """A small network that answers by where the light is, so that blur, noise and movement change it."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.first, self.last = nn.Linear(64, 16).double(), nn.Linear(16, 3).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last((self.first(x.flatten(1) - 0.5)).tanh())
        return answer


def images(wrong: int = 4) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = points(N, 64).reshape(N, *SHAPE)
    with torch.no_grad():
        y = Net()(torch.from_numpy(x)).argmax(1).numpy().copy()
    y[:wrong] = (y[:wrong] + 1) % 3
    return x, y


def model(module: nn.Module | None = None) -> Classifier:
    spec = InputSpec(shape=SHAPE, dtype="float64")
    return Classifier((module or Net()).eval(), inputs=spec, classes=3)


def chosen(folder: Path, *, suite: str = SUITE, **changes: Any) -> Target:
    settings: dict[str, Any] = {"model": model(), "data": images(), "suite": suite, **changes}
    return target(folder, **settings)


def drawn(samples: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """The rows that are looked at if a suite wants so many."""
    places = Streams.derive(seed, "corruption/samples", torch.arange(N)).uniform(dtype=torch.float64)
    return np.sort(places.argsort().numpy()[:samples])


def expected(name: str, severity: int, samples: int = N, seed: int = 0) -> int:
    """How many samples are right under a corruption, computed beside the harness."""
    (x, y), rows = images(), drawn(samples, seed)
    streams = Streams.derive(seed, f"corruption/{name}", torch.from_numpy(rows))
    spec = InputSpec(shape=SHAPE, dtype="float64")
    z = find_corruption(name).apply(torch.from_numpy(x[rows]), severity, spec=spec, streams=streams)
    with torch.no_grad():
        return int((Net()(z).argmax(1).numpy() == y[rows]).sum())


def test_every_figure_follows_from_the_predictions(tmp_path: Path) -> None:
    section = run(chosen(tmp_path), tmp_path / "run").corruptions
    assert section is not None
    assert (section.samples, section.clean.count) == (N, 26)
    found = {kind.name: kind for kind in section.kinds}
    assert list(found) == ["shot-noise", "motion-blur", "fog", "jpeg", "saturate"]
    counts = []
    for name in list(found)[:4]:
        cells = {cell.severity: cell.accuracy for cell in found[name].severities}
        assert {s: cell.count for s, cell in cells.items()} == {s: expected(name, s) for s in (1, 3, 5)}
        counts += [cell.count for cell in cells.values()]
        mean = found[name].accuracy
        assert mean is not None
        assert mean.value == pytest.approx(sum(cell.count for cell in cells.values()) / (3 * N))
    assert len(set(counts)) > 3
    assert (found["saturate"].status, found["saturate"].accuracy) == ("skipped", None)
    assert found["saturate"].reason == "it needs 3 channels and the inputs have 1"
    assert section.accuracy is not None
    assert section.accuracy.value == pytest.approx(sum(counts) / (12 * N))
    assert section.accuracy.low < section.accuracy.value < section.accuracy.high


def test_the_worst_of_the_grid_is_what_trying_everything_finds(tmp_path: Path) -> None:
    counting = Counting(Net())
    section = run(chosen(tmp_path, model=model(counting)), tmp_path / "run").corruptions
    assert section is not None
    (worst,) = section.worst
    entry = find_transformations("spatial")
    grid = entry.function(InputSpec(shape=SHAPE, dtype="float64"), **entry.check(worst.options))
    x, y = images()
    stood = np.ones(N, dtype=bool)
    for place in range(len(grid)):
        with torch.no_grad():
            z = grid.apply(torch.from_numpy(x), torch.full((N,), place))
            stood &= Net()(z).argmax(1).numpy() == y
    assert worst.accuracy is not None
    assert (worst.transformations, worst.attempted) == (27, 26)
    assert worst.accuracy.count == int(stood.sum()) == 26 - worst.broken
    assert 0 < worst.broken < 26
    # It is no part of the mean, and samples leave once they are broken.
    (record,) = [r for r in records_of(tmp_path / "run") if r.stage == "worst/spatial" and r.chunk == 0]
    assert record.forward < record.attempted * 27


def test_the_score_is_the_mean_and_the_overall_the_weakest(tmp_path: Path) -> None:
    report = run(chosen(tmp_path), tmp_path / "run")
    assert report.corruptions is not None
    assert report.corruptions.accuracy is not None
    corruption, evasion, overall = report.scores.corruption, report.scores.evasion, report.scores.overall
    assert corruption is not None
    assert evasion is not None
    assert overall is not None
    assert corruption.value == 100 * report.corruptions.accuracy.value
    assert overall.value == min(corruption.value, evasion.value)
    assert overall.low == min(corruption.low, evasion.low)
    plain = run(chosen(tmp_path, suite=SUITE.partition("[corruptions]")[0]), tmp_path / "plain")
    assert plain.corruptions is None
    assert plain.scores.corruption is None
    assert plain.scores.overall == plain.scores.evasion


def test_only_so_many_samples(tmp_path: Path) -> None:
    suite = SUITE.replace("severities = [1, 3, 5]", "severities = [5, 2]\nsamples = 11")
    report = run(chosen(tmp_path, suite=suite), tmp_path / "run")
    section = report.corruptions
    assert section is not None
    assert (section.samples, section.clean.total) == (11, 11)
    fog = next(kind for kind in section.kinds if kind.name == "fog")
    assert [(c.severity, c.accuracy.count) for c in fog.severities] == [
        (2, expected("fog", 2, 11)),
        (5, expected("fog", 5, 11)),
    ]
    assert section.worst[0].accuracy is not None
    assert section.worst[0].accuracy.total == 11
    assert verify_run(tmp_path / "run", chosen(tmp_path, suite=suite), CPU).passed
    many = SUITE.replace("severities = [1, 3, 5]", "samples = 5000")
    whole = run(chosen(tmp_path, suite=many), tmp_path / "many").corruptions
    assert whole is not None
    assert whole.samples == N


def test_all_kinds_are_written_into_the_plan(tmp_path: Path) -> None:
    suite = SUITE.partition("[corruptions]")[0] + "[corruptions]\nseverities = [2]\n"
    report = run(chosen(tmp_path, suite=suite), tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["suite"]["corruptions"]["kinds"] == list(all_corruptions())
    assert report.corruptions is not None
    ran = [kind.name for kind in report.corruptions.kinds if kind.status == "ran"]
    assert ran == [name for name in all_corruptions() if name != "saturate"]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_changes_nothing(tmp_path: Path, batch: int) -> None:
    one = run(chosen(tmp_path), tmp_path / "one")
    other = run(chosen(tmp_path, batch=batch), tmp_path / "other")
    for part in ("kinds", "accuracy", "clean"):
        assert getattr(one.corruptions, part) == getattr(other.corruptions, part)
    assert one.corruptions is not None
    assert other.corruptions is not None
    assert one.corruptions.worst == other.corruptions.worst


def test_another_seed_draws_other_noise(tmp_path: Path) -> None:
    suite = SUITE.replace("[1, 3, 5]", "[5]")
    labels = []
    for seed in (0, 1):
        run(chosen(tmp_path, suite=suite, seed=seed), tmp_path / str(seed))
        labels.append([r.labels for r in records_of(tmp_path / str(seed)) if "shot-noise" in r.stage])
    assert labels[0] != labels[1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_an_interrupted_run_goes_on_to_the_same_report(tmp_path: Path, share: float) -> None:
    undisturbed = Counting(Net())
    whole = run(chosen(tmp_path, model=model(undisturbed)), tmp_path / "whole")
    failing = Counting(Net(), fail_after=round(share * undisturbed.samples))
    with pytest.raises(KeyboardInterrupt):
        run_target(chosen(tmp_path, model=model(failing)), out=tmp_path / "run", device="cpu")
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    resumed = run(chosen(tmp_path, model=model(Counting(Net()))), tmp_path / "run", resume=True)
    assert masked(resumed) == masked(whole)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().startswith(before)
    stages = [(r.stage, r.chunk, r.labels, r.choices) for r in records_of(tmp_path / "run")]
    assert stages == [(r.stage, r.chunk, r.labels, r.choices) for r in records_of(tmp_path / "whole")]


def test_shards_add_up(tmp_path: Path) -> None:
    whole = run(chosen(tmp_path), tmp_path / "whole")
    for index in (1, 2):
        run_target(chosen(tmp_path), out=tmp_path / f"{index}", device="cpu", shard=Shard(index, 2))
    merged = merge_runs([tmp_path / "1", tmp_path / "2"], tmp_path / "merged", chosen(tmp_path))
    assert masked(merged)["corruptions"] == masked(whole)["corruptions"]


def test_labels_are_enough(tmp_path: Path) -> None:
    def predict(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return Net()(torch.from_numpy(x)).argmax(1).numpy()

    spec = InputSpec(shape=SHAPE, dtype="float64")
    box = BlackBox(predict, inputs=spec, classes=3, outputs="labels", digest="0" * 64)
    report = run(chosen(tmp_path, model=box), tmp_path / "run")
    white = run(chosen(tmp_path), tmp_path / "white")
    assert report.corruptions is not None
    assert report.corruptions == white.corruptions
    assert verify_run(tmp_path / "run", chosen(tmp_path, model=box), CPU).passed


def test_what_is_no_image_is_skipped_with_the_reason(tmp_path: Path) -> None:
    report = run(target(tmp_path, suite=SUITE), tmp_path / "run")
    section = report.corruptions
    assert section is not None
    assert section.accuracy is None
    assert report.scores.corruption is None
    assert report.scores.overall == report.scores.evasion
    reasons = {part.reason for part in (*section.kinds, *section.worst)}
    assert reasons == {"the inputs are not images: their shape is [6]"}
    assert {part.status for part in (*section.kinds, *section.worst)} == {"skipped"}
    assert not any("corruption" in reason for reason in report.distrust)
    assert "Corruptions: not measured (the inputs are not images" in " ".join(str(report).split())
    gated = run(target(tmp_path, suite=SUITE, gate={"corruption": ">= 1"}), tmp_path / "gated")
    assert gated.gate.passed is False
    assert gated.gate.conditions[0].reason == "the figure was not measured"


def test_a_gate_is_judged_on_the_lower_end(tmp_path: Path) -> None:
    report = run(chosen(tmp_path), tmp_path / "run")
    low = report.scores.corruption.low if report.scores.corruption else 0.0
    for bound, passed in ((low - 0.1, True), (low + 0.1, False)):
        gate = {"corruption": f">= {bound:.3f}"}
        trusted = dataclasses.replace(chosen(tmp_path, suite=SUITE), gate=gate)
        plan, folder = run_target(trusted, out=tmp_path / f"gate-{passed}", device="cpu")
        condition = build_report(plan, folder, trusted.data).gate.conditions[0]
        assert condition.value == pytest.approx(low)
        assert condition.passed is (passed and report.trusted)


def test_a_part_that_was_not_done_is_not_guessed(tmp_path: Path) -> None:
    run(chosen(tmp_path), tmp_path / "run")
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"stage":"corruption/fog-3","chunk":1' not in line]
    assert len(kept) == len(lines) - 1
    (tmp_path / "run" / "journal.jsonl").write_text("".join(kept))
    folder, plan = RunFolder.open(tmp_path / "run")
    report = build_report(plan, folder, chosen(tmp_path).data)
    assert report.corruptions is not None
    fog = next(kind for kind in report.corruptions.kinds if kind.name == "fog")
    assert fog.status == "partial"
    assert [cell.severity for cell in fog.severities] == [1, 5]
    assert fog.accuracy is report.corruptions.accuracy is report.scores.corruption is None
    assert report.trusted is False
    assert "corruption fog is incomplete: the budget ran out: 8 samples were not seen" in report.distrust


def test_a_time_budget_ends_a_search(tmp_path: Path) -> None:
    only = SUITE.replace('kinds = ["shot-noise", "motion-blur", "fog", "jpeg", "saturate"]', "kinds = []")
    report = run(chosen(tmp_path, suite=only), tmp_path / "run", time_budget=1e-9)
    assert report.corruptions is not None
    (worst,) = report.corruptions.worst
    assert (worst.status, worst.accuracy) == ("partial", None)
    assert any("corruption spatial is incomplete" in reason for reason in report.distrust)


# Replay.


def problems(path: Path, **options: Any) -> tuple[str, ...]:
    return verify_run(path, chosen(path.parent), CPU, **options).problems


def rewrite(out: Path, stage: str, **changes: Any) -> None:
    """Tamper with the first record of a stage and make the report follow, as a careful forger would."""
    folder, plan = RunFolder.open(out)
    first = next(record for record in folder.records if record.stage == stage)
    forged = first.model_copy(update=changes)
    lines = [(forged if r is first else r).model_dump_json(exclude_defaults=True) for r in folder.records]
    (out / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    folder, plan = RunFolder.open(out)
    build_report(plan, folder, chosen(out.parent).data).save(out / "report.json")


def record(out: Path, stage: str) -> Any:
    return next(r for r in records_of(out) if r.stage == stage)


def test_an_honest_run_is_replayed_and_done_again(tmp_path: Path) -> None:
    run(chosen(tmp_path), tmp_path / "run")
    found = verify_run(tmp_path / "run", chosen(tmp_path), CPU, rerun=1000)
    assert found.passed, found.problems
    broken = sum(choice >= 0 for r in records_of(tmp_path / "run") for choice in r.choices)
    assert found.corrupted == 12 * N + broken
    assert found.units == len(records_of(tmp_path / "run"))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (("accuracy", "value"), lambda old: old + 0.01),
        (("accuracy", "low"), lambda old: old + 0.01),
        (("clean", "count"), lambda old: old + 1),
        (("kinds", 2, "severities", 1, "accuracy", "count"), lambda old: old + 1),
        (("kinds", 2, "accuracy", "high"), lambda old: old - 0.01),
        (("kinds", 4, "reason"), lambda old: "no need"),
        (("worst", 0, "broken"), lambda old: old - 1),
        (("worst", 0, "options", "rotation"), lambda old: old / 2),
        (("passes", "forward"), lambda old: old + 1),
    ],
)
def test_no_figure_of_the_section_can_be_altered(tmp_path: Path, path: Any, change: Any) -> None:
    run(chosen(tmp_path), tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    data = json.loads(file.read_text())
    inner = data["corruptions"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    file.write_text(json.dumps(data))
    assert Report.load(file).corruptions is not None
    assert any(problem.startswith("report: corruptions.") for problem in problems(tmp_path / "run"))


def test_a_forged_prediction_is_replayed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(chosen(tmp_path), out)
    _, y = images()
    labels = record(out, "corruption/fog-5").labels
    wrong = next(i for i, label in enumerate(labels) if label != y[i])
    rewrite(out, "corruption/fog-5", labels=[*labels[:wrong], int(y[wrong]), *labels[wrong + 1 :]])
    (problem,) = problems(out)
    assert problem.startswith(f"sample {wrong}: corruption/fog-5: the model answers {labels[wrong]}")
    assert any("done again, it differs on labels" in p or p == problem for p in problems(out, rerun=1000))


def test_a_forged_transformation_is_replayed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(chosen(tmp_path), out)
    choices = record(out, "worst/spatial").choices
    broken = next(i for i, choice in enumerate(choices) if choice >= 0)
    # The last place is the image as it is, which breaks nothing.
    rewrite(out, "worst/spatial", choices=[*choices[:broken], 26, *choices[broken + 1 :]])
    assert any("worst/spatial: the model answers" in problem for problem in problems(out))
    rewrite(out, "worst/spatial", choices=[*choices[:broken], 99, *choices[broken + 1 :]])
    assert any("names transformations that there are not" in problem for problem in problems(out))


def test_a_survivor_that_is_none_is_found_by_searching_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(chosen(tmp_path), out)
    held = record(out, "worst/spatial")
    row = next(i for i, choice in enumerate(held.choices) if choice >= 0)
    positions = [p for p in range(8) if p >= 4]  # the first four are misclassified as they are
    label = int(images()[1][positions[row]])
    rewrite(
        out,
        "worst/spatial",
        labels=[*held.labels[:row], label, *held.labels[row + 1 :]],
        choices=[*held.choices[:row], -1, *held.choices[row + 1 :]],
    )
    assert problems(out) == ()
    assert any("worst/spatial, chunk 0: done again" in problem for problem in problems(out, rerun=1000))


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("corruption/fog-5", {"labels": [0]}, "does not hold one label per sample"),
        ("corruption/fog-5", {"labels": [0] * 9, "attempted": 9}, "does not hold one label per sample"),
        ("worst/spatial", {"choices": [-1, 0]}, "does not name a transformation for each broken sample"),
        ("worst/spatial", {"choices": []}, "does not name a transformation for each broken sample"),
    ],
)
def test_records_that_do_not_fit_are_refused(
    tmp_path: Path, stage: str, changes: dict[str, Any], said: str
) -> None:
    run(chosen(tmp_path), tmp_path / "run")
    with pytest.raises(InputError, match=said):
        rewrite(tmp_path / "run", stage, **changes)


# Settings.


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"fog"', '"fogg"', "corruption 'fogg' is not known; did you mean 'fog'?"),
        ('"fog"', '"jpeg"', "it names something twice"),
        ("[1, 3, 5]", "[1, 1]", "it names something twice"),
        ("[1, 3, 5]", "[0]", "corruptions.severities.0"),
        ("[1, 3, 5]", "[6]", "corruptions.severities.0"),
        ("[1, 3, 5]", "[]", "corruptions.severities"),
        ("severities", "severity", "did you mean 'severities'?"),
        ('use = "spatial"', 'use = "spacial"', "did you mean 'spatial'?"),
        ("rotation = 8.0", "rotation = 200.0", "spatial: rotation=200.0 is not accepted"),
        (" rotations = 3", " rotatoins = 3", "did you mean 'rotations'?"),
        ("severities = [1, 3, 5]", "samples = 0", "corruptions.samples"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert SUITE.count(old) == 1
    path = tmp_path / "mine.toml"
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        load_suite(str(path))
    assert said in str(caught.value)


def test_settings_that_ask_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE.partition("[corruptions]")[0] + "[corruptions]\nkinds = []\n")
    with pytest.raises(InputError, match="names neither a corruption nor transformations"):
        load_suite(str(path))
