"""Every page shows what its examples really answer."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: Path) -> str:
    """The examples of a page, which go on from one block to the next."""
    return "\n".join(re.findall(r"```pycon\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts and examples(page)]


def test_pages_are_found() -> None:
    assert {"certify.md", "train-privately.md", "audit-privacy.md"} <= {page.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(examples(page), {}, page.name, str(page), 0)
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outcome = doctest.DocTestRunner().run(test, out=said.append)
    assert outcome.attempted
    assert outcome.failed == 0, "".join(said)
