"""Images and videos of a chat message as arrays, whatever form they come in: a path, part of a video, pictures, an array.

A part of a message is ``{"type": "text", "text": ...}`` or ``{"type": "image" | "video", "url": ...}``, as lmms-eval and the
processors of transformers have it. ``url`` is a path, a PIL image, an array ``[N, H, W, 3]``, a list of images, or a mapping
with ``url`` (or ``path``) and ``video_start``, ``video_end`` in seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtskip.data.video import probe, read_frames, spread
from vtskip.errors import DataError

FPS = 2.0  # of frames that come without a rate


@dataclass(frozen=True)
class Clip:
    """Frames uint8 ``[N, H, W, 3]`` with their places in a source of ``total`` frames at ``fps``."""

    frames: np.ndarray
    indices: list[int]
    fps: float
    total: int


def clip_of(part: Mapping[str, Any], most: int, size: int | None = None) -> Clip:
    """The frames of an image or video part, at most ``most`` of a video file, evenly spread; ``size``: their side in pixels.

    Raises DataError for what is no picture, VideoError for a file that cannot be read.
    """
    url = part["url"]
    span = (part.get("start_time"), part.get("end_time"))
    if isinstance(url, Mapping):
        span = (url.get("video_start"), url.get("video_end"))
        url = url.get("url") or url.get("path") or url.get("video")
    if isinstance(url, str | Path):
        return _of_file(Path(url), span, 1 if part["type"] == "image" else most, size)
    images = [url] if hasattr(url, "convert") or getattr(url, "ndim", 0) == 3 else url
    if not isinstance(images, Sequence | np.ndarray) or not len(images):
        raise DataError(
            f"{part['type']} of a message: {type(url).__name__}; accepted: a path, images, or an array of them"
        )
    frames = np.stack([_pixels(image, size) for image in images])
    return Clip(frames, list(range(len(frames))), float(part.get("fps") or FPS), len(frames))


def _of_file(path: Path, span: tuple[float | None, float | None], most: int, size: int | None) -> Clip:
    info = probe(path)
    first = min(round(float(span[0] or 0) * info.fps), info.frames - 1)
    last = info.frames - 1 if span[1] is None else min(round(float(span[1]) * info.fps), info.frames - 1)
    indices = [first + k for k in spread(max(1, last - first + 1), most)]
    return Clip(read_frames(path, indices, size), indices, float(info.fps), info.frames)


def _pixels(image: Any, size: int | None) -> np.ndarray:
    """uint8 RGB ``[H, W, 3]``, resized where ``size`` is another side."""
    from PIL import Image

    if not hasattr(image, "convert"):
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise DataError(f"frame of a message: {image.dtype} {list(image.shape)}; accepted: uint8 [H, W, 3]")
        if size in (None, image.shape[0]) and size in (None, image.shape[1]):
            return image
        image = Image.fromarray(image)
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), resample=Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)
