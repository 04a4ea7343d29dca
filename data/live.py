"""Where the frames of a stream come from: a video file, a folder of pictures in the order of their names, or a camera."""

import time as clock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtskip.data.still import STILLS, read_still
from vtskip.data.video import probe, resizer, stream_frames
from vtskip.errors import ConfigError, VideoError

Timed = Iterator[tuple[float, np.ndarray]]  # (seconds, uint8 RGB [size, size, 3])


def check_source(video: Path | None, camera: str | None) -> None:
    """Look at a file or folder before a model is loaded. Raises VideoError, or ConfigError unless there is exactly one source."""
    if (video is None) == (camera is None):
        raise ConfigError(
            "a stream needs one source: 'video' (a file, or a folder of pictures) or 'camera' (a URL or device)"
        )
    if video is not None and video.is_dir():
        pictures(video)
    elif video is not None:
        probe(video)


def frames_of(video: Path | None, camera: str | None, camera_format: str | None, fps: float, size: int) -> Timed:
    """Frames at ``fps``, one at a time. Raises VideoError."""
    if camera is not None:
        yield from live_frames(camera, fps, size, camera_format)
    elif video is not None and video.is_dir():
        yield from ((k / fps, read_still(path, size)) for k, path in enumerate(pictures(video)))
    elif video is not None:
        yield from ((time, frame) for time, _, frame in stream_frames(video, fps, size))


def pictures(folder: Path) -> list[Path]:
    """The still images in a folder, by name. Raises VideoError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in STILLS)
    if not found:
        raise VideoError(
            f"{folder}: a folder without pictures; accepted: a video file, or a folder with {' '.join(sorted(STILLS))}"
        )
    return found


def live_frames(
    url: str, fps: float, size: int | None = None, form: str | None = None, now: Callable[[], float] = clock.monotonic
) -> Timed:
    """A camera's frames at ``fps``, with their own times from the first one on.

    Whoever takes them may be slower than they come: frames that are more than ``1 / fps`` seconds old are then left out, so
    that what is said is about the present. Raises VideoError where the camera cannot be opened or breaks off.

    Args:
        url: of a network stream (``rtsp://...``), or a device. form: PyAV's name of the device's format (``v4l2``,
            ``avfoundation``, ``dshow``), where it needs one. now: the clock.
    """
    import av

    try:
        with av.open(url, format=form, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError(f"{url}: no video stream")
            stream: Any = container.streams.video[0]
            resize, first, began, due = resizer(stream, size), 0.0, 0.0, 0.0
            for number, frame in enumerate(container.decode(stream)):
                stamp = float(frame.time or 0.0)
                if not number:
                    first, began = stamp, now()
                time = stamp - first
                if time + 1e-6 < due or now() - began - time > 1 / fps:
                    continue
                yield time, resize(frame)
                due = (int(time * fps + 1e-6) + 1) / fps
    except (av.FFmpegError, OSError, ValueError) as e:
        if isinstance(e, VideoError):
            raise
        raise VideoError(f"{url}: camera cannot be read ({getattr(e, 'strerror', None) or e})") from None
