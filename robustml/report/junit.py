"""The report as JUnit XML: what a CI system shows as tests."""

from __future__ import annotations

from xml.etree import ElementTree  # only writes; what others wrote is never parsed here

from .corruption_parts import CorruptionResult, Corruptions, WorstResult
from .model import Report
from .parts import AttackResult, Condition, Diagnostic, ThreatResult
from .privacy_parts import Conformance, Privacy
from .privacy_text import claim_line, limits, privacy_lines, rate, rate_name
from .text import attack_note, condition_status, count, estimate, heading, number, plain, worst_first

__all__ = ["junit"]

Element = ElementTree.Element


def junit(report: Report) -> str:
    """Write one suite for trust, gate, corruptions and privacy each, and one per threat model.

    A failure is a gate condition that is not met or was not measured; an error is what makes the report
    untrusted. Broken samples, warnings and failed checks that are not critical are measurements: they show
    in the output of their case and fail only through the gate, as the exit code does.
    """
    target = plain(report.target.name)
    what = heading(report)
    root = Element("testsuites", name=f"robustml {what[0].lower()}{what[1:]} {target}")
    suites = [_trust(report), *(_threat(threat) for threat in report.threats)]
    if report.corruptions is not None:
        suites.append(_corruptions(report.corruptions))
    if report.privacy is not None:
        suites.append(_privacy(report.privacy))
    if report.gate.conditions:
        suites.insert(1, _gate(report))
    for suite in suites:
        suite.set("timestamp", plain(report.created))
        _count(suite)
        root.append(suite)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    root.set("time", f"{report.seconds:.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: Element, name: str, kind: str, seconds: float = 0.0) -> Element:
    attributes = {"classname": f"{suite.get('name')}.{kind}", "name": plain(name), "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(suite, "testcase", attributes)


def _result(case: Element, kind: str, message: str) -> None:
    ElementTree.SubElement(case, kind, message=plain(message))


def _output(case: Element, text: str) -> None:
    ElementTree.SubElement(case, "system-out").text = plain(text)


def _count(suite: Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))


def _trust(report: Report) -> Element:
    suite = Element("testsuite", name="trust")
    case = _case(suite, "the report is trusted", "report")
    if not report.trusted:
        _result(case, "error", f"NOT TRUSTED: {'; '.join(report.distrust) or 'no reason was recorded'}")
    _output(case, report.verdict)
    return suite


def _gate(report: Report) -> Element:
    suite = Element("testsuite", name="gate")
    for condition in worst_first(report.gate.conditions):
        _condition(suite, condition)
    return suite


def _condition(suite: Element, condition: Condition) -> None:
    case = _case(suite, condition.expression, "condition")
    if not condition.passed:
        _result(case, "failure", f"{condition_status(condition)}: {condition.reason}")
    else:
        _output(case, condition.reason)


def _threat(threat: ThreatResult) -> Element:
    suite = Element("testsuite", name=plain(threat.name))
    for attack in threat.attacks:
        _attack(suite, attack)
    for diagnostic in threat.diagnostics:
        _diagnostic(suite, diagnostic)
    return suite


def _attack(suite: Element, attack: AttackResult) -> None:
    case = _case(suite, attack.id, "attack", attack.seconds)
    note = attack_note(attack)
    if attack.status == "skipped":
        _result(case, "skipped", attack.reason or "no reason was recorded")
        return
    passes = f"{count(attack.passes.forward)} forward and {count(attack.passes.backward)} backward passes"
    broken = f"{count(attack.broken)} of {count(attack.attempted)} samples broken; {passes}"
    _output(case, f"{broken}; {note}" if note else broken)


def _corruptions(section: Corruptions) -> Element:
    suite = Element("testsuite", name="corruptions")
    parts: list[CorruptionResult | WorstResult] = [*section.kinds, *section.worst]
    for part in parts:
        case = _case(suite, part.name, "corruption")
        if part.status == "skipped":
            _result(case, "skipped", part.reason or "no reason was recorded")
        else:
            _output(case, f"accuracy {estimate(part.accuracy)}{f'; {part.reason}' if part.reason else ''}")
    return suite


def _privacy(section: Privacy) -> Element:
    suite = Element("testsuite", name="privacy")
    for name, line in privacy_lines(section):
        if name not in {"Membership", "Loop", "Conformance", "Note"}:
            _output(_case(suite, name, "privacy"), line)
    for attack in section.membership.attacks if section.membership is not None else []:
        rates = "; ".join(f"{rate_name(figure.fpr)} {rate(figure)}" for figure in attack.tpr)
        found = f"AUC {limits(attack.auc)}, advantage {limits(attack.advantage)}; {rates}"
        _output(_case(suite, attack.attack, "membership"), found)
    for what, test in (("loop", section.loop), ("run", section.conformance)):
        if test is not None:
            _conformance(suite, what, test)
    for part in section.undone:
        _result(_case(suite, part.part, "undone"), "error" if part.asked else "skipped", part.reason)
    return suite


def _conformance(suite: Element, what: str, test: Conformance) -> None:
    for check in test.checks:
        case = _case(suite, f"{what}: {check.name}", "conformance")
        if not check.passed:
            _result(case, "error", f"{check.fault}; p = {check.p_value:.2g}; {claim_line(test)}")
        else:
            _output(case, f"p = {check.p_value:.2g}{f'; {check.reason}' if check.reason else ''}")


def _diagnostic(suite: Element, diagnostic: Diagnostic) -> None:
    case = _case(suite, f"{diagnostic.code}: {diagnostic.title}", "diagnostic")
    found = f"{diagnostic.detail} (figure {number(diagnostic.value)}, accepted: {diagnostic.threshold})"
    if diagnostic.status == "skipped":
        _result(case, "skipped", found)
    elif diagnostic.status == "fail" and diagnostic.critical:
        _result(case, "error", f"{found}; remedy: {diagnostic.remedy}")
    elif diagnostic.status != "pass":
        _output(case, f"{diagnostic.status.upper()}: {found}; remedy: {diagnostic.remedy}")
    else:
        _output(case, found)
