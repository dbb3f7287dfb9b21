import hashlib
import pickle
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robustml.data import Dataset, as_dataset, choose, read_folder, read_npz
from robustml.errors import InputError
from robustml.inputs import InputSpec

GREY = InputSpec(shape=(1, 4, 3))
ROW = InputSpec(shape=(5,))


def images(n: int = 6, spec: InputSpec = GREY) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(n * spec.size, dtype=np.float32).reshape(n, *spec.shape)
    return values / values.max(), np.arange(n) % 3


def refusal(data, inputs: InputSpec = GREY, classes: int = 3) -> str:
    with pytest.raises(InputError) as caught:
        as_dataset(data, inputs, classes, name="test.npz")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("test.npz: ")
    return message.removeprefix("test.npz: ")


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        x, y = images()
        return iter([(torch.from_numpy(a), int(b)) for a, b in zip(x, y, strict=True)])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: (x.astype(np.float64), y.astype(np.uint8)),
        lambda x, y: (x.tolist(), y.tolist()),
        lambda x, y: (torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)),
        lambda x, y: (list(torch.from_numpy(x)), y),
        lambda x, y: (x[:, 0], y),
        lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        lambda x, y: DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=4),
        lambda x, y: [(x[:2], y[:2]), (x[2:], y[2:])],
        lambda x, y: ((x[i : i + 1], y[i : i + 1]) for i in range(len(x))),
        lambda x, y: Stream(),
        lambda x, y: Dataset(x, y),
    ],
)
def test_every_accepted_form_gives_the_same_data(wrap) -> None:
    x, y = images()
    data = as_dataset(wrap(x, y), GREY, 3)
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y, y)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)
    assert data.sha256 == as_dataset((x, y), GREY, 3).sha256
    assert len(data) == 6


def test_arrays_of_the_right_type_are_shared() -> None:
    x, y = images()
    assert as_dataset((x, y), GREY, 3).x is x
    double = InputSpec(shape=(1, 4, 3), dtype="float64")
    assert as_dataset((x, y), double, 3).x.dtype == np.float64


