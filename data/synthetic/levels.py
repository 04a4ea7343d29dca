"""How much of a clip changes from frame to frame although nothing happens: redundancy levels L0 to L4.

L1, the default, is a still camera with faint grain. From L2 on the camera drifts and a clock runs, from L3 the head bobs and
the exposure wanders, L4 adds flicker, strong grain and coarse coding. A level changes no plan and no text.
"""

from dataclasses import dataclass

import numpy as np

UNIT = 224  # pixels of the frame side that lengths in pixels refer to


@dataclass(frozen=True)
class Level:
    """``noise``: sigma of the grain in grey values. ``drift``: pixels over the whole clip. ``bob``: pixels, at 1 to 2 Hz.

    ``exposure`` and ``flicker``: relative changes of brightness, slow and per frame. ``clock``: a moving thing that tells
    nothing. ``crf``: of the encoder.
    """

    noise: float = 2.0
    drift: float = 0.0
    bob: float = 0.0
    exposure: float = 0.0
    flicker: float = 0.0
    clock: bool = False
    crf: int = 24

    @property
    def still(self) -> bool:
        return self.drift == self.bob == 0


DEFAULT = "L1"
LEVELS = {
    "L0": Level(noise=0),
    "L1": Level(),
    "L2": Level(noise=3, drift=6, clock=True),
    "L3": Level(noise=3, drift=24, bob=1, exposure=0.06, clock=True),
    "L4": Level(noise=6, drift=24, bob=1, exposure=0.06, flicker=0.015, clock=True, crf=32),
}


class Camera:
    """One clip's camera, drawn from a random stream of its own, so that a clip has one scene at every level.

    ``offsets`` float64 ``[frames, 2]``: where the scene's origin lies (x, y), in units of the frame's side. ``gains``
    ``[frames]``: brightness. ``clock``: its centre, or None.
    """

    def __init__(self, level: Level, seed: tuple[int, ...], frames: int, fps: float = 10) -> None:
        rng = np.random.default_rng((*seed, 3))
        t = np.arange(frames)
        angle, phases, pace = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 3), rng.uniform(1, 2)
        way = np.outer(t / max(1, frames - 1) - 0.5, [np.cos(angle), np.sin(angle)]) * level.drift
        bob = np.stack([np.sin(2 * np.pi * pace * k * t / fps + p) for k, p in zip((0.5, 1), phases)], 1) * level.bob
        self.offsets = (way + bob) / UNIT
        slow = level.exposure * np.sin(2 * np.pi * t / (8 * fps) + phases[2])
        self.gains = 1 + slow + level.flicker * rng.standard_normal(frames)
        self.clock = (0.11 if rng.random() < 0.5 else 0.89, float(rng.uniform(0.4, 0.55))) if level.clock else None
