"""Common corruptions and poses: valid, repeatable, independent of the batch, and as strong as they say."""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from robustml.attacks.corruptions import filters, sizes
from robustml.attacks.corruptions.noise import poisson
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import (
    SEVERITIES,
    all_corruptions,
    all_transformations,
    find_corruption,
    find_transformations,
)
from robustml.sampling import Streams

NAMES = list(all_corruptions())
RANDOM = {"motion-blur", "glass-blur", "snow", "frost", "fog", "elastic"}  # and all the noise
GROUPS = {"noise": 4, "blur": 5, "weather": 4, "digital": 5}
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 9, 14), (2, 2, 2), (3, 2, 40)]


def pictures(shape: tuple[int, ...], n: int = 6, seed: int = 0, dtype: Any = torch.float32) -> Tensor:
    """Smooth random images in [0, 1], more like photographs than noise is."""
    draw = np.random.default_rng(seed).random((n, *shape))
    smooth = ndimage.gaussian_filter(draw, (0, 0, 1.2, 1.2), mode="wrap")
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return torch.from_numpy((smooth - low) / (high - low)).to(dtype)


def corrupted(name: str, x: Tensor, severity: int, *, ids: Tensor | None = None, **spec: Any) -> Tensor:
    names = {torch.float32: "float32", torch.float64: "float64"}
    space = InputSpec(shape=tuple(x.shape[1:]), dtype=names[x.dtype], **spec)
    ids = torch.arange(len(x)) if ids is None else ids
    streams = Streams.derive(7, name, ids)
    return find_corruption(name).apply(x, severity, spec=space, streams=streams)


def means_something(name: str, shape: tuple[int, ...]) -> bool:
    channels = find_corruption(name).channels
    return not channels or shape[0] in channels


CASES = [(name, shape) for name in NAMES for shape in SHAPES if means_something(name, shape)]


def test_every_group_is_there() -> None:
    groups = [entry.group for entry in all_corruptions().values()]
    assert {group: groups.count(group) for group in groups} == GROUPS
    assert list(dict.fromkeys(groups)) == list(GROUPS)


@pytest.mark.parametrize("entry", [*all_corruptions().values(), *all_transformations().values()])
def test_it_says_what_it_is(entry: Any) -> None:
    assert re.search(r"(19|20)\d\d", entry.reference)
    assert entry.summary.endswith(".")
    assert 20 <= len(entry.summary) <= 110


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'gaussian-noise'"):
        find_corruption("gausian-noise")
    with pytest.raises(InputError, match="did you mean 'spatial'"):
        find_transformations("spacial")
    with pytest.raises(InputError, match="severity=6 is not a whole number from 1 to 5"):
        corrupted("fog", pictures((1, 8, 8)), 6)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_result_is_valid_and_repeatable(name: str, shape: tuple[int, ...]) -> None:
    x = pictures(shape)
    original, before, numpy_before = x.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    for severity in SEVERITIES:
        z = corrupted(name, x, severity)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        assert bool(z.isfinite().all())
        assert 0 <= float(z.min()) <= float(z.max()) <= 1
        assert torch.equal(z, corrupted(name, x, severity))
    assert min(shape[1:]) < 8 or not torch.equal(z, x)
    assert torch.equal(x, original)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case[1] != (2, 2, 2)])
