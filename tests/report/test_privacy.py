"""The section on privacy: what follows from what was found, the gate, and every rendering of it."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from robustml.errors import InputError, RobustmlError
from robustml.report.gate import check_gate, judge_gate, parse_gate
from robustml.report.model import Report
from robustml.report.parts import Condition, Estimate, Scores
from robustml.report.privacy import keep_privacy, privacy_doubts, privacy_of, privacy_score
from robustml.report.privacy_parts import Privacy, Undone
from robustml.report.roc import roc_chart
from tests.report.hostile import names
from tests.report.privacy_sample import (
    accounted,
    attack,
    audit_report,
    audited,
    conformance,
    limits,
    membership,
    privacy,
)
from tests.report.sample import attack as evasion
from tests.report.sample import condition, diagnostic, report, threat

CLEAN = Estimate(value=0.9, low=0.85, high=0.94, confidence=0.95, count=90, total=100)


def test_the_score_is_what_the_upper_limit_of_the_highest_advantage_leaves() -> None:
    score = privacy_score(privacy(membership=membership(high=0.13)))
    assert score is not None
    assert (score.value, score.low, score.high) == pytest.approx((87, 87, 100))
    assert privacy_score(privacy(membership=None)) is None
    assert privacy_score(None) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "epsilon in [1.85, 8.00] at delta 1e-05, 95 % confidence, 1,000 canaries, 1 model (phantom "
            "canaries, one run, white box)",
        ),
        (
            {"audits": [audited(None)]},
            "epsilon in [not resolvable, 8.00] at delta 1e-05, 95 % confidence, 1,000 canaries, 1 model "
            "(phantom canaries, one run, white box); from below: not resolvable with 1000 canaries: "
            "40 of 80 right",
        ),
        (
            {"audits": []},
            "epsilon at most 8.00 at delta 1e-05 as accounted (prv; its own claim); from below: ",
        ),
        (
            {"accounted": None, "audits": []},
            "no epsilon is accounted for (it does not claim to be private); from below: not audited",
        ),
        (
            {"accounted": None, "audits": [audited(2.8, accounted=None)]},
            "of the model: no epsilon is accounted for (it does not claim to be private); of a run by the "
            "recipe: epsilon in [2.80, no bound) at delta 1e-05",
        ),
        # A claim that the audited run does not share is never an end of its interval.
        (
            {"accounted": accounted(3.0)},
            "of the model: epsilon at most 3.00 at delta 1e-05 as accounted (prv; its own claim); of a run "
            "by the recipe: epsilon in [1.85, 8.00]",
        ),
        ({"accounted": accounted(None), "audits": []}, "no epsilon holds (no noise was added); from below"),
    ],
)
def test_both_epsilons_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    assert privacy(**changes).pair.startswith(said)


def test_what_assumes_more_than_coins_is_no_part_of_the_pair() -> None:
    gaussian = audited(7.9, method="by f-DP", assumes="a Gaussian mechanism")
    section = privacy(audits=[gaussian, audited(1.2)])
    assert section.audited is not None
    assert section.audited.epsilon == 1.2
    assert privacy(audits=[gaussian]).audited is None
    above = audited(99.0, method="by f-DP", assumes="a Gaussian mechanism")
    assert privacy(audits=[audited(), above]).doubts == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audits": [audited(8.2)]}, "an epsilon of at least 8.20, above the 8.00 that is accounted for"),
        ({"audits": [audited(), audited(8.2)]}, "the accounted epsilon does not hold"),
        ({"loop": conformance(False)}, "conformance test of the training loop failed (noise: noise left out"),
        ({"conformance": conformance(False)}, "the accounted epsilon does not hold"),
        ({"undone": [Undone(part="ladder", reason="no time", asked=True)]}, "privacy: ladder is missing"),
    ],
)
def test_what_makes_a_report_untrusted(changes: dict[str, Any], said: str) -> None:
    assert privacy().doubts == []
    (doubt,) = privacy(**changes).doubts
    assert said in doubt
    assert privacy_doubts(privacy(**changes), asked=True) == [doubt]


def test_an_audit_that_is_not_finished_is_a_reason_if_it_was_asked_for() -> None:
    assert privacy_doubts(None, asked=False) == []
    assert privacy_doubts(None, asked=True) == ["privacy: the audit that was asked for is not finished"]


def test_notes_say_how_to_read_the_figures() -> None:
    apart = membership().model_copy(update={"control": limits(0.7, 0.6, 0.8), "duplicates": 12})
    notes = "\n".join(
        privacy(membership=apart, accounted=accounted(randomness="seed 7")).notes
        + privacy(accounted=None).notes
    )
    for said in ("the sets differ in themselves", "12 non-members equal", "came from seed 7", "batch size"):
        assert said in notes
    assert "the model does not claim to be" in notes


def test_what_follows_is_worked_out_anew_when_it_is_read(tmp_path) -> None:
    keep_privacy(tmp_path, privacy(audits=[audited(9.0)]))
    data = json.loads((tmp_path / "privacy.json").read_text())
    data |= {"doubts": [], "pair": "epsilon in [0, 0.1]", "audited": None}
    (tmp_path / "privacy.json").write_text(json.dumps(data))
    read = privacy_of(tmp_path)
    assert read == privacy(audits=[audited(9.0)])
    assert privacy_of(tmp_path / "none") is None
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "privacy.json").write_text(damaged)
        with pytest.raises(InputError, match=r"privacy\.json"):
            privacy_of(tmp_path)


def judged(figure: str, bound: str, section: Privacy | None = None, *, trusted: bool = True) -> Condition:
    section = privacy() if section is None else section
    scores = Scores(privacy=privacy_score(section))
    gate = judge_gate(
        {figure: bound}, clean=CLEAN, scores=scores, threats={}, trusted=trusted, privacy=section
    )
    return gate.conditions[0]


@pytest.mark.parametrize(
    ("figure", "bound", "passed", "value"),
    [
        ("privacy", ">= 87", True, 87.0),
        ("privacy", ">= 87.5", False, 87.0),
        ("epsilon", "<= 8", True, 8.0),
        ("epsilon", "<= 7.9", False, 8.0),
        ("epsilon", "<= 250", True, 8.0),
        ("audited-epsilon", "<= 2", True, 1.85),
        ("audited-epsilon", "<= 1", False, 1.85),
        ("membership-advantage", "<= 13", True, 13.0),
        ("membership-advantage", "<= 12", False, 13.0),
        ("membership-auc", "<= 58", True, 58.0),
        ("membership-tpr-1%", "<= 5", True, None),
        ("ladder-private", ">= 80", True, None),
        ("ladder-plain", ">= 99", False, None),
        ("extraction-fidelity", "<= 99", True, None),
    ],
)
def test_a_gate_is_judged_on_the_unfavorable_end(
    figure: str, bound: str, passed: bool, value: float | None
) -> None:
    found = judged(figure, bound)
    assert found.passed is passed
    assert found.value is not None
    if value is not None:
        assert found.value == pytest.approx(value)
    assert not judged(figure, bound, trusted=False).passed


@pytest.mark.parametrize(
    ("figure", "bound", "changes", "reason"),
    [
        ("membership-tpr-0.1%", "<= 100", {}, "not resolvable: 250 non-members"),
        ("epsilon", "<= 1000", {"accounted": None}, "does not claim to be private"),
        ("epsilon", "<= 1000", {"accounted": accounted(None)}, "no noise was added"),
        ("audited-epsilon", "<= 1000", {"audits": []}, "was not audited"),
        ("audited-epsilon", "<= 1000", {"audits": [audited(None)]}, "not resolvable with 1000 canaries"),
        # An audit that could not have shown so much says nothing for it.
        ("audited-epsilon", "<= 5", {}, "could show 4.40 at most"),
        ("membership-advantage", "<= 100", {"membership": None}, "no membership attack was run"),
        ("ladder-clipped", ">= 0", {"ladder": None}, "ladder was not climbed"),
        ("extraction-fidelity", "<= 100", {"extraction": None}, "was not copied"),
    ],
)
def test_what_was_not_measured_fails_the_gate_with_the_reason(
    figure: str, bound: str, changes: dict[str, Any], reason: str
) -> None:
    found = judged(figure, bound, privacy(**changes))
    assert (found.passed, found.value) == (False, None)
    assert reason in found.reason


def test_conditions_on_privacy_are_read() -> None:
    assert parse_gate("membership-tpr-0.1%<=5") == ("membership-tpr-0.1%", "<=5")
    assert parse_gate("epsilon <= 128.5") == ("epsilon", "<= 128.5")
    check_gate({"epsilon": "<= 128", "ladder-plain": ">= 90"}, [])
    with pytest.raises(InputError, match="from 0 to 100"):
        parse_gate("membership-auc<=101")
    with pytest.raises(InputError, match="did you mean 'audited-epsilon'"):
        check_gate({"audit-epsilon": "<= 3"}, [])


def test_every_rendering_shows_both_ends_and_what_cannot_be_resolved() -> None:
    made = audit_report()
    shown = {
        "card": " ".join(str(made).split()),
        "html": made.to_html(),
        "markdown": made.to_markdown().replace("\\", ""),
        "junit": made.to_junit(),
    }
    for name, text in shown.items():
        assert "epsilon in [1.85, 8.00]" in text, name
        assert "5.0 % [0.0, 13.0]" in text, name
        assert "not resolvable: 250 non-members" in text, name
        assert "Stress test" not in text, name
        assert "clipping and noise both cost accuracy" in text, name
    assert "<svg" in shown["html"]
    assert "No threat model was tested" not in shown["html"]


def test_a_failed_conformance_test_shows_everywhere() -> None:
    made = audit_report(privacy(loop=conformance(False)))
    assert "NOT TRUSTED" in str(made)
    assert "FAILED on noise" in " ".join(str(made).split())
    root = ElementTree.fromstring(made.to_junit())
    broken = [case.get("name") for case in root.iter("testcase") if case.find("error") is not None]
    assert broken == ["the report is trusted", "loop: noise"]
    assert '<span class="status bad">FAILED</span>' in made.to_html()


def test_a_report_with_it_is_read_back_as_it_was() -> None:
    for made in (audit_report(), report(privacy=privacy()), report(privacy=privacy(membership=None))):
        assert Report.from_json(made.to_json()) == made
        assert made.to_html() == Report.from_json(made.to_json()).to_html()
    assert "Stress test of digits" in report(privacy=privacy()).to_html()
    assert report(privacy=privacy(membership=None)).to_html().count("<svg") == len(report().threats)


def test_the_summary_stays_within_60_lines() -> None:
    checks = [diagnostic(f"check-{n}", "", "fail") for n in range(30)]
    attacks = [evasion(f"attack-{n}", 10, 1) for n in range(30)]
    threats = [threat(f"linf:0.{n}", 137, diagnostics=checks, attacks=attacks) for n in range(1, 9)]
    gate = report().gate.model_copy(
        update={"conditions": [condition(f"evasion >= {n}", 1.0, False, "") for n in range(50)]}
    )
    made = report(
        threats=threats,
        gate=gate,
        trusted=False,
        distrust=[f"reason {n}" for n in range(40)],
        privacy=privacy(),
        goals=["3->8"],
        scores=Scores(privacy=privacy_score(privacy())),
    )
    assert len(made.to_markdown().splitlines()) <= 60


def hostile(name: str) -> Report:
    """The report with one hostile name wherever a text of the section can come from."""
    data = json.loads(audit_report(privacy(loop=conformance(False))).to_json())
    section = data["privacy"]
    for key in ("accountant", "neighbors", "randomness", "mode", "source"):
        section["accounted"][key] = name
    section |= {"recipe": name, "pair": name, "notes": [name], "doubts": [name]}
    for audit in section["audits"]:
        audit.update(method=name, reason=name, assumes=name)
    for test in (section["loop"], section["conformance"]):
        for claim in test["claims"]:
            claim.update(name=name, reason=name)
        for one in test["checks"]:
            one.update(name=name, fault=name, reason=name)
    for one in section["membership"]["attacks"]:
        one.update(attack=name, note=name)
        one["per_class"][0]["name"] = name
    section["membership"]["strongest"].update(advantage_by=name, auc_by=name, tpr_by=[name, name])
    section["attribute"].update(feature=name, values=[name], method=name, learner=name)
    section["ladder"].update(verdict=name, randomness=name)
    section["undone"] = [{"part": name, "reason": name, "asked": True}]
    return Report.from_json(json.dumps(data))


TAG = r"<(/?[a-z!][a-z0-9]*)"
TAGS = re.findall(TAG, hostile("plain").to_html())


@settings(max_examples=60, deadline=None)
@given(names)
def test_hostile_names_are_only_ever_text(name: str) -> None:
    made = hostile(name)
    page = made.to_html()
    tags = re.findall(TAG, page)
    # An empty reason is left out with what would have stood around it.
    assert len(tags) == len(TAGS) if name.strip() else len(tags) <= len(TAGS)
    assert set(tags) <= set(TAGS)
    ElementTree.fromstring(made.to_junit())
    card = str(made)
    assert all(line.isprintable() for line in card.splitlines())
    assert len(made.to_markdown().splitlines()) <= 60


def test_the_curves_are_drawn_on_logarithmic_axes() -> None:
    svg = roc_chart([attack("loss", 0.05), attack("gap", 0.02)], name="roc", title="ROC <of> it")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert "ROC &lt;of&gt; it" in svg
    words = "".join(root.itertext())
    assert "loss" in words
    assert "gap" in words
    assert {"0.1 %", "1 %", "10 %", "100 %"} <= {word.strip() for word in root.itertext()}
    assert svg == roc_chart([attack("loss", 0.05), attack("gap", 0.02)], name="roc", title="ROC <of> it")
    assert not re.search(r"#0[0-9a-f]{5}\b", svg)


def test_a_mistake_in_a_claim_is_told(tmp_path) -> None:
    from robustml.auditing.converting import accounted_of

    claim = accounted().model_dump()
    assert accounted_of({**claim, "epsilon": 8, "physical_batch": 3}, "its own claim") == accounted()
    for change in (
        {"epsilon": "8"},
        {"delta": 0},
        {"steps": -1},
        {"sampling_rate": 2.0},
        {"neighbors": None},
    ):
        with pytest.raises(RobustmlError, match="privacy of its own claim"):
            accounted_of({**claim, **change}, "its own claim")
