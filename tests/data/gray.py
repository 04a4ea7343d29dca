"""Videos whose frames tell their index, and images with a left and a right half."""

from pathlib import Path

import numpy as np

from vtskip.data.synthetic.encode import write_video


def gray_clip(path: Path, count: int = 60, width: int = 64, height: int = 48, **options) -> Path:
    """Frame ``i`` is a flat gray of ``4 * i``; ``options`` go to the encoder."""
    write_video(path, (np.full((height, width, 3), 4 * i, np.uint8) for i in range(count)), **options)
    return path


def two_colours(path: Path, width: int, height: int) -> Path:
    """Left half red, right half blue."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = picture[:, width // 2 :, 2] = 255
    Image.fromarray(picture).save(path)
    return path
