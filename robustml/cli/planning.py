"""The plan of a run that is not begun: what `doctor` checks and `stress --dry-run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch

    from ..stress.plan import Plan
    from ..targets import Target

__all__ = ["checked_plan"]


def checked_plan(
    target: Target,
    device: torch.device,
    *,
    confidence: float = 0.95,
    max_passes: float | None = None,
    redact: bool = False,
) -> Plan:
    """Plan a run as `stress` would.

    Raises:
        InputError: for whatever in the target's settings a run would refuse.
    """
    from ..report.gate import check_gate
    from ..runs import make_plan

    if not target.threats:
        raise InputError("threats is empty; give at least one threat model, as in --threat linf:8/255")
    names = [threat.name for threat in target.threats]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"threats names {sorted(twice)[0]} twice")
    check_gate(target.gate, names)
    return make_plan(target, device, confidence=confidence, max_passes=max_passes, redact=redact, command="")
