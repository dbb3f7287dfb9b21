"""Squeezers: their values against references, the derivatives that they declare, what they refuse."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.guards.filters import MedianSmoothing, NonLocalMeans
from robustml.defenses.guards.jpeg import JPEG, table
from robustml.defenses.guards.squeezing import BitDepth, Decimals
from robustml.guards import Guard, all_guards, find_guard, through
from robustml.inputs import InputSpec
from robustml.surrogates import smoothed

IMAGES = (MedianSmoothing(2), MedianSmoothing(3), NonLocalMeans(5, 3, 40.0), JPEG(50))
MAKERS = {
    "bit-depth": lambda: BitDepth(3),
    "decimals": lambda: Decimals(1),
    "median": lambda: MedianSmoothing(2),
    "non-local-means": lambda: NonLocalMeans(5, 3, 40.0),
    "jpeg": lambda: JPEG(50),
}


def attached(guard: Guard, shape: tuple[int, ...], **inputs: object) -> Guard:
    guard.attach(InputSpec(shape=shape, **inputs))
    return guard


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Images of large soft blots, the kind that codecs are made for."""
    n, c, height, width = shape
    coarse = noise(n, c, max(2, height // 6), max(2, width // 6), seed=seed)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


# Levels and decimals


@given(st.integers(1, 16), st.integers(0, 10_000))
def test_bit_depth_has_its_levels_and_the_nearest_of_them(bits: int, seed: int) -> None:
    low, high = (-1.0, 0.0, 5.0), (1.0, 255.0, 5.5)
    guard = attached(BitDepth(bits), (3,), bounds=(low, high), dtype="float64")
    x = torch.tensor(low) + noise(50, 3, seed=seed, dtype=torch.float64) * (
        torch.tensor(high) - torch.tensor(low)
    )
    z = guard(x)
    step = (torch.tensor(high) - torch.tensor(low)).double() / (2**bits - 1)
    number = (z - torch.tensor(low)) / step
    assert (number - number.round()).abs().max() < 1e-6
    assert ((z - x).abs() <= step / 2 * (1 + 1e-9)).all()
    assert torch.equal(guard(z), z)


def test_bit_depth_is_that_of_the_paper() -> None:
    x = noise(10, 1, 8, 8)
    for bits in (1, 2, 5, 7):
        levels = 2**bits - 1
        expected = np.rint(x.numpy().astype(np.float64) * levels) / levels
        assert np.abs(attached(BitDepth(bits), (1, 8, 8))(x).numpy() - expected).max() < 1e-7


def test_eight_bits_are_how_images_are_stored() -> None:
    x = torch.arange(256.0)[None] / 255
    assert torch.equal(attached(BitDepth(8), (256,))(x), x)


@given(st.integers(-2, 4), st.integers(0, 10_000))
def test_decimals_are_those_of_numpy_within_the_bounds(places: int, seed: int) -> None:
    guard = attached(Decimals(places), (20,), bounds=(-123.456, 321.654), dtype="float64")
    x = -123.456 + 445.11 * noise(5, 20, seed=seed, dtype=torch.float64)
    z = guard(x)
    assert np.allclose(z.numpy(), np.round(x.numpy(), places).clip(-123.456, 321.654), rtol=0, atol=1e-9)
    assert torch.equal(guard(z), z)


@pytest.mark.parametrize("guard", [BitDepth(2), Decimals(-1)])
def test_whole_numbers_stay_whole_and_groups_stay_groups(guard: Guard) -> None:
    bounds = ((0.0, 0.0, 0.0, 0.0), (100.0, 50.0, 1.0, 1.0))
    attached(guard, (4,), bounds=bounds, integer=(1,), one_hot=((2, 3),))
    x = torch.tensor([[33.4, 17.0, 0.0, 1.0], [66.0, 31.0, 1.0, 0.0]])
    z = guard(x)
    assert torch.equal(z[:, 1], z[:, 1].round())
    assert torch.equal(z[:, 2:], x[:, 2:])
    assert not torch.equal(z[:, 0], x[:, 0])
    assert torch.equal(guard(z), z)


# Filters


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (3, 3, 7, 5), (1, 2, 1, 4), (1, 4, 2, 1)])
def test_median_is_that_of_scipy(size: int, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        x = noise(*shape, seed=seed)
        x = (x * 3).round() / 3 if seed == 2 else x  # with ties
        expected = ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
        assert np.array_equal(attached(MedianSmoothing(size), shape[1:])(x).numpy(), expected)


def mirrored(place: int, side: int) -> int:
    place %= 2 * side
    return min(place, 2 * side - 1 - place)


def means_by_loops(x: np.ndarray, search: int, patch: int, strength: float) -> np.ndarray:
    channels, height, width = x.shape
    out = np.zeros_like(x)
    reach, rim = search // 2, patch // 2

    def at(i: int, j: int) -> np.ndarray:
        return x[:, mirrored(i, height), mirrored(j, width)]

    offsets = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
    within = [(a, b) for a in range(-rim, rim + 1) for b in range(-rim, rim + 1)]
    for i in range(height):
        for j in range(width):
            total, weights = np.zeros(channels), 0.0
            for a, b in offsets:
                apart = np.mean([(at(i + p, j + q) - at(i + a + p, j + b + q)) ** 2 for p, q in within])
                weight = math.exp(-apart / (strength / 255) ** 2)
                total, weights = total + weight * at(i + a, j + b), weights + weight
            out[:, i, j] = total / weights
    return out


@pytest.mark.parametrize(
    ("channels", "search", "patch", "strength"), [(1, 3, 1, 30.0), (3, 5, 3, 60.0), (2, 13, 3, 25.0)]
)
def test_non_local_means_are_those_of_plain_loops(
    channels: int, search: int, patch: int, strength: float
) -> None:
    x = noise(2, channels, 5, 6, dtype=torch.float64)
    guard = attached(
        NonLocalMeans(search, patch, strength), (channels, 5, 6), bounds=(-1.0, 3.0), dtype="float64"
    )
    z = (guard(x * 4 - 1) + 1) / 4
    for row, image in enumerate(x.numpy()):
        assert np.abs(z[row].numpy() - means_by_loops(image, search, patch, strength)).max() < 1e-12


def test_non_local_means_take_noise_away_and_leave_flat_images() -> None:
    guard = attached(NonLocalMeans(7, 3, 30.0), (1, 16, 16))
    flat = torch.full((1, 1, 16, 16), 0.4)
    assert torch.allclose(guard(flat), flat, atol=1e-6)
    noisy = flat + 0.05 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (guard(noisy) - flat).std() < (noisy - flat).std() / 3


@pytest.mark.parametrize(
    "guard", [MedianSmoothing(2), MedianSmoothing(3), NonLocalMeans(5, 3, 60.0)], ids=lambda g: g.name
)
def test_filters_pass_their_true_derivative(guard: Guard) -> None:
    # Without ties between pixels, where a median has no derivative.
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).double() / 60
    x = order.view(2, 1, 6, 5).requires_grad_()
    attached(guard, (1, 6, 5), dtype="float64")
    assert torch.autograd.gradcheck(guard.surrogate, (x,), eps=1e-6, atol=1e-6)
    assert torch.equal(guard.surrogate(x), guard(x.detach()))


