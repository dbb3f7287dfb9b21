"""Can the figures be believed? Each diagnostic turns what the run recorded into a finding.

The codes are stable; a failed critical one marks the report as not trusted. A new one needs an entry in
`codes`, a judge in the file of its theme, a line in the table below and, where the suite's own attacks do not
record what it judges, a probe in `robustml.stress.probes`.
"""

from __future__ import annotations

from collections.abc import Callable

from ...threats import Threat
from ..ledger import Ledger
from .certificates import contradiction
from .codes import CODES, Code
from .effort import black_box, complete_optimization, doubled_effort, transfer
from .evidence import confirmed, output_form, silent
from .gradients import gradients, honesty, roughness, saturation
from .judging import Finding
from .masking import binarization, components, oblivious, surrogates
from .ordering import nested, ordering, unbounded
from .randomness import averaging, randomness
from .record import complete_record, state

__all__ = ["CODES", "Code", "Finding", "diagnose"]

_JUDGES: dict[str, Callable[[Ledger, Threat], Finding]] = {
    "D01": gradients,
    "D02": honesty,
    "D03": saturation,
    "D04": output_form,
    "D05": randomness,
    "D06": state,
    "D07": silent,
    "D08": complete_optimization,
    "D09": doubled_effort,
    "D10": ordering,
    "D11": black_box,
    "D12": nested,
    "D13": unbounded,
    "D14": transfer,
    "D15": averaging,
    "D16": components,
    "D17": binarization,
    "D18": oblivious,
    "D19": confirmed,
    "D20": roughness,
    "D21": complete_record,
    "D22": surrogates,
    "D23": contradiction,
}


def diagnose(ledger: Ledger, threat: Threat) -> list[Finding]:
    """Every finding about one threat model, in the order of the codes."""
    skipped = set(ledger.plan.suite.diagnostics.skip)
    return [
        Finding(code, "skipped", None, "the suite switches it off")
        if code in skipped
        else _JUDGES[code](ledger, threat)
        for code in sorted(CODES)
    ]
