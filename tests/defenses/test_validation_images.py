"""Images as they come: files, PIL images, and everything that only claims to be one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import robustml as rml
from robustml.defenses.guards.validation import CODES, Checked, Code, Validate

GREY = rml.InputSpec(shape=(1, 6, 5))
COLOR = rml.InputSpec(shape=(3, 6, 5), levels=256)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
LOSSLESS = ("BMP", "PNG", "PPM", "TIFF")


def validate(spec: rml.InputSpec = COLOR, **options: Any) -> Validate:
    guard = Validate(**options)
    guard.attach(spec)
    return guard


def file(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def only_code(found: Checked) -> Code:
    (refusal,) = found.refusals
    assert refusal.row == 0
    assert len(str(refusal).splitlines()) == 1
    assert found.total == 1
    return refusal.code


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises pixels that its few bytes do not hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_files_become_inputs(kind: str, wrap: Any) -> None:
    found = validate(formats=list(LOSSLESS)).check(wrap(file(kind=kind)))
    assert found.ok, list(found.refusals)
    assert np.array_equal(
        found.x.numpy()[0], (PIXELS / np.float32(255)).transpose(2, 0, 1).astype(np.float32)
    )


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "WEBP"])
def test_lossy_files_become_inputs(kind: str) -> None:
    found = validate().check(file(kind=kind))
    assert found.ok, list(found.refusals)
    with Image.open(io.BytesIO(file(kind=kind))) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal((found.x[0] * 255).round().numpy().transpose(1, 2, 0), wanted)


def test_colors_are_scaled_to_the_bounds() -> None:
    spec = rml.InputSpec(shape=(1, 6, 5), bounds=(-1.0, 1.0))
    grey = np.array([[0, 255, 51, 204, 102]] * 6, np.uint8)
    found = validate(spec).check(Image.fromarray(grey))
    assert found.x[0, 0, 0].tolist() == pytest.approx([-1, 1, -0.6, 0.6, -0.2])


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "not-an-image"),
        (b"hello", "not-an-image"),
        (b"MZ\x90\x00" + bytes(100), "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
        (file(kind="TIFF"), "format"),
        (file(kind="PPM"), "format"),
        (file()[:20], "truncated"),
        (file()[:-20], "truncated"),
        (file(kind="JPEG")[:-30], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "truncated"),
        (b"\xff\xd8\xff" + bytes(50), "truncated"),
        (b"BM" + bytes(100), "truncated"),
        (b"GIF89a" + bytes(3), "truncated"),
        (b"RIFF\0\0\0\0WEBP", "truncated"),
        (bomb(10_000, 10_000), "pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "pixels"),
        (bomb(5_000, 3_000), "size"),
        (bomb(5, 6).replace(b"IDAT", b"IDAt"), "truncated"),
        (file()[:-12], "truncated"),
        (file(Image.new("RGB", (6, 5))), "size"),
        (file(Image.new("L", (5, 6))), "channels"),
        (file(Image.new("RGBA", (5, 6))), "channels"),
        (file(Image.new("LA", (5, 6))), "channels"),
        (file(Image.new("I;16", (5, 6))), "channels"),
        (file(Image.new("CMYK", (5, 6)), "JPEG"), "channels"),
        (file(Image.new("P", (5, 6)), transparency=0), "channels"),
        (file(kind="GIF", save_all=True, append_images=[Image.new("RGB", (5, 6))]), "frames"),
        (Image.new("F", (5, 6)), "channels"),
        (Image.new("RGB", (0, 0)), "size"),
        ([b"hello", file()][:1], "not-an-image"),
    ],
)
def test_what_is_no_acceptable_image(raw: Any, code: Code) -> None:
    assert only_code(validate().check(raw)) == code


def test_one_signature_and_another_format_inside() -> None:
    assert only_code(validate().check(b"GIF89a" + file()[6:])) == "truncated"


def test_bytes_are_counted_before_anything_is_read() -> None:
    assert only_code(validate(max_bytes=50).check(file())) == "bytes"
    assert only_code(validate(max_bytes=50).check(memoryview(bytes(51)).cast("B", (3, 17)))) == "bytes"


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    large = bomb(3000, 3000)
    assert only_code(validate(max_pixels=8_999_999, resize=True).check(large)) == "pixels"
    assert only_code(validate(max_pixels=9_000_000, resize=True).check(large)) == "truncated"


def test_a_bomb_takes_no_memory() -> None:
    import tracemalloc

    raw = bomb(16_000, 16_000)
    guard = validate(max_pixels=1 << 40, formats=["PNG"])
    tracemalloc.start()
    found = guard.check(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert only_code(found) in {"pixels", "size"}
    assert peak < 5_000_000


def test_a_bomb_in_the_text_of_a_file() -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("note", "a" * 80_000_000, zip=True)
    raw = file(pnginfo=about)
    assert len(raw) < 200_000
    assert only_code(validate().check(raw)) == "truncated"


def test_conversions_are_asked_for() -> None:
    guard = validate(convert=True)
    assert guard.check(file(Image.new("L", (5, 6), 51))).x.unique().tolist() == pytest.approx([0.2])
    assert guard.check(file(Image.new("CMYK", (5, 6)), "JPEG")).ok
    assert only_code(guard.check(file(Image.new("RGBA", (5, 6))))) == "channels"
    assert only_code(guard.check(file(Image.new("I;16", (5, 6))))) == "channels"
    assert validate(GREY, convert=True).check(file()).ok
    assert only_code(validate(GREY).check(file())) == "channels"
    assert validate(rml.InputSpec(shape=(4, 6, 5))).check(file(Image.new("RGBA", (5, 6)))).ok


def test_sizes_are_changed_on_request() -> None:
    image = Image.fromarray(np.tile(PIXELS, (2, 3, 1)))
    found = validate(resize=True).check(image)
    wanted = np.asarray(image.resize((5, 6), Image.Resampling.BILINEAR))
    assert np.array_equal((found.x[0] * 255).round().numpy().transpose(1, 2, 0), wanted)


def test_a_list_keeps_what_is_good() -> None:
    found = validate().check([file(), b"nonsense", Image.fromarray(PIXELS), 3, file()[:-20]])
    assert found.rows.tolist() == [0, 2]
    assert [(r.row, r.code) for r in found.refusals] == [(1, "not-an-image"), (3, "kind"), (4, "truncated")]
    assert found.total == 5


def test_arrays_are_in_input_units_and_laid_out_as_stated() -> None:
    x = (PIXELS / 255).astype(np.float32)
    assert np.array_equal(validate(layout="hwc").check(x).x[0].numpy(), x.transpose(2, 0, 1))
    assert validate(layout="hwc").check(x[None]).ok
    refusal = validate().check(x).refusals[0]
    assert refusal.code == "shape"
    assert 'pass layout="hwc"' in refusal.accepted
    refusal = validate().check(PIXELS.transpose(2, 0, 1)).refusals[0]
    assert refusal.code == "bounds"
    assert "divide 8-bit colors by 255" in refusal.accepted
    assert "(n, 6, 5, 3)" in validate(layout="hwc").check(x[0]).refusals[0].accepted


def test_tables_do_not_take_images() -> None:
    guard = validate(rml.InputSpec(shape=(4,)))
    assert only_code(guard.check(file())) == "kind"


def is_sound(found: Checked) -> bool:
    return (
        all(refusal.code in CODES and str(refusal).isprintable() for refusal in found.refusals)
        and len(found.rows) + len(found.refusals) == found.total
        and bool(((found.x >= 0) & (found.x <= 1)).all())
    )


STARTS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"II*\0",
    b"P6 5 6 255\n",
]
FILES = [file(kind=kind) for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")]
ANY = {
    "formats": ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"],
    "resize": True,
    "convert": True,
    "max_pixels": 4096,
}


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@settings(max_examples=1000)
def test_any_bytes(start: bytes, rest: bytes) -> None:
    assert is_sound(validate(**ANY).check(start + rest))


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=1000)
def test_any_damage_to_a_file(whole: bytes, data: st.DataObject) -> None:
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    assert is_sound(validate(**ANY).check(bytes(raw[:end])))


@given(
    st.sampled_from(
        ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"]
    ),
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=500)
def test_any_pil_image(mode: str, width: int, height: int, convert: bool, resize: bool) -> None:
    found = validate(convert=convert, resize=resize).check(Image.new(mode, (width, height)))
    assert is_sound(found)
    assert found.total == 1