# JPEG


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 99, 100])
def test_the_tables_are_those_of_libjpeg(quality: int) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        for kind in (0, 1):
            assert list(image.quantization[kind]) == table(quality, kind).flatten().tolist()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_jpeg_is_what_pil_reads_back(bounds: tuple[float, float]) -> None:
    low, high = bounds
    x = smooth(2, 3, 20, 17)
    z = (attached(JPEG(40), (3, 20, 17), bounds=bounds)(low + x * (high - low)) - low) / (high - low)
    for row in range(2):
        file = io.BytesIO()
        pixels = (x[row] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=40)
        with Image.open(file) as image:
            expected = np.asarray(image).transpose(2, 0, 1)
        assert np.abs(z[row].numpy() * 255 - expected).max() < 1e-3


def test_other_channels_are_as_many_grey_images() -> None:
    x = smooth(2, 4, 16, 16)
    each = [attached(JPEG(30), (1, 16, 16))(x[:, c : c + 1]) for c in range(4)]
    assert torch.equal(attached(JPEG(30), (4, 16, 16))(x), torch.cat(each, dim=1))


@pytest.mark.parametrize("quality", [10, 30, 75, 95])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 37, 29), (3, 9, 3), (2, 5, 8)])
def test_the_surrogate_of_jpeg_is_close_to_the_codec(quality: int, shape: tuple[int, ...]) -> None:
    guard = attached(JPEG(quality), shape)
    x = smooth(8, *shape)
    exact, close = guard(x), guard.surrogate(x)
    # In 255ths; coefficients halfway between two steps, and roundings in the codec, are what is left.
    assert (exact - close).abs().mean() * 255 < 0.7
    assert (exact - close).abs().mean() < 0.35 * (exact - x).abs().mean()


def test_jpeg_passes_gradients_that_are_those_of_a_staircase_on_average() -> None:
    guard = attached(JPEG(50), (1, 8, 8), dtype="float64")
    direction = torch.cos(math.pi / 8 * (torch.arange(8.0) + 0.5) * 2).expand(1, 1, 8, 8).double()
    slopes, away = [], torch.linspace(-0.11, 0.11, 401, dtype=torch.float64)
    for amount in away:
        x = (0.5 + amount * direction).requires_grad_()
        (slope,) = torch.autograd.grad((guard.surrogate(x) * direction).sum(), x)
        slopes.append(float((slope * direction).sum() / direction.square().sum()))
    # Along one coefficient: half of the derivative is the identity's, and the other half is 1 on average.
    assert min(slopes) >= 0.5 - 1e-9
    assert max(slopes) > 1.5
    assert abs(np.mean(slopes) - 1) < 0.25


