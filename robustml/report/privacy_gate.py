"""The figures on privacy that a gate can hold to a condition."""

from __future__ import annotations

from dataclasses import dataclass

from .membership_parts import Limits, RateAt
from .parts import Estimate
from .privacy_parts import Privacy

__all__ = ["EPSILONS", "PRIVACY_FIGURES", "Figure", "privacy_figures"]

EPSILONS = ("epsilon", "audited-epsilon")
_RATES = {"membership-tpr-1%": 0.01, "membership-tpr-0.1%": 0.001}
_RUNGS = {"ladder-plain": "plain", "ladder-clipped": "clipped", "ladder-private": "private"}
PRIVACY_FIGURES = (
    *EPSILONS,
    "membership-advantage",
    "membership-auc",
    *_RATES,
    "extraction-fidelity",
    *_RUNGS,
)
"""Epsilons are in their own unit, everything else in percent. The score is `privacy`."""


@dataclass(frozen=True)
class Figure:
    """A figure in the unit of its conditions.

    Attributes:
        low, high: The ends of its interval, None where it was not measured.
        reason: Why it was not.
        said: What to say of it instead of "the upper end of its interval".
        most: The most that could have been found; a condition beyond it could not fail.
    """

    low: float | None
    high: float | None
    reason: str = "the figure was not measured"
    said: str = ""
    most: float | None = None

    def blind(self, bound: float) -> str:
        """Why the figure cannot answer for a bound; empty if it can."""
        if self.most is None or self.most > bound:
            return ""
        return f"so few canaries could show {self.most:.2f} at most, whatever the truth"


def privacy_figures(privacy: Privacy | None) -> dict[str, Figure]:
    """Every figure of `PRIVACY_FIGURES`, measured or not."""
    if privacy is None:
        return dict.fromkeys(PRIVACY_FIGURES, Figure(None, None, "the report has no part on privacy"))
    found = {"epsilon": _accounted(privacy), "audited-epsilon": _audited(privacy)}
    none = "no membership attack was run"
    strongest = privacy.membership.strongest if privacy.membership is not None else None
    found["membership-advantage"] = _percent(strongest.advantage if strongest else None, none)
    found["membership-auc"] = _percent(strongest.auc if strongest else None, none)
    for name, fpr in _RATES.items():
        rate = next((rate for rate in strongest.tpr if rate.fpr == fpr), None) if strongest else None
        found[name] = _rate(rate, none)
    copies = privacy.extraction.points if privacy.extraction is not None else []
    copy = max(copies, key=lambda point: point.queries).fidelity if copies else None
    found["extraction-fidelity"] = _percent(copy, "the model was not copied")
    climbed = privacy.ladder.rungs if privacy.ladder else []
    rungs: dict[str, Estimate] = {rung.name: rung.accuracy for rung in climbed}
    for name, rung in _RUNGS.items():
        found[name] = _percent(rungs.get(rung), "the ladder was not climbed")
    return found


def _percent(figure: Limits | Estimate | None, reason: str) -> Figure:
    return Figure(None, None, reason) if figure is None else Figure(100 * figure.low, 100 * figure.high)


def _rate(rate: RateAt | None, otherwise: str) -> Figure:
    if rate is None:
        return Figure(None, None, otherwise)
    return _percent(rate.tpr, rate.reason or "the figure was not measured")


def _accounted(privacy: Privacy) -> Figure:
    claim = privacy.accounted
    if claim is None:
        return Figure(None, None, "the model does not claim to be private, so no epsilon is accounted for")
    if claim.epsilon is None:
        return Figure(None, None, "no epsilon holds: no noise was added")
    said = f"{claim.epsilon:.3g} is accounted for at delta {claim.delta:g}"
    return Figure(0.0, claim.epsilon, said=said)


def _audited(privacy: Privacy) -> Figure:
    audit = privacy.audited
    if audit is None:
        return Figure(None, None, "epsilon was not audited")
    if audit.epsilon is None:
        return Figure(None, None, audit.reason or "not resolvable")
    said = f"an audit shows at least {audit.epsilon:.2f}"
    return Figure(audit.epsilon, audit.epsilon, said=said, most=audit.cap)
