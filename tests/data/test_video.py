"""Reading frames by index and as a stream, and every way a file can be broken."""

import random
import re
import signal
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.gray import gray_clip
from vtskip.data.synthetic.encode import write_video
from vtskip.data.video import VideoInfo, model_frames, probe, read_frames, source_index, stream_frames
from vtskip.errors import VideoError

NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def ntsc(tmp_path_factory):
    """29.97 frames per second, three B-frames, frame i has gray value 4 i."""
    return gray_clip(tmp_path_factory.mktemp("ntsc") / "v.mp4", fps=NTSC, b_frames=3, gop=12, crf=10)


def test_probe_tells_the_exact_rate_and_size(ntsc):
    info = probe(ntsc)
    assert (info.fps, info.frames, info.width, info.height) == (NTSC, 60, 64, 48)
    assert info.duration == float(60 / NTSC)


def test_random_access_with_b_frames_returns_the_asked_frames(ntsc):
    indices = [37, 3, 3, 59, 0, 20, 19]
    frames = read_frames(ntsc, indices)
    assert frames.shape == (7, 48, 64, 3) and frames.dtype == np.uint8
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 4 * np.array(indices)).max() < 2


@pytest.mark.parametrize("size", [None, 32, 50])
@pytest.mark.parametrize("fps", [2, 29.97, 60, 0.7])
def test_stream_and_random_access_give_equal_pixels(ntsc, smoke, fps, size):
    for path in (ntsc, next((smoke / "videos").glob("*.mp4"))):
        info = probe(path)
        streamed = list(stream_frames(path, fps, size))
        assert [index for _, index, _ in streamed] == [
            source_index(info, k, fps) for k in range(model_frames(info, fps))
        ]
        assert [time for time, _, _ in streamed] == [k / fps for k in range(len(streamed))]
        expected = read_frames(path, [index for _, index, _ in streamed], size)
        assert np.array_equal(np.stack([frame for _, _, frame in streamed]), expected)


@pytest.mark.parametrize("rate", [Fraction(10), NTSC, Fraction(25), Fraction(24000, 1001)])
@pytest.mark.parametrize("fps", [1, 2, 5, 10, 29.97])
def test_frame_counting_is_exact_over_an_hour(rate, fps):
    """Model frame k shows the last source frame that began at or before k / fps, also where floats are one off."""
    info = VideoInfo(Path("x"), rate, int(3600 * rate), 8, 8)
    total = model_frames(info, fps)
    assert Fraction(total - 1) / Fraction(fps) < info.frames / rate <= Fraction(total) / Fraction(fps)
    for k in (*range(50), total // 2, total - 1):
        index, time = source_index(info, k, fps), Fraction(k) / Fraction(fps)
        assert index / rate <= time < (index + 1) / rate


def test_one_frame_and_wide_videos(tmp_path):
    one = gray_clip(tmp_path / "one.mp4", count=1)
    assert [index for _, index, _ in stream_frames(one, 2)] == [0] and len(read_frames(one, [0])) == 1
    wide = gray_clip(tmp_path / "wide.mp4", width=320, height=180)
    assert read_frames(wide, [1, 2], 64).shape == (2, 64, 64, 3)
    assert read_frames(wide, []).shape == (0, 180, 320, 3)


def test_a_changed_file_is_probed_again(tmp_path):
    path = gray_clip(tmp_path / "v.mp4", count=10)
    assert probe(path).frames == 10
    assert probe(gray_clip(path, count=20)).frames == 20


def _audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _noise(path):
    rng = np.random.default_rng(0)
    write_video(path, (rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(30)))


def _cut_tail(path):
    _noise(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _cut_behind_header(path):
    """The header lies in front and is whole, the pictures are not."""
    _noise(path)
    with av.open(str(path)) as source, av.open(str(path) + "2", "w", "mp4", {"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = Path(str(path) + "2").read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


BROKEN = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "empty": (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
    "text": (lambda path: path.write_text("not a video\n" * 99), "not a readable video"),
    "audio": (_audio_only, r"no video stream \(the file holds audio\)"),
    "cut": (_cut_tail, "truncated"),
    "cut behind the header": (_cut_behind_header, "truncated: the header promises 30 frames"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(
    "read",
    [probe, lambda p: read_frames(p, [0], 32), lambda p: list(stream_frames(p, 2, 32))],
    ids=["probe", "read", "stream"],
)
def test_broken_files_are_named_with_the_reason(tmp_path, fault, read):
    spoil, reason = BROKEN[fault]
    path = tmp_path / "clip.mp4"
    spoil(path)
    if fault == "cut behind the header" and read.__name__ == "<lambda>":
        reason = "truncated"  # the stream meets the damage before it can count
    with pytest.raises(VideoError, match=f"{path}: .*{reason}"):
        read(path)


@pytest.mark.parametrize("title", ["Kaffee für zwei".encode("latin-1"), b"\xff\xfe\x80"])
def test_titles_in_any_encoding_are_no_fault(tmp_path, title):
    """Cameras and old tools write names in their own code page; the pictures are whole."""
    path = tmp_path / "clip.mp4"
    _noise(path)
    data = path.read_bytes()
    written = re.search(rb"Lavf[0-9.]+", data)[0]
    path.write_bytes(data.replace(written, title[: len(written)].ljust(len(written), b" ")))
    assert probe(path).frames == 30
    assert read_frames(path, [0, 29], 32).shape == (2, 32, 32, 3)
    assert len(list(stream_frames(path, 10, 32))) == 30


SPOILED = 120


@pytest.mark.slow
def test_spoiled_bytes_of_a_video_are_read_or_refused(tmp_path):
    """Anywhere in the file, in its index and in its header: frames or our error, in good time."""
    whole, rng, found = tmp_path / "whole.mp4", random.Random(0), Counter()
    _noise(whole)
    data, path = whole.read_bytes(), tmp_path / "clip.mp4"
    index = data.index(b"moov")
    for turn in range(SPOILED):
        spoiled = bytearray(data)
        low, high = [(0, len(data)), (index, len(data)), (0, 400)][turn % 3]
        for _ in range(rng.choice([1, 5, 40])):
            spoiled[rng.randrange(low, high)] = rng.randrange(256)
        path.write_bytes(spoiled)
        signal.alarm(60)  # a hang ends the tests
        try:
            read_frames(path, range(0, probe(path).frames, 5), 32)
            list(stream_frames(path, 2, 32))
            found["read"] += 1
        except VideoError as e:
            assert str(path) in str(e)
            found["refused"] += 1
        finally:
            signal.alarm(0)
    assert min(found["read"], found["refused"]) >= SPOILED // 10


def test_a_file_that_breaks_off_streams_what_it_has(tmp_path):
    path = tmp_path / "clip.mp4"
    _cut_behind_header(path)
    seen = []
    with pytest.raises(VideoError, match="truncated"):
        seen.extend(index for _, index, _ in stream_frames(path, 10))
    stream = stream_frames(path, 10)
    assert [next(stream)[1] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_damaged_pictures_are_a_video_error(tmp_path):
    path = tmp_path / "clip.mp4"
    _noise(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 20000] = bytes(20000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=f"{path}: "):
        read_frames(path, [0, 5])


@pytest.mark.parametrize("index", [60, -1])
def test_an_index_outside_the_video_is_named(ntsc, index):
    with pytest.raises(VideoError, match=rf"frame index {index} is outside 0 to 59"):
        read_frames(ntsc, [0, index])
