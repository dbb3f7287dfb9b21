"""Words and numbers as all renderers show them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .corruption_parts import CorruptionResult, Corruptions, MeanEstimate
from .parts import AttackResult, Certificates, Condition, Diagnostic, Estimate, Guards, Score, ThreatResult

if TYPE_CHECKING:
    from .model import Report

__all__ = [
    "asked",
    "attack_note",
    "certified_line",
    "condition_status",
    "corruption_line",
    "count",
    "diagnostics_worst_first",
    "estimate",
    "gate_status",
    "heading",
    "number",
    "per_sample",
    "percent",
    "plain",
    "score",
    "worst_first",
]

_SHOWN_POINTS = 6

# Terminal sequences: CSI (colours, cursor), OSC (titles, links) and the shorter ones; see ECMA-48.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]"
)
# Scripts such as Persian need these two to spell words; every other invisible character is dropped.
_JOINERS = "\u200c\u200d"


def plain(text: str) -> str:
    """Make text inert and one line: no terminal escapes, control or direction characters, half surrogates."""
    if text.isprintable():
        return text
    return "".join(map(_visible, _ESCAPES.sub("", text)))


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if character.isspace():
        return " "
    # Controls and format characters have no look to replace; an unassigned one has.
    return "" if character < "\xa0" or character in _FORMAT else "\ufffd"


_FORMAT = "\xad\ufeff\u061c\u180e" + "".join(
    map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC)))
)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage, or "not measured"."""
    return "not measured" if fraction is None else f"{100 * fraction:.{digits}f} %"


def estimate(figure: Estimate | MeanEstimate | None) -> str:
    """An estimate with its interval, or "not measured"."""
    return "not measured" if figure is None else str(figure)


def score(figure: Score | None) -> str:
    """A score with its interval, or "not measured"."""
    return "not measured" if figure is None else f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"


def count(number: int) -> str:
    """A whole number with its thousands set apart."""
    return f"{number:,}"


def number(value: float | None) -> str:
    """A number of any size in a few digits, or "-" for none."""
    return "-" if value is None else f"{value:.4g}"


def per_sample(passes: int, attempted: int) -> str:
    """Passes per attempted sample, or "-" where none was attempted."""
    if attempted == 0:
        return "-"
    mean = passes / attempted
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.1f}"


def condition_status(condition: Condition) -> str:
    """PASS, FAIL or NOT MEASURED."""
    if condition.value is None:
        return "NOT MEASURED"
    return "PASS" if condition.passed else "FAIL"


def gate_status(passed: bool | None) -> str:
    """What the gate as a whole says."""
    return {None: "no gate set", True: "PASSED", False: "FAILED"}[passed]


def worst_first(conditions: Iterable[Condition]) -> list[Condition]:
    """Failed conditions, then those not measured, then those met; the order of the file within each."""
    order = ("FAIL", "NOT MEASURED", "PASS")
    return sorted(conditions, key=lambda condition: order.index(condition_status(condition)))


def diagnostics_worst_first(threats: Iterable[ThreatResult]) -> list[tuple[ThreatResult, Diagnostic]]:
    """Every diagnostic with its threat: critical failures, failures, warnings, skipped, passed."""
    order = ("fail", "warn", "skipped", "pass")
    found = [(threat, diagnostic) for threat in threats for diagnostic in threat.diagnostics]
    return sorted(found, key=lambda pair: (order.index(pair[1].status), not pair[1].critical))


def heading(report: Report) -> str:
    """What the report is, up to the name of the target."""
    return "Privacy audit of" if report.privacy is not None and not report.threats else "Stress test of"


def asked(report: Report) -> dict[str, str]:
    """What is out of the ordinary about the question that the report answers, by a word for it."""
    lines = {}
    if report.goals:
        lines["Goals"] = ", ".join(report.goals)
    if report.randomness is not None:
        settings = report.randomness
        lines["Random"] = (
            f"{settings.draws} draws vote on each point, attacks average over {settings.eot}; "
            f"{percent(settings.flip_rate)} of clean draws differ from most"
        )
    if report.guards is not None:
        lines |= _guard_lines(report, report.guards)
    if report.certificates is not None:
        lines["Certified"] = _certificates_line(report.certificates)
    return lines


