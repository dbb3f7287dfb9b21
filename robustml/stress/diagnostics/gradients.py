"""Is there a gradient to follow, and does it lead anywhere?"""

from __future__ import annotations

from ...threats import Threat
from ..ledger import Ledger
from .judging import Finding, facts_of, no_probe, standing, status_of

__all__ = ["gradients", "saturation"]


def gradients(ledger: Ledger, threat: Threat) -> Finding:
    """D01."""
    facts = facts_of(ledger, threat, "gradients")
    if not facts.get("probed"):
        return Finding("D01", "skipped", None, no_probe(ledger, "the model gives no gradients"))
    share = facts["every"] / facts["probed"]
    detail = (
        f"of {facts['probed']:.0f} samples, at the input or at a random start, {facts['ce']:.0f} have no "
        f"usable gradient under cross-entropy, {facts['margin']:.0f} under the margin, "
        f"{facts['every']:.0f} under both"
    )
    worst = max(facts["ce"], facts["margin"])
    return Finding("D01", status_of(share, fail=0.01, warn=worst > 0), share, detail)


def saturation(ledger: Ledger, threat: Threat) -> Finding:
    """D03."""
    total = ledger.totals["clean"]
    share = total.facts["saturated"] / max(total.attempted, 1)
    robust_losses = any(
        totals.stage.entry is not None
        and totals.stage.of == threat.name
        and totals.stage.entry.options.get("loss") in {"margin", "dlr"}
        and totals.attempted
        for totals in ledger.totals.values()
    )
    detail = f"{total.facts['saturated']:.0f} of {total.attempted} clean outputs are saturated"
    if share <= 0.05:
        return Finding("D03", "pass", share, detail)
    nobody = ledger.plan.access != "gradient" or robust_losses or not standing(ledger, threat)
    return Finding("D03", "warn" if nobody else "fail", share, detail)
