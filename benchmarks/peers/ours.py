from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Attack, Batch, Entry, Library, by_name


def _entry(name: str, norm: str, note: str = "", **options: Any) -> Entry:
    return Entry(_attack(name, norm, options), note)


def _attack(name: str, norm: str, options: dict[str, Any]) -> Attack:
    def run(rml: Any, batch: Batch) -> Tensor:
        from robustml.registry import find_attack
        from robustml.sampling import Streams
        from robustml.stress.meter import Meter
        from robustml.threats import THREATS

        spec = rml.InputSpec(shape=tuple(batch.x.shape[1:]))
        threat = THREATS[norm](batch.eps).within(spec)
        model = rml.Classifier(batch.net, inputs=spec, classes=10)
        streams = Streams.derive(batch.seed, name, batch.ids)
        with model.ready(torch.device("cpu")):
            # Through the meter, as in a stress test; it is part of what an attack costs there.
            meter = Meter(model, threat.around(batch.x), batch.y)
            return find_attack(name).function(
                meter, batch.x, batch.y, threat=threat, streams=streams, **options
            )

    return run


OURS = Library(
    name="robustml",
    title="robustml",
    distribution="robustml-hardening",
    install="pip install -e .",
    load=by_name("robustml"),
    entries={
        "pgd": _entry("pgd", "linf", steps=40),
        "apgd-ce": _entry("apgd", "linf", loss="ce", steps=100),
        "apgd-dlr": _entry("apgd", "linf", loss="dlr", steps=100),
        "apgd-t": _entry("apgd-t", "linf", steps=100, targets=9),
        "fab-t": _entry("fab", "linf", "a sample leaves within the budget", steps=100, targets=9),
        "square": _entry("square", "linf", queries=1000),
        "relay": _entry("relay", "linf", "defaults; no other library has it"),
        "fmn-l2": _entry("fmn", "l2", steps=100, nearest=True),
        "fmn-linf": _entry("fmn", "linf", steps=100, nearest=True),
        "ddn": _entry("ddn", "l2", steps=100, nearest=True),
        "deepfool": _entry("deepfool", "l2", steps=50, nearest=True),
        "carlini-wagner": _entry("carlini-wagner", "l2", binary_steps=5, steps=100, nearest=True),
        "hop-skip-jump": _entry("hop-skip-jump", "l2", queries=6500, probes=100, nearest=True),
    },
)
