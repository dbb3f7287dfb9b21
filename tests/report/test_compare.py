"""Two reports, sample by sample, on outcomes that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.errors import InputError
from robustml.report.compare import compare
from robustml.report.model import Bounds, Report, Samples
from tests.report.sample import report, threat


def outcomes(letters: str, *, name: str = "linf:0.1", ids: list[int] | None = None) -> Report:
    rows = ids if ids is not None else list(range(len(letters)))
    return report(
        threats=[threat(name, 0).model_copy(update={"outcomes": letters})],
        samples=Samples(ids=rows, evidence=[]),
    )


def test_known_outcomes() -> None:
    clean, robust = compare(outcomes("ssssbbbbmm"), outcomes("sbsmsbssbm"))
    assert (clean.figure, clean.before, clean.after) == ("clean", 0.8, 0.8)
    assert (clean.difference.gained, clean.difference.lost, clean.difference.total) == (1, 1, 10)
    assert (robust.figure, robust.before, robust.after) == ("linf:0.1", 0.4, 0.5)
    assert (robust.difference.gained, robust.difference.lost) == (3, 2)
    assert robust.difference.value == pytest.approx(0.1)
    assert robust.difference.p_value == 1.0
    assert str(robust).startswith("linf:0.1: 40.0 % -> 50.0 % (+10.0 [")
    assert "3 gained, 2 lost of 10" in str(robust)


def test_only_common_samples_count() -> None:
    before = outcomes("sbs", ids=[1, 2, 3])
    after = outcomes("ssb", ids=[9, 3, 2])
    _, robust = compare(before, after)
    assert (robust.before, robust.after, robust.difference.total) == (0.5, 0.5, 2)
    assert (robust.difference.gained, robust.difference.lost) == (0, 0)


@given(pairs=st.lists(st.tuples(st.sampled_from("sbm"), st.sampled_from("sbm")), min_size=1, max_size=40))
def test_there_and_back(pairs: list[tuple[str, str]]) -> None:
    one, two = (outcomes("".join(letters)) for letters in zip(*pairs, strict=True))
    for forth, back in zip(compare(one, two), compare(two, one), strict=True):
        assert (forth.before, forth.after) == (back.after, back.before)
        assert (forth.difference.gained, forth.difference.lost) == (
            back.difference.lost,
            back.difference.gained,
        )
        assert forth.after - forth.before == pytest.approx(forth.difference.value)
    for row in compare(one, one):
        assert (row.difference.gained, row.difference.lost, row.difference.p_value) == (0, 0, 1.0)


def test_higher_confidence_is_wider() -> None:
    before, after = outcomes("sssbbb"), outcomes("ssbbbs")
    narrow, wide = (compare(before, after, confidence=c)[1].difference for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_what_cannot_be_compared() -> None:
    base = outcomes("ssb")
    data = base.target.data.model_copy(update={"sha256": "00" * 32})
    other = base.model_copy(update={"target": base.target.model_copy(update={"data": data})})
    for second, expected in (
        (other, "different data"),
        (outcomes("ssb", ids=[7, 8, 9]), "no sample in common"),
        (outcomes("ssb", name="l2:0.1"), "no measured threat model in common"),
    ):
        with pytest.raises(InputError, match=expected):
            compare(base, second)


def test_a_threat_model_that_was_not_measured_is_not_robust() -> None:
    measured = threat("linf:0.1", 0).model_copy(update={"outcomes": "ssb"})
    unmeasured = threat("l2:0.5", 0, robust_accuracy=Bounds(upper=None), outcomes="")
    samples = Samples(ids=[0, 1, 2], evidence=[])
    one = report(threats=[unmeasured, measured], samples=samples)
    two = report(
        threats=[measured, threat("l2:0.5", 0).model_copy(update={"outcomes": "sss"})], samples=samples
    )
    assert [row.figure for row in compare(one, two)] == ["clean", "linf:0.1"]
    nothing = report(threats=[unmeasured], samples=samples)
    with pytest.raises(InputError, match="measured"):
        compare(nothing, two)
