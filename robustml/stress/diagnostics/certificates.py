"""Do attacks and certificates contradict each other?"""

from __future__ import annotations

from ...threats import Threat
from ..ledger import Ledger
from .judging import Finding, Status, no_probe

__all__ = ["contradiction"]


def contradiction(ledger: Ledger, threat: Threat) -> Finding:
    """D23."""
    if "certificate" not in ledger.totals:
        why = (
            "the suite asks for no certificates" if ledger.plan.certifies else "the model has no certificate"
        )
        return Finding("D23", "skipped", None, why)
    certified = int((ledger.certified.radius > 0).sum())
    if not certified:
        return Finding("D23", "skipped", None, no_probe(ledger, "no sample has a certificate"))
    totals = ledger.totals.get(f"{threat.name}/contradiction")
    if totals is None or totals.missing:
        return Finding("D23", "skipped", None, "the points within certified radii were not counted again")
    within, refuted = (int(totals.facts.get(name, 0)) for name in ("within", "refuted"))
    status: Status = "fail" if refuted else "warn" if within else "pass"
    detail = f"of {certified} certified samples {within} lost a vote within their radius"
    if within:
        draws = ledger.plan.suite.certificates.draws
        detail += f", and {refuted} of these lost the recount of {draws} draws, too"
    return Finding("D23", status, refuted / certified, detail)
