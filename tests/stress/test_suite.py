"""Suites as data: what comes with the package, what users write, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.registry import Access
from robustml.stress.suite import AttackEntry, CurveAttack, Suite, complete, load_suite, suite_names, unusable
from tests.stress.toy import SUITE


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_suite(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_suites_of_the_package() -> None:
    assert {"quick", "standard"} <= set(suite_names())
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert suite.description
        for access in (Access.GRADIENT, Access.SCORE):
            for norm in ("linf", "l2"):
                # Under each of these something of the suite runs, and the curve can be drawn.
                assert any(unusable(entry, access, norm) is None for entry in suite.attack)
                assert any(unusable(entry, access, norm) is None for entry in suite.curve.attack)


@pytest.mark.parametrize("name", ["standrad", "qick"])
def test_unknown_name_suggests(name: str) -> None:
    assert "did you mean" in refusal(name)


def test_file_of_the_user(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, SUITE))
    assert [entry.id for entry in suite.attack] == ["fgsm", "apgd", "square"]
    assert suite.attack[1].options == {"loss": "margin", "steps": 8}
    assert suite.curve.points == [0.5, 1.5]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('use = "fgsm"', 'use = "fgms"', "did you mean 'fgsm'?"),
        ('use = "pgd"', 'use = "pdg"', "did you mean 'pgd'?"),
        ('id = "square"', 'id = "apgd"', "id 'apgd' is used twice"),
        ("options = { queries", "option = { queries", "did you mean 'options'?"),
        ('[[attack]]\nid = "fgsm"', '[[atack]]\nid = "fgsm"', "did you mean 'attack'?"),
        ("points = [0.5, 1.5]", "points = [0.5, 1.0]", "leave it out"),
        ("points = [0.5, 1.5]", "points = [-1.0]", "greater than 0"),
        ('id = "fgsm"', 'id = "a/b"', "attack.0.id"),
        ("schema = 1", "schema = 2", "schema"),
        ("samples = 16", "samples = 0", "diagnostics.samples"),
        ("noise_draws", "noise_drawz", "did you mean 'noise_draws'?"),
        ('use = "fgsm"', 'use = "fgsm"\nonly = ["scores"]', "attack.0.only.0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert SUITE.count(old) == 1
    assert expected in refusal(write(tmp_path, SUITE.replace(old, new)))


def test_no_attack_at_all(tmp_path: Path) -> None:
    assert "attack" in refusal(write(tmp_path, 'schema = 1\nname = "x"\nattack = []'))


@pytest.mark.parametrize("name", ["missing.toml", "", "a\0b.toml", "x" * 5000 + ".toml", "/dev/null/x.toml"])
def test_files_that_cannot_be_read(name: str) -> None:
    assert refusal(name)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    assert "UTF-8" in refusal(write(tmp_path, b"\xff\xfe"))


def test_options_are_checked_and_filled_in(tmp_path: Path) -> None:
    suite = complete(load_suite(write(tmp_path, SUITE)), Access.GRADIENT, ["linf"])
    assert suite.attack[1].options == {"loss": "margin", "steps": 8, "restarts": 1, "gradient": "true"}
    assert suite.attack[2].options["queries"] == 20
    assert suite.curve.attack[0].options["steps"] == 8


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 8 }\n\n[[attack]]", "stesp = 8 }\n\n[[attack]]", "did you mean 'steps'?"),
        ("steps = 8 }\n\n[[attack]]", "steps = 0 }\n\n[[attack]]", "steps=0"),
        ("steps = 8 }\n\n[[attack]]", 'steps = "8" }\n\n[[attack]]', "steps='8'"),
        ("steps = 8 }\n\n[curve]", "stesp = 8 }\n\n[curve]", "did you mean 'steps'?"),
        ("queries = 20", "queries = 20, p = 1.5", "p=1.5"),
    ],
)
def test_unacceptable_options(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert SUITE.count(old) == 1
    suite = load_suite(write(tmp_path, SUITE.replace(old, new)))
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        complete(suite, Access.GRADIENT, ["linf"])
    assert expected in str(caught.value)


def test_why_an_attack_cannot_be_used() -> None:
    entry = AttackEntry(id="a", use="square", only=["score", "gradient"])
    assert unusable(entry, Access.SCORE, "linf") is None
    assert (
        unusable(entry, Access.DECISION, "linf")
        == "the suite keeps it for models with score or gradient access"
    )
    assert unusable(entry, Access.SCORE, "l0") == "it has no l0 version"
    sparse = AttackEntry(id="a", use="fmn", norms=["l1", "l0"])
    assert unusable(sparse, Access.GRADIENT, "l1") is None
    assert unusable(sparse, Access.GRADIENT, "linf") == "the suite keeps it for l1 or l0"
    gradient = CurveAttack(use="pgd")
    assert unusable(gradient, Access.SCORE, "linf") == (
        "it needs gradient access and the model gives score access"
    )


WORDS = st.sampled_from(
    [
        "schema",
        "name",
        "attack",
        "id",
        "use",
        "options",
        "only",
        "curve",
        "points",
        "diagnostics",
        "fgsm",
        "x",
    ]
)
VALUES = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(allow_nan=True).map(repr), WORDS.map(lambda w: f'"{w}"')
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(map(str, items))}]"),
    max_leaves=4,
)
LINES = st.one_of(
    st.tuples(WORDS, VALUES).map(lambda pair: f"{pair[0]} = {str(pair[1]).lower()}"),
    WORDS.map(lambda word: f"[{word}]"),
    WORDS.map(lambda word: f"[[{word}]]"),
    st.text(max_size=20),
)


@settings(max_examples=200)
@given(lines=st.lists(LINES, max_size=8), prefix=st.booleans())
def test_junk_is_refused_in_one_line_or_is_a_suite(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], prefix: bool
) -> None:
    start = 'schema = 1\nname = "x"\n[[attack]]\nid = "a"\nuse = "fgsm"\n' if prefix else ""
    content = (start + "\n".join(lines)).encode("utf-8", "replace")
    path = tmp_path_factory.getbasetemp() / "junk.toml"
    path.write_bytes(content)
    try:
        found: object = load_suite(str(path))
    except InputError as error:
        found = str(error)
    assert isinstance(found, Suite) or len(str(found).splitlines()) == 1
