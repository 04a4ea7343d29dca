"""Videos whose frames tell their index."""

from pathlib import Path

import numpy as np

from vtskip.data.synthetic.encode import write_video


def gray_clip(path: Path, count: int = 60, width: int = 64, height: int = 48, **options) -> Path:
    """Frame ``i`` is a flat gray of ``4 * i``; ``options`` go to the encoder."""
    write_video(path, (np.full((height, width, 3), 4 * i, np.uint8) for i in range(count)), **options)
    return path
