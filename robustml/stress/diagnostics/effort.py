"""Would more effort, less access or another model have broken more?"""

from __future__ import annotations

from ...registry import Access, find_attack
from ...threats import Threat
from ..ledger import Ledger, StageTotals
from .judging import Finding, Status, facts_of, luck, no_probe, stages_of, status_of_count

__all__ = ["black_box", "complete_optimization", "doubled_effort", "transfer"]

_NAMED = 10  # ids that a finding lists


def complete_optimization(ledger: Ledger, threat: Threat) -> Finding:
    """D08."""
    facts = facts_of(ledger, threat, "effort")
    if not facts.get("watched"):
        return Finding("D08", "skipped", None, _no_effort(ledger, facts))
    share = facts["rising"] / facts["watched"]
    detail = (
        f"for {facts['rising']:.0f} of {facts['watched']:.0f} survivors the margin still rose in the last "
        f"10 steps of {_named_effort(ledger, threat)}"
    )
    certain = status_of_count(int(facts["rising"]), int(facts["watched"]), fail=0.05)
    return Finding("D08", certain if certain == "fail" else "warn" if share > 0.05 else "pass", share, detail)


def doubled_effort(ledger: Ledger, threat: Threat) -> Finding:
    """D09."""
    facts = facts_of(ledger, threat, "effort")
    if not facts.get("probed"):
        return Finding("D09", "skipped", None, _no_effort(ledger, facts))
    broken, probed = int(facts["doubled"]), int(facts["probed"])
    detail = f"{_named_effort(ledger, threat)} broke {broken} of {probed} survivors"
    status = status_of_count(broken, probed, fail=luck(ledger, 0.005))
    return Finding("D09", status, broken / probed, detail)


def _no_effort(ledger: Ledger, facts: dict[str, float]) -> str:
    if "probed" in facts:
        return "no survivor was left to probe"
    return no_probe(ledger, "no attack of the suite has steps or queries to double")


def _named_effort(ledger: Ledger, threat: Threat) -> str:
    entry = ledger.totals[f"{threat.name}/effort"].stage.entry
    assert entry is not None
    doubled = next(name for name in ("steps", "queries") if isinstance(entry.options.get(name), int))
    return f"{entry.use} with twice its {doubled} ({entry.options[doubled]})"


def black_box(ledger: Ledger, threat: Threat) -> Finding:
    """D11."""
    if ledger.plan.access != "gradient":
        return Finding("D11", "skipped", None, "the model gives no gradients")
    facts = facts_of(ledger, threat, "black-box")
    late, tried = _late_black_box(ledger, threat)
    probed = int(facts.get("probed", 0))
    if not tried and not probed:
        return Finding("D11", "skipped", None, no_probe(ledger, "no survivor was left for such an attack"))
    probe = ledger.totals.get(f"{threat.name}/black-box")
    found = probe.first if probe is not None else []
    detail = f"a short attack without gradients broke {len(found)} of {probed} survivors"
    if tried:
        detail = (
            f"attacks without gradients broke {len(late)} of the {tried} samples that withstood those with "
            f"gradients; {detail}"
        )
    if late or found:
        detail += f": {_ids(ledger, sorted([*late, *found]))}"
    limit = luck(ledger, 0.002)
    statuses = {
        status_of_count(len(late), ledger.plan.samples, fail=limit),
        status_of_count(len(found), probed, fail=limit),
    }
    status: Status = "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"
    return Finding("D11", status, (len(late) + len(found)) / ledger.plan.samples, detail)


def _late_black_box(ledger: Ledger, threat: Threat) -> tuple[list[int], int]:
    """What black-box attacks of the suite broke after gradient attacks had not, and of how many."""
    after, tried, late = False, 0, list[int]()
    for totals in stages_of(ledger, threat):
        if totals.stage.kind != "attack" or not totals.attempted:
            continue
        if not _is_black_box(totals):
            after = True
        elif after:
            late += totals.first
            tried = max(tried, totals.attempted)
    return late, tried


def _is_black_box(totals: StageTotals) -> bool:
    assert totals.stage.entry is not None
    return find_attack(totals.stage.entry.use).access is not Access.GRADIENT


def _ids(ledger: Ledger, positions: list[int]) -> str:
    named = ", ".join(str(ledger.plan.ids[place]) for place in positions[:_NAMED])
    return f"samples {named}{', …' if len(positions) > _NAMED else ''}"


def transfer(ledger: Ledger, threat: Threat) -> Finding:
    """D14."""
    if ledger.plan.twin_sha256 is None:
        return Finding("D14", "skipped", None, "no undefended or earlier model was given")
    facts = facts_of(ledger, threat, "transfer")
    if not facts.get("probed"):
        return Finding("D14", "skipped", None, no_probe(ledger, "no survivor was left to probe"))
    broken, probed = int(facts["broken"]), int(facts["probed"])
    detail = f"inputs made against the twin broke {broken} of {probed} survivors"
    status = status_of_count(broken, probed, fail=luck(ledger, 0.005))
    return Finding("D14", status, broken / probed, detail)