def test_a_sample_does_not_depend_on_its_batch(name: str, shape: tuple[int, ...]) -> None:
    x, ids = pictures(shape, n=9), torch.arange(40, 49)
    whole = corrupted(name, x, 3, ids=ids)
    for rows in ([4], [8, 2], [5, 6, 7, 8], list(range(9))[::-1]):
        assert torch.equal(corrupted(name, x[rows], 3, ids=ids[rows]), whole[rows])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_cut_into_slices_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures((3, 32, 32), n=7)
    whole = corrupted(name, x, 5)
    monkeypatch.setattr("robustml.registry._SLICE", 2 * x[0].numel())
    assert torch.equal(corrupted(name, x, 5), whole)
    assert corrupted(name, x[:0], 5).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_belong_to_the_sample(name: str) -> None:
    same = pictures((3, 16, 16), n=1).expand(4, -1, -1, -1).contiguous()
    z = corrupted(name, same, 4)
    if find_corruption(name).group == "noise" or name in RANDOM:
        assert not torch.equal(z[0], z[1])
        other = Streams.derive(8, name, torch.arange(4))
        assert not torch.equal(
            z, find_corruption(name).apply(same, 4, spec=InputSpec(shape=(3, 16, 16)), streams=other)
        )
    else:
        assert torch.equal(z[0], z[3])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16), side=st.sampled_from([8, 12, 28, 32, 48]), channels=st.sampled_from([1, 3])
)
def test_mean_distortion_grows_with_severity(name: str, seed: int, side: int, channels: int) -> None:
    shape = (channels, side, side + seed % 3)
    if not means_something(name, shape):
        return
    x = pictures(shape, n=24, seed=seed, dtype=torch.float64)
    change = [(corrupted(name, x, s) - x).flatten(1).norm(dim=1).mean() for s in SEVERITIES]
    assert float(change[0]) > 0
    assert all(mild <= strong + 1e-9 for mild, strong in itertools.pairwise(change)), change


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), (2.0, 2.5)])
def test_other_bounds_are_the_same_picture_in_other_units(name: str, bounds: tuple[float, float]) -> None:
    x = pictures((3, 16, 16), dtype=torch.float64)
    low, high = bounds
    expected = low + (high - low) * corrupted(name, x, 4)
    found = corrupted(name, low + (high - low) * x, 4, bounds=bounds)
    assert low <= float(found.min()) <= float(found.max()) <= high
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * (high - low))


def test_bounds_of_each_feature() -> None:
    low, high = [-1.0] * 64 + [5.0] * 64, [1.0] * 64 + [9.0] * 64
    unit = pictures((2, 8, 8), dtype=torch.float64)
    scale = torch.tensor([2.0, 4.0], dtype=torch.float64).view(2, 1, 1)
    start = torch.tensor([-1.0, 5.0], dtype=torch.float64).view(2, 1, 1)
    z = corrupted("brightness", start + scale * unit, 5, bounds=(tuple(low), tuple(high)))
    assert torch.allclose(z, start + scale * (unit + 0.3).clamp_max(1))


def test_whole_numbers_stay_whole_and_the_immutable_stays() -> None:
    x = (pictures((1, 8, 8), dtype=torch.float64) * 16).round()
    z = corrupted("gaussian-noise", x, 5, bounds=(0.0, 16.0), integer=tuple(range(32)), immutable=(3, 40))
    flat, before = z.flatten(1), x.flatten(1)
    assert torch.equal(flat[:, :32], flat[:, :32].round())
    assert not torch.equal(flat[:, 32:], flat[:, 32:].round())
    assert torch.equal(flat[:, [3, 40]], before[:, [3, 40]])


def test_images_of_eight_bits_keep_them() -> None:
    x = (pictures((1, 8, 8), dtype=torch.float64) * 255).round() / 255
    z = corrupted("fog", x, 3, levels=256)
    assert torch.allclose(z * 255, (z * 255).round(), atol=1e-9)
    assert torch.allclose(z, corrupted("fog", x, 3), atol=0.5 / 255 + 1e-9)


# What each corruption is, from elsewhere.


def test_noise_has_the_size_that_it_says() -> None:
    grey = torch.full((4, 3, 32, 32), 0.5, dtype=torch.float64)
    z = corrupted("gaussian-noise", grey, 5)
    assert float(z.std()) == pytest.approx(0.10, rel=0.03)
    assert stats.kstest(((z - 0.5) / 0.1).flatten().numpy(), "norm").pvalue > 1e-3
    assert float(corrupted("speckle-noise", grey, 5).std()) == pytest.approx(0.10, rel=0.03)
    assert float(corrupted("shot-noise", grey, 5).var()) == pytest.approx(0.5 / 50, rel=0.06)
    impulse = corrupted("impulse-noise", grey, 5)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.035, rel=0.2)
    assert float((impulse == 0).double().mean()) == pytest.approx(0.035, rel=0.2)


@pytest.mark.parametrize("rate", [0.0, 0.3, 5.0, 16.0, 16.1, 40.0, 500.0])
def test_poisson_numbers(rate: float) -> None:
    n = 100_000
    found = poisson(torch.full((1, n), rate, dtype=torch.float64), Streams.derive(0, "p", torch.arange(1)))
    below = np.searchsorted(np.sort(found[0].numpy()), np.arange(800), side="right") / n
    # Dvoretzky-Kiefer-Wolfowitz at a risk of 1e-6.
    assert abs(below - stats.poisson.cdf(np.arange(800), rate)).max() < np.sqrt(np.log(2e6) / (2 * n))


