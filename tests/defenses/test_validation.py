"""Validation on tensors: which inputs it rejects, with which derivative, and what it learns of clean data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import mahalanobis
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.validation import Validate
from robustml.defenses.guards.validation.spread import fit_spread
from robustml.guards import find_guard

SPEC = rml.InputSpec(
    shape=(6,),
    bounds=(-5.0, 5.0),
    integer=(1,),
    one_hot=((3, 4, 5),),
    features=tuple("abcdef"),
    dtype="float64",
)
IMAGES = rml.InputSpec(shape=(3, 4, 4), levels=256)


def clean(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 6))
    x[:, 1] = rng.integers(-2, 3, n)
    x[:, 3:] = np.eye(3)[rng.integers(0, 3, n)]
    return x


def attached(guard: Validate, spec: rml.InputSpec = SPEC) -> Validate:
    guard.attach(spec)
    return guard


def model(spec: rml.InputSpec = SPEC) -> rml.Classifier:
    state = torch.get_rng_state()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(spec.size, 8), nn.Tanh(), nn.Linear(8, 3)).to(
        spec.torch_dtype
    )
    torch.set_rng_state(state)
    return rml.Classifier(net.eval(), inputs=spec, classes=3)


def one(**changes: float) -> Tensor:
    x = torch.tensor([[0.5, 1.0, -0.5, 0.0, 1.0, 0.0]], dtype=torch.float64)
    for name, value in changes.items():
        x[0, "abcdef".index(name)] = value
    return x


def test_it_is_registered() -> None:
    assert find_guard("validate") is Validate
    assert Validate.rejects
    assert not Validate(mode="clip").rejects


@pytest.mark.parametrize(
    ("changes", "code", "feature"),
    [
        ({}, None, None),
        ({"a": 5.0}, None, None),
        ({"a": 5.0001}, "bounds", 0),
        ({"c": -7.0}, "bounds", 2),
        ({"b": 0.5}, "integer", 1),
        ({"d": 1.0}, "one-hot", None),
        ({"e": 0.0}, "one-hot", None),
        ({"e": 0.5}, "one-hot", 4),
        ({"a": float("nan")}, "not-finite", 0),
        ({"b": float("inf")}, "not-finite", 1),
        ({"c": -float("inf")}, "not-finite", 2),
    ],
)
def test_each_rule_by_score_and_by_reason(
    changes: dict[str, float], code: str | None, feature: int | None
) -> None:
    guard, x = attached(Validate()), one(**changes)
    (score,) = guard.score(x).tolist()
    found = guard.check(x)
    if code is None:
        assert score == -1
        assert found.ok
        assert torch.equal(found.x, x)
    else:
        assert score >= 1
        (refusal,) = found.refusals
        assert (refusal.code, refusal.row) == (code, 0)
        if feature is not None:
            assert refusal.feature == feature
            assert refusal.name == "abcdef"[feature]
            assert str(refusal.value) == str(float(x[0, feature]))


def test_levels() -> None:
    guard = attached(Validate(), IMAGES)
    x = (torch.arange(256)[:, None, None, None] / 255).expand(256, 3, 4, 4).contiguous()
    assert bool((guard.score(x) == -1).all())
    x[:, 1, 2, 3] = (x[:, 1, 2, 3] + 0.4 / 255).clamp_max(1 - 0.4 / 255)
    assert bool((guard.score(x) > 0).all())
    found = guard.check(x)
    assert found.refusals.counts == {"levels": 256}
    assert {refusal.feature for refusal in found.refusals} == {1 * 16 + 2 * 4 + 3}
    assert bool((attached(Validate(discrete=False), IMAGES).score(x) == -1).all())


def test_the_distance_beyond_a_limit_is_the_score_and_its_derivative() -> None:
    guard = attached(Validate.fit(clean(100), fpr=0.0, margin=0.0, discrete=False))
    high = float(guard.high[0])
    x = one(a=high + 0.3).requires_grad_()
    score = guard.score(x)
    assert score.tolist() == pytest.approx([1 + 0.3 / 10])
    (gradient,) = torch.autograd.grad(score.sum(), x)
    assert gradient[0].tolist() == pytest.approx([0.1, 0, 0, 0, 0, 0])


def test_whole_numbers_and_groups_pull_towards_what_is_allowed() -> None:
    guard = attached(Validate())
    for changes, feature in (({"b": 1.2}, 1), ({"e": 0.7}, 4)):
        x = one(**changes).requires_grad_()
        (gradient,) = torch.autograd.grad(guard.score(x).sum(), x)
        step = (x - 1e-3 * gradient).detach()
        assert bool(guard.score(step) < guard.score(x))
        assert float(gradient[0, feature]) != 0


def test_the_gradient_of_the_distance_to_the_training_data_is_the_true_one() -> None:
    guard = attached(Validate.fit(clean(400), discrete=False))
    x = torch.from_numpy(clean(5, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: guard.score(z), (x,))


def test_full_rank_is_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4)
    spread = fit_spread(torch.from_numpy(x), rank=4, groups=4)
    inverse = np.linalg.inv(np.cov(x.T, bias=True))
    wanted = [mahalanobis(row, x.mean(0), inverse) ** 2 / 4 for row in x[:50]]
    assert spread(torch.from_numpy(x[:50])).tolist() == pytest.approx(wanted, rel=1e-6)


def test_limited_rank_is_the_likelihood_of_probabilistic_pca() -> None:
    """Against scikit-learn's, whose log-likelihood is -1/2 of this distance and a constant."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(2)
    x = rng.normal(size=(800, 12)) * np.linspace(3, 0.5, 12) @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    x = (x - x.mean(0)) / x.std(0)
    spread = fit_spread(torch.from_numpy(x), rank=5, groups=12)
    other = PCA(n_components=5, svd_solver="full").fit(x).score_samples(x[:40])
    ours = -0.5 * 12 * spread(torch.from_numpy(x[:40])).numpy()
    # It divides by n - 1 where we divide by n.
    assert ours - ours[0] == pytest.approx((other - other[0]) * 800 / 799, rel=1e-4, abs=1e-6)


