"""The report as a short Markdown text, for the summary of a CI job or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .federated import federated_lines
from .model import Report
from .parts import ThreatResult
from .privacy_text import privacy_lines
from .text import (
    asked,
    attack_note,
    certified_line,
    condition_status,
    corruption_line,
    count,
    diagnostics_worst_first,
    estimate,
    gate_status,
    heading,
    number,
    per_sample,
    percent,
    plain,
    score,
    worst_first,
)

__all__ = ["summary"]

_LINES = 60
# So many rows at most; the table of attacks has what is left of the lines, if that is less.
_REASONS, _CONDITIONS, _THREATS, _ATTACKS, _CHECKS, _LEAKS = 3, 6, 5, 10, 4, 6
_FEWEST = 2
_LEAST = _FEWEST + 6  # lines: the shortest table of attacks, and the last line
_LONGEST = 300
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_OPENS_BLOCK = re.compile(r"^([-+#=]|\d+(?=[.)]))")


def summary(report: Report) -> str:
    """Write the text: trust, verdict, gate, scores, attacks and failed diagnostics, in at most 60 lines."""
    lines = [f"# {heading(report)} {_escaped(report.target.name)}", ""]
    if not report.trusted:
        reasons = [_escaped(reason) for reason in report.distrust] or ["no reason was recorded"]
        lines += ["**NOT TRUSTED**: the figures below must not be relied on.", ""]
        lines += [*_cut((f"- {reason}" for reason in reasons), _REASONS, "- and {} more reasons"), ""]
    lines += [_escaped(report.verdict), "", *_asked(report), *_gate(report), *_scores(report)]
    lines += [*_certified(report), *_corruptions(report), *_federated(report)]
    checks = _checks(report)
    lines += _privacy(report, _LINES - len(lines) - len(checks) - _LEAST)
    attacks = _attacks(report, _LINES - len(lines) - len(checks) - 1)
    lines += [
        *attacks,
        *checks,
        f"Suite {_escaped(report.suite)}, seed {report.seed}, {count(len(report.samples.ids))} samples, "
        f"{report.seconds:,.1f} s; robustml {_escaped(report.robustml)}",
    ]
    return "\n".join(lines) + "\n"


def _asked(report: Report) -> list[str]:
    lines = [f"- {name}: {_escaped(text)}" for name, text in asked(report).items()]
    return [*lines, ""] if lines else []


def _certified(report: Report) -> list[str]:
    found = [
        f"within {threat.norm} {certified_line(threat)}" for threat in report.threats if threat.certified
    ]
    return [f"Certified accuracy: {_escaped('; '.join(found))}", ""] if found else []


def _escaped(text: str) -> str:
    """Take the meaning out of every character that Markdown or HTML gives one."""
    text = plain(text).strip()
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _OPENS_BLOCK.sub(_entity, _SPECIAL.sub(r"\\\1", text))
    # Bare addresses and mentions become links without any markup.
    text = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1&#58;", text)
    return re.sub(r"(?i)\bwww\.", "www&#46;", text).replace("@", "&#64;")


def _entity(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(character)};" for character in match[0])


def _cut(rows: Iterable[str], most: int, rest: str) -> list[str]:
    kept = list(rows)
    left_out = len(kept) - most
    return kept if left_out <= 0 else [*kept[: most - 1], rest.format(left_out + 1)]


def _table(header: str, alignment: str, rows: list[str], most: int) -> list[str]:
    columns = header.count("|") - 1
    return [header, alignment, *_cut(rows, most, "| and {} more |" + " |" * (columns - 1)), ""]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _gate(report: Report) -> list[str]:
    if not report.gate.conditions:
        return []
    rows = [
        _row(
            condition_status(condition),
            _escaped(condition.expression),
            number(condition.value),
            _escaped(condition.reason),
        )
        for condition in worst_first(report.gate.conditions)
    ]
    heading = f"## Gate: {gate_status(report.gate.passed)}"
    header = "| Status | Condition | Judged on | Reason |"
    return [heading, "", *_table(header, "|---|---|--:|---|", rows, _CONDITIONS)]


def _scores(report: Report) -> list[str]:
    scores = report.scores
    rows = [_row("Clean accuracy", estimate(report.clean.accuracy))]
    rows += [_row(f"Robust accuracy, {_escaped(t.name)}", _bounds(t)) for t in report.threats]
    rows = _cut(rows, _THREATS + 1, "| and {} more threat models | |")
    named = {"Corruption score": scores.corruption, "Privacy score": scores.privacy}
    rows += [_row(name, score(figure)) for name, figure in named.items() if figure is not None]
    rows += [_row("Evasion score", score(scores.evasion)), _row("Overall score", score(scores.overall))]
    heading = f"| Figure | Value [{100 * report.confidence:g} % interval] |"
    return ["## Score card", "", *_table(heading, "|---|---|", rows, len(rows))]


def _bounds(threat: ThreatResult) -> str:
    bounds = threat.robust_accuracy
    kind = "" if threat.adaptive else " (oblivious attacks)"
    lower = f"; at least {estimate(bounds.lower)}" if bounds.lower else ""
    return f"{estimate(bounds.upper)}{lower}{kind}"


def _attacks(report: Report, room: int) -> list[str]:
    """The table, in so many lines if that can be."""
    rows = []
    for threat in report.threats:
        for attack in threat.attacks:
            skipped = attack.status == "skipped"
            rows.append(
                _row(
                    _escaped(threat.name),
                    _escaped(attack.id),
                    "-" if skipped else f"{count(attack.broken)} of {count(attack.attempted)}",
                    "-" if skipped else percent(attack.broken / max(attack.attempted, 1)),
                    per_sample(attack.passes.forward, attack.attempted),
                    per_sample(attack.passes.backward, attack.attempted),
                    "-" if skipped else f"{attack.seconds:,.1f}",
                    _escaped(attack_note(attack)),
                )
            )
    if not rows:
        return []
    most = max(_FEWEST, min(_ATTACKS, room - len(("heading", "", "header", "alignment", ""))))
    header = (
        "| Threat model | Attack | Broken | Rate | Forward / sample | Backward / sample | Seconds | Note |"
    )
    return ["## Attacks", "", *_table(header, "|---|---|--:|--:|--:|--:|--:|---|", rows, most)]


def _corruptions(report: Report) -> list[str]:
    if report.corruptions is None:
        return []
    return [f"Corruptions: {_escaped(corruption_line(report.corruptions))}", ""]


def _federated(report: Report) -> list[str]:
    if report.federated is None:
        return []
    rows = [f"- {name}: {_escaped(line)}" for name, line in federated_lines(report.federated)]
    return ["## Federation", "", *rows, ""]


def _privacy(report: Report, room: int) -> list[str]:
    """The section, in so many lines if that can be."""
    if report.privacy is None:
        return []
    rows = [f"- {name}: {_escaped(line)}" for name, line in privacy_lines(report.privacy, short=True)]
    most = max(_FEWEST, min(_LEAKS, room - len(("heading", "", ""))))
    return ["## Privacy", "", *_cut(rows, most, "- and {} more"), ""]


def _checks(report: Report) -> list[str]:
    found = diagnostics_worst_first(report.threats)
    bad = [(threat, check) for threat, check in found if check.status in {"fail", "warn"}]
    if not bad:
        return []
    rows = [
        f"- {check.status.upper()} {_escaped(threat.name)}, {_escaped(check.code)}: {_escaped(check.detail)} "
        f"Remedy: {_escaped(check.remedy)}"
        for threat, check in bad
    ]
    return ["## Diagnostics", "", *_cut(rows, _CHECKS, "- and {} more"), ""]
