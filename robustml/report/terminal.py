"""The report as a card of 80 columns; nothing is said by colour alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .federated import federated_lines
from .model import Report
from .parts import Score, ThreatResult
from .privacy_parts import Privacy
from .privacy_text import attack_cells, privacy_lines, rate_name
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
    number,
    percent,
    plain,
    score,
    worst_first,
)

__all__ = ["card", "card_text"]

WIDTH = 80

_STYLES = {
    "PASS": "green",
    "PASSED": "green",
    "FAIL": "bold red",
    "FAILED": "bold red",
    "NOT MEASURED": "bold yellow",
    "NOT TRUSTED": "bold white on red",
    "WARN": "yellow",
    "SKIPPED": "yellow",
}


def card(report: Report) -> RenderableType:
    """Lay out the card: trust first, then verdict, scores, threat models, attacks, diagnostics, gate.

    Every text is a rich `Text`, so that markup in a name comes out as it is written.
    """
    blocks = [*_distrust(report), Text(plain(report.verdict), "bold"), _subject(report), _scores(report)]
    if report.threats:
        blocks.append(_threats(report.threats))
        blocks.extend(_certified(report.threats))
        blocks.extend(_attacks(threat) for threat in report.threats)
    if report.corruptions is not None:
        blocks.append(_line(_heading("Corruptions: "), plain(corruption_line(report.corruptions))))
    if report.privacy is not None:
        blocks.append(_privacy(report.privacy))
    if report.federated is not None:
        lines = federated_lines(report.federated)
        heading = _heading("Federation: what the model comes from")
        blocks.append(Group(heading, *(_line(f"{name}: {plain(line)}", indent=2) for name, line in lines)))
    blocks.extend(_diagnostics(report))
    blocks.extend(_gate(report))
    return Constrain(Group(*_spaced(blocks)), WIDTH)


def card_text(report: Report) -> str:
    """The card as plain text."""
    # The surroundings must not change the text: neither FORCE_COLOR nor a notebook.
    console = Console(
        file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False
    )
    with console.capture() as captured:
        console.print(card(report))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _spaced(blocks: Iterable[RenderableType]) -> Iterator[RenderableType]:
    for index, block in enumerate(blocks):
        if index:
            yield Text("")
        yield block


def _status(word: str) -> Text:
    return Text(word, _STYLES.get(word, ""))


def _line(*parts: str | Text, indent: int = 0) -> Padding:
    return Padding(Text.assemble(*parts), (0, 0, 0, indent))


def _distrust(report: Report) -> Iterator[RenderableType]:
    if report.trusted:
        return
    reasons = [plain(reason) for reason in report.distrust] or ["no reason was recorded"]
    yield Group(
        Text.assemble(_status("NOT TRUSTED"), " The figures below must not be relied on:"),
        *(_line(f"- {reason}", indent=2) for reason in reasons),
    )


def _subject(report: Report) -> RenderableType:
    target, samples = report.target, count(len(report.samples.ids))
    threats = ", ".join(plain(threat.name) for threat in report.threats) or "none"
    lines = {
        "Target": f"{plain(target.name)}: {plain(target.model.name)} on {plain(target.data.name)}",
        **({"Threats": threats} if report.threats else {}),
        **{name: plain(line) for name, line in asked(report).items()},
        "Run": f"suite {plain(report.suite)}, {samples} samples, seed {report.seed}, {report.seconds:,.1f} s",
    }
    return Group(*(Text(f"{name:9} {line}", "dim") for name, line in lines.items()))


def _heading(text: str) -> Text:
    return Text(text, "bold")


def _table(*columns: str, numeric: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column), justify="right" if column in numeric else "left", overflow="fold")
    return table


def _scores(report: Report) -> RenderableType:
    table = _table("score", "figure", "what it is")
    clean, scores = report.clean.accuracy, report.scores
    rows: list[tuple[str, Score | None, str]] = [
        ("evasion", scores.evasion, "of 100: withstand every attack"),
        ("corruption", scores.corruption, "of 100: accuracy under common corruptions"),
        ("privacy", scores.privacy, "of 100: what hides who was in the training data"),
        ("overall", scores.overall, "the weakest of the scores"),
    ]
    table.add_row("clean accuracy", estimate(clean), f"{count(clean.count)} of {count(clean.total)} correct")
    for name, figure, meaning in rows:
        if figure is not None or name in {"evasion", "overall"}:
            table.add_row(name, score(figure), meaning)
    return Group(_heading(f"Scores, with {100 * report.confidence:g} % intervals"), table)


def _threats(threats: list[ThreatResult]) -> RenderableType:
    table = _table("threat model", "attacks", "at most", "at least", "undecided")
    for threat in threats:
        bounds = threat.robust_accuracy
        table.add_row(
            Text(plain(threat.name)),
            "adaptive" if threat.adaptive else "oblivious",
            estimate(bounds.upper),
            estimate(bounds.lower) if bounds.lower else "-",
            percent(threat.undecided) if threat.undecided is not None else "-",
        )
    return Group(_heading("Robust accuracy: at most (attacks), at least (certificates)"), table)


def _certified(threats: list[ThreatResult]) -> Iterator[RenderableType]:
    lines = [
        _line(f"{plain(threat.name)}: {plain(certified_line(threat))}", indent=2)
        for threat in threats
        if threat.certified
    ]
    if lines:
        yield Group(_heading("Certified accuracy as eps grows"), *lines)


def _attacks(threat: ThreatResult) -> RenderableType:
    figures = ("attempted", "broken", "forward", "backward", "seconds")
    table = _table("attack", *figures, numeric=figures)
    notes = []
    for attack in threat.attacks:
        cells = ["-"] * len(figures)
        if attack.status != "skipped":
            passes = attack.passes
            amounts = (attack.attempted, attack.broken, passes.forward, passes.backward)
            cells = [*map(count, amounts), f"{attack.seconds:,.1f}"]
        table.add_row(Text(plain(attack.id)), *cells)
        if note := attack_note(attack):
            notes.append(_line(f"{plain(attack.id)}: {plain(note)}", indent=2))
    heading = f"Attacks under {plain(threat.name)}; each saw the survivors of those before it"
    return Group(_heading(heading), table, *notes)


def _privacy(section: Privacy) -> RenderableType:
    parts: list[RenderableType] = [_heading("Privacy: what training gave away")]
    if section.membership is not None and section.membership.attacks:
        rates = [rate_name(figure.fpr) for figure in section.membership.attacks[0].tpr][:1]
        table = _table("attack", "AUC", "advantage", *rates)
        for name, cells in attack_cells(section.membership):
            table.add_row(Text(plain(name)), *(Text(plain(cell)) for cell in cells[: 2 + len(rates)]))
        parts.append(table)
    lines = (_line(f"{name}: {plain(line)}", indent=2) for name, line in privacy_lines(section))
    return Group(*parts, *lines)


def _diagnostics(report: Report) -> Iterator[RenderableType]:
    found = diagnostics_worst_first(report.threats)
    noted = [pair for pair in found if pair[1].status != "pass"]
    passed = len(found) - len(noted)
    lines: list[RenderableType] = [_heading(f"Diagnostics: {passed} of {len(found)} passed")]
    for threat, diagnostic in noted:
        status = _status(diagnostic.status.upper())
        critical = " (critical)" if diagnostic.critical and diagnostic.status == "fail" else ""
        where = f"{critical} {plain(diagnostic.code)}, {plain(threat.name)}: "
        lines.append(_line(status, where, plain(diagnostic.detail), indent=2))
        if diagnostic.status != "skipped":
            lines.append(_line("Remedy: ", plain(diagnostic.remedy), indent=4))
    if found:
        yield Group(*lines)


def _gate(report: Report) -> Iterator[RenderableType]:
    if report.gate.passed is None and not report.gate.conditions:
        return
    table = _table("status", "condition", "judged on", "reason")
    for condition in worst_first(report.gate.conditions):
        table.add_row(
            _status(condition_status(condition)),
            Text(plain(condition.expression)),
            number(condition.value),
            Text(plain(condition.reason)),
        )
    yield Group(_heading(f"Gate: {gate_status(report.gate.passed)}"), table)