def test_reading_a_torch_data_set_leaves_the_global_generator_alone() -> None:
    x, y = map(torch.from_numpy, images())
    before = torch.get_rng_state()
    as_dataset(TensorDataset(x, y), GREY, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_bytes_are_scaled_to_the_bounds() -> None:
    x = np.arange(24, dtype=np.uint8).reshape(2, 1, 4, 3) * 11
    unit = as_dataset((x, [0, 1]), GREY, 2)
    np.testing.assert_array_equal(unit.x, x.astype(np.float32) / 255)
    grey_levels = InputSpec(shape=(1, 4, 3), bounds=(0, 255))
    np.testing.assert_array_equal(as_dataset((x, [0, 1]), grey_levels, 2).x, x)
    flags = np.eye(5, dtype=np.uint8)
    np.testing.assert_array_equal(as_dataset((flags, [0] * 5), ROW, 2).x, np.eye(5))


def test_the_digest_names_the_values() -> None:
    x, y = images()
    # Spelled out, because it must never change: old reports would stop matching.
    expected = hashlib.sha256()
    expected.update(b"float32 (6, 1, 4, 3) " + x.tobytes() + b"int64 (6,) " + y.astype(np.int64).tobytes())
    assert Dataset(x, y).sha256 == expected.hexdigest()
    assert Dataset(x, y, "other name").sha256 == expected.hexdigest()
    wide = np.repeat(x, 2, axis=0)[::2]
    assert not wide.flags.c_contiguous
    assert Dataset(wide, y).sha256 == expected.hexdigest()
    changed = x.copy()
    changed[5, 0, 3, 2] -= 1e-3
    assert Dataset(changed, y).sha256 != expected.hexdigest()
    assert Dataset(x, y[::-1]).sha256 != expected.hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x, y[:-1]), "x has 6 samples and y has 5 labels"),
        (lambda x, y: (x[:0], y[:0]), "empty"),
        (lambda x, y: [], "empty"),
        (lambda x, y: x, "came without labels"),
        (lambda x, y: torch.from_numpy(x), "came without labels"),
        (lambda x, y: "test.npz", "str is not a pair"),
        (lambda x, y: 7, "int is not a pair"),
        (lambda x, y: (x, 1), "single number"),
        (lambda x, y: [(x, y, y)], "batch 0 is a tuple of 3"),
        (lambda x, y: [(x[:2], y[:2]), (x[2:, :, :2], y[2:])], "x of batch 1 has rows of shape (1, 2, 3)"),
        (lambda x, y: (x.transpose(0, 2, 3, 1), y), 'layout = "hwc"'),
        (lambda x, y: (x.reshape(6, 12), y), "x.reshape(-1, 1, 4, 3)"),
        (lambda x, y: (x[..., :2], y), "x has shape (6, 1, 4, 2); (n, 1, 4, 3) is wanted"),
        (lambda x, y: (x, y.astype(float)), "y holds float64 values"),
        (lambda x, y: (x, np.eye(3)[y]), "are these one-hot? pass y.argmax(1)"),
        (lambda x, y: (x, y[:, None]), "pass y[:, 0]"),
        (lambda x, y: (x, y + 1), "y[2] is 3, outside [0, 2] (2 such labels); labels start at 0"),
        (lambda x, y: (x, y - 1), "y[0] is -1, outside [0, 2]"),
        (lambda x, y: (x, np.array([0, 1, 2, 2**64 - 1, 0, 0], np.uint64)), "y[3] is 18446744073709551615"),
        (
            lambda x, y: (x * 255, y),
            "values from 0 to 255, outside the bounds [0, 1], first in x[0]; are these",
        ),
        (lambda x, y: (x * 2 - 1, y), "use (x + 1) / 2"),
        (lambda x, y: (x * 9 - 4, y), "is x normalized already?"),
        (lambda x, y: (x.astype(object), y), "x is an array of Python objects"),
        (lambda x, y: ([[1, 2], [3]], y), "x is a list of 2 that does not make an array"),
        (lambda x, y: (x.astype(str), y), "x holds text"),
        (lambda x, y: (x, list("abcabc")), "y holds text"),
        (lambda x, y: (x + 1j, y), "x holds complex"),
        (lambda x, y: (x * 1e300, y), "infinity in 6 samples"),
    ],
)
def test_bad_data_is_refused_in_one_line(change, said: str) -> None:
    x, y = images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said in refusal(change(x.astype(np.float64), y))


def test_a_sample_without_a_batch_axis_is_refused() -> None:
    colour = InputSpec(shape=(3, 4, 5))
    said = refusal((np.zeros((3, 4, 5)), [0]), colour)
    assert said == "x has shape (3, 4, 5); (n, 3, 4, 5) is wanted; add the batch axis: x[None]"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_not_finite_is_named(value: float) -> None:
    x, y = images()
    x[4, 0, 1, 1] = x[5, 0, 0, 0] = value
    assert refusal((x, y)) == "x has NaN or infinity in 2 samples, the first is x[4]"


def test_images_in_0_1_are_refused_for_grey_levels() -> None:
    assert "multiply by 255" in refusal(images(), InputSpec(shape=(1, 4, 3), bounds=(0, 255)))


def test_a_shuffling_loader_is_refused() -> None:
    x, y = map(torch.from_numpy, images())
    assert "shuffle=False" in refusal(DataLoader(TensorDataset(x, y), shuffle=True))


def test_what_a_data_set_raises_is_told() -> None:
    def broken():
        x, y = images()
        yield x, y
        raise OSError("the disk\nis gone")

    assert refusal(broken()) == "reading batch 1 raised OSError: the disk is gone"


def test_bounds_and_constraints_of_each_feature() -> None:
    spec = InputSpec(
        shape=(4,),
        bounds=((0, 0, 0, 0), (100, 9, 1, 1)),
        features=("age", "visits", "male", "female"),
        integer=(1,),
        one_hot=((2, 3),),
    )
    x = np.array([[30.5, 2, 1, 0], [99, 9, 0, 1]])
    assert as_dataset((x, [0, 1]), spec, 2).x.tolist() == x.tolist()
    for column, value, said in (
        (0, 150, "feature 'age' of x[1] is 150, outside its bounds [0, 100]"),
        (1, 2.5, "feature 'visits' of x[1] is 2.5, not a whole number"),
        (2, 1, "x[1] has 1, 1 for feature 'male', feature 'female'"),
        (3, 0.5, "x[1] has 0, 0.5 for feature 'male', feature 'female'"),
    ):
        wrong = x.copy()
        wrong[1, column] = value
        assert said in refusal((wrong, [0, 1]), spec, 2)


