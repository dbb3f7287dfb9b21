"""The section on the federation that a model comes from."""

from __future__ import annotations

import json

import pytest

import robustml as rml
from robustml.defenses.privacy import DifferentialPrivacy
from robustml.defenses.training import PGD
from robustml.report.federated import Federated, federated_lines, federated_of, keep_federated
from robustml.report.markdown import summary
from tests.defenses.federated.small import data, run

FIGURES = {
    "samples": [54, 60],
    "partition": "dirichlet:0.3",
    "aggregation": "<b>Median</b>",
    "hostile": [1],
    "kept": 1,
    "history": [
        {"number": 0, "clean": 0.3, "robust": None, "failed": 0, "moved": False},
        {"number": 1, "clean": 0.9, "robust": 0.5, "failed": 1, "moved": True},
        {"number": 2, "clean": None, "robust": None, "failed": 0, "moved": False},
    ],
    "quarantined": 2,
    "sample_privacy": {"epsilon": 9.23, "delta": 1e-5, "client": 1},
    "client_privacy": {"epsilon": None, "delta": 1e-6, "client": None},
}


def test_what_it_says() -> None:
    assert dict(federated_lines(Federated.model_validate(FIGURES))) == {
        "Clients": "2 with 54 to 60 samples (dirichlet:0.3); hostile on purpose: 1",
        "Rounds": "2, the weights are those of round 1; 1 left the model as it was; 1 failures of clients",
        "Aggregation": "<b>Median</b>; 2 replies in quarantine",
        "Privacy of samples": "epsilon 9.23 at delta 1e-05, spent by client 1, the others less",
        "Privacy of clients": "no finite epsilon at delta 1e-06",
    }


def test_a_folder_keeps_it_and_refuses_nonsense(tmp_path) -> None:
    assert federated_of(tmp_path) is None
    keep_federated(tmp_path, FIGURES)
    assert federated_of(tmp_path) == Federated.model_validate(FIGURES)
    with pytest.raises(rml.InputError, match="quarantined"):
        keep_federated(tmp_path, {**FIGURES, "quarantined": -1})
    for text, message in (("{", "is damaged"), ("[]", "does not hold an object"), ("{}", "samples")):
        (tmp_path / "federated.json").write_text(text)
        with pytest.raises(rml.InputError, match=message):
            federated_of(tmp_path)


def test_adversarial_private_robust_and_hostile_in_one_report(tmp_path) -> None:
    def reversed_(honest):
        def app(message, context):
            reply = honest(message, context)
            start = message.content["arrays"].to_torch_state_dict()
            state = reply.content["arrays"].to_torch_state_dict()
            turned = {key: start[key] - 4 * (state[key] - start[key]) for key in start}
            reply.content["arrays"] = type(reply.content["arrays"])(turned)
            return reply

        return app

    done = run(
        rounds=3,
        objective=PGD(rml.Linf(0.05), steps=2),
        privacy=DifferentialPrivacy(noise_multiplier=0.6, seed=3, mode="functional"),
        aggregation="trimmed-mean",
        hostile={3: reversed_},
        learning_rate=0.5,
    )
    report = rml.stress_test(
        done, data(60, seed=5), threats=["linf:0.05"], suite="quick", out=tmp_path / "run", device="cpu"
    )
    section = report.federated
    assert section is not None
    assert section.hostile == [3]
    assert section.aggregation == "TrimmedMean"
    assert section.sample_privacy is not None
    assert section.sample_privacy.epsilon == done.privacy["samples"]["epsilon"]
    assert [entry.clean for entry in section.history] == [entry.clean for entry in done.history]
    assert report.threats[0].robust_accuracy.upper.value <= report.clean.accuracy.value

    stored = json.loads((tmp_path / "run" / "report.json").read_text())
    assert stored["federated"]["kept"] == 3
    assert rml.Report.load(tmp_path / "run").federated == section
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (str(report), page, summary(report)):
        assert "TrimmedMean" in text
        assert "spent by client" in text


def test_a_report_on_any_other_model_has_none_of_it(tmp_path) -> None:
    done = run(rounds=1)
    report = rml.stress_test(
        done.model, data(30, seed=5), threats=["linf:0.05"], suite="quick", out=tmp_path / "run", device="cpu"
    )
    assert report.federated is None
    assert "Federation" not in (tmp_path / "run" / "report.html").read_text()
