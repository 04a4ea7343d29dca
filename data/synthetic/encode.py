"""H.264 mp4 files whose decoded frames are the same on every run."""

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from vtskip._files import replacing


def write_video(
    path: Path, frames: Iterable[np.ndarray], fps: Fraction | int = 10, b_frames: int = 0, crf: int = 24, gop: int = 20
) -> None:
    """Encode uint8 RGB frames ``[H, W, 3]`` with libx264 on one thread (several threads may give other bytes). Atomic."""
    import av

    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 1
                stream.options = {
                    "preset": "veryfast",
                    "crf": str(crf),
                    "g": str(gop),
                    "bf": str(b_frames),
                    "threads": "1",
                    # Its lookahead's AVX-512 code now and then gives other bytes for the same frames.
                    "rc-lookahead": "0",
                    "x264-params": "mbtree=0",
                }
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def content_hash(path: Path) -> str:
    """sha256 over the decoded RGB frames: unlike the file's own bytes it does not depend on the muxer."""
    import av

    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray(format="rgb24").tobytes())
    return digest.hexdigest()


def join_videos(path: Path, parts: Sequence[Path]) -> None:
    """Files of ``write_video`` with the same size, rate and settings end to end, without coding them again. Atomic."""
    import av

    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream, shift = None, 0
        for source in parts:
            with av.open(str(source)) as held:
                video = held.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(video)
                    stream.time_base = video.time_base
                for packet in held.demux(video):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        container.mux(packet)
                shift += video.duration or 0
