"""Does the model answer at random, and was enough done about it?"""

from __future__ import annotations

from ...threats import Threat
from ..ledger import Ledger
from .judging import Finding, facts_of, no_probe

__all__ = ["averaging", "randomness"]

# Below this the change of robust accuracy from twice the draws is taken for none.
_CONVERGED = 0.005
# One fixed draw is easier to fool than the vote; the attack on it is short, which may cost it a few samples.
_SHORTFALL = 0.1


def randomness(ledger: Ledger, threat: Threat) -> Finding:
    """D05."""
    settings = ledger.plan.randomness
    if settings is None:
        return Finding("D05", "pass", 0.0, "the model answers alike when asked again")
    clean = ledger.totals["clean"]
    rate = clean.facts["flips"] / max(clean.attempted, 1)
    detail = (
        f"judged by the vote of {settings.draws} draws, attacked with {settings.eot} draws per step; on "
        f"clean inputs {100 * rate:.1f} % of the draws differ from the most frequent answer"
    )
    if settings.foreign:
        return Finding(
            "D05", "fail", rate, f"randomness outside of torch: no figure can be made again; {detail}"
        )
    return Finding("D05", "pass", rate, detail)


def averaging(ledger: Ledger, threat: Threat) -> Finding:
    """D15."""
    settings = ledger.plan.randomness
    if settings is None:
        return Finding("D15", "pass", 0.0, "there is no randomness to average over")
    facts = facts_of(ledger, threat, "randomness")
    probed = facts.get("probed", 0.0)
    if not probed:
        return Finding("D15", "skipped", None, no_probe(ledger, "no attack that it has applies"))
    twice, four = facts["broken_2"], facts.get("broken_4", 0.0)
    change = (four if facts.get("attempted_4") else twice) / probed
    detail = (
        f"of {facts['attempted_2']:.0f} survivors among {probed:.0f} samples, {2 * settings.eot} draws per "
        f"step broke {twice:.0f}"
    )
    if facts.get("attempted_4"):
        detail += f", {4 * settings.eot} broke {four:.0f} of the rest"
    shortfall = 0.0
    if "frozen" in facts:
        shortfall = (facts["voted"] - facts["frozen"]) / probed
        detail += f"; one fixed draw is fooled on {facts['frozen']:.0f}, the vote on {facts['voted']:.0f}"
    if shortfall > _SHORTFALL or (facts.get("attempted_4") and change > _CONVERGED):
        return Finding("D15", "fail", change, detail)
    return Finding("D15", "warn" if twice or four else "pass", change, detail)
