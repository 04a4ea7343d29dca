"""Reading video and still images: random access by integer frame index, sequential streams, one kind of error.

decord reads by index, PyAV where decord is not installed or cannot; both give equal pixels. A still image is a video of one
frame. Every fault of a file is a VideoError that names the path and the reason; raw errors of the libraries never leave here.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vtskip.data.still import STILLS, read_still, still_size
from vtskip.errors import ConfigError, VideoError

Backend = Literal["auto", "decord", "av"]

# decord retries this often at the end of a damaged file before it gives up; its default makes such a file look like a hang.
os.environ.setdefault("DECORD_EOF_RETRY_MAX", "1024")


@dataclass(frozen=True)
class VideoInfo:
    """Facts of one file: exact source frame rate, number of frames, duration in seconds, size in pixels."""

    path: Path
    fps: Fraction
    frames: int
    width: int
    height: int

    @property
    def duration(self) -> float:
        return float(self.frames / self.fps)


def source_index(info: VideoInfo, frame: int, fps: float) -> int:
    """The source frame on screen at model frame ``frame`` (time ``frame / fps``), exact in integers; never a later one."""
    return min(int(Fraction(frame) * info.fps / Fraction(fps)), info.frames - 1)


def model_frames(info: VideoInfo, fps: float) -> int:
    """How many frames a model sees that samples the whole video at ``fps``: times 0, 1/fps, ... before its end."""
    return math.ceil(info.frames * Fraction(fps) / info.fps)


def sampled(info: VideoInfo, fps: float) -> list[int]:
    """The source frames that a model at ``fps`` can be shown, each once, in order."""
    return sorted({source_index(info, k, fps) for k in range(model_frames(info, fps))})


def spread(count: int, most: int | None) -> list[int]:
    """0 .. ``count`` - 1, or ``most`` of them evenly spread with both ends."""
    if most is None or count <= most:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


def _stat(path: Path) -> os.stat_result:
    try:
        stat = path.stat()
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise VideoError(f"{path}: video cannot be read ({getattr(e, 'strerror', None) or e})") from None
    if path.is_dir():
        raise VideoError(f"{path}: expected a video file, this is a folder")
    if stat.st_size == 0:
        raise VideoError(f"{path}: video is empty (0 bytes)")
    return stat


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A PyAV container and its video stream; PyAV's errors inside the block become VideoError."""
    import av

    _stat(path)
    try:
        # a title in another alphabet's encoding is no fault of the pictures
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
                raise VideoError(f"{path}: no video stream (the file holds {kinds})")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            yield container, stream
    except (av.FFmpegError, OSError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise VideoError(f"{path}: not a readable video, or truncated ({reason})") from None


def _count_frames(container: Any, stream: Any, size: int) -> tuple[int, int]:
    """Frames that the header promises and frames whose bytes are in the file, from the index where there is a full one."""
    index: Any = getattr(stream, "index_entries", None) or ()
    if stream.frames and len(index) == stream.frames:
        last = index[-1]
        if last.pos + last.size <= size:
            return stream.frames, stream.frames
        return stream.frames, sum(1 for entry in index if entry.pos + entry.size <= size)
    count = sum(1 for packet in container.demux(stream) if packet.size)
    return stream.frames or count, count


@lru_cache(maxsize=4096)
def _probe(path: Path, size: int, mtime: int) -> VideoInfo:
    """``mtime`` is not read: it is part of the key, so that a changed file is probed again."""
    if path.suffix.lower() in STILLS:
        return VideoInfo(path, Fraction(1), 1, *still_size(path))
    with _opened(path) as (container, stream):
        promised, present = _count_frames(container, stream, size)
        if present == 0:
            raise VideoError(f"{path}: no video frames")
        if present < promised:
            raise VideoError(f"{path}: truncated: the header promises {promised} frames, {present} are in the file")
        return VideoInfo(path, _rate(path, stream), present, stream.width, stream.height)


def _rate(path: Path, stream: Any) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError(f"{path}: the video stream has no frame rate")
    return Fraction(rate)


def probe(path: str | Path) -> VideoInfo:
    """Facts of a file, remembered until the file changes. Raises VideoError for a missing, empty, truncated or audio-only one."""
    path = Path(path)
    stat = _stat(path)
    return _probe(path, stat.st_size, stat.st_mtime_ns)


def read_frames(
    path: str | Path, indices: Sequence[int], size: int | None = None, backend: Backend = "auto"
) -> np.ndarray:
    """Source frames by integer index, resized to ``size`` x ``size`` while decoding (None: as they are).

    Returns uint8 RGB ``[N, H, W, 3]``, the same pixels with either backend; ``auto`` is decord if it is installed, else
    PyAV, which decodes all frames up to the last one asked for. Raises VideoError for a broken file or an index past the
    end, ConfigError for a backend that is not installed.
    """
    path, wanted = Path(path), [int(i) for i in indices]
    info = probe(path)
    wrong = [i for i in wanted if not 0 <= i < info.frames]
    if wrong:
        raise VideoError(f"{path}: frame index {wrong[0]} is outside 0 to {info.frames - 1}, the frames of this video")
    if not wanted:
        return np.zeros((0, size or info.height, size or info.width, 3), np.uint8)
    if path.suffix.lower() in STILLS:
        return np.stack([read_still(path, size)] * len(wanted))
    if backend != "av" and find_spec("decord") is None:
        if backend == "decord":
            raise ConfigError("backend 'decord': not installed; accepted here: auto, av")
        backend = "av"
    frames = None if backend == "av" else _read_decord(path, wanted, size)
    if frames is None:
        frames = _read_av(path, wanted, size)
    if len(frames) != len(wanted):
        raise VideoError(
            f"{path}: asked for {len(wanted)} frames, {len(frames)} could be decoded: damaged or truncated"
        )
    return frames


def _read_decord(path: Path, indices: list[int], size: int | None) -> np.ndarray | None:
    """None where decord cannot give this size.

    Its scaler pads rows; where the padded row is a whole multiple of ``size`` (8, 16, 24, 48 and 72 with the usual build)
    decord takes the padding for more channels and its copy fails. The check that fails compares sizes, so it is never silent.
    """
    import torch  # noqa: F401, I001  decord must come after torch, otherwise their libraries clash
    import decord

    try:
        side = size or -1
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), width=side, height=side, num_threads=1)
        return reader.get_batch(indices).asnumpy()
    except (RuntimeError, decord.DECORDError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if size is not None and "The size must exactly match" in reason:
            return None
        raise VideoError(f"{path}: cannot decode frames, the file is damaged or truncated ({reason})") from None


def _read_av(path: Path, indices: list[int], size: int | None) -> np.ndarray:
    """By decoding from the start, which needs no index of the file and is exact with any order of frames."""
    wanted, found = set(indices), {}
    with _opened(path) as (container, stream):
        resize = resizer(stream, size)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found[number] = resize(frame)
                if len(found) == len(wanted):
                    break
    return np.stack([found[i] for i in indices if i in found]) if found else np.zeros((0,), np.uint8)


def resizer(stream: Any, size: int | None) -> Callable[[Any], np.ndarray]:
    """Decoded frame to uint8 RGB; the scaler is set up as in decord, so that both ways to read give equal pixels."""
    if size is None:
        return lambda frame: frame.to_ndarray(format="rgb24")
    from av.filter import Graph

    graph = Graph()
    source, scale = graph.add_buffer(template=stream), graph.add("scale", f"{size}:{size}:flags=bilinear")
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()

    def resize(frame: Any) -> np.ndarray:
        graph.push(frame)
        sized: Any = graph.pull()
        return sized.to_ndarray(format="rgb24")

    return resize


def stream_frames(path: str | Path, fps: float, size: int | None = None) -> Iterator[tuple[float, int, np.ndarray]]:
    """The video as it plays, one frame at a time at ``fps`` model frames per second, holding one decoded frame in memory.

    Yields ``(time in seconds, source frame index, uint8 RGB [H, W, 3])``, the same source frames as ``source_index``.
    A file that breaks off yields what it has and then raises VideoError.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        step, due, seen = _rate(path, stream) / Fraction(fps), 0, 0
        resize = resizer(stream, size)
        for frame in container.decode(stream):
            while int(due * step) <= seen:
                if int(due * step) == seen:
                    yield due / fps, seen, resize(frame)
                due += 1
            seen += 1
        if seen == 0:
            raise VideoError(f"{path}: no video frames")
        if stream.frames and seen < stream.frames:
            raise VideoError(f"{path}: truncated: the header promises {stream.frames} frames, {seen} could be decoded")