def test_many_features_have_the_same_widest_directions() -> None:
    rng = np.random.default_rng(5)
    x = torch.from_numpy(
        rng.normal(size=(300, 3)) @ rng.normal(size=(3, 2100)) * 5 + rng.normal(size=(300, 2100))
    )
    wide = fit_spread(x, rank=3, groups=1)
    values = torch.linalg.svdvals(wide.directions)
    assert values.tolist() == pytest.approx([1, 1, 1], abs=0.02)
    inside = x[:1] + 3 * (x[1:2] - x[2:3])
    outside = (
        x[:1] + 3 * (x[1:2] - x[2:3])[:, torch.randperm(2100, generator=torch.Generator().manual_seed(1))]
    )
    assert float(wide(outside)) > 5 * float(wide(inside))


def test_fresh_clean_data_is_rejected_at_the_rate_that_was_asked_for() -> None:
    rates, inside = [], 0
    for seed in range(40):
        guard = attached(Validate.fit(clean(400, seed=seed), fpr=0.05))
        rate = float((guard.score(torch.from_numpy(clean(4000, seed=1000 + seed))) > 0).double().mean())
        rates.append(rate)
        assert guard.calibration is not None
        low, high = guard.calibration.interval
        inside += low <= rate <= high
    # The mean of 40 rates, of which each has a standard deviation of about 0.016.
    assert np.mean(rates) < 0.05 + 3 * 0.016 / np.sqrt(40)
    assert np.mean(rates) > 0.03
    assert inside >= 34


def test_the_rate_of_all_checks_holds_fresh_data() -> None:
    guard = attached(Validate.fit(clean(2000), fpr=0.02, margin=0.0))
    assert guard.false_rejections is not None
    value, low, high = guard.false_rejections
    assert low <= value <= high
    fresh = float((guard.score(torch.from_numpy(clean(20000, seed=9))) > 0).double().mean())
    assert fresh <= high


def test_foreign_data_is_rejected() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(600, 1)) * np.ones((1, 6)) + 0.05 * rng.normal(size=(600, 6))
    spec = rml.InputSpec(shape=(6,), bounds=(-9.0, 9.0))
    guard = attached(Validate.fit(base), spec)
    # Every value is within its range; together they never occur.
    strange = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    assert guard.check(strange).refusals[0].code == "spread"
    assert guard.check(torch.ones(1, 6)).ok


