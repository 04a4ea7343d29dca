"""Files for the data tests: the smoke tier and small videos, made once per test process."""

from pathlib import Path

import pytest

from tests.data.gray import gray_clip, two_colours
from vtskip.data.synthetic import TIERS, make
from vtskip.data.synthetic.tiers import RATES, Tier


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke tier with seed 0."""
    return make("smoke", tmp_path_factory.mktemp("smoke"), seed=0, progress=False, workers=2)


@pytest.fixture(scope="session")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tier tasks with seed 0, cut to eight small clips: of the test clips one is hard, and one has 29.97 frames a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            TIERS, "tasks", Tier(train=3, val=1, test=4, seconds=(20, 40), size=64, grammar="tasks", rates=RATES)
        )
        return make("tasks", tmp_path_factory.mktemp("tasks"), progress=False, workers=2)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``a.mp4`` and ``b.mp4``: 60 gray frames each, 6 and 3 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    gray_clip(folder / "a.mp4", fps=10)
    gray_clip(folder / "b.mp4", fps=20)
    return folder


@pytest.fixture(scope="session")
def media(clips: Path) -> Path:
    """``clips`` with what the other formats name: two images, and a take of Ego-Exo4D."""
    two_colours(clips / "coco/one.png", 40, 30)
    two_colours(clips / "coco/two.jpg", 64, 64)
    gray_clip(clips / "lab_cooking_03/frame_aligned_videos/aria01_214-1.mp4", fps=10)
    gray_clip(clips / "t1.mp4", fps=10)
    return clips