def test_problems_beyond_the_first_slice_are_found() -> None:
    # 3 MiB per row: every row is a slice of its own.
    spec = InputSpec(shape=(3 << 18,))
    x = np.zeros((4, spec.size), np.float32)
    x[3, 7] = 1.5
    assert "first in x[3]" in refusal((x, [0] * 4), spec, 2)
    x[3, 7] = np.nan
    assert "the first is x[3]" in refusal((x, [0] * 4), spec, 2)


def _peak(make) -> int:
    tracemalloc.start()
    try:
        make()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_at_most_one_copy_of_the_data_is_made() -> None:
    spec = InputSpec(shape=(3, 32, 32))
    x, y = np.zeros((1000, 3, 32, 32), np.float32), np.zeros(1000, np.int64)
    slack = 3 << 20
    assert _peak(lambda: as_dataset((x, y), spec, 2).sha256) < slack
    assert _peak(lambda: as_dataset((x.astype(np.uint8), y), spec, 2)) < 1.25 * x.nbytes + slack
    last = x.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    assert _peak(lambda: as_dataset((last, y), spec, 2).sha256) < x.nbytes + slack
    parts = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 1000, 50)]
    assert _peak(lambda: as_dataset(parts, spec, 2)) < 1.5 * x.nbytes + slack


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 2**63), data=st.data()
)
@settings(max_examples=100, deadline=None)
def test_a_stratified_choice_keeps_the_proportions(counts: list[int], seed: int, data) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    samples = data.draw(st.integers(1, len(y)))
    rows = choose(y, samples, "stratified", seed)
    assert len(rows) == len(set(rows.tolist())) == samples
    assert (np.diff(rows) > 0).all()
    share = np.bincount(y[rows], minlength=len(counts)) - np.array(counts) * samples / len(y)
    assert (np.abs(share) < 1).all()
    np.testing.assert_array_equal(rows, choose(y, samples, "stratified", seed))


def test_choices() -> None:
    y = np.repeat(np.arange(4), 50)
    assert choose(y, None, "stratified", 0).tolist() == list(range(200))
    assert choose(y, 200, "stratified", 0).tolist() == list(range(200))
    assert choose(y, 3, "first", 0).tolist() == [0, 1, 2]
    one, two = choose(y, 40, "stratified", 1), choose(y, 40, "stratified", 2)
    assert np.bincount(y[one]).tolist() == [10, 10, 10, 10]
    assert one.tolist() != two.tolist()
    # Golden: the draw is part of what a seed means.
    assert choose(y, 8, "stratified", 0).tolist() == [10, 12, 54, 62, 106, 142, 193, 196]
    for samples, how, said in (
        (201, "first", "samples=201 is more than the 200 samples"),
        (0, "first", "samples=0 is not a whole number"),
        (True, "first", "samples=True"),
        (2.0, "first", "samples=2.0"),
        (5, "stratifed", "did you mean 'stratified'?"),
    ):
        with pytest.raises(InputError, match=said.replace("?", r"\?")):
            choose(y, samples, how, 0)


