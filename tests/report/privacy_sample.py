"""A section on privacy as an audit of handwritten digits would make it; its figures are made up."""

from __future__ import annotations

from typing import Any

from robustml.report.membership_parts import (
    Limits,
    Membership,
    MembershipAttack,
    MembershipPart,
    RateAt,
    Roc,
    Strongest,
)
from robustml.report.model import Report
from robustml.report.parts import Gate, Scores
from robustml.report.privacy import privacy_score, settled
from robustml.report.privacy_parts import (
    Accounted,
    Attribute,
    AuditedEpsilon,
    Claim,
    Conformance,
    ConformanceCheck,
    Difference,
    Extraction,
    ExtractionPoint,
    Inversion,
    Ladder,
    Privacy,
    Rung,
    Undone,
)
from tests.report.sample import estimate, report


def accounted(epsilon: float | None = 8.0, **changes: Any) -> Accounted:
    facts: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": 1e-5,
        "accountant": "prv",
        "noise_multiplier": 2.0,
        "sampling_rate": 0.2,
        "steps": 240,
        "clipping_norm": 1.0,
        "expected_batch": 256,
        "neighbors": "add or remove one sample",
        "randomness": "operating system",
        "mode": "ghost",
        "source": "its own claim",
    }
    return Accounted(**{**facts, **changes})


def audited(epsilon: float | None = 1.85, **changes: Any) -> AuditedEpsilon:
    facts: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": 1e-5,
        "confidence": 0.95,
        "method": "phantom canaries, one run, white box",
        "canaries": 1000,
        "runs": 1,
        "guesses": 80,
        "correct": 76,
        "cap": 4.4,
        "reason": None if epsilon is not None else "not resolvable with 1000 canaries: 40 of 80 right",
        "accounted": 8.0,
    }
    return AuditedEpsilon(**{**facts, **changes})


def check(name: str, passed: bool = True, reason: str | None = None) -> ConformanceCheck:
    return ConformanceCheck(
        name=name,
        passed=passed,
        p_value=0.4 if passed else 1e-9,
        fault="noise left out",
        power=1,
        reason=reason,
    )


def conformance(passed: bool = True) -> Conformance:
    claims = [
        Claim(name="noise_multiplier", claimed=2.0, value=2.01, low=1.9, high=2.1, reason=None),
        Claim(
            name="sampling_rate", claimed=0.2, value=None, low=None, high=None, reason="not resolvable: few"
        ),
    ]
    return Conformance(
        passed=passed,
        confidence=0.99,
        canaries=500,
        included=251,
        steps=176,
        claims=claims,
        checks=[check("noise", passed), check("batch size", reason="too few steps")],
    )


def limits(value: float, low: float, high: float) -> Limits:
    return Limits(value=value, low=low, high=high)


RATES = [
    RateAt(fpr=0.01, tpr=estimate(21, 1297), achieved=estimate(3, 250), reason=None),
    RateAt(fpr=0.001, tpr=None, achieved=None, reason="not resolvable: 250 non-members, 999 are needed"),
]


def attack(name: str, value: float) -> MembershipAttack:
    part = MembershipPart(
        name="class 3", members=130, non_members=50, auc=None, advantage=limits(0.1, 0, 0.3), tpr=RATES
    )
    return MembershipAttack(
        attack=name,
        tier="quick",
        references=0,
        queries=1,
        members=1297,
        non_members=500,
        auc=limits(0.5 + value / 2, 0.44, 0.6),
        advantage=limits(value, 0.0, value + 0.08),
        tpr=RATES,
        roc=Roc(fpr=[0.0, 0.002, 0.1, 1.0], tpr=[0.0, 0.004, 0.12, 1.0]),
        per_class=[part],
        worst_decile=part,
        note="learned from half of the non-members" if name == "quantile" else None,
    )


def membership(high: float = 0.13) -> Membership:
    return Membership(
        tier="quick",
        references=0,
        members=1297,
        non_members=500,
        duplicates=0,
        member_accuracy=estimate(1293, 1297),
        non_member_accuracy=estimate(489, 500),
        attacks=[attack("gap", 0.02), attack("loss", 0.05), attack("quantile", 0.03)],
        strongest=Strongest(
            attacks=3,
            advantage=limits(0.05, 0.0, high),
            advantage_by="loss",
            auc=limits(0.52, 0.44, 0.58),
            auc_by="loss",
            tpr=RATES,
            tpr_by=["loss", None],
        ),
        control=None,
        seed=0,
    )


DIFFERENCE = Difference(value=-0.05, low=-0.07, high=-0.02)


def ladder() -> Ladder:
    names: list[Any] = ["plain", "clipped", "private"]
    rungs = [
        Rung(
            name=name,
            accuracy=estimate(480 - 20 * place, 500),
            clipping_norm=None if place == 0 else 1.0,
            noise_multiplier=None if place == 0 else 2.0 * (place - 1),
            epsilon=8.0 if place == 2 else None,
        )
        for place, name in enumerate(names)
    ]
    return Ladder(
        rungs=rungs,
        clipping=DIFFERENCE,
        noise=DIFFERENCE,
        total=DIFFERENCE,
        delta=1e-5,
        seed=0,
        randomness="operating system",
        verdict="clipping and noise both cost accuracy",
    )


def privacy(**changes: Any) -> Privacy:
    """A private model, audited with everything there is."""
    facts: dict[str, Any] = {
        "tier": "quick",
        "recipe": "private",
        "confidence": 0.95,
        "seconds": 50.0,
        "accounted": accounted(),
        "rerun": accounted(source="the run by the recipe, canaries included"),
        "audited": None,
        "pair": "",
        "audits": [audited(), audited(2.9, method="by f-DP", assumes="a Gaussian mechanism")],
        "loop": conformance(),
        "conformance": conformance(),
        "membership": membership(),
        "inversion": Inversion(
            classes=10,
            correlation=0.5,
            control=0.01,
            public=0.98,
            nearer=0.51,
            p_value=0.2,
            queries=1000,
            reason=None,
        ),
        "attribute": Attribute(
            feature="age",
            values=["below 40", "above"],
            method="answers",
            learner="logistic",
            queries=500,
            members=estimate(60, 100),
            baseline=estimate(55, 100),
            gain=DIFFERENCE,
            non_member_gain=DIFFERENCE,
            excess=DIFFERENCE,
        ),
        "extraction": Extraction(
            reply="probabilities",
            constant=estimate(10, 100),
            points=[
                ExtractionPoint(
                    queries=100,
                    fidelity=estimate(90, 100),
                    without=estimate(85, 100),
                    gain=DIFFERENCE,
                    accuracy=estimate(88, 100),
                    transfer=None,
                )
            ],
        ),
        "ladder": ladder(),
        "undone": [Undone(part="lira-online", reason="needs reference models", asked=False)],
        "notes": [],
        "doubts": [],
    }
    return settled(Privacy(**{**facts, **changes}))


def audit_report(section: Privacy | None = None, **changes: Any) -> Report:
    """The report of an audit by itself."""
    section = privacy() if section is None else section
    score = privacy_score(section)
    facts: dict[str, Any] = {
        "threats": [],
        "privacy": section,
        "suite": "audit",
        "scores": Scores(privacy=score, overall=score),
        "verdict": "The strongest of 3 membership attacks has an advantage of 5.0 % [0.0, 13.0].",
        "gate": Gate(conditions=[], passed=None),
        "trusted": not section.doubts,
        "distrust": section.doubts,
    }
    return report(**{**facts, **changes})
