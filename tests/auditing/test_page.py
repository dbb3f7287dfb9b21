"""The page on membership shows what its examples really answer."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from robustml.attacks.membership import advantage

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "audit-membership.md"


@pytest.mark.slow
def test_the_examples_of_the_page() -> None:
    blocks = re.findall(r"```pycon\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outcome = doctest.DocTestRunner().run(examples, out=said.append)
    assert outcome.attempted > 20
    assert outcome.failed == 0, "".join(said)


def test_the_highest_score_of_six_hundred_samples() -> None:

    alike = np.arange(600.0)
    assert 100 * (1 - advantage(alike, alike).high) == pytest.approx(92.2, abs=0.1)
