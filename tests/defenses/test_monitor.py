"""The runtime view: counts, the text that is scraped, and alarms that are as rare as stated."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom, fisher_exact, ks_2samp
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.drift import REFUSED, REJECTED, Seen, compare_windows
from robustml.defenses.guards.monitor import Monitor
from robustml.defenses.guards.validation import RefusedInput, Validate
from robustml.guards import Answer, Guard

SPEC = rml.InputSpec(shape=(4,), bounds=(-9.0, 9.0), features=("a", "b", "c", "d"))


class Shy(Guard):
    """Rejects what has a large last feature."""

    name = "shy"
    rejects = True

    def score(self, x: Tensor, model: Answer) -> Tensor:
        return x[:, 3] - 2.0


class First(nn.Module):
    """Three classes by the first feature."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-x[:, 0], 0 * x[:, 0] + 0.3, x[:, 0]], dim=1)


def clean(n: int, seed: int | np.random.Generator = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def guarded(*guards: Guard) -> rml.Guarded:
    return rml.Guarded(rml.Classifier(First().eval(), inputs=SPEC, classes=3), guards=list(guards)).eval()


def monitor(*guards: Guard, **options: Any) -> Monitor:
    return Monitor(guarded(*guards), clean(500), **options)


def test_answers_labels_and_reasons() -> None:
    watch = monitor(Validate(), Shy())
    x = np.zeros((5, 4), np.float32)
    x[:, 0] = [-1, 0, 1, 1, 1]
    x[3, 1], x[4, 3] = 50, 3
    answers = watch.predict(x)
    assert answers.labels.tolist() == [0, 1, 2, -1, -1]
    refused, shy = answers.rejections
    assert (refused.row, refused.guard, refused.reason) == (3, "0:validate", "bounds")
    assert refused.text == "row 3, 'b': bounds: 50 came; [-9, 9] is accepted"
    assert (shy.row, shy.guard, shy.reason) == (4, "1:shy", "score")
    assert shy.text == "row 4, 1:shy: score 1"
    assert watch.counters() == {
        "calls": 1,
        "inputs": 5,
        "accepted": 3,
        "rejected": 2,
        "labels": {0: 1, 1: 1, 2: 1},
        "reasons": {"0:validate": {"bounds": 1}, "1:shy": {"score": 1}},
    }


def test_the_answers_are_those_of_the_guarded_model() -> None:
    model = guarded(Validate.fit(clean(500, 1)), Shy())
    watch = Monitor(model, clean(500), batch=7)
    x = 2 * clean(100, 5)
    wanted = model(torch.from_numpy(x)).argmax(1).numpy()
    assert watch.predict(x).labels.tolist() == np.where(wanted == 3, -1, wanted).tolist()
    assert (wanted == 3).sum() not in {0, 100}


def test_what_is_no_input_at_all_counts_as_one() -> None:
    watch = monitor(Validate())
    assert watch.predict(b"no").labels.tolist() == [-1]
    assert watch.predict({"a": [1], "b": [1]}).rejections[0].reason == "missing-column"
    assert watch.predict(np.zeros((3, 5))).rejections[0].row is None
    assert watch.predict([]).labels.tolist() == []
    now = watch.counters()
    assert (now["inputs"], now["rejected"], now["calls"]) == (3, 3, 4)
    assert sum(now["reasons"]["0:validate"].values()) == 3


def test_without_validation_only_what_is_no_input_is_refused() -> None:
    watch = Monitor(rml.Classifier(First().eval(), inputs=SPEC, classes=3), clean(50))
    assert watch.predict(np.full((1, 4), 3.3)).labels.tolist() == [2]
    assert watch.predict(np.full((1, 4), np.nan)).rejections[0].guard == "entry"


def test_mode_raise_raises_and_counts() -> None:
    watch = monitor(Validate(mode="raise"))
    with pytest.raises(RefusedInput, match="row 1"):
        watch.predict(np.array([[0, 0, 0, 0], [50, 0, 0, 0]]))
    assert watch.counters()["rejected"] == 1
    assert watch.counters()["accepted"] == 1


def test_a_million_rows_leave_the_last_ones_behind() -> None:
    watch = monitor(Validate(), keep=100, batch=65536)
    x = np.zeros((10**6, 4), np.float32)
    x[-30:, 0] = 5
    watch.predict(x)
    assert watch.counters()["inputs"] == 10**6
    assert watch.drift().inputs == 100
    (classes,) = [test for test in watch.drift(window=30).tests if test.name == "classes"]
    assert "class 2: 100.0 %" in classes.says


def parsed(text: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Read the text exposition format 0.0.4 as its specification has it."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    order: list[str] = []
    for line in text.split("\n")[:-1]:
        if match := re.fullmatch(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)", line):
            assert match[1] not in helped
            helped.add(match[1])
            continue
        if match := re.fullmatch(
            r"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)", line
        ):
            # One TYPE line per metric, before its samples.
            assert match[1] not in kinds
            assert match[1] not in found
            kinds[match[1]] = match[2]
            continue
        match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)", line)
        assert match, line
        name, inner, value = match[1], match[2] or "", match[3]
        label = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
        assert re.fullmatch(rf"(?:{label}(?:,{label})*,?)?", inner), inner
        unescape = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
        pairs = [
            (key, re.sub(r"\\[\\\"n]", lambda hit, known=unescape: known[hit[0]], text))
            for key, text in re.findall(label, inner)
        ]
        assert len({key for key, _ in pairs}) == len(pairs)
        assert name in kinds
        # All lines of a metric are one group, and no two have the same labels.
        if not order or order[-1] != name:
            assert name not in order
            order.append(name)
        samples = found.setdefault(name, {})
        assert frozenset(pairs) not in samples
        samples[frozenset(pairs)] = float(value)
    assert set(found) <= helped
    return found


def test_prometheus_reads_it() -> None:
    watch = monitor(Validate(), Shy())
    x = 3 * clean(200, 3)
    x[0, 0] = np.nan
    watch.predict(x)
    watch.predict("nonsense")
    now, found = watch.counters(), parsed(watch.prometheus())
    assert found["robustml_calls_total"] == {frozenset(): 2}
    assert found["robustml_inputs_total"] == {frozenset(): 201}
    assert found["robustml_accepted_total"] == {
        frozenset({("class", str(label))}): count for label, count in now["labels"].items()
    }
    assert found["robustml_rejected_total"] == {
        frozenset({("guard", guard), ("reason", reason)}): count
        for guard, counts in now["reasons"].items()
        for reason, count in counts.items()
    }
    assert sum(found["robustml_rejected_total"].values()) == now["rejected"]
    assert parsed(monitor().prometheus())["robustml_inputs_total"] == {frozenset(): 0}


def test_strange_names_are_escaped() -> None:
    class Odd(Shy):
        name = 'od"d\\\n'

    watch = monitor(Odd())
    watch.predict(np.full((1, 4), 3.0))
    labels = {frozenset({("guard", '0:od"d\\\n'), ("reason", "score")}): 1.0}
    assert parsed(watch.prometheus())["robustml_rejected_total"] == labels


def test_many_threads_lose_nothing() -> None:
    watch = monitor(Validate(), Shy(), keep=64)
    x = 3 * clean(40, 3)
    alone = monitor(Validate(), Shy())
    alone.predict(x)
    once = alone.counters()

    def work() -> None:
        for _ in range(25):
            watch.predict(x)
            watch.counters()
            watch.drift()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = watch.counters()
    assert now["calls"] == 200
    assert now["inputs"] == 200 * 40
    assert now["labels"] == {label: 200 * count for label, count in once["labels"].items()}
    assert now["reasons"] == {
        guard: {reason: 200 * count for reason, count in counts.items()}
        for guard, counts in once["reasons"].items()
    }


ANYTHING = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.lists(st.floats() | st.text(max_size=3), max_size=5),
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "e"]), st.lists(st.floats(), min_size=2, max_size=2)
    ),
    hnp.arrays(np.float64, st.sampled_from([(0, 4), (4,), (1, 4), (3, 4), (3, 5)]), elements=st.floats()),
)


