"""Is there a gradient to follow, and does it lead anywhere?"""

from __future__ import annotations

from ...registry import Access, find_attack
from ...threats import Threat
from ..ledger import Ledger
from ..plan import Stage
from .judging import Finding, facts_of, no_probe, stages_of, standing, status_of

__all__ = ["gradients", "honesty", "roughness", "saturation"]


def gradients(ledger: Ledger, threat: Threat) -> Finding:
    """D01."""
    facts = facts_of(ledger, threat, "gradients")
    if not facts.get("probed"):
        return Finding("D01", "skipped", None, no_probe(ledger, "the model gives no gradients"))
    share, left = facts["every"] / facts["probed"], facts["even_so"] / facts["probed"]
    detail = (
        f"of {facts['probed']:.0f} samples, at the input or at a random start, {facts['ce']:.0f} have no "
        f"usable gradient under cross-entropy, {facts['margin']:.0f} under the margin, "
        f"{facts['every']:.0f} under both"
    )
    if left < share:
        detail += f", {facts['even_so']:.0f} with the surrogates that the suite attacks through"
    worst = max(facts["ce"], facts["margin"])
    return Finding("D01", status_of(left, fail=0.01, warn=worst > 0), share, detail)


def honesty(ledger: Ledger, threat: Threat) -> Finding:
    """D02."""
    facts = facts_of(ledger, threat, "gradients")
    if not facts.get("close"):
        return Finding("D02", "skipped", None, _not_close(ledger))
    share, astray = facts["off"] / facts["close"], facts["astray"] / facts["close"]
    detail = (
        f"for {facts['off']:.0f} of {facts['close']:.0f} samples the gradient is off by more than 10 %; for "
        f"{facts['astray']:.0f} a step of the whole budget ahead raises the loss no more than one back"
    )
    if share <= 0.5:
        return Finding("D02", "pass", share, detail)
    return Finding("D02", "fail" if astray > 0.25 else "warn", share, detail)


def roughness(ledger: Ledger, threat: Threat) -> Finding:
    """D20."""
    facts = facts_of(ledger, threat, "gradients")
    if not facts.get("close"):
        return Finding("D20", "skipped", None, _not_close(ledger))
    mean = facts["rough"] / facts["close"]
    detail = f"within two steps the margin changes by {100 * mean:.1f} % on average"
    return Finding("D20", "warn" if mean > 0.1 else "pass", mean, detail)


def _not_close(ledger: Ledger) -> str:
    if ledger.plan.randomness is not None:
        return "the model answers at random"
    if ledger.plan.access != "gradient":
        return "the model gives no gradients"
    return no_probe(ledger, "no probed sample is classified correctly")


def saturation(ledger: Ledger, threat: Threat) -> Finding:
    """D03."""
    total = ledger.totals["clean"]
    share = total.facts["saturated"] / max(total.attempted, 1)
    robust_losses = any(
        totals.stage.kind == "attack" and totals.attempted and _has_margin(totals.stage)
        for totals in stages_of(ledger, threat)
    )
    detail = f"{total.facts['saturated']:.0f} of {total.attempted} clean outputs are saturated"
    if share <= 0.05:
        return Finding("D03", "pass", share, detail)
    nobody = ledger.plan.access != "gradient" or robust_losses or not standing(ledger, threat)
    return Finding("D03", "warn" if nobody else "fail", share, detail)


def _has_margin(stage: Stage) -> bool:
    """Whether an attack works on differences of logits; one that offers no choice of the loss does."""
    assert stage.entry is not None
    if "loss" in stage.entry.options:
        return stage.entry.options["loss"] in {"margin", "dlr"}
    return find_attack(stage.entry.use).access is Access.GRADIENT