def test_convolution_against_scipy() -> None:
    x = pictures((2, 9, 13), n=3, dtype=torch.float64)
    kernels = torch.from_numpy(np.random.default_rng(3).random((3, 5, 3)))
    found = filters.convolve(x, kernels)
    for row in range(3):
        for channel in range(2):
            expected = ndimage.correlate(x[row, channel].numpy(), kernels[row].numpy(), mode="nearest")
            assert np.allclose(found[row, channel], expected)
    shared = filters.convolve(x, kernels[0])
    assert torch.allclose(shared[:1], found[:1])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_gaussian_weights(sigma: float) -> None:
    weights = filters.gaussian(sigma)
    steps = torch.arange(len(weights)) - len(weights) // 2
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.allclose(weights, weights.flip(0), atol=1e-15)
    # The variance of a normal distribution plus that of the pixel, except far below one pixel.
    if sigma >= 0.5:
        assert float((weights * steps**2).sum()) == pytest.approx(sigma**2 + 1 / 12, rel=0.03)


def test_reading_between_pixels_against_scipy() -> None:
    x = pictures((1, 7, 11), n=1, dtype=torch.float64)
    draw = np.random.default_rng(0)
    rows, columns = draw.uniform(0, 6, (5, 4)), draw.uniform(0, 10, (5, 4))
    found = filters.sample(x, torch.from_numpy(rows)[None], torch.from_numpy(columns)[None])
    expected = ndimage.map_coordinates(x[0, 0].numpy(), [rows, columns], order=1)
    assert np.allclose(found[0, 0], expected)


def test_a_kernel_of_points() -> None:
    points = torch.tensor([[[0.0, 0.0], [0.5, -1.25]]], dtype=torch.float64)
    kernel = filters.splat(points, torch.tensor([0.5, 0.5], dtype=torch.float64))[0]
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[2, 2] = 0.5
    for row in (2, 3):
        expected[row, 1], expected[row, 0] = 0.5 * 0.5 * 0.75, 0.5 * 0.5 * 0.25
    assert torch.allclose(kernel, expected)


@pytest.mark.parametrize("name", ["gaussian-blur", "defocus-blur", "motion-blur", "zoom-blur", "glass-blur"])
def test_blur_leaves_an_even_surface_alone_and_a_mean_nearly(name: str) -> None:
    even = torch.full((2, 1, 20, 20), 0.3, dtype=torch.float64)
    assert torch.allclose(corrupted(name, even, 5), even)
    x = pictures((1, 32, 32), dtype=torch.float64)
    z = corrupted(name, x, 5)
    assert float((z.mean() - x.mean()).abs()) < 0.02
    assert float(z.var()) < float(x.var())


def test_brightness_contrast_and_color() -> None:
    x = pictures((3, 32, 32), dtype=torch.float64)
    assert torch.allclose(corrupted("brightness", x, 2), (x + 0.1).clamp_max(1))
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupted("contrast", x, 5), mean + 0.15 * (x - mean))
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(corrupted("saturate", grey, 5), grey)


def test_fog_never_adds_contrast() -> None:
    x = pictures((1, 32, 32), n=16, dtype=torch.float64)
    z = corrupted("fog", x, 5)
    assert float(z.std((2, 3)).mean()) < 0.7 * float(x.std((2, 3)).mean())


