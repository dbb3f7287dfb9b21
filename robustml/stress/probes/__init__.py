"""The passes that diagnostics need of their own; `diagnostics` judges what they record.

A probe works on one chunk as an attack does, so it is journalled, resumed and replayed like one. Counts go
into the facts of its record, which are summed over the chunks. What it breaks of the standing samples goes
into `broken`, with evidence: a counterexample that the harness holds in its hands counts.
"""

from __future__ import annotations

from collections.abc import Callable

from ..attacking import Bench, Limits, Rows
from ..folder import Evidence, Record
from ..plan import Stage
from .binary import probe_binary
from .extra import probe_black_box, probe_effort, probe_transfer
from .gradients import probe_gradients
from .guards import probe_components, probe_oblivious
from .ordering import probe_ordering, probe_unbounded
from .randomness import probe_randomness
from .state import probe_before, probe_state

__all__ = ["PROBES"]

Probe = Callable[[Bench, Stage, int, Rows, Limits], tuple[Record, Evidence | None]]

PROBES: dict[str, Probe] = {
    "before": probe_before,
    "binary": probe_binary,
    "black-box": probe_black_box,
    "components": probe_components,
    "effort": probe_effort,
    "gradients": probe_gradients,
    "oblivious": probe_oblivious,
    "ordering": probe_ordering,
    "randomness": probe_randomness,
    "state": probe_state,
    "transfer": probe_transfer,
    "unbounded": probe_unbounded,
}
"""The probe for each kind of stage that is one; `robustml.stress.probing` says what they serve."""