def test_what_is_no_number_does_not_become_one() -> None:
    x = noise(1, 1, 8, 8)
    x[0, 0, 2, 3] = torch.nan
    for make in MAKERS.values():
        assert attached(make(), (1, 8, 8))(x)[0, 0, 2, 3].isnan()


# All of them


def test_all_are_registered() -> None:
    assert set(MAKERS) <= set(all_guards())
    for name, make in MAKERS.items():
        guard = make()
        assert find_guard(name) is type(guard)
        assert not (guard.rejects or guard.random or guard.fits or guard.learned)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_guarded_model_runs_and_has_gradients(name: str, dtype: str, tmp_path) -> None:
    inputs = InputSpec(shape=(3, 8, 8), dtype=dtype)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).to(inputs.torch_dtype)
    guarded = rml.Guarded(rml.Classifier(module, inputs=inputs, classes=4), [MAKERS[name]()])
    x = noise(5, 3, 8, 8, dtype=inputs.torch_dtype)
    logits = guarded(x)
    assert logits.dtype == inputs.torch_dtype
    attacked = x.clone().requires_grad_()
    with_gradient = guarded(attacked)
    assert torch.equal(with_gradient, logits)
    (slope,) = torch.autograd.grad(with_gradient[:, 0].sum(), attacked)
    assert slope.isfinite().all()
    assert (slope.flatten(1).abs().amax(1) > 0).all()
    with smoothed():
        smooth_logits = guarded(attacked)
    assert torch.equal(smooth_logits, logits)
    assert torch.autograd.grad(smooth_logits[:, 0].sum(), attacked)[0].isfinite().all()
    # A row does not depend on the others, and no rows are a batch, too.
    assert torch.allclose(guarded(x[2:3]), logits[2:3], atol=1e-6)
    assert guarded(x[:0]).shape == (0, 4)
    guarded.save(tmp_path / "g.safetensors")
    again = rml.Guarded.load(tmp_path / "g.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).to(x))
    assert torch.equal(again(x), logits)
    assert again.describe() == guarded.describe()


@pytest.mark.parametrize("name", ["bit-depth", "decimals"])
def test_rounding_passes_gradients_straight_through(name: str) -> None:
    guard = attached(MAKERS[name](), (4,))
    x = noise(3, 4).requires_grad_()
    (slope,) = torch.autograd.grad((through(guard, x) * torch.arange(4.0)).sum(), x)
    assert torch.equal(slope, torch.arange(4.0).expand(3, 4))


@pytest.mark.parametrize("guard", IMAGES, ids=lambda g: g.name)
@pytest.mark.parametrize("shape", [(30,), (6, 5)])
def test_filters_refuse_what_is_no_image(guard: Guard, shape: tuple[int, ...]) -> None:
    with pytest.raises(rml.InputError, match=rf"^guard {guard.name} works on images \(channels, height, w"):
        guard.attach(InputSpec(shape=shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitDepth(0), "bits=0 is not a whole number from 1 to 16"),
        (lambda: BitDepth(17), "bits=17 is not a whole number from 1 to 16"),
        (lambda: BitDepth(2.0), "bits=2.0 is not a whole number from 1 to 16"),
        (lambda: BitDepth(True), "bits=True is not a whole number"),
        (lambda: Decimals(7), "places=7 is not a whole number from -6 to 6"),
        (
            lambda: attached(Decimals(-1), (2,)),
            "places=-1 rounds to steps of 10, which is more than the range",
        ),
        (lambda: MedianSmoothing(4), "size=4 is not 2 or 3"),
        (lambda: MedianSmoothing("2"), "size='2' is not 2 or 3"),
        (lambda: MedianSmoothing(2.0), "size=2.0 is not 2 or 3"),
        (lambda: MedianSmoothing([2]), "size=[2] is not 2 or 3"),
        (lambda: NonLocalMeans(search=4), "search=4 is even; the window needs a middle"),
        (lambda: NonLocalMeans(search=1), "search=1 is not a whole number from 3 to 31"),
        (lambda: NonLocalMeans(patch=2), "patch=2 is even"),
        (lambda: NonLocalMeans(patch=33), "patch=33 is not a whole number from 1 to 31"),
        (lambda: NonLocalMeans(strength=0.0), "strength=0.0 is not a number above 0 and up to 255"),
        (lambda: NonLocalMeans(strength=float("nan")), "strength=nan is not a number above 0"),
        (lambda: NonLocalMeans(strength=True), "strength=True is not a number above 0"),
        (lambda: JPEG(0), "quality=0 is not a whole number from 1 to 100"),
        (lambda: JPEG(101), "quality=101 is not a whole number from 1 to 100"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(rml.InputError) as caught:
        make()
    assert message in str(caught.value)
