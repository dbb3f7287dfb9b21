from __future__ import annotations

import functools
import html
import itertools
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

import robustml.report
from robustml.report import Report
from robustml.report.model import ClassResult, Clean, Picture
from tests.report.hostile import HOSTILE, names
from tests.report.sample import bare, classes, named, report, tabular, threat, untrusted

SAMPLES: list[Callable[[], Report]] = [report, untrusted, tabular, bare]
VOID = {"meta", "img", "br"}
STYLE = Path(robustml.report.__file__).parent / "templates" / "report.css"


@functools.cache
def page_of(make: Callable[[], Report]) -> str:
    return make().to_html()


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and whether they nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text.append(" " if tag in {"td", "th", "dt", "dd", "p", "br"} else "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self) -> Iterator[tuple[str, str, str]]:
        for tag, attributes in self.elements:
            for name, value in attributes.items():
                yield tag, name, value or ""


def outline(source: str) -> list[tuple[str, list[str]]]:
    """The elements and the names of their attributes: what no user text may change."""
    return [(tag, sorted(attributes)) for tag, attributes in Page(source).elements]


def headings(source: str) -> list[tuple[int, str]]:
    return [(int(level), words) for level, words in re.findall(r"<h([1-6])[^>]*>(.*?)</h\1>", source, re.S)]


@pytest.mark.parametrize("make", SAMPLES)
def test_page_nests_and_loads_nothing(make: Any) -> None:
    source = page_of(make)
    page = Page(source)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.elements}
    assert "link" not in {tag for tag, _ in page.elements}
    for _, name, value in page.attributes():
        assert not name.startswith("on")
        if name.split(":")[-1] in {"src", "href", "srcset", "poster", "data", "action"}:
            assert value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in source
    assert re.findall(r"url\((?!#)", source) == []
    policy = next(
        a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("make", SAMPLES)
def test_headings_are_in_order(make: Any) -> None:
    levels = [level for level, _ in headings(page_of(make))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_sections_are_in_the_order_of_what_matters() -> None:
    sections = [words for level, words in headings(page_of(report)) if level == 2]
    assert sections == [
        "Score card",
        "Gate",
        "Attacks",
        "Security curve",
        "Classes",
        "Most fragile inputs",
        "Diagnostics",
        "How to reproduce",
        "Words used",
    ]


@pytest.mark.parametrize("make", SAMPLES)
def test_every_picture_has_words_and_every_id_is_its_own(make: Any) -> None:
    source = page_of(make)
    elements = Page(source).elements
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    for svg in re.findall(r"<svg.*?</svg>", source, re.S):
        label = re.match(
            r'<svg [^>]*role="img" aria-labelledby="([^"]+)"><title id="([^"]+)">[^<]+</title>', svg
        )
        assert label is not None
        assert label[1] == label[2]
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {value[1:] for _, name, value in Page(source).attributes() if name == "href"}
    references |= set(re.findall(r"url\(#([^)]+)\)", source))
    assert references <= set(ids)


def test_one_chart_per_threat_model_and_twelve_inputs_of_three_pictures() -> None:
    source = page_of(report)
    assert source.count("<svg ") == 2
    assert source.count("<img ") == 2 * 12 * 3


def test_distrust_stands_before_everything_else() -> None:
    source = page_of(untrusted)
    body = source[source.index("<body>") :]
    words = re.sub(r"<[^>]*>", " ", body).split()
    assert words[:2] == ["NOT", "TRUSTED"]
    assert "<title>NOT TRUSTED: Stress test of digits</title>" in source
    assert "NOT TRUSTED" not in page_of(report)


def test_figures_are_those_of_the_report() -> None:
    text = " ".join("".join(Page(page_of(report)).text).split())
    for words in (
        "Clean accuracy 91.1 %",
        "346 of 380 correct",
        "Evasion 36.1 [31.2, 40.9]",
        "Not measured: corruption, privacy.",
        "linf:0.1 adaptive 36.1 % [31.2, 40.9]",
        "apgd-ce ran gradient 346 193 55.8 % 61.0 60.0 1.2",
        "skipped: the time budget was spent",
        "FAIL evasion >= 40 31.2",
        "NOT MEASURED privacy >= 80 -",
        "The weakest class is",
        "Sample 17: distance 0.005, broken at eps 0.025 by apgd-ce",
        "robustml stress digits --threat linf:0.1",
        "21,930",
        "ab" * 32,
        "cd" * 32,
        "steps 100",
    ):
        assert words in text
    assert text.index("FAIL evasion") < text.index("NOT MEASURED privacy") < text.index("PASS clean")


def test_features_of_a_table_are_shown_with_their_change() -> None:
    text = " ".join("".join(Page(page_of(tabular)).text).split())
    assert "income: 41200 to 41650 age: 31 to 32" in text
    assert "oblivious" in text
    assert "23.7 % [19.4, 28.0]" in text


def test_what_was_not_measured_says_so() -> None:
    text = " ".join("".join(Page(page_of(bare)).text).split())
    assert "Not measured: evasion, corruption, privacy, overall." in text
    assert "No conditions for release were set." in text
    assert "No diagnostic was run" in text


def uncharted(name: str) -> Report:
    """Charts show no user's text, and they are slow to draw."""
    made = named(name)
    threats = [result.model_copy(update={"curve": []}) for result in made.threats]
    return made.model_copy(update={"threats": threats})


OUTLINE = outline(uncharted("plain name").to_html())


@settings(max_examples=50, deadline=None)
@given(names.filter(bool))
def test_no_name_changes_the_page(name: str) -> None:
    source = uncharted(name).to_html()
    assert outline(source) == OUTLINE
    assert "<script" not in source.lower()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", source)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isprintable() and name])
def test_names_come_out_as_written(name: str) -> None:
    assert name in "".join(Page(uncharted(name).to_html()).text)


def test_same_report_same_bytes() -> None:
    assert report().to_html() == page_of(report)


def test_page_stays_small_however_large_the_pictures() -> None:
    large = Picture(original="A" * 60_000, adversarial="A" * 60_000, difference="A" * 60_000)
    original = threat("linf:0.1", 137)
    heavy = [item.model_copy(update={"picture": large}) for item in original.fragile]
    made = report(threats=[original.model_copy(update={"fragile": heavy})])
    source = made.to_html()
    assert len(source.encode()) < 3_000_000
    assert source.count("<img ") == 3 * 11
    assert "The pictures of 1 more are left out" in source


def test_many_classes_show_the_weakest() -> None:
    many = [
        ClassResult(label=label, name=f"class-{label}", total=1000, correct=900, robust=label)
        for label in range(900)
    ]
    made = report(
        clean=Clean(accuracy=report().clean.accuracy, per_class=many),
        threats=[threat("linf:0.1", 137, per_class=list(reversed(many)))],
    )
    source = made.to_html()
    assert re.findall(r"class-\d+", source)[:3] == ["class-0", "class-0", "class-1"]
    assert "class-40<" not in source
    assert "the other 860 are in report.json" in source


def test_a_label_without_a_name_is_shown_as_a_number() -> None:
    item = threat("linf:0.1", 137).fragile[0].model_copy(update={"predicted": -1})
    made = report(threats=[threat("linf:0.1", 137, fragile=[item], per_class=classes(robust=True))])
    assert "predicted as -1" in made.to_html()


def test_notebook_gets_the_page_in_a_frame_that_runs_nothing() -> None:
    frame = report()._repr_html_()
    found = re.fullmatch(r'<iframe sandbox srcdoc="([^"]*)" title="[^"]*" style="[^"]*"></iframe>', frame)
    assert found is not None
    assert html.unescape(found[1]) == page_of(report)
    assert Page(named(HOSTILE[3])._repr_html_()).elements[0][1].keys() == {
        "sandbox",
        "srcdoc",
        "title",
        "style",
    }


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_on_light_dark_and_paper() -> None:
    palettes = [
        dict(re.findall(r"--([a-z-]+): (#\w{6})", part)) for part in STYLE.read_text().split(":root {")[1:]
    ]
    assert len(palettes) == 3
    for colors in palettes:
        pairs = [
            (text, ground) for text in ("ink", "muted", "good", "warn", "bad") for ground in ("page", "panel")
        ]
        for text, ground in [*pairs, ("on-alarm", "alarm")]:
            assert _contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
