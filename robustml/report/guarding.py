"""The section on guards: what they are, what they cost, and what they are worth to whom."""

from __future__ import annotations

from ..stress.ledger import Ledger
from ..threats import Threat
from .parts import Guards, Unaware
from .shares import share_of

__all__ = ["guards_of", "unaware_of"]


def guards_of(ledger: Ledger) -> Guards | None:
    """The section of a run; None for a model without guards."""
    plan = ledger.plan
    if not plan.guards:
        return None
    facts, timings = ledger.totals["clean"].facts, ledger.totals["clean"].timings
    bare = timings.get("bare", 0.0)
    return Guards(
        guards=plan.guards,
        bare_accuracy=share_of(ledger.plan, int(facts.get("bare_correct", 0))),
        rejected=share_of(ledger.plan, int(facts.get("rejected", 0))) if plan.rejects else None,
        latency=round(timings["guarded"] / bare, 3) if bare > 0 else None,
    )


def unaware_of(ledger: Ledger, threat: Threat) -> Unaware | None:
    """The figures beside those of one threat model; None without guards, or where they were not measured."""
    totals = ledger.totals.get(f"{threat.name}/oblivious")
    if totals is None or totals.missing or not totals.facts.get("probed"):
        return None
    correct = int(ledger.correct.sum())
    return Unaware(
        robust_accuracy=share_of(ledger.plan, correct - int(totals.facts["transferred"])),
        bare=share_of(ledger.plan, correct - int(totals.facts["fooled"])),
    )
