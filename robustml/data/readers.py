"""Reading data files that somebody else made: nothing in them is executed."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError, suggest

__all__ = ["read_folder", "read_npz"]

Array = np.ndarray[Any, Any]
Layout = Literal["chw", "hwc"]

# PIL opens other formats too, some of them by starting another program.
_FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_MODES = {1: "L", 3: "RGB"}
# Modes of more than 8 bits per channel would be clipped, not scaled, on their way to bytes.
_BYTE_MODES = {"1", "CMYK", "HSV", "L", "LA", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "YCbCr"}
_MOST_PIXELS = 1 << 26


def read_npz(path: str | Path, x: str = "x", y: str = "y", layout: Layout = "chw") -> tuple[Array, Array]:
    """Read inputs and labels from a NumPy archive; pickled objects in it are refused, never loaded.

    Args:
        path: The .npz file.
        x: Key of the inputs (n, ...).
        y: Key of the labels.
        layout: "chw", or "hwc" for images (n, height, width, channels), which are brought to
            (n, channels, height, width).

    Raises:
        InputError: if the file cannot be read, lacks a key, or holds Python objects.
    """
    path = Path(path)
    _check_file(path, "an .npz file")
    with path.open("rb") as file:
        start = file.read(2)
    # Anything that does not start like an archive would be taken for a pickle.
    if start != b"PK" or not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a whole .npz file; write it with numpy.savez(path, x=..., y=...), "
            f"which also replaces .npy files and pickles"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in (x, y):
                if key not in archive.files:
                    raise InputError(f"{path} has no array {key!r}{_suggest_key(key, archive.files)}")
            inputs, labels = archive[x], archive[y]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, the header's parser and the allocator may all fail
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path} holds Python objects, which are pickles and could run code; "
                f"save plain arrays of numbers, all rows of the same length"
            ) from None
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None
    if layout == "hwc":
        if inputs.ndim != 4:
            raise InputError(
                f'{path}: {x} has shape {inputs.shape}; layout = "hwc" takes (n, height, width, channels)'
            )
        inputs = inputs.transpose(0, 3, 1, 2)
    return inputs, labels


def read_folder(path: str | Path, shape: tuple[int, ...]) -> tuple[Array, Array, tuple[str, ...]]:
    """Read images from one folder per class.

    The sorted names of the folders are the classes, and the images of a class come in the order of their
    names. Images of another size are scaled (bilinear, as PIL does it). Files that are not images by their
    suffix are left aside.

    Args:
        path: The folder that holds the class folders.
        shape: (channels, height, width) to bring every image to; 1 channel is grey, 3 are red, green, blue.

    Returns:
        Images uint8 (n, *shape), labels int64 (n,), names of the classes.

    Raises:
        InputError: if there is nothing to read, an image is damaged, too large or of more than 8 bits per
            channel, or a link leads out of the folder.
    """
    root = Path(path)
    if len(shape) != 3 or shape[0] not in _MODES:
        raise InputError(
            f"shape={shape} is not (1, height, width) or (3, height, width), the shape of images"
        )
    if not root.is_dir():
        raise InputError(f"{root} is not a folder")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise InputError(f"{root} has no folders in it; give one folder of images per class")
    files = [_images(folder, root.resolve()) for folder in folders]
    images = np.empty((sum(map(len, files)), *shape), np.uint8)
    for row, file in enumerate(file for members in files for file in members):
        images[row] = _pixels(file, shape)
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(members) for members in files])
    return images, labels, tuple(folder.name for folder in folders)


def _check_file(path: Path, kind: str) -> None:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not {kind}")
        if not path.is_file():
            raise InputError(f"{path} does not exist")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not {kind}: {error}") from None


def _suggest_key(key: str, names: list[str]) -> str:
    return suggest(key, names) if names else "; it is empty"


def _images(folder: Path, root: Path) -> list[Path]:
    _check_inside(folder, root)
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in _FORMATS and file.name[0] != "."
    )
    if not files:
        raise InputError(f"{folder} has no images in it; known suffixes: {', '.join(_FORMATS)}")
    for file in files:
        _check_inside(file, root)
    return files


def _check_inside(path: Path, root: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link that leads to itself
        inside = False
    if not inside:
        raise InputError(f"{path} is a link out of {root.name}; copy what it points at")


def _pixels(path: Path, shape: tuple[int, ...]) -> Array:
    from PIL import Image

    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=sorted(set(_FORMATS.values()))) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise InputError(
                        f"{path} has {image.width}x{image.height} pixels; {_MOST_PIXELS} are the most"
                    )
                if image.mode not in _BYTE_MODES:
                    raise InputError(
                        f"{path} has pixels of mode {image.mode}; save it with 8 bits per channel"
                    )
                plain = image.convert(_MODES[channels])
        if plain.size != (width, height):
            plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{path} has too many pixels; {_MOST_PIXELS} are the most") from None
    except Exception as error:  # decoders of damaged files raise whatever they like
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is not a readable image: {type(error).__name__}: {reason}") from None
    pixels = np.asarray(plain)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
