"""Clips that a reader must survive: odd ones, and ones that are broken."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from vtskip._files import replacing, write_atomic
from vtskip.data.files import read_json, write_json
from vtskip.data.synthetic.encode import write_video
from vtskip.data.synthetic.plan import make_plan
from vtskip.data.synthetic.render import Renderer
from vtskip.errors import ConfigError

NTSC = Fraction(30000, 1001)
BROKEN = ("truncated", "empty", "text")
NOTE = "damaged.json"
PAGE = b"<html><title>404 Not Found</title></html>\n"
ODD = ("b_frames", "wide", "single", "audio")


def write_odd(folder: Path, seed: int = 0) -> dict[str, Path]:
    """One short clip of every kind in ``ODD`` and ``BROKEN``, ``{kind}.mp4``. Those of ``ODD`` can be read.

    ``b_frames``: 29.97 frames per second with B-frames. ``wide``: 320 x 180. ``single``: one frame. ``audio``: with a sound
    track. ``truncated``: the first two thirds of a file. ``empty``: no bytes. ``text``: an answer of a web server.
    """
    plan = make_plan("odd", (seed, 99), (4, 5))
    renderer = Renderer(plan, 96)
    images = [renderer.frame(t) for t in range(40)]
    paths = {kind: folder / f"{kind}.mp4" for kind in (*ODD, *BROKEN)}
    write_video(paths["b_frames"], images, NTSC, b_frames=3)
    write_video(paths["wide"], _wide(images), 10)
    write_video(paths["single"], images[:1], 10)
    write_video(folder / "truncated.mp4", images, 10)
    _write_audio(paths["audio"], paths["truncated"])
    _break(paths["truncated"], "truncated")
    write_atomic(paths["empty"], b"")
    write_atomic(paths["text"], PAGE)
    return paths


def _wide(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames of 320 x 180 with the picture in the middle."""
    for image in images:
        canvas = np.full((180, 320, 3), 90, np.uint8)
        canvas[42:138, 112:208] = image
        yield canvas


def _write_audio(path: Path, source: Path) -> None:
    """The video of ``source`` with a quiet tone, AAC."""
    import av

    with replacing(path) as part, av.open(str(source)) as held, av.open(str(part), "w", format="mp4") as container:
        video = held.streams.video[0]
        picture = container.add_stream_from_template(video)
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for packet in held.demux(video):
            if packet.dts is not None:
                packet.stream = picture
                container.mux(packet)
        length = float((video.duration or 0) * (video.time_base or 0))
        tone = (0.1 * np.sin(2 * np.pi * 220 * np.arange(int(16000 * length)) / 16000)).astype(np.float32)
        for start in range(0, len(tone) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def _break(path: Path, kind: str) -> None:
    data = path.read_bytes()
    write_atomic(path, {"truncated": data[: 2 * len(data) // 3], "empty": b"", "text": PAGE}[kind])


def damage(folder: Path, share: float, seed: int = 0) -> dict[str, str]:
    """Break a share of the videos in a folder for good, at least one, drawn at random; file name -> how.

    The same folder and seed give the same choice. Raises ConfigError for a share outside 0 to 1 and a folder without videos.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share {share}: accepted is more than 0 and at most 1")
    videos = sorted(folder.glob("*.mp4"))
    if not videos:
        raise ConfigError(f"{folder}: no videos (*.mp4) to damage")
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(videos)))
    broken = {}
    for number, index in enumerate(sorted(rng.choice(len(videos), count, replace=False))):
        path, kind = videos[index], BROKEN[number % len(BROKEN)]
        _break(path, kind)
        broken[path.name] = kind
    return broken


def damage_set(root: Path, share: float, seed: int = 0) -> dict[str, str]:
    """``damage`` for the clips of a set that ``make`` wrote, once: ``damaged.json`` tells what is broken and how.

    Done again it changes nothing. Raises ConfigError where the set is damaged otherwise, and as ``damage`` does.
    """
    wanted = {"share": share, "seed": seed}
    if (root / NOTE).is_file():
        held = read_json(root / NOTE)
        broken = dict(held.pop("broken"))
        if held != wanted:
            raise ConfigError(f"{root}: is damaged already, with {held}; make another set for {wanted}")
        return broken
    broken = damage(root / "videos", share, seed)
    write_json(root / NOTE, wanted | {"broken": broken})
    return broken