def test_images_share_ranges_per_channel() -> None:
    x = np.random.default_rng(0).uniform(0.2, 0.8, (300, 3, 4, 4))
    guard = attached(Validate.fit(x, margin=0.0, discrete=False), rml.InputSpec(shape=(3, 4, 4)))
    assert guard.low.shape == (3,)
    bad = torch.full((1, 3, 4, 4), 0.5)
    bad[0, 2, 1, 1] = 0.95
    refusal = guard.check(bad).refusals[0]
    assert (refusal.code, refusal.feature) == ("training-range", 2 * 16 + 5)
    assert f"{float(guard.high[2]):.9g}" in refusal.accepted


@given(
    hnp.arrays(
        np.float64,
        (3, 6),
        elements=st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 5.0]),
    )
)
@settings(max_examples=500)
def test_score_and_reasons_agree_and_clipping_repairs(x: np.ndarray[Any, Any]) -> None:
    guard = attached(Validate.fit(clean(300)))
    tensor = torch.from_numpy(x)
    score = guard.score(tensor)
    assert not bool(score.isnan().any())
    found = guard.check(x)
    assert found.rows.tolist() == (score <= 0).nonzero()[:, 0].tolist()
    assert [r.row for r in found.refusals] == (score > 0).nonzero()[:, 0].tolist()
    for refusal in found.refusals:
        assert refusal.code == "spread" or (refusal.feature is not None and refusal.accepted)
    clip = attached(Validate.restored({**guard.options, "mode": "clip"}, guard.learned))
    repaired = clip.check(x)
    assert {r.code for r in repaired.refusals} <= {"not-finite"}
    far = ("center", "weight", "directions", "limit")
    learned = {name: value[:0] if name in far else value for name, value in guard.learned.items()}
    plain = attached(Validate.restored({**guard.options, "fpr": 0.0}, learned))
    assert bool((plain.score(repaired.x) == -1).all())


def test_clip_leaves_valid_inputs_alone_and_its_surrogate_is_the_clamp() -> None:
    guard = attached(Validate(mode="clip"))
    x = torch.from_numpy(clean(50))
    assert torch.equal(guard(x), x)
    wild = one(a=9.0, b=1.4, c=-9.0).requires_grad_()
    assert guard(wild)[0].tolist() == [5.0, 1.0, -5.0, 0.0, 1.0, 0.0]
    (gradient,) = torch.autograd.grad(guard.surrogate(wild).sum(), wild)
    assert gradient[0].tolist() == [0, 1, 0, 1, 1, 1]


def test_clipped_whole_numbers_stay_within_limits_that_are_none() -> None:
    spec = rml.InputSpec(shape=(2,), bounds=(-1.5, 2.5), integer=(0, 1))
    guard = attached(Validate(mode="clip"), spec)
    assert guard(torch.tensor([[9.0, -9.0], [2.5, -1.5]])).tolist() == [[2.0, -1.0], [2.0, -1.0]]


def test_guarded_rejects_and_gives_gradients() -> None:
    guarded = rml.Guarded(model(), guards=[Validate.fit(clean(400))])
    x = torch.cat([one(), one(a=4.9), one(b=0.5), one(a=float("nan"))])
    logits = guarded(x)
    assert logits.shape == (4, 4)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == 3).tolist() == [False, True, True, True]
    z = one(a=4.9).requires_grad_()
    (gradient,) = torch.autograd.grad(guarded(z)[:, 3].sum(), z)
    assert gradient.isfinite().all()
    assert float(gradient[0, 0]) > 0


@pytest.mark.parametrize("mode", ["reject", "raise"])
def test_on_tensors_raise_is_reject(mode: Any) -> None:
    guarded = rml.Guarded(model(), guards=[Validate(mode=mode)])
    assert guarded.rejects
    assert guarded(one(b=0.5)).argmax(1).tolist() == [3]


def test_valid_inputs_pass_as_the_same_tensor() -> None:
    x = torch.from_numpy(clean(5))
    assert attached(Validate())(x) is x


