from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given, settings

from tests.report.hostile import names
from tests.report.sample import bare, diagnostic, named, report, threat, untrusted

Element = ElementTree.Element


def parse(text: str) -> Element:
    return ElementTree.fromstring(text.encode())


def case(root: Element, suite: str, name: str) -> Element:
    return next(
        found
        for found in root.iterfind(f"testsuite[@name='{suite}']/testcase")
        if str(found.get("name")).startswith(name)
    )


def test_suites_and_cases() -> None:
    root = parse(report().to_junit())
    assert [suite.get("name") for suite in root] == ["trust", "gate", "linf:0.1", "l2:0.5"]
    assert [suite.get("tests") for suite in root] == ["1", "3", "8", "8"]
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == (
        "20",
        "2",
        "0",
        "4",
    )
    assert case(root, "linf:0.1", "apgd-ce").get("time") == "1.153"
    assert "193 of 346 samples broken" in str(case(root, "linf:0.1", "apgd-ce").findtext("system-out"))


def test_failed_and_unmeasured_conditions_are_failures() -> None:
    root = parse(report().to_junit())
    messages = {
        found.get("name"): [failure.get("message") for failure in found.findall("failure")]
        for found in root.iterfind("testsuite[@name='gate']/testcase")
    }
    assert messages == {
        "evasion >= 40": ["FAIL: the lower end of its interval is 31.2"],
        "privacy >= 80": ["NOT MEASURED: the figure was not measured"],
        "clean >= 85": [],
    }


def test_skipped_attacks_say_why() -> None:
    skipped = case(parse(report().to_junit()), "linf:0.1", "fab").find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "the time budget was spent"


def test_distrust_and_critical_checks_are_errors() -> None:
    root = parse(untrusted().to_junit())
    trust = case(root, "trust", "the report is trusted").find("error")
    check = case(root, "linf:0.1", "zero-gradient").find("error")
    assert trust is not None
    assert check is not None
    assert str(trust.get("message")).startswith("NOT TRUSTED: linf:0.1: the gradient")
    assert "remedy: Attack with surrogates" in str(check.get("message"))
    assert root.get("errors") == "2"


def test_checks_that_are_not_critical_fail_nothing() -> None:
    checks = [diagnostic("minor", "", "fail"), diagnostic("hm", "", "warn")]
    root = parse(report(threats=[threat("linf:0.1", 137, diagnostics=checks)]).to_junit())
    suite = root.find("testsuite[@name='linf:0.1']")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert str(case(root, "linf:0.1", "minor").findtext("system-out")).startswith("FAIL: ")


def test_no_gate_no_gate_suite() -> None:
    assert [suite.get("name") for suite in parse(bare().to_junit())] == ["trust", "linf:0.1"]


@settings(max_examples=100, deadline=None)
@given(names)
def test_any_name_is_well_formed_xml(name: str) -> None:
    root = parse(named(name).to_junit())
    assert root.get("tests") == "20"
