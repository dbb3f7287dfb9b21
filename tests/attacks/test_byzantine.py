"""Hostile clients: what they send is what their papers say, and stays hidden where it is meant to."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustml.attacks.byzantine import (
    ABUSES,
    BYZANTINE,
    Alie,
    Answer,
    Backdoor,
    DropOut,
    Failure,
    Gaussian,
    InnerProduct,
    LabelFlip,
    MinMax,
    MinSum,
    ProtocolAbuse,
    Scene,
    SignFlip,
    byzantine,
)
from robustml.attacks.poisoning import Patch
from robustml.errors import InputError


def scene(seed=0, honest=9, hostile=2, d=50):
    rng = np.random.default_rng(seed)
    return Scene(rng.normal(1, 0.5, (honest, d)), rng.normal(1, 0.5, (hostile, d)), 3, seed)


def test_what_is_sent_is_what_the_papers_say():
    s = scene()
    np.testing.assert_array_equal(SignFlip(scale=4.0).updates(s), -4 * s.own)
    mean = [math.fsum(column) / 9 for column in s.honest.T]
    np.testing.assert_allclose(InnerProduct(scale=0.5).updates(s), [[-0.5 * m for m in mean]] * 2, rtol=1e-12)
    # n = 11, f = 2: 4 honest ones are needed, so that the share is 5/9, whose normal quantile is 0.1397.
    std = [math.sqrt(math.fsum((v - m) ** 2 for v in c) / 9) for c, m in zip(s.honest.T, mean, strict=True)]
    expected = [m - 0.13971029888186212 * sd for m, sd in zip(mean, std, strict=True)]
    np.testing.assert_allclose(Alie().updates(s), [expected] * 2, rtol=1e-9)
    # Of 50 clients 24 are corrupt, so that 2 have to side with them: the quantile of 24/26.
    assert Alie()._count(scene(honest=26, hostile=24, d=2)) == pytest.approx(1.426, abs=1e-3)


@given(st.integers(0, 10**6), st.sampled_from(["std", "unit", "sign"]))
def test_min_max_and_min_sum_go_exactly_as_far_as_they_may(seed, direction):
    s = scene(seed, d=5)
    honest = s.honest
    farthest = max(np.linalg.norm(a - b) for a in honest for b in honest)
    sums = max(sum(np.square(a - b).sum() for b in honest) for a in honest)
    for attack, measure, limit in (
        (MinMax(direction), lambda v: max(np.linalg.norm(v - b) for b in honest), farthest),
        (MinSum(direction), lambda v: sum(np.square(v - b).sum() for b in honest), sums),
    ):
        sent = attack.updates(s)
        np.testing.assert_array_equal(sent[0], sent[1])
        assert measure(sent[0]) == pytest.approx(limit, rel=1e-9)
        further = honest.mean(0) + 1.001 * (sent[0] - honest.mean(0))
        assert measure(further) > limit


def test_noise_is_as_large_as_it_says_and_its_own_each_round():
    s = scene(d=20000)
    sent = Gaussian(scale=10.0).updates(s)
    assert sent.std() == pytest.approx(10 * math.sqrt(np.square(s.honest).mean()), rel=0.02)
    assert abs(np.corrcoef(sent)[0, 1]) < 0.03
    np.testing.assert_array_equal(sent, Gaussian(scale=10.0).updates(s))
    later = Scene(s.honest, s.own, 4, s.seed)
    assert not np.array_equal(sent, Gaussian(scale=10.0).updates(later))


def test_hostile_data():
    x = np.random.default_rng(0).uniform(size=(40, 1, 8, 8)).astype(np.float32)
    y = np.arange(40) % 10
    same, flipped = LabelFlip().data(x, y, 10, 0)
    assert same is x
    np.testing.assert_array_equal(flipped, 9 - y)
    np.testing.assert_array_equal(
        LabelFlip(source=3, target=8).data(x, y, 10, 0)[1] == 8, (y == 8) | (y == 3)
    )

    attack = Backdoor(target=7, share=0.5, trigger=Patch(2))
    marked, labels = attack.data(x, y, 10, 0)
    changed = (marked != x).reshape(40, -1).any(1)
    assert changed.sum() == 20
    np.testing.assert_array_equal(labels[changed], 7)
    np.testing.assert_array_equal(labels[~changed], y[~changed])
    np.testing.assert_array_equal(marked[changed][:, :, -2:, -2:], 1)
    np.testing.assert_array_equal(y, np.arange(40) % 10)


def test_replacement_makes_the_mean_the_hostile_model():
    s = scene()
    nothing = Scene(np.zeros_like(s.honest), s.own, 1, 0)
    sent = Backdoor().updates(nothing)
    np.testing.assert_allclose(np.vstack([nothing.honest, sent]).mean(0), s.own.mean(0), rtol=1e-12)
    np.testing.assert_array_equal(Backdoor(scale=1.0).updates(s), s.own)


def answer():
    return Answer({"w": np.ones((2, 3), np.float32), "n": np.array(4)}, {"num-examples": 10, "loss": 0.5})


def test_abuses_are_what_they_are_called():
    before = {"w": np.zeros((2, 3), np.float32), "n": np.array(1)}
    made = {kind: ProtocolAbuse(kind).reply(answer(), before, 1) for kind in ABUSES}
    assert np.isnan(made["nan"].arrays["w"]).all()
    assert np.isinf(made["infinity"].arrays["w"]).all()
    assert np.isfinite(made["huge"].arrays["w"]).all() and made["huge"].arrays["w"].min() > 1e29
    assert made["huge-weight"].metrics["num-examples"] == 1e9
    assert made["negative-weight"].metrics["num-examples"] < 0
    np.testing.assert_array_equal(made["huge-weight"].arrays["w"], -1)
    np.testing.assert_array_equal(made["zero-update"].arrays["w"], before["w"])
    assert not set(made["renamed-keys"].arrays) & set(before)
    assert all(made["wrong-shapes"].arrays[key].shape != before[key].shape for key in before)
    assert isinstance(made["exception"], Failure)
    assert made["silence"] is None
    assert all(v.metrics["loss"] == 0.5 for v in made.values() if isinstance(v, Answer))


def test_a_drop_out_is_silent_as_often_as_it_says():
    silent = [DropOut(probability=0.3).reply(answer(), {}, number) is None for number in range(2000)]
    assert np.mean(silent) == pytest.approx(0.3, abs=0.04)
    assert all(DropOut(probability=1.0).reply(answer(), {}, number) is None for number in range(20))


def test_every_attack_is_known_by_its_name_and_refuses_what_it_does_not_know():
    for name, kind in BYZANTINE.items():
        attack = byzantine(name)
        assert isinstance(attack, kind) and attack.reference and kind.__doc__
        sent = attack.updates(scene())
        assert sent.shape == (2, 50) and np.isfinite(sent).all()
        with pytest.raises(InputError, match="not an option"):
            byzantine(name, nonsense=1)
    with pytest.raises(InputError, match="did you mean 'min-max'"):
        byzantine("min-mx")
    for make in (
        lambda: SignFlip(scale=-1.0),
        lambda: MinMax(direction="up"),
        lambda: LabelFlip(source=1),
        lambda: LabelFlip(source=1, target=1),
        lambda: LabelFlip(source=1, target=12).data(np.zeros(1), np.zeros(1), 10, 0),
        lambda: Backdoor(share=0.0),
        lambda: Backdoor(target=12).data(np.zeros((1, 4), np.float32), np.zeros(1), 10, 0),
        lambda: ProtocolAbuse("nonsense"),
        lambda: DropOut(probability=1.5),
    ):
        with pytest.raises(InputError):
            make()


def test_attacks_do_not_need_flower():
    code = "import sys, robustml.attacks.byzantine, robustml; assert 'flwr' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