@given(st.lists(ANYTHING, min_size=1, max_size=4))
@settings(max_examples=500)
def test_every_input_is_counted_once_whatever_comes(raws: list[Any]) -> None:
    watch = monitor(Validate(), Shy(), keep=8)
    answered = [watch.predict(raw) for raw in raws]
    labels = np.concatenate([answers.labels for answers in answered])
    now, found = watch.counters(), parsed(watch.prometheus())
    assert now["calls"] == len(raws)
    assert now["inputs"] == len(labels) == now["accepted"] + now["rejected"]
    assert now["rejected"] == (labels == -1).sum() == sum(sum(of.values()) for of in now["reasons"].values())
    assert now["labels"] == {label: (labels == label).sum() for label in range(3)}
    assert sum(found.get("robustml_rejected_total", {}).values()) == now["rejected"]
    assert not len(labels) or watch.drift().inputs == min(len(labels), 8)


# Of so many simulated windows, and at a rate at which alarms are frequent enough to be counted.
LOOKS, ALPHA = 1500, 0.1


def most(looks: int = LOOKS, alpha: float = ALPHA) -> int:
    """More alarms than this have a probability of 1 in 10,000, if each has a probability of alpha."""
    return int(binom.ppf(1 - 1e-4, looks, alpha))


@pytest.mark.parametrize(("before", "now"), [(300, 100), (150, 149), (60, 400)])
@pytest.mark.parametrize("kind", ["continuous", "ties"])
def test_without_drift_alarms_are_as_rare_as_stated(before: int, now: int, kind: str) -> None:
    rng = np.random.default_rng(before + now)

    def draw(n: int) -> Seen:
        values = rng.normal(size=(n, 5)) if kind == "continuous" else rng.integers(0, 3, (n, 5)).astype(float)
        labels = rng.choice([REFUSED, REJECTED, 0, 1, 2, 3], n, p=[0.02, 0.03, 0.5, 0.3, 0.1, 0.05])
        return Seen(values, labels)

    alarms: Counter[str] = Counter()
    for _ in range(LOOKS):
        found = compare_windows(draw(before), draw(now), ALPHA, 4, np.arange(5), ())
        alarms["any"] += found.alarm
        alarms.update(test.name for test in found.tests if test.alarm)
    assert alarms["any"] <= most()
    for name in ("rejections", "classes", "features"):
        assert alarms[name] <= most(alpha=ALPHA / 3)
    assert alarms["any"] > 0


