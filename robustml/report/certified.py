"""What the certificates of a run amount to: the bound from below, and its curve."""

from __future__ import annotations

import numpy as np

from ..stress.certifying import longest, risk_of
from ..stress.ledger import Ledger
from ..stress.plan import curve_budgets
from ..threats import Threat
from .parts import Certificates, CertifiedPoint, Estimate
from .shares import share_of

__all__ = ["certificates_of", "certified_curve", "proven_share"]

_POINTS = 8


def certificates_of(ledger: Ledger) -> Certificates | None:
    """The section of a run; None where there are no certificates."""
    totals = ledger.totals.get("certificate")
    if totals is None or not totals.attempted:
        return None
    settings, radius = ledger.plan.suite.certificates, ledger.certified.radius
    proven = radius[radius > 0]
    return Certificates(
        select=settings.select,
        draws=settings.draws,
        confidence=1 - risk_of(ledger.plan),
        attempted=totals.attempted,
        certified=len(proven),
        abstained=int(ledger.certified.abstained.sum()),
        median_radius=round(float(np.median(proven)), 9) if len(proven) else None,
        passes=totals.forward,
    )


def proven_share(ledger: Ledger, threat: Threat) -> Estimate | None:
    """The share of samples that are certified within a threat model; None where there are no certificates.

    A sample without a certificate for want of time counts as not certified, which is safe.
    """
    if not ledger.certified.seen.any():
        return None
    # Certificates and the interval share the risk, so that together they hold with the run's confidence.
    return share_of(ledger.plan, int(ledger.proven(threat).sum()), risk=risk_of(ledger.plan))


def certified_curve(ledger: Ledger, threat: Threat) -> list[CertifiedPoint]:
    """Certified accuracy at the budgets of the security curve, and up to the largest certified one."""
    if not ledger.certified.seen.any():
        return []
    budgets = {threat.eps, *curve_budgets(ledger.plan, threat).values(), *_steps(ledger, threat)}
    proven = ledger.correct & (ledger.certified.radius > 0)
    points = [(0.0, int(proven.sum()))]
    points += [(eps, int(ledger.proven(threat.at(eps)).sum())) for eps in sorted(budgets)]
    return [
        CertifiedPoint(eps=eps, certified_accuracy=share_of(ledger.plan, count, risk=risk_of(ledger.plan)))
        for eps, count in points
    ]


def _steps(ledger: Ledger, threat: Threat) -> set[float]:
    """Budgets from nothing to where the largest radius ends."""
    spec, radius = ledger.plan.spec, float(ledger.certified.radius.max())
    if threat.norm == "l0":
        # One feature after the other, until the radius holds no more of them.
        last = min(_POINTS, int(threat.widest(spec)))
        held = sum(longest(threat.at(float(count)), spec) < radius for count in range(1, last + 1))
        return {float(count) for count in range(1, min(held + 1, last) + 1)}
    largest = min(radius * threat.eps / longest(threat, spec), threat.widest(spec))
    steps = {float(f"{largest * step / _POINTS:.4g}") for step in range(1, _POINTS + 1)}
    # What is no perturbation at all is no budget either.
    return {eps for eps in steps if 0 < eps <= threat.widest(spec) and eps >= spec.level}
