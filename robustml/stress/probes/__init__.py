"""The passes that diagnostics need of their own; `diagnostics` judges what they record."""

from __future__ import annotations

from collections.abc import Callable

from ..attacking import Bench, Limits, Rows
from ..folder import Evidence, Record
from ..plan import Stage
from .gradients import probe_gradients
from .ordering import probe_ordering, probe_unbounded

__all__ = ["PROBES"]

Probe = Callable[[Bench, Stage, int, Rows, Limits], tuple[Record, Evidence | None]]

PROBES: dict[str, Probe] = {
    "gradients": probe_gradients,
    "ordering": probe_ordering,
    "unbounded": probe_unbounded,
}
"""The probe for each kind of stage that is one."""