def test_without_drift_a_whole_monitor_keeps_its_rate() -> None:
    """With a fitted guard, whose limits are known to the reference and to the window alike."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(300):
        model = guarded(Validate.fit(clean(200, rng), fpr=0.05, margin=0.0), Shy())
        watch = Monitor(model, clean(150, rng), keep=100)
        watch.predict(clean(100, rng))
        alarms += watch.drift(alpha=ALPHA).alarm
    assert 0 < alarms <= most(300)


@pytest.mark.parametrize(
    ("change", "name", "feature"),
    [
        (lambda x: x + np.array([0, 0.5, 0, 0]), "features", 1),
        (lambda x: x * np.array([1, 1, 2, 1]), "features", 2),
        (lambda x: x + np.array([1.5, 0, 0, 0]), "classes", 0),
        (lambda x: x + np.array([0, 0, 0, 2.5]), "rejections", 3),
        (lambda x: np.where(np.arange(len(x))[:, None] % 4, x, np.nan), "rejections", None),
    ],
)
def test_drift_is_noticed_and_named(change: Any, name: str, feature: int | None) -> None:
    watch = monitor(Validate(), Shy())
    watch.predict(clean(500, 11))
    assert not watch.drift().alarm
    watch.predict(change(clean(500, 12)))
    found = watch.drift(window=500)
    assert found.alarm
    assert name in {test.name for test in found.tests if test.alarm}
    if feature is not None:
        assert found.moved[0].feature == feature
        assert found.moved[0].name == "abcd"[feature]
    assert str(found).startswith("alarm at 1 % on 500 inputs: ")


def test_the_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    before = Seen(rng.normal(size=(200, 2)).round(1), rng.choice([-1, 0, 1], 200, p=[0.1, 0.6, 0.3]))
    now = Seen(rng.normal(size=(90, 2)).round(1) + 0.4, rng.choice([-1, 0, 1], 90, p=[0.3, 0.3, 0.4]))
    found = compare_windows(before, now, 0.5, 2, np.arange(2), ("a", "b"))
    rejections, classes, features = found.tests
    table = [[int((s.labels < 0).sum()), int((s.labels >= 0).sum())] for s in (now, before)]
    assert rejections.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    table = [[int((s.labels == 0).sum()), int((s.labels == 1).sum())] for s in (now, before)]
    sides = [fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
    assert classes.p_value == pytest.approx(2 * min(sides))
    tests = [ks_2samp(before.values[:, i], now.values[:, i], method="exact") for i in range(2)]
    assert features.p_value == pytest.approx(2 * min(test.pvalue for test in tests))
    assert {moved.name: moved.distance for moved in found.moved} == pytest.approx(
        {"a": tests[0].statistic, "b": tests[1].statistic}
    )


def test_windows_of_which_nothing_can_be_said() -> None:
    nothing = Seen(np.full((5, 2), np.nan), np.full(5, REFUSED))
    some = Seen(np.zeros((500, 2)), np.zeros(500, np.int64))
    found = compare_windows(some, nothing, 0.01, 3, np.arange(2), ())
    assert [test.alarm for test in found.tests] == [True, False, False]
    assert all(math.isfinite(test.p_value) for test in found.tests)
    assert not compare_windows(nothing, nothing, 0.01, 3, np.arange(2), ()).alarm


def test_wide_inputs_are_watched_in_part() -> None:
    spec = rml.InputSpec(shape=(3, 40, 40))
    model = rml.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4800, 2)).eval(), inputs=spec, classes=2)
    rng = np.random.default_rng(0)
    watch = Monitor(model.eval(), rng.random((60, 3, 40, 40), np.float32))
    watch.predict(rng.random((60, 3, 40, 40), np.float32) ** 4)
    found = watch.drift()
    assert found.alarm
    assert len(found.moved) == 20
    assert all(moved.feature % 5 == 0 for moved in found.moved)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Monitor(First(), clean(5)), "model is First"),  # type: ignore[arg-type]
        (lambda: Monitor(guarded(), [1.0]), "reference="),  # type: ignore[arg-type]
        (lambda: Monitor(guarded(), clean(0)), "reference="),
        (lambda: Monitor(guarded(), clean(5) + 100), "reference holds no input that is accepted: row 0"),
        (lambda: Monitor(guarded(), clean(5), keep=0), "keep=0"),
        (lambda: Monitor(guarded(), clean(5), batch=True), "batch=True"),
        (lambda: monitor().drift(), "no inputs have come yet"),
        (lambda: monitor().drift(alpha=0.0), "alpha=0.0"),
        (lambda: monitor().drift(window=1001), "window=1001 is not a whole number from 1 to 1000"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(rml.InputError, match=message):
        make()


def test_a_model_in_training_mode_is_refused() -> None:
    model = rml.Classifier(nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), inputs=SPEC, classes=3)
    with pytest.raises(rml.InputError, match=r"Dropout at .* call model.eval\(\) first"):
        Monitor(model, clean(5))
