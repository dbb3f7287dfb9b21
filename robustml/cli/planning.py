"""The plan of a run that is not begun: what `doctor` checks and `stress --dry-run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from ..runs import check_settings, make_plan

    check_settings(target, confidence=confidence, max_passes=max_passes)
    return make_plan(target, device, confidence=confidence, max_passes=max_passes, redact=redact, command="")
