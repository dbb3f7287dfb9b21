"""A search in bfloat16 is one; what it claims is judged, and if need be sought again, in full precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustml.errors import InputError
from robustml.registry import Access
from robustml.report.model import Report
from robustml.stress.suite import complete, load_suite
from tests.stress.toy import classifier, finding, labels_of, linear, masked, points, run, target

SUITE = """
schema = 1
name = "lowered"
[[attack]]
id = "apgd"
use = "apgd"
options = {{ loss = "margin", steps = 20 }}
{precision}
[diagnostics]
samples = 8
noise_draws = 4
"""
LOWERED = 'precision = "bfloat16"'


class Witness(nn.Module):
    """A linear model that notes what it computed in; its offset swallows small differences."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.layer = linear(dtype=torch.float32)
        self.offset = offset
        self.kinds: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Any:
        logits = self.layer(x)
        self.kinds.add(logits.dtype)
        return logits + self.offset


def report_on(folder: Path, net: Witness, precision: str, **options: Any) -> Report:
    folder.mkdir()
    x = points().astype(np.float32)
    chosen = target(
        folder,
        model=classifier(net, dtype="float32"),
        data=(x, labels_of(net, x, 3)),
        suite=SUITE.format(precision=precision),
        batch=64,
    )
    net.kinds.clear()
    return run(chosen, folder / "run", **options)


def test_the_search_is_in_bfloat16_and_the_verdict_is_not(tmp_path: Path) -> None:
    net = Witness()
    full = report_on(tmp_path / "full", net, "")
    assert net.kinds == {torch.float32}
    lowered = report_on(tmp_path / "lowered", net, LOWERED)
    assert net.kinds == {torch.float32, torch.bfloat16}
    assert lowered.threats[0].outcomes == full.threats[0].outcomes
    assert lowered.threats[0].outcomes.count("b") > 5
    assert finding(lowered, "D19").status == "pass"


def test_what_only_rounding_broke_is_sought_again(tmp_path: Path) -> None:
    """Logits near 300 are two apart in bfloat16, so that most points look like a tie: a mistake or none."""
    net = Witness(offset=300.0)
    full = report_on(tmp_path / "full", net, "")
    lowered = report_on(tmp_path / "lowered", net, LOWERED)
    attack = lowered.threats[0].attacks[0]
    assert lowered.threats[0].outcomes.count("b") > 5
    assert finding(lowered, "D19").status == "pass"
    # Both searches are paid for, and none of the false claims is left as one.
    assert attack.passes.forward > full.threats[0].attacks[0].passes.forward
    assert attack.unconfirmed == 0


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    one = report_on(tmp_path / "one", Witness(offset=300.0), LOWERED)
    two = report_on(tmp_path / "two", Witness(offset=300.0), LOWERED)
    assert masked(one)["threats"] == masked(two)["threats"]


def test_both_searches_share_one_budget(tmp_path: Path) -> None:
    report = report_on(tmp_path / "run", Witness(offset=300.0), LOWERED, max_passes=10)
    attack = report.threats[0].attacks[0]
    assert attack.status == "partial"
    assert attack.passes.forward + 2 * attack.passes.backward <= 10 * 30 + 3 * 30


def test_attacks_without_gradients_have_no_precision(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(precision=LOWERED).replace('use = "apgd"', 'use = "square"'))
    text = path.read_text().replace('options = { loss = "margin", steps = 20 }', "")
    path.write_text(text)
    with pytest.raises(InputError, match=r"^attack 'square' follows no gradient[^\n]*$"):
        complete(load_suite(str(path)), Access.GRADIENT, ["linf"])
