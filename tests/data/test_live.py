"""Frames of cameras and folders. ffmpeg's test pattern stands in for a camera."""

import numpy as np
import pytest
from PIL import Image

from vtskip.data.live import check_source, frames_of, live_frames
from vtskip.errors import ConfigError, VideoError

CAMERA = "testsrc=size=64x48:rate=10:duration=3"


def times(fps, seconds_per_frame=0.0):
    """Of the frames that a consumer gets who takes so long for each."""
    clock, found = [100.0], []
    for time, _ in live_frames(CAMERA, fps, 16, "lavfi", lambda: clock[0]):
        found.append(time)
        clock[0] += seconds_per_frame
    return found


def test_a_camera_s_frames_come_at_the_model_s_rate():
    assert times(2) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert times(10) == pytest.approx([k / 10 for k in range(30)])
    # A rate that does not divide the camera's: the first frame that is not too early.
    assert times(4) == pytest.approx([0, 0.3, 0.5, 0.8, 1, 1.3, 1.5, 1.8, 2, 2.3, 2.5, 2.8])


def test_who_is_too_slow_gets_what_is_new():
    """Frames that are more than half a second old, the time between two, are left out."""
    assert times(2, 0.4) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert times(2, 1.27) == pytest.approx([0, 0.8, 2.1])


def test_pixels_are_rgb_of_the_size():
    _, frame = next(frames_of(None, "color=red:size=64x48:rate=10", "lavfi", 2, 16))
    assert frame.shape == (16, 16, 3) and frame.dtype == np.uint8
    assert frame[8, 8, 0] > 200 and frame[8, 8, 1:].max() < 50


def test_pictures_of_a_folder(tmp_path):
    for name, colour in (("b.png", "blue"), ("a.jpg", "red")):
        Image.new("RGB", (20, 10), colour).save(tmp_path / name)
    found = list(frames_of(tmp_path, None, None, 2, 8))
    assert [time for time, _ in found] == [0, 0.5]
    assert found[0][1][4, 4].argmax() == 0 and found[1][1][4, 4].argmax() == 2


def test_a_source_is_looked_at_first(tmp_path):
    with pytest.raises(ConfigError, match="one source"):
        check_source(None, None)
    with pytest.raises(ConfigError, match="one source"):
        check_source(tmp_path, "rtsp://nowhere")
    with pytest.raises(VideoError, match="without pictures"):
        check_source(tmp_path, None)
    with pytest.raises(VideoError, match=r"none.mp4"):
        check_source(tmp_path / "none.mp4", None)
    with pytest.raises(VideoError, match="camera cannot be read"):
        next(live_frames("nowhere", 2, 8, "no_such_format"))
