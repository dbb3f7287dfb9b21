"""Does something hide the gradient, and what?"""

from __future__ import annotations

from ...estimates import clopper_pearson, paired_difference
from ...registry import Access
from ...surrogates import KINDS
from ...threats import Threat
from ..ledger import Ledger
from ..probing import follows_surrogates
from .judging import Finding, Status, facts_of, no_probe

__all__ = ["binarization", "components", "oblivious", "surrogates"]

# A family of operations is named when it explains this share of the gap alone, and of what the best one does.
_EXPLAINS = 0.5
_CLEAR, _LEAST = 0.05, 0.005
_FOUND = 0.95
# An attack through scores may break so many samples that one along the derivative has left standing.
_WITHOUT = 0.1
# Operations that pass back no gradient at all, unlike those that do so for some of their inputs.
_CUTTING = {"round", "sign", "compare", "cast", "detach"}


def components(ledger: Ledger, threat: Threat) -> Finding:
    """D16."""
    if not ledger.plan.guards:
        nothing = "the model has no guard; D22 takes apart the operations of the model itself"
        return Finding("D16", "skipped", None, nothing)
    facts = facts_of(ledger, threat, "components")
    names = [
        key.removeprefix("probed ") for key, count in facts.items() if key.startswith("probed ") and count
    ]
    if not names:
        return Finding(
            "D16", "skipped", None, no_probe(ledger, "no guard that changes inputs can be attacked")
        )
    parts, worst = [], 0.0
    for name in names:
        probed, white, black = (facts.get(f"{key} {name}", 0.0) for key in ("probed", "white", "black"))
        parts.append(f"{name.partition(':')[2]}: {white:.0f} of {probed:.0f} break along its derivative")
        if black:
            parts[-1] += f", {black:.0f} more without it"
        worst = max(worst, black / probed)
    status: Status = "fail" if worst > _WITHOUT else "warn" if worst > _LEAST else "pass"
    return Finding("D16", status, worst, "; ".join(parts))


def binarization(ledger: Ledger, threat: Threat) -> Finding:
    """D17."""
    facts = facts_of(ledger, threat, "binary")
    if not facts.get("made"):
        return Finding("D17", "skipped", None, _no_heads(ledger, facts))
    made, found = facts["made"], facts["found"]
    detail = (
        f"the suite found {found:.0f} of {made:.0f} adversarial inputs that exist by construction; "
        f"random points alone found {facts['by_chance']:.0f}"
    )
    sure = clopper_pearson(int(found), int(made))[1] < _FOUND
    status: Status = "fail" if sure else "warn" if found < _FOUND * made else "pass"
    return Finding("D17", status, found / made, detail)


def _no_heads(ledger: Ledger, facts: dict[str, float]) -> str:
    if ledger.plan.access != "gradient":
        return "the model gives no access to its features"
    if ledger.plan.randomness is not None:
        return "the model answers at random"
    if facts.get("no_layer"):
        return "no linear layer of the model ends it with one row of features per sample"
    return no_probe(ledger, "no head could be made")


def oblivious(ledger: Ledger, threat: Threat) -> Finding:
    """D18."""
    if ledger.plan.guards:
        return _unaware(ledger, threat)
    facts = facts_of(ledger, threat, "ordering")
    if "smooth_only" not in facts:
        return Finding("D18", "skipped", None, _no_gap(ledger))
    gap = facts["smooth_only"] / facts["probed"]
    withstood = 1 - facts["plain"] / facts["probed"]
    detail = (
        f"the model has no guard; {100 * withstood:.1f} % of {facts['probed']:.0f} samples withstand a short "
        f"attack along the model's own gradient, {100 * (withstood - gap):.1f} % also one along surrogates"
    )
    return Finding("D18", "pass", gap, detail)


def _unaware(ledger: Ledger, threat: Threat) -> Finding:
    facts = facts_of(ledger, threat, "oblivious")
    if not facts.get("probed"):
        return Finding("D18", "skipped", None, no_probe(ledger, "the budget ran out before"))
    unaware = 1 - facts["transferred"] / facts["probed"]
    aware = int(ledger.standing(threat.norm, threat.eps).sum()) / facts["probed"]
    detail = (
        f"of {facts['probed']:.0f} samples, {100 * unaware:.1f} % withstand attacks that do not know of the "
        f"guards, {100 * aware:.1f} % those that do"
    )
    return Finding("D18", "pass", unaware - aware, detail)


def surrogates(ledger: Ledger, threat: Threat) -> Finding:
    """D22."""
    facts = facts_of(ledger, threat, "ordering")
    if "smooth_only" not in facts:
        return Finding("D22", "skipped", None, _no_gap(ledger))
    only, back, probed = int(facts["smooth_only"]), int(facts["plain_only"]), int(facts["probed"])
    difference = paired_difference(only, back, probed)
    detail = f"of {probed} samples, {only} break with surrogate gradients only and {back} with true ones only"
    if difference.value <= _LEAST or difference.p_value >= _CLEAR:
        return Finding("D22", "pass", difference.value, detail)
    adaptive = follows_surrogates(ledger.plan.suite, Access.GRADIENT, threat.norm)
    detail += f": gradients are masked {_by_what(facts)}"
    if adaptive:
        detail += "; the suite attacks through the surrogates, so its figure does not rest on that"
    return Finding("D22", "warn" if adaptive else "fail", difference.value, detail)


def _no_gap(ledger: Ledger) -> str:
    if ledger.plan.access != "gradient":
        return "the model gives no gradients"
    return no_probe(ledger, "there is no gradient attack of this norm to compare")


def _by_what(facts: dict[str, float]) -> str:
    """The operations that explain the gap alone, the one that explains most first."""
    asked = facts.get("explained", 0.0)
    counts = {kind: facts[f"by {kind}"] for kind in KINDS if f"by {kind}" in facts}
    most = max(counts.values(), default=0.0)
    if not asked or most < _EXPLAINS * asked:
        return f"by {', '.join(counts) or 'operations'} together, none of which explains it alone"
    named = sorted((kind for kind in counts if counts[kind] >= _EXPLAINS * most), key=lambda k: -counts[k])
    words = [f"{kind} (alone {counts[kind]:.0f} of {asked:.0f})" for kind in named]
    cut = ", which passes no gradient back" if named[0] in _CUTTING else ", which passes none where it is off"
    return f"by {' and '.join(words)}{cut if len(words) == 1 else ''}"
