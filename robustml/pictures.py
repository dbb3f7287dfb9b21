"""Pictures as files hold them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

__all__ = ["stored_as_jpeg"]


def stored_as_jpeg(images: np.ndarray[Any, Any], quality: int) -> np.ndarray[Any, Any]:
    """Write 8-bit images (n, c, h, w) as JPEG and read them back.

    Three channels are taken as colors, of which brightness alone keeps its resolution (4:2:0); any other
    number as so many grey images.
    """
    return np.stack([_stored(image, quality) for image in images]) if len(images) else images


def _stored(image: np.ndarray[Any, Any], quality: int) -> np.ndarray[Any, Any]:
    if len(image) == 3:
        return _reread(np.moveaxis(image, 0, 2), quality).transpose(2, 0, 1)
    return np.stack([_reread(channel, quality) for channel in image])


def _reread(pixels: np.ndarray[Any, Any], quality: int) -> np.ndarray[Any, Any]:
    from PIL import Image

    file = io.BytesIO()
    # 2 stands for 4:2:0, which is Pillow's default as well.
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, subsampling=2)
    with Image.open(file) as image:
        return np.asarray(image)