def test_pixelate_averages_blocks() -> None:
    x = pictures((3, 32, 32), dtype=torch.float64)
    means = torch.nn.functional.avg_pool2d(x, 2)
    expected = means.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(corrupted("pixelate", x, 5), expected)
    odd = pictures((1, 5, 7), dtype=torch.float64)
    z = corrupted("pixelate", odd, 5)
    assert torch.allclose(z[:, :, 4, 6], odd[:, :, 4, 6])  # the last corner is a block of its own
    assert torch.allclose(z[:, :, 4, 0], odd[:, :, 4, :2].mean(2))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_jpeg_is_what_pillow_writes(channels: int, mode: str) -> None:
    x = (pictures((channels, 32, 32)) * 255).round() / 255
    z = corrupted("jpeg", x, 5)
    for row in range(len(x)):
        levels = (x[row] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().squeeze()
        file = io.BytesIO()
        Image.fromarray(levels, mode).save(file, "JPEG", quality=40)
        back = np.asarray(Image.open(file)).reshape(32, 32, channels).transpose(2, 0, 1)
        assert np.array_equal((z[row] * 255).round().numpy(), back)


def test_strength_follows_the_size() -> None:
    small, large = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.4, 0.6, 0.8, 1.0)
    for severity, low, high in zip(SEVERITIES, small, large, strict=True):
        assert sizes.amount(torch.zeros(1, 1, 32, 50), severity, small, large) == pytest.approx(low)
        assert sizes.amount(torch.zeros(1, 1, 8, 8), severity, small, large) == pytest.approx(low)
        assert sizes.amount(torch.zeros(1, 1, 300, 224), severity, small, large) == pytest.approx(high)
        assert sizes.length(torch.zeros(1, 1, 8, 8), severity, small, large) == pytest.approx(low / 2)
        assert sizes.length(torch.zeros(1, 1, 448, 448), severity, small, large) == pytest.approx(2 * high)
    between = sizes.amount(torch.zeros(1, 1, 85, 85), 1, small, large)
    assert 0.1 < between < 0.2


# Poses.


def poses(shape: tuple[int, ...], **options: Any) -> Any:
    entry = find_transformations("spatial")
    return entry.function(InputSpec(shape=shape, dtype="float64"), **entry.check(options))


def at(grid: Any, x: Tensor, text: str) -> Tensor:
    (place,) = [place for place in range(len(grid)) if grid.describe(place) == text]
    return grid.apply(x, torch.full((len(x),), place))


def test_quarter_turns_and_whole_pixels_are_exact() -> None:
    x = pictures((3, 9, 9), dtype=torch.float64)
    turned = poses((3, 9, 9), rotation=90.0, rotations=3, translations=1)
    assert torch.allclose(
        at(turned, x, "rotated by 90 degrees, moved 0 pixels down and 0 to the right"),
        torch.rot90(x, 1, (2, 3)),
        atol=1e-9,
    )
    moved = poses((3, 9, 9), translation=2 / 9, translations=3, rotations=1)
    z = at(moved, x, "rotated by 0 degrees, moved 2 pixels down and -2 to the right")
    expected = torch.zeros_like(x)
    expected[:, :, 2:, :-2] = x[:, :, :-2, 2:]
    assert torch.allclose(z, expected, atol=1e-9)


def test_outside_is_the_lowest_value_and_each_row_has_its_own_pose() -> None:
    spec = InputSpec(shape=(1, 8, 8), bounds=(-1.0, 1.0))
    grid = find_transformations("spatial").function(spec, rotation=0.0, translation=0.5, translations=3)
    z = grid.apply(torch.ones(2, 1, 8, 8), torch.tensor([0, len(grid) - 1]))
    assert (z[0] == -1).sum() == 48  # moved by half the side along both axes
    assert bool((z[1] == 1).all())  # the last place is the image as it is
    assert z.dtype == torch.float32


def test_the_grid_is_complete_and_begins_with_the_most_drastic() -> None:
    grid = poses((1, 32, 32))
    assert len(grid) == 31 * 5 * 5  # the grid of the paper
    words = [grid.describe(place) for place in range(len(grid))]
    assert len(set(words)) == len(words)
    assert all("rotated by -30 degrees" in text or "rotated by 30 degrees" in text for text in words[:8])
    assert words[-1] == "rotated by 0 degrees, moved 0 pixels down and 0 to the right"
    x = pictures((1, 32, 32), dtype=torch.float64)
    assert torch.allclose(grid.apply(x, torch.full((len(x),), len(grid) - 1)), x)
    assert len(poses((1, 32, 32), rotation=0.0, translations=1)) == 1


@pytest.mark.parametrize("option", [{"rotation": 181.0}, {"translation": -0.1}, {"rotations": 0}])
def test_unacceptable_limits(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        find_transformations("spatial").check(option)
    with pytest.raises(InputError, match="did you mean 'rotation'"):
        find_transformations("spatial").check({"rotatoin": 3.0})
