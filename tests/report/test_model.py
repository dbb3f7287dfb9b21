from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustml import __version__
from robustml.errors import InputError, RunError
from robustml.report import Report
from tests.report.hostile import HOSTILE
from tests.report.sample import attack, bare, named, report, tabular, untrusted

SAMPLES = [report, untrusted, tabular, bare]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["robustml.report/1", "robustml.report/2", *HOSTILE]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("make", SAMPLES)
def test_json_round_trip_is_exact(make: Any) -> None:
    first = make()
    text = first.to_json()
    again = Report.from_json(text)
    assert again == first
    assert again.to_json() == text
    assert Report.from_json(text.encode()) == first


def test_json_is_sorted_ascii_and_ends_in_a_line_break() -> None:
    text = named("日本語 \x9b").to_json()
    data = json.loads(text)
    assert text.endswith("}\n")
    assert text.isascii()
    assert list(data) == sorted(data)
    assert data["schema"] == "robustml.report/1"
    assert "schema_" not in data


def test_options_become_what_json_can_hold() -> None:
    options = {"norms": ("l2", "linf"), "limit": math.inf, "none": math.nan, "seen": {2, 1}, "how": Path("x")}
    plain = attack("a", 1, 0, options=options).options
    assert plain == {"norms": ["l2", "linf"], "limit": "inf", "none": "nan", "seen": [1, 2], "how": "x"}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def _refused(text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        Report.from_json(text, where="report.json")
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 800
    assert message.startswith("report.json")
    return message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("[1]", "holds a list, not a report"),
        ("null", "holds nothing, not a report"),
        ("{}", "it has no schema"),
        ('{"schema": 1}', "schema=1 is not 'robustml.report/1'"),
        ('{"schema": "other/1"}', "schema='other/1' is not"),
        ('{"schema": "robustml.report/2"}', "newer than 'robustml.report/1'"),
        ('{"schema": "robustml.report/1"}', "robustml is missing"),
        ('{"schema": "robustml.report/1", "seconds": NaN}', "NaN is not a number that JSON has"),
        ('{"schema": "robustml.report/1", "seconds": 1e999}', "seconds=inf is not accepted"),
        ('{"schema": "robustml.report/1", "seed": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"schema": "robustml.report/1", "seed": 1' + "0" * 400 + "}", "seed=1000"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_not_a_report_is_refused_in_one_line(text: str | bytes, says: str) -> None:
    assert says in _refused(text)


@pytest.mark.parametrize("depth", [20, 300])
def test_options_nested_too_deeply_are_refused(depth: int) -> None:
    whole = report().to_json()
    deep = '{"a":' * depth + "1" + "}" * depth
    assert "deep" in _refused(whole.replace('"shape": [', f'"deep": {deep}, "shape": [', 1))


def test_another_version_is_named_as_the_likely_reason() -> None:
    data = json.loads(report().to_json())
    data.update(robustml="9.9", extra=1)
    message = _refused(json.dumps(data))
    assert "extra is not known" in message
    assert message.endswith(f"; it was written by robustml 9.9, this is {__version__}")


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in items for place in [(*path, key), *_places(value, (*path, key))]]


SMALL = json.loads(bare().to_json())
PLACES = _places(SMALL)


def _read_or_message(text: str) -> Report | str:
    try:
        return Report.from_json(text)
    except InputError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=json_values, remove=st.booleans())
def test_a_damaged_report_is_read_or_refused_and_nothing_else(place: Any, value: Any, remove: bool) -> None:
    data = copy.deepcopy(SMALL)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    try:
        text = json.dumps(data)
    except ValueError:  # an integer of more digits than Python turns into text
        return
    found = _read_or_message(text)
    if isinstance(found, str):
        assert found.isprintable()
        return
    assert Report.from_json(found.to_json()) == found
    for rendered in (str(found), found.to_html(), found.to_markdown(), found.to_junit()):
        assert rendered.encode()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.binary(), json_values.map(lambda value: json.dumps(value))))
def test_junk_is_refused_and_nothing_else(text: str | bytes) -> None:
    with pytest.raises(InputError) as caught:
        Report.from_json(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", [".json", ".html", ".md", ".xml", ".txt", ".HTML"])
def test_save_writes_the_format_that_the_suffix_names(tmp_path: Path, suffix: str) -> None:
    made = report()
    renderings = {
        ".json": made.to_json(),
        ".html": made.to_html(),
        ".md": made.to_markdown(),
        ".xml": made.to_junit(),
        ".txt": str(made),
    }
    made.save(tmp_path / f"report{suffix}")
    assert (tmp_path / f"report{suffix}").read_text(encoding="utf-8") == renderings[suffix.lower()]


def test_save_refuses_other_suffixes_and_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in one of \.json, \.html, \.md, \.xml, \.txt"):
        report().save(tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


def test_save_html_takes_any_name_and_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    report().save_html(tmp_path / "page")
    assert (tmp_path / "page").read_text(encoding="utf-8") == report().to_html()
    with pytest.raises(RunError, match="cannot write"):
        report().save_html(tmp_path)


def test_load_reads_a_file_or_a_run_folder(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    assert Report.load(tmp_path) == Report.load(str(tmp_path / "report.json")) == report()


@pytest.mark.parametrize("name", ["missing.json", "empty-folder", "nul\0byte"])
def test_load_says_what_it_cannot_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(InputError, match="cannot read") as caught:
        Report.load(tmp_path / name)
    assert str(caught.value).isprintable()


def test_repr_is_short() -> None:
    assert repr(report()).startswith("<Report on 'digits': 'Of 380 test inputs")