def _certificates_line(section: Certificates) -> str:
    line = (
        f"{count(section.certified)} of {count(section.attempted)} correct samples have a radius, from "
        f"{count(section.select)} + {count(section.draws)} draws each; {count(section.abstained)} abstain"
    )
    if section.median_radius is not None:
        line += f"; the median is {number(section.median_radius)} in l2"
    return line


def certified_line(threat: ThreatResult) -> str:
    """The certified accuracy of a threat model as eps grows, in one line; empty where there is none."""
    points = threat.certified
    if len(points) > _SHOWN_POINTS:
        # The ends, the tested budget, and others evenly between them.
        step = (len(points) - 1) / (_SHOWN_POINTS - 1)
        kept = {round(place * step) for place in range(_SHOWN_POINTS)}
        points = [p for place, p in enumerate(points) if place in kept or p.eps == threat.eps]
    return ", ".join(f"{percent(point.certified_accuracy.value)} at {number(point.eps)}" for point in points)


def _guard_lines(report: Report, section: Guards) -> dict[str, str]:
    names = (_named(dict(guard)) for guard in section.guards)
    cost = [f"clean accuracy {percent(section.bare_accuracy.value)} without them"]
    if section.rejected is not None:
        cost.append(f"{estimate(section.rejected)} of clean inputs rejected")
    if section.latency is not None:
        cost.append(f"{section.latency:.2g} times the time per batch")
    lines = {"Guards": ", ".join(names), "Cost": "; ".join(cost)}
    gaps = [gap for threat in report.threats if (gap := _gap(threat))]
    return {**lines, "Unaware": "; ".join(gaps)} if gaps else lines


def _gap(threat: ThreatResult) -> str | None:
    upper, unaware = threat.robust_accuracy.upper, threat.unaware
    if upper is None or unaware is None:
        return None
    oblivious = unaware.robust_accuracy.value
    return (
        f"attackers who do not know of the guards leave {percent(oblivious)} standing within {threat.name}, "
        f"those who do {percent(upper.value)} (a gap of {100 * (oblivious - upper.value):.1f} points)"
    )


def _named(guard: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in guard.items() if key != "guard")
    return f"{guard.get('guard')}({options})"


def corruption_line(section: Corruptions) -> str:
    """The section on corruptions in one line: the mean, the weakest corruption, the worst transformations."""
    measured = [kind for kind in section.kinds if kind.accuracy is not None]
    parts = []
    if measured:
        weakest = min(measured, key=_mean)
        what = f"{len(measured)} kinds on {count(section.samples)} samples"
        parts.append(f"accuracy {estimate(section.accuracy)} under {what}")
        parts.append(f"weakest under {weakest.name}, {percent(_mean(weakest))}")
    elif section.kinds:
        parts.append(f"not measured ({section.kinds[0].reason or 'no reason was recorded'})")
    parts += [
        f"under the worst {worst.name} transformation {estimate(worst.accuracy)}"
        for worst in section.worst
        if worst.accuracy is not None
    ]
    return "; ".join(parts)


def _mean(kind: CorruptionResult) -> float:
    return kind.accuracy.value if kind.accuracy is not None else 1.0


def attack_note(attack: AttackResult) -> str:
    """What the row of an attack must say besides its figures, or an empty string."""
    notes = []
    if attack.status != "ran":
        notes.append(f"{attack.status}: {attack.reason or 'no reason was recorded'}")
    elif attack.reason:
        notes.append(attack.reason)
    if attack.rescued:
        notes.append(f"{count(attack.rescued)} broken at a point that the attack visited but did not return")
    if attack.unconfirmed:
        notes.append(f"{count(attack.unconfirmed)} claimed but not confirmed, and not counted")
    if attack.queries is not None:
        median, most = attack.queries.median, attack.queries.max
        notes.append(
            f"queries per broken sample: {count(round(median))} in the median, {count(most)} at most"
        )
    return "; ".join(notes)