def npz_refusal(path: Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        read_npz(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_npz(tmp_path: Path) -> None:
    x, y = images()
    file = tmp_path / "test.npz"
    np.savez_compressed(file, images=x, y=y)
    got_x, got_y = read_npz(file, x="images")
    np.testing.assert_array_equal(got_x, x)
    np.testing.assert_array_equal(got_y, y)
    assert "has no array 'image'; did you mean 'images'?" in npz_refusal(file, x="image")
    colour = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    np.savez(file, x=colour, y=[0, 1])
    turned, _ = read_npz(file, layout="hwc")
    assert turned.shape == (2, 3, 5, 4)
    assert turned[1, 2, 3, 0] == colour[1, 3, 0, 2]
    np.savez(file, x=np.zeros((2, 3)), y=[0, 1])
    assert 'layout = "hwc" takes' in npz_refusal(file, layout="hwc")


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_pickles_in_an_npz_are_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    file = tmp_path / "test.npz"
    objects = np.empty(2, object)
    objects[:] = [Payload(proof), 1]
    np.savez(file, x=objects, y=[0, 1])
    assert "Python objects" in npz_refusal(file)
    file.write_bytes(pickle.dumps(Payload(proof)))
    assert "not a whole .npz file" in npz_refusal(file)
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0, 1, 40, 200, 400])
def test_a_truncated_npz_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "test.npz"
    np.savez(file, x=np.zeros((20, 3)), y=np.zeros(20, int))
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert "not a whole .npz file" in npz_refusal(file)
    # The directory at the end is whole, but what it points at is not.
    file.write_bytes(whole[:4] + b"\0" * (keep + 64) + whole[keep + 68 :])
    assert "cannot be read" in npz_refusal(file)


def test_what_is_not_an_npz_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in npz_refusal(tmp_path / "none.npz")
    assert "is a folder" in npz_refusal(tmp_path)
    single = tmp_path / "x.npy"
    np.save(single, np.zeros(3))
    assert "numpy.savez" in npz_refusal(single)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, name in enumerate(("cat", "dog", "ant")):
        (root / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.full((4, 5, 3), 10 * number + index, np.uint8)
            pixels[0, 1] = (200, 0, 0)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "readme.txt").write_text("not a class")
    (root / ".cache").mkdir()
    return root


def test_a_folder_per_class(folder: Path) -> None:
    x, y, names = read_folder(folder, (3, 4, 5))
    assert names == ("ant", "cat", "dog")
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert (x.dtype, x.shape) == (np.uint8, (6, 3, 4, 5))
    assert x[:, 1, 3, 4].tolist() == [20, 21, 0, 1, 10, 11]
    assert x[0, :, 0, 1].tolist() == [200, 0, 0]
    grey, _, _ = read_folder(folder, (1, 4, 5))
    assert grey[0, 0, 0, 1] == round(0.299 * 200)
    small, _, _ = read_folder(folder, (3, 2, 2))
    assert small.shape == (6, 3, 2, 2)
    spec = InputSpec(shape=(3, 4, 5))
    assert as_dataset((x, y), spec, 3).x.max() == np.float32(200 / 255)


def folder_refusal(root: Path, shape: tuple[int, ...] = (3, 4, 5)) -> str:
    with pytest.raises(InputError) as caught:
        read_folder(root, shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    assert "is not (1, height, width)" in folder_refusal(folder, (30,))
    assert "is not (1, height, width)" in folder_refusal(folder, (2, 4, 5))
    assert "is not a folder" in folder_refusal(tmp_path / "none")
    assert "has no folders in it" in folder_refusal(folder / "cat")
    (folder / "emu").mkdir()
    assert "emu has no images in it" in folder_refusal(folder)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (5, 4)).save(secret)
    link = folder / "cat" / "link.png"
    link.symlink_to(secret)
    assert "link.png is a link out of images" in folder_refusal(folder)
    link.unlink()
    link.symlink_to(folder / "dog" / "0.png")
    assert len(read_folder(folder, (3, 4, 5))[0]) == 7
    link.unlink()
    (tmp_path / "outside").mkdir()
    secret.rename(tmp_path / "outside" / "0.png")
    (folder / "zoo").symlink_to(tmp_path / "outside")
    assert "zoo is a link out of images" in folder_refusal(folder)


def test_images_that_cannot_be_read_are_named(folder: Path) -> None:
    bad = folder / "dog" / "2.png"
    bad.write_bytes((folder / "dog" / "1.png").read_bytes()[:60])
    assert "2.png is not a readable image" in folder_refusal(folder)
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(bad)
    assert "2.png has pixels of mode I;16" in folder_refusal(folder)
    # A postscript file under another name would have PIL start Ghostscript.
    bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n")
    assert "2.png is not a readable image" in folder_refusal(folder)


@pytest.mark.parametrize("side", [9000, 20000])
def test_a_decompression_bomb_is_refused(folder: Path, side: int) -> None:
    def block(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")
    (folder / "ant" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert "67108864 are the most" in folder_refusal(folder)
