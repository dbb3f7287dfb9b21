"""Do stronger attacks and larger budgets break more, as they must?"""

from __future__ import annotations

import numpy as np

from ...threats import Threat
from ..ledger import Ledger
from .judging import Finding, facts_of, luck, no_probe, stages_of, status_of

__all__ = ["nested", "ordering", "unbounded"]


def ordering(ledger: Ledger, threat: Threat) -> Finding:
    """D10."""
    facts = facts_of(ledger, threat, "ordering")
    if not facts.get("probed"):
        return Finding("D10", "skipped", None, no_probe(ledger, "no sample was left to probe"))
    missed, random = facts.get("missed", 0.0), facts.get("noise_broken", 0.0)
    overlooked = facts.get("overlooked", 0.0)
    share = max(missed, random, overlooked) / facts["probed"]
    draws = ledger.plan.suite.diagnostics.noise_draws * facts["noise_attempted"]
    detail = (
        f"of {facts['probed']:.0f} samples, {missed:.0f} of the {facts.get('weak', 0):.0f} that one step "
        f"breaks withstood many; {draws:.0f} random points broke {random:.0f} of "
        f"{facts['noise_attempted']:.0f} survivors"
    )
    if overlooked:
        detail += f"; one gradient step, or 20, broke {overlooked:.0f} of them"
    return Finding("D10", status_of(share, fail=luck(ledger, 0.005), warn=share > 0), share, detail)


def nested(ledger: Ledger, threat: Threat) -> Finding:
    """D12."""
    curve = [
        totals
        for totals in stages_of(ledger, threat)
        if totals.stage.kind == "curve"
        and (totals.stage.nearest or (totals.stage.threat and totals.stage.threat.eps < threat.eps))
    ]
    overlooked = ledger.overlooked[threat.name]
    if not overlooked and not any(totals.attempted for totals in curve):
        return Finding("D12", "skipped", None, no_probe(ledger, "the curve has no smaller budget"))
    late = sum(totals.late for totals in curve) + overlooked
    share = late / ledger.plan.samples
    detail = f"{late} samples that the suite left standing broke within a smaller budget"
    return Finding("D12", status_of(share, fail=0.005, warn=late > 0), share, detail)


def unbounded(ledger: Ledger, threat: Threat) -> Finding:
    """D13."""
    if ledger.plan.goals:
        return Finding("D13", "skipped", None, "with goals, a budget without limit need not reach a target")
    facts = facts_of(ledger, threat, "unbounded")
    if not facts.get("probed"):
        return Finding("D13", "skipped", None, no_probe(ledger, "no attack of the suite's kind applies"))
    probed = min(ledger.plan.suite.diagnostics.samples, ledger.plan.samples)
    share = facts["standing"] / probed
    largest = float(np.bincount(ledger.labels[:probed]).max()) / probed
    detail = (
        f"{facts['standing']:.0f} of {probed} samples withstand a budget without limit; "
        f"the largest class holds {100 * largest:.1f} %"
    )
    return Finding("D13", "fail" if share > largest else "pass", share, detail)
