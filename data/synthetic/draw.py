"""Anti-aliased shapes on a numpy image by signed distance; positions and lengths in units of the image's side."""

from collections.abc import Callable
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
Point = tuple[float, float]
Tone = Literal["dark", "light"]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Canvas:
    """A float32 RGB image ``[size, size, 3]`` (0 to 255) that shapes are painted on, in order."""

    def __init__(self, background: np.ndarray, scale: int | None = None, origin: Point = (0.0, 0.0)) -> None:
        """``scale``: pixels per unit, by default the image's side; ``origin``: the pixel where the units' (0, 0) lies."""
        self.image = background.astype(np.float32)
        self.size = scale or background.shape[0]
        self.origin = origin

    def paint(self, distance: Distance, centre: Point, reach: float, colour: Colour, alpha: float = 1.0) -> None:
        """Blend ``colour`` where ``distance`` is negative; nothing further than ``reach`` from ``centre`` is touched."""
        place = list(zip(centre, self.origin, self.image.shape[1::-1], strict=True))
        low = [int(max(0, np.floor((c - reach) * self.size + o))) for c, o, _ in place]
        high = [int(min(side, np.ceil((c + reach) * self.size + o) + 1)) for c, o, side in place]
        if low[0] >= high[0] or low[1] >= high[1]:
            return
        x = (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - self.origin[0]) / self.size
        y = (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - self.origin[1]) / self.size
        cover = np.clip(0.5 - distance(x[None, :], y[:, None]) * self.size, 0, 1)[..., None] * alpha
        patch = self.image[low[1] : high[1], low[0] : high[0]]
        self.blend(patch, cover, colour, (low[0], low[1]))

    def blend(self, patch: np.ndarray, cover: np.ndarray, colour: Colour, corner: tuple[int, int]) -> None:
        """Paint on ``patch``, a view of the image at ``corner``; ``cover`` ``[h, w, 1]`` is 1 where the shape is."""
        patch += cover * (np.asarray(colour, np.float32) - patch)

    def disc(self, centre: Point, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        cx, cy = centre
        self.paint(lambda x, y: np.hypot(x - cx, y - cy) - radius, centre, radius + 0.02, colour, alpha)

    def ring(self, centre: Point, radius: float, width: float, colour: Colour) -> None:
        cx, cy = centre
        self.paint(
            lambda x, y: np.abs(np.hypot(x - cx, y - cy) - radius) - width / 2, centre, radius + width + 0.02, colour
        )

    def box(
        self, centre: Point, half: Point, angle: float, colour: Colour, alpha: float = 1.0, rounding: float = 0.01
    ) -> None:
        """A rectangle of half sizes ``half``, turned by ``angle`` radians."""
        cx, cy = centre
        cos, sin = np.cos(angle), np.sin(angle)
        hx, hy = half[0] - rounding, half[1] - rounding

        def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            u = np.abs(cos * (x - cx) + sin * (y - cy)) - hx
            v = np.abs(cos * (y - cy) - sin * (x - cx)) - hy
            return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - rounding

        self.paint(distance, centre, float(np.hypot(*half)) + 0.02, colour, alpha)

    def bar(self, start: Point, end: Point, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        """A line with round ends."""
        (ax, ay), (bx, by) = start, end
        dx, dy = bx - ax, by - ay
        length = max(dx * dx + dy * dy, 1e-9)

        def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / length, 0, 1)
            return np.hypot(x - ax - t * dx, y - ay - t * dy) - radius

        centre = ((ax + bx) / 2, (ay + by) / 2)
        self.paint(distance, centre, float(np.sqrt(length)) / 2 + radius + 0.02, colour, alpha)


def add(a: Point, b: Point) -> Point:
    return a[0] + b[0], a[1] + b[1]


def mix(a: Point, b: Point, part: float) -> Point:
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


def shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def texture(rng: np.random.Generator, size: int, tone: Tone | None = None) -> np.ndarray:
    """A table top: muted colour, cloudy stains and a grain of planks or stone, all drawn at random. float32 [size, size, 3].

    A ``tone`` keeps its brightness to the lower or upper part of the range.
    """
    grey = rng.uniform(95, 190)
    if tone:
        grey = {"dark": 95, "light": 150}[tone] + (grey - 95) * 40 / 95
    base = grey + rng.uniform(-16, 16, 3)
    field = np.zeros((size, size))
    for cells, weight in ((3, 16), (7, 10), (19, 7), (47, 4)):
        field += weight * _smooth(rng.standard_normal((cells, cells)), size)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(12, 40)
    y, x = np.mgrid[0:size, 0:size] / size
    field += rng.uniform(0, 9) * np.sin(pitch * (x * np.cos(angle) + y * np.sin(angle)) + 0.12 * field)
    return np.clip(base + field[..., None] * rng.uniform(0.85, 1.0, 3), 20, 235).astype(np.float32)


def window(image: np.ndarray, at: Point, size: int) -> np.ndarray:
    """The square of ``size`` pixels whose corner lies at ``at`` (x, y), between pixels by bilinear interpolation."""
    (x, fx), (y, fy) = ((int(np.floor(v)), np.float32(v - np.floor(v))) for v in at)
    rows = image[y : y + size] * (1 - fy) + image[y + 1 : y + size + 1] * fy
    return rows[:, x : x + size] * (1 - fx) + rows[:, x + 1 : x + size + 1] * fx


def _smooth(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of a small square grid to ``size`` x ``size``."""
    at = np.linspace(0, len(grid) - 1, size)
    low = np.minimum(at.astype(int), len(grid) - 2)
    part = at - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part
