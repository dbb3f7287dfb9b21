from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

from torch import Tensor

from .base import Attack, Batch, Entry, Library


def _load() -> Any:
    # It prints when it is imported.
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("torchattacks")


def _attack(
    name: str, *, seeded: bool = False, relative: dict[str, float] | None = None, **options: Any
) -> Attack:
    """An attack by the name of its class; `relative` options are multiples of the budget."""

    def run(torchattacks: Any, batch: Batch) -> Tensor:
        scaled = {key: factor * batch.eps for key, factor in (relative or {}).items()}
        seed = {"seed": batch.seed} if seeded else {}
        attack = getattr(torchattacks, name)(batch.net, **options, **scaled, **seed)
        found: Tensor = attack(batch.x, batch.y)
        return found.detach()

    return run


_EPS = {"eps": 1.0}

TORCHATTACKS = Library(
    name="torchattacks",
    title="torchattacks",
    distribution="torchattacks",
    install="pip install --no-deps torchattacks==3.5.1",
    load=_load,
    entries={
        "pgd": Entry(
            _attack("PGD", steps=40, relative={"eps": 1, "alpha": 2.5 / 40}),
            "returns the last iterate, not the best",
        ),
        "apgd-ce": Entry(_attack("APGD", loss="ce", steps=100, relative=_EPS, seeded=True)),
        "apgd-dlr": Entry(_attack("APGD", loss="dlr", steps=100, relative=_EPS, seeded=True)),
        "apgd-t": Entry(
            _attack("APGDT", steps=100, n_classes=10, relative=_EPS, seeded=True),
            "at its default it makes 10 steps; here 100",
        ),
        "fab-t": Entry(
            _attack("FAB", steps=100, n_classes=10, multi_targeted=True, relative=_EPS, seeded=True),
            "at its default it makes 10 steps; here 100",
        ),
        "square": Entry(_attack("Square", n_queries=1000, n_restarts=1, relative=_EPS, seeded=True)),
        "deepfool": Entry(_attack("DeepFool", steps=50), "image by image"),
        "carlini-wagner": Entry(
            _attack("CW", c=100, steps=500, lr=0.05),
            "no search for the weight: 500 steps, c = 100, the best of 1, 10 and 100; "
            "pixels at the ends of their range never move",
        ),
    },
)
