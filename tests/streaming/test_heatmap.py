"""Pictures of what the layers keep: the light of a frame's patches, and a bounded choice of a stream's frames."""

import io

import numpy as np

from vtskip.heatmap import SIDE, HeatMap, grid_of, shade
from vtskip.streaming.loading import load_stream
from vtskip.streaming.session import StreamSession


def test_pictures_darken_what_is_dropped():
    class Config:
        cls_token, pool = True, [2, 2]

    assert grid_of(Config, 5) == (1, 2, 2)
    assert grid_of(object(), 576) == (0, 24, 24) and grid_of(object(), 10) == (0, 1, 10)
    frame = np.full((112, 112, 3), 200, np.uint8)
    picture = shade(frame, np.array([True, True, False, False, True]), (1, 2, 2))
    assert picture[20, 10].tolist() == picture[100, 100].tolist() == [200] * 3  # kept: top left, bottom right
    assert picture[20, 100].tolist() == picture[100, 10].tolist() == [50] * 3
    assert picture[0, 0].tolist() == [90, 200, 90]  # the first row is kept


def test_light_is_the_share_of_the_layers_that_keep_a_row():
    frame = np.full((SIDE, SIDE, 3), 200, np.uint8)
    picture = shade(frame, np.array([0.0, 0.5, 1.0, 0.0]), (0, 2, 2))
    assert [int(picture[y, x, 0]) for y, x in [(20, 10), (20, 100), (100, 10), (100, 100)]] == [50, 125, 200, 50]


def play(checkpoint, **options):
    loaded = load_stream(checkpoint)
    heat = HeatMap(loaded.handle, loaded.model.config, **options)
    session = StreamSession(loaded.model, loaded.template, threshold=1, max_new_tokens=3, on_frame=heat.note)
    side = loaded.model.config.image_size
    for n in range(9):
        session.push(np.full((side, side, 3), 20 * n, np.uint8), n / 2)
    return heat


def test_shares_are_those_of_the_frames_own_forward(checkpoint):
    """mod keeps 2 of 5 rows in two layers; replies, which have no vision rows, run in between and must not count."""
    heat = play(checkpoint)
    assert [time for time, *_ in heat.shown] == [n / 2 for n in range(9)]
    for n, (_, frame, share) in enumerate(heat.shown):
        assert frame.shape == (SIDE, SIDE, 3) and frame[0, 0, 0] == 20 * n
        assert share.shape == (5,) and share.sum() == 2 and set(share) <= {0, 0.5, 1}


def test_a_long_stream_has_a_bounded_picture_at_equal_distances(checkpoint):
    from PIL import Image

    heat = play(checkpoint, most=3, columns=2)
    assert [time for time, *_ in heat.shown] == [0.0, 2.0, 4.0]
    assert Image.open(io.BytesIO(heat.png())).size[1] == 4 * (SIDE + 4)  # two lines of two, each with what is kept
