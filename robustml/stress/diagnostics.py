"""Can the figures be believed? Each diagnostic turns what the run recorded into a finding.

The codes are stable; a failed critical one marks the report as not trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..threats import Threat
from .ledger import Ledger, StageTotals

__all__ = ["CODES", "Code", "Finding", "diagnose"]

Status = Literal["pass", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Code:
    """What a diagnostic is about."""

    title: str
    critical: bool
    threshold: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """What a diagnostic found for one threat model; `value` is the figure held against the threshold."""

    code: str
    status: Status
    value: float | None
    detail: str


CODES = {
    "D01": Code(
        title="usable gradients",
        critical=True,
        threshold="fails above 1 % of the probed samples without a gradient under every loss",
        meaning="Where the gradient is zero, not a number or below 1e-12, gradient attacks stand still: "
        "the model may look robust only because its gradients are masked.",
        remedy="Find the operation that cuts the gradient (rounding, sign, detach, a saturated output) and "
        "attack through a differentiable stand-in for it; trust only gradient-free attacks until then.",
    ),
    "D03": Code(
        title="saturated outputs",
        critical=False,
        threshold="warns above 5 % of samples with a top probability of exactly 1; fails with no margin loss",
        meaning="The softmax is exactly 1 in float32, so the cross-entropy has no gradient; typical of "
        "distillation at a high temperature and of overconfident networks.",
        remedy="Use attacks with the margin or DLR loss, which do not saturate; the built-in suites do.",
    ),
    "D04": Code(
        title="form of the output",
        critical=False,
        threshold="warns when a model with gradients does not return plain logits",
        meaning="Losses are computed on logits. Other outputs are converted, and probabilities lose "
        "what rounding took from them.",
        remedy="Let the model return its logits, before any softmax or sigmoid.",
    ),
    "D07": Code(
        title="silent successes",
        critical=False,
        threshold="warns at any sample",
        meaning="An attack visited an adversarial point and then returned another one. The harness kept "
        "the point, so the figures are right; the attack alone would have reported too much robustness.",
        remedy="Nothing for this report. The attack should keep its first success.",
    ),
    "D10": Code(
        title="stronger attacks win",
        critical=True,
        threshold="fails above 0.5 % of the probed samples; warns at any",
        meaning="Samples that one gradient step breaks must fall to many, and neither these steps nor random "
        "points may break what the whole suite could not: otherwise its attacks are not optimizing.",
        remedy="Raise steps and restarts; look for randomness or masked gradients in the model.",
    ),
    "D12": Code(
        title="nested budgets",
        critical=True,
        threshold="fails above 0.5 % of the samples; warns at any",
        meaning="A sample that breaks within a smaller budget breaks within a larger one. The suite missed "
        "such samples until the curve found them at a smaller budget; they are counted as broken.",
        remedy="Raise steps and restarts of the suite: its attacks overlook nearby adversarial inputs.",
    ),
    "D13": Code(
        title="unbounded attack",
        critical=True,
        threshold="fails when more than the share of the largest class still stands",
        meaning="With a budget that reaches every valid input, all inputs can be made alike, so no model "
        "can get more than its largest class right. What stands beyond that was missed by the attack.",
        remedy="The gradients lead nowhere (see D01), or the model rejects or transforms its input in a "
        "way the attack does not see. Do not use the robust accuracy of this report.",
    ),
    "D19": Code(
        title="confirmed evidence",
        critical=True,
        threshold="fails above 0.5 % of the samples with a claim that was not confirmed; warns at any",
        meaning="Every adversarial input is evaluated again outside the attack, in another batch, with its "
        "distance and range checked. A claim that does not hold is not counted, which flatters the model.",
        remedy="Look for randomness or batch-dependent layers in the model; use float64 inputs.",
    ),
}


def diagnose(ledger: Ledger, threat: Threat) -> list[Finding]:
    """Every finding about one threat model, in the order of the codes."""
    return [judge(ledger, threat) for judge in _JUDGES]


def _gradients(ledger: Ledger, threat: Threat) -> Finding:
    facts = _facts(ledger, threat, "gradients")
    if not facts.get("probed"):
        return Finding("D01", "skipped", None, _no_probe(ledger, "the model gives no gradients"))
    share = facts["every"] / facts["probed"]
    detail = (
        f"of {facts['probed']:.0f} samples, at the input or at a random start, {facts['ce']:.0f} have no "
        f"usable gradient under cross-entropy, {facts['margin']:.0f} under the margin, "
        f"{facts['every']:.0f} under both"
    )
    worst = max(facts["ce"], facts["margin"])
    return Finding("D01", _status(share, fail=0.01, warn=worst > 0), share, detail)


def _saturation(ledger: Ledger, threat: Threat) -> Finding:
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
    nobody = ledger.plan.access != "gradient" or robust_losses or not _standing(ledger, threat)
    return Finding("D03", "warn" if nobody else "fail", share, detail)


def _output_form(ledger: Ledger, threat: Threat) -> Finding:
    plan = ledger.plan
    detail = f"{plan.outputs}, {plan.classes} classes, {plan.access} access"
    # What a black box returns is all that there is to have; only a white box could return something better.
    fine = plan.access != "gradient" or plan.outputs == "logits"
    return Finding("D04", "pass" if fine else "warn", None, detail)


def _silent(ledger: Ledger, threat: Threat) -> Finding:
    by_attack = {
        totals.stage.key.partition("/")[2]: totals.rescued for totals in _of(ledger, threat) if totals.rescued
    }
    count = sum(by_attack.values())
    named = ", ".join(f"{name} {number}" for name, number in by_attack.items()) or "none"
    return Finding(
        "D07", "warn" if count else "pass", float(count), f"samples visited but not returned: {named}"
    )


def _ordering(ledger: Ledger, threat: Threat) -> Finding:
    facts = _facts(ledger, threat, "ordering")
    if not facts.get("probed"):
        return Finding("D10", "skipped", None, _no_probe(ledger, "no sample was left to probe"))
    missed, random = facts.get("missed", 0.0), facts.get("noise_broken", 0.0)
    overlooked = facts.get("overlooked", 0.0)
    share = max(missed, random, overlooked) / facts["probed"]
    draws = ledger.plan.suite.diagnostics.noise_draws * facts["noise_attempted"]
    detail = (
        f"of {facts['probed']:.0f} samples, {missed:.0f} of the {facts.get('weak', 0):.0f} that one step "
        f"breaks withstood 40 steps; {draws:.0f} random points broke {random:.0f} of "
        f"{facts['noise_attempted']:.0f} survivors"
    )
    if overlooked:
        detail += f"; one gradient step, or 40, broke {overlooked:.0f} of them"
    return Finding("D10", _status(share, fail=0.005, warn=share > 0), share, detail)


def _nested(ledger: Ledger, threat: Threat) -> Finding:
    curve = [t for t in _of(ledger, threat) if t.stage.kind == "curve" and t.stage.threat.eps < threat.eps]  # type: ignore[union-attr]
    overlooked = ledger.overlooked[threat.name]
    if not overlooked and not any(totals.attempted for totals in curve):
        return Finding("D12", "skipped", None, _no_probe(ledger, "the curve has no smaller budget"))
    late = sum(totals.late for totals in curve) + overlooked
    share = late / ledger.plan.samples
    detail = f"{late} samples that the suite left standing broke within a smaller budget"
    return Finding("D12", _status(share, fail=0.005, warn=late > 0), share, detail)


def _unbounded(ledger: Ledger, threat: Threat) -> Finding:
    facts = _facts(ledger, threat, "unbounded")
    if not facts.get("probed"):
        return Finding("D13", "skipped", None, _no_probe(ledger, "no attack of the suite's kind applies"))
    probed = min(ledger.plan.suite.diagnostics.samples, ledger.plan.samples)
    share = facts["standing"] / probed
    largest = float(np.bincount(ledger.labels[:probed]).max()) / probed
    detail = (
        f"{facts['standing']:.0f} of {probed} samples withstand a budget without limit; "
        f"the largest class holds {100 * largest:.1f} %"
    )
    return Finding("D13", "fail" if share > largest else "pass", share, detail)


def _confirmed(ledger: Ledger, threat: Threat) -> Finding:
    totals = [t for t in _of(ledger, threat) if t.stage.kind in {"attack", "curve"}]
    claims = sum(t.facts["claims"] for t in totals)
    lost = sum(t.unconfirmed for t in totals)
    on_grid = sum(t.facts["on_grid"] for t in totals)
    broken = claims - lost
    share = lost / ledger.plan.samples
    detail = f"{lost} of {claims:.0f} claims were not confirmed"
    if broken and ledger.plan.spec.is_image and ledger.plan.spec.bounds == (0.0, 1.0):
        detail += f"; {100 * on_grid / broken:.1f} % of the confirmed ones survive storage with 8 bits"
    return Finding("D19", _status(share, fail=0.005, warn=lost > 0), share, detail)


_JUDGES: tuple[Callable[[Ledger, Threat], Finding], ...] = (
    _gradients,
    _saturation,
    _output_form,
    _silent,
    _ordering,
    _nested,
    _unbounded,
    _confirmed,
)


def _of(ledger: Ledger, threat: Threat) -> list[StageTotals]:
    return [totals for totals in ledger.totals.values() if totals.stage.of == threat.name]


def _facts(ledger: Ledger, threat: Threat, kind: str) -> dict[str, float]:
    totals = ledger.totals.get(f"{threat.name}/{kind}")
    return totals.facts if totals is not None else {}


def _standing(ledger: Ledger, threat: Threat) -> int:
    return int(ledger.standing(threat.norm, threat.eps).sum())


def _no_probe(ledger: Ledger, otherwise: str) -> str:
    if not ledger.correct.any():
        return "no sample is classified correctly"
    return f"not measured: {otherwise}"


def _status(share: float, *, fail: float, warn: bool) -> Status:
    if share > fail:
        return "fail"
    return "warn" if warn else "pass"