def test_save_and_load_give_identical_outputs(tmp_path: Path) -> None:
    first = rml.Guarded(model(), guards=[Validate.fit(clean(400), fpr=0.05, margin=0.2)])
    first.save(tmp_path / "guarded.safetensors")
    again = rml.Guarded.load(tmp_path / "guarded.safetensors", model().module)
    x = torch.from_numpy(np.concatenate([clean(20), 4 * clean(20)]))
    assert torch.equal(first(x), again(x))
    assert again.guards[0].options == first.guards[0].options
    assert again.guards[0].calibration == first.guards[0].calibration
    assert first.fingerprint() == again.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "refuse"}, "mode"),
        ({"fpr": 1.0}, "fpr"),
        ({"margin": -1.0}, "margin"),
        ({"rank": 1.5}, "rank"),
        ({"formats": ["PNGG"]}, "formats holds 'PNGG', which is not known; did you mean 'PNG'"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rml.InputError, match=message) as caught:
        Validate(**options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((10, 3)), "x holds 10 inputs; fpr=0.01 takes 198, half of them to calibrate on"),
        ([[1.0]], "is not an array or a tensor"),
        (np.array([["a"]]), "x holds <U1"),
        (np.zeros(4), "x has shape"),
        (np.full((300, 2), np.nan), "not finite"),
    ],
)
def test_bad_training_data(x: Any, message: str) -> None:
    with pytest.raises(rml.InputError, match=message):
        Validate.fit(x)


def test_what_does_not_fit_the_inputs() -> None:
    with pytest.raises(rml.InputError, match="fitted to inputs of another shape"):
        Validate.fit(np.zeros((300, 4))).attach(SPEC)
    with pytest.raises(rml.InputError, match="outside of the bounds"):
        Validate.fit(clean(300) + 9).attach(SPEC)
    with pytest.raises(rml.InputError, match="does not know its inputs yet"):
        Validate().check(np.zeros((1, 6)))
    with pytest.raises(rml.InputError, match="x has shape"):
        attached(Validate()).score(torch.zeros(1, 5))


def test_what_does_not_belong_together_is_refused() -> None:
    guard = Validate.fit(clean(300))
    for name in ("high", "weight", "directions", "limit", "counts"):
        learned = {**guard.learned, name: guard.learned[name][:-1]}
        with pytest.raises(rml.InputError, match="guard validate is damaged"):
            Validate.restored(guard.options, learned).attach(SPEC)


def test_a_target_file_fits_it() -> None:
    from robustml.targets.guarding import made

    guard = made("validate", {"fpr": 0.05, "mode": "raise"}, model=model(), x=torch.from_numpy(clean(100)))
    assert isinstance(guard, Validate)
    assert (guard.mode, guard.fpr, len(guard.low)) == ("raise", 0.05, 6)
    assert len(made("validate", {}, model=model()).learned["low"]) == 0


def test_an_empty_batch() -> None:
    guard = attached(Validate.fit(clean(300)))
    assert guard.score(torch.zeros(0, 6)).shape == (0,)
    assert guard(torch.zeros(0, 6)).shape == (0, 6)
    assert guard.check(np.zeros((0, 6))).ok


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_attackers_who_know_it_get_around_it(seed: int) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    x, y = (digits.images / 16).astype(np.float32)[order, None], digits.target[order]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    bare = rml.Classifier(net, inputs=rml.InputSpec(shape=(1, 8, 8), levels=17), classes=10)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    for _ in range(60):
        loss = nn.functional.cross_entropy(bare(torch.from_numpy(x[:1000])), torch.from_numpy(y[:1000]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bare.eval()
    guarded = rml.Guarded(bare, guards=[Validate.fit(x[1000:1500], fpr=0.05)])
    data = (x[1500:1700], y[1500:1700])
    report = rml.stress_test(guarded, data, threats=[rml.Linf(0.13), rml.Linf(0.25)], suite="quick")
    assert report.clean.accuracy.value > 0.9
    for threat in report.threats:
        assert threat.unaware is not None
        assert threat.robust_accuracy.upper is not None
        aware, unaware = threat.robust_accuracy.upper.value, threat.unaware.robust_accuracy.value
        assert aware <= unaware
    # Of what was made without knowing of it nearly half lies too far from the data; of the rest nothing does.
    assert unaware > 0.3
    assert aware < 0.02
