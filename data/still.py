"""Still images as videos of one frame."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vtskip.errors import VideoError

STILLS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            yield ImageOps.exif_transpose(image)
    except Exception as e:  # every decoder in Pillow has its own kinds of errors
        reason = " ".join(str(e).split()) or type(e).__name__
        raise VideoError(f"{path}: not a readable image, or truncated ({reason})") from None


def still_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as the image is shown, its Exif rotation included."""
    with _opened(path) as image:
        return image.width, image.height


def read_still(path: Path, size: int | None) -> np.ndarray:
    """uint8 RGB ``[H, W, 3]``, resized to ``size`` x ``size`` (None: as it is). Raises VideoError for a broken file."""
    with _opened(path) as image:
        picture = image.convert("RGB")
        if size is not None:
            picture = picture.resize((size, size), resample=2)  # bilinear with antialiasing
        return np.asarray(picture, np.uint8).copy()
