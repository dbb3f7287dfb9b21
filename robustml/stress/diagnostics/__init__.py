"""Can the figures be believed? Each diagnostic turns what the run recorded into a finding.

The codes are stable; a failed critical one marks the report as not trusted. A new one needs an entry in
`codes`, a judge in the file of its theme, a line in the table below and, where the suite's own attacks do not
record what it judges, a probe in `robustml.stress.probes`.
"""

from __future__ import annotations

from collections.abc import Callable

from ...threats import Threat
from ..ledger import Ledger
from .codes import CODES, Code
from .evidence import confirmed, output_form, silent
from .gradients import gradients, saturation
from .judging import Finding
from .ordering import nested, ordering, unbounded

__all__ = ["CODES", "Code", "Finding", "diagnose"]

_JUDGES: dict[str, Callable[[Ledger, Threat], Finding]] = {
    "D01": gradients,
    "D03": saturation,
    "D04": output_form,
    "D07": silent,
    "D10": ordering,
    "D12": nested,
    "D13": unbounded,
    "D19": confirmed,
}


def diagnose(ledger: Ledger, threat: Threat) -> list[Finding]:
    """Every finding about one threat model, in the order of the codes."""
    return [_JUDGES[code](ledger, threat) for code in sorted(CODES)]
