"""Is what was recorded sound and complete?"""

from __future__ import annotations

from ...threats import Threat
from ..ledger import Ledger
from .judging import Finding, luck, stages_of, status_of

__all__ = ["confirmed", "output_form", "silent"]


def output_form(ledger: Ledger, threat: Threat) -> Finding:
    """D04."""
    plan = ledger.plan
    detail = f"{plan.outputs}, {plan.classes} classes, {plan.access} access"
    # What a black box returns is all that there is to have; only a white box could return something better.
    fine = plan.access != "gradient" or plan.outputs == "logits"
    return Finding("D04", "pass" if fine else "warn", None, detail)


def silent(ledger: Ledger, threat: Threat) -> Finding:
    """D07."""
    by_attack = {
        totals.stage.key.partition("/")[2]: totals.rescued
        for totals in stages_of(ledger, threat)
        if totals.rescued
    }
    count = sum(by_attack.values())
    named = ", ".join(f"{name} {number}" for name, number in by_attack.items()) or "none"
    return Finding(
        "D07", "warn" if count else "pass", float(count), f"samples visited but not returned: {named}"
    )


def confirmed(ledger: Ledger, threat: Threat) -> Finding:
    """D19."""
    totals = [t for t in stages_of(ledger, threat) if t.stage.kind in {"attack", "curve"}]
    claims = sum(t.facts["claims"] for t in totals)
    lost = sum(t.unconfirmed for t in totals)
    on_grid = sum(t.facts["on_grid"] for t in totals)
    broken = claims - lost
    share = lost / ledger.plan.samples
    detail = f"{lost} of {claims:.0f} claims were not confirmed"
    if broken and ledger.plan.spec.is_image and ledger.plan.spec.bounds == (0.0, 1.0):
        detail += f"; {100 * on_grid / broken:.1f} % of the confirmed ones survive storage with 8 bits"
    return Finding("D19", status_of(share, fail=luck(ledger, 0.005), warn=lost > 0), share, detail)
