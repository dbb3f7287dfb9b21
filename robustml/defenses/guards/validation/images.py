"""From the bytes of an image file, or a PIL image, to numbers; every limit is checked before decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ....errors import InputError, brief, suggest
from ....inputs import InputSpec
from .reasons import Code, Refusal

__all__ = ["DEFAULT_FORMATS", "ImageRules", "check_formats"]

Array = np.ndarray[Any, Any]

# What a file of each format starts with, at which place. PIL knows many more, some of which start programs.
_SIGNATURES: dict[str, tuple[tuple[int, bytes], ...]] = {
    "BMP": ((0, b"BM"),),
    "GIF": ((0, b"GIF87a"), (0, b"GIF89a")),
    "JPEG": ((0, b"\xff\xd8\xff"),),
    "PNG": ((0, b"\x89PNG\r\n\x1a\n"),),
    "PPM": tuple((0, b"P%d" % kind) for kind in range(1, 7)),
    "TIFF": ((0, b"II*\x00"), (0, b"MM\x00*")),
    "WEBP": ((8, b"WEBP"),),
}
DEFAULT_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SAME = {1: {"L", "1"}, 3: {"RGB", "P"}, 4: {"RGBA"}}
# Modes of more than 8 bits per channel would be clipped, not scaled, on their way to bytes.
_BYTE_MODES = {"1", "CMYK", "HSV", "L", "LA", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}
_SEE_THROUGH = {"LA", "PA", "RGBA"}


@dataclass(frozen=True)
class ImageRules:
    """What an image has to be.

    Attributes:
        shape: (channels, height, width).
        formats: Those that are accepted, as PIL calls them.
        max_bytes, max_pixels: Limits of the file, and of the decoded image.
        resize: Whether an image of another size is scaled (bilinear) instead of refused.
        convert: Whether an image of other colors is converted instead of refused.
    """

    shape: tuple[int, ...]
    formats: tuple[str, ...]
    max_bytes: int
    max_pixels: int
    resize: bool
    convert: bool

    def read(self, raw: Any, row: int) -> Array | Refusal:
        """One image as uint8 (channels, height, width), or why it is none."""
        if len(self.shape) != 3 or self.shape[0] not in _MODES:
            return _refusal("kind", row, "an image", f"inputs of shape {self.shape} are no images")
        if isinstance(raw, Image.Image):
            return self._decoded(raw, row)
        if not isinstance(raw, (bytes, bytearray, memoryview)):
            accepted = "the bytes of an image file or a PIL image is accepted"
            return _refusal("kind", row, type(raw).__name__, accepted)
        opened = self._opened(bytes(raw), row) if _length(raw) <= self.max_bytes else None
        if opened is None:
            accepted = f"files of at most {self.max_bytes} bytes are accepted"
            return _refusal("bytes", row, float(_length(raw)), accepted)
        return opened if isinstance(opened, Refusal) else self._decoded(opened, row)

    def _opened(self, data: bytes, row: int) -> Image.Image | Refusal:
        kind = _signature(data)
        accepted = f"images in {', '.join(self.formats)} are accepted"
        if kind is None:
            return _refusal("not-an-image", row, brief(data[:16]), accepted)
        if kind not in self.formats:
            return _refusal("format", row, kind, accepted)
        try:
            # For PNG this looks at every checksum up to the end; a decoder is content with all pixels.
            Image.open(io.BytesIO(data), formats=[kind]).verify()
            image = Image.open(io.BytesIO(data), formats=[kind])
            frames = image.format != kind or getattr(image, "is_animated", False)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return self._too_many_pixels(row, None)
        except Exception as error:  # parsers of foreign bytes fail in every way there is
            return _refusal("truncated", row, _said(error), f"a whole {kind} file is accepted")
        if frames:
            return _refusal("frames", row, "several images in one file", "one image is accepted")
        return image

    def _decoded(self, image: Image.Image, row: int) -> Array | Refusal:
        try:
            return self._wrong(image, row) or self._pixels(image)
        except Exception as error:
            return _refusal("truncated", row, _said(error), "an image that can be decoded is accepted")

    def _wrong(self, image: Image.Image, row: int) -> Refusal | None:
        """What is wrong with an image by its header."""
        channels, height, width = self.shape
        if image.format is not None and image.format not in self.formats:
            return _refusal("format", row, image.format, f"images in {', '.join(self.formats)} are accepted")
        if image.width * image.height > self.max_pixels:
            return self._too_many_pixels(row, float(image.width * image.height))
        fits = image.size == (width, height) or (self.resize and min(image.size) > 0)
        if not fits:
            came = f"{image.width} x {image.height} (width x height)"
            return _refusal("size", row, came, f"{width} x {height} is accepted")
        clear = image.mode in _SEE_THROUGH or "transparency" in image.info
        loses = clear and channels != 4
        if loses or (image.mode not in _SAME[channels] and not (self.convert and image.mode in _BYTE_MODES)):
            came = f"mode {image.mode}{' with transparency' if clear else ''}"
            return _refusal("channels", row, came, f"{_MODES[channels]} of 8 bits per channel is accepted")
        return None

    def _pixels(self, image: Image.Image) -> Array:
        channels, height, width = self.shape
        image.load()
        converted = image.convert(_MODES[channels])
        if converted.size != (width, height):
            converted = converted.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted, dtype=np.uint8).reshape(height, width, channels)
        return pixels.transpose(2, 0, 1)

    def _too_many_pixels(self, row: int, came: float | None) -> Refusal:
        return _refusal("pixels", row, came, f"images of at most {self.max_pixels} pixels are accepted")


def in_units(pixels: Array, inputs: InputSpec) -> Array:
    """Bring 8-bit colors (n, *shape) to input units: 0 is the lowest valid value and 255 the highest."""
    low, high = (_shaped(side, inputs) for side in inputs.bounds)
    values = np.minimum(low + pixels.astype(np.float64) * (high - low) / 255, high)
    return np.asarray(values, dtype=inputs.dtype)


def _shaped(side: float | tuple[float, ...], inputs: InputSpec) -> Array:
    values = np.asarray(side, dtype=np.float64)
    return values.reshape(inputs.shape) if values.ndim else values


def check_formats(formats: Sequence[str] | None) -> tuple[str, ...]:
    """The formats that are accepted.

    Raises:
        InputError: for one that is not known.
    """
    for name in formats or ():
        if name not in _SIGNATURES:
            raise InputError(f"formats holds {brief(name)}, which is not known{suggest(name, _SIGNATURES)}")
    return DEFAULT_FORMATS if formats is None else tuple(formats)


def _length(raw: bytes | bytearray | memoryview) -> int:
    return raw.nbytes if isinstance(raw, memoryview) else len(raw)


def _signature(data: bytes) -> str | None:
    for name, marks in _SIGNATURES.items():
        if any(data[place : place + len(mark)] == mark for place, mark in marks):
            return name
    return None


def _said(error: Exception) -> str:
    return brief(f"{type(error).__name__}: {error}", 100)


def _refusal(code: Code, row: int, value: float | str | None, accepted: str) -> Refusal:
    return Refusal(code, row, None, None, value, accepted)
