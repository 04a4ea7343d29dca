"""decord and PyAV give the same pixels at every size, also where decord alone fails."""

import numpy as np
import pytest

from vtskip.data import video
from vtskip.data.video import probe, read_frames, sampled, spread
from vtskip.errors import ConfigError, VideoError


@pytest.fixture(scope="module")
def clip(smoke):
    return sorted((smoke / "videos").glob("*.mp4"))[0]


@pytest.mark.parametrize("size", [None, 8, 16, 24, 33, 48, 64, 72, 224])
def test_both_backends_give_equal_pixels(clip, size):
    """48 is among the sizes that decord's scaler gets wrong."""
    indices = [7, 7, 0, 31, 12]
    read = {backend: read_frames(clip, indices, size, backend) for backend in ("auto", "decord", "av")}
    assert read["av"].shape == (5, size or 160, size or 160, 3)
    assert np.array_equal(read["av"], read["auto"]) and np.array_equal(read["av"], read["decord"])
    assert np.array_equal(read["av"][0], read["av"][1]) and not np.array_equal(read["av"][0], read["av"][2])


def test_pyav_reads_where_decord_is_not_installed(clip, monkeypatch):
    expected = read_frames(clip, [3, 1], 32)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    monkeypatch.setattr(video, "_read_decord", lambda *a: pytest.fail("decord is not installed"))
    assert np.array_equal(read_frames(clip, [3, 1], 32), expected)
    with pytest.raises(ConfigError, match="backend 'decord': not installed; accepted here: auto, av"):
        read_frames(clip, [3], 32, "decord")


def test_other_faults_of_decord_are_not_read_past(clip, tmp_path, monkeypatch):
    """Falling back on any fault would show other frames of a damaged file than were asked for."""
    path = tmp_path / "damaged.mp4"
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = bytes(3000)
    path.write_bytes(data)
    monkeypatch.setattr(video, "_read_av", lambda *a: pytest.fail("PyAV was asked"))
    with pytest.raises(VideoError, match=f"{path}: cannot decode"):
        read_frames(path, [0, 5], 64)


def test_sampled_frames_and_spreading(clip):
    info = probe(clip)
    assert sampled(info, 2) == list(range(0, info.frames, 5))
    assert sampled(info, 30) == list(range(info.frames))  # faster than the video: each frame once
    assert spread(5, None) == spread(5, 5) == spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(21, 4) == [0, 7, 13, 20] and spread(3, 1) == [0]
