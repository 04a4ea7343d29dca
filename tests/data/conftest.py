"""Files for the data tests: the smoke tier and small videos, made once per test process."""

from pathlib import Path

import numpy as np
import pytest

from vtskip.data.synthetic import make
from vtskip.data.synthetic.encode import write_video


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke tier with seed 0."""
    return make("smoke", tmp_path_factory.mktemp("smoke"), seed=0, progress=False, workers=2)


def gray_clip(path: Path, count: int = 60, width: int = 64, height: int = 48, **options) -> Path:
    """A video whose frame ``i`` is a flat gray of ``4 * i``: every frame tells its index."""
    write_video(path, (np.full((height, width, 3), 4 * i % 256, np.uint8) for i in range(count)), **options)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``a.mp4`` and ``b.mp4``: 60 gray frames each, 6 and 3 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    gray_clip(folder / "a.mp4", fps=10)
    gray_clip(folder / "b.mp4", fps=20)
    return folder
