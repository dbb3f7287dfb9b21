"""Is the model what it was, and does the record say all that a reviewer needs?"""

from __future__ import annotations

from collections.abc import Iterator

from ...registry import find_attack
from ...threats import Threat
from ..ledger import Ledger
from .codes import CODES
from .judging import Finding, Status, facts_of, no_probe, stages_of

__all__ = ["complete_record", "state"]

_NAMED = 5  # names that a finding lists
_ENVIRONMENT = ("python", "torch", "numpy", "robustml", "device")


def state(ledger: Ledger, threat: Threat) -> Finding:
    """D06."""
    facts = facts_of(ledger, threat, "state")
    if not facts.get("probed"):
        return Finding("D06", "skipped", None, no_probe(ledger, "no probed sample is classified correctly"))
    moved, probed = facts["moved"], facts["probed"]
    training, changed = _named(facts, "training "), _named(facts, "changed ")
    attributes, inside = _named(facts, "attribute "), facts.get("gradients inside")
    found = [f"{moved:.0f} of {probed:.0f} answers, at the input or nearby, are not what they were at first"]
    found += [f"in training mode: {training}"] if training else []
    found += [f"a forward pass changes {changed}"] if changed else []
    found += [f"a forward pass changes the attribute {attributes}"] if attributes else []
    found += ["the forward pass computes gradients"] if inside else []
    status: Status = "warn" if attributes or inside else "pass"
    if moved or training or changed:
        status = "fail"
    return Finding("D06", status, moved / probed, "; ".join(found))


def _named(facts: dict[str, float], prefix: str) -> str:
    names = sorted(name.removeprefix(prefix) for name in facts if name.startswith(prefix))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def complete_record(ledger: Ledger, threat: Threat) -> Finding:
    """D21."""
    plan = ledger.plan
    missing = list(_missing(ledger, threat))
    doubts = [] if plan.model_sha256 else ["the model has no digest"]
    off = sorted(code for code in set(plan.suite.diagnostics.skip) & CODES.keys() if CODES[code].critical)
    if off:
        doubts.append(f"the suite switches {', '.join(off)} off")
    stated = "budget, options, passes, seed, versions and evidence are on record"
    status: Status = "fail" if missing else "warn" if doubts else "pass"
    return Finding("D21", status, float(len(missing)), "; ".join([*missing, *doubts]) or stated)


def _missing(ledger: Ledger, threat: Threat) -> Iterator[str]:
    for name in _ENVIRONMENT:
        if not ledger.plan.environment.get(name):
            yield f"the environment does not say {name}"
    for totals in stages_of(ledger, threat):
        entry = totals.stage.entry
        if totals.stage.kind not in {"attack", "curve"} or not totals.attempted or entry is None:
            continue
        unstated = {name for name, _, _ in find_attack(entry.use).parameters()} - entry.options.keys()
        if unstated:
            yield f"{totals.stage.key} does not state {', '.join(sorted(unstated))}"
        if not totals.forward:
            yield f"{totals.stage.key} has no passes on record"
    bare = {
        id(record)
        for record in ledger.source[threat.norm]
        if record is not None and not (record.evidence and len(record.digests) == len(record.broken))
    }
    if bare:
        yield f"{len(bare)} records of broken samples have no counterexamples"
