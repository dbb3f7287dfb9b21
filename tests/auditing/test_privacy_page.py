"""The page on privacy shows what its examples really answer."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "audit-privacy.md"


@pytest.mark.slow
def test_the_examples_of_the_page() -> None:
    blocks = re.findall(r"```pycon\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outcome = doctest.DocTestRunner().run(examples, out=said.append)
    assert outcome.attempted > 15
    assert outcome.failed == 0, "".join(said)
