"""Which parts of a frame tell what is done, and which move: moving or static x relevant or irrelevant.

Relevant, from the hand's setting out to the end of the act, are the hand, its tool, the thing that is worked on, what it goes
into, and the card that shows what a thing is; whether it moves is another matter. The arm, the retreat, the empty hand, things
that slide in and out and the clock move and tell nothing. All else is static and irrelevant, the whole table under a moving
camera included: motion is that of the scene.

The areas come from the renderer's own drawing, as boxes over intervals of frames; ``rasterise`` puts them on any grid.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtskip._files import write_atomic
from vtskip.data.files import read_json
from vtskip.data.rows import Row
from vtskip.data.synthetic.draw import Canvas, Colour, Point
from vtskip.data.synthetic.levels import Level
from vtskip.data.synthetic.plan import Cue, Plan, Thing
from vtskip.data.synthetic.render import CLOCK, Renderer
from vtskip.errors import DataError

KINDS = ("static_irrelevant", "moving_irrelevant", "static_relevant", "moving_relevant")
RELEVANT, MOVING = 2, 1  # a kind is the sum of what it is
FINE, EDGE = 64, 8  # cells per frame side that boxes are found on, and beyond each edge
Box = tuple[float, float, float, float]  # left, top, right, bottom in units of the frame's side
Shapes = dict[str, np.ndarray]  # layer -> where it is drawn, bool [side, side]


class _Layers(Canvas):
    """Keeps where each layer is drawn, and no colours."""

    def __init__(self) -> None:
        side = FINE + 2 * EDGE
        super().__init__(np.zeros((side, side, 1), np.float32), FINE, (EDGE, EDGE))
        self.layer, self.shapes = "", Shapes()

    def blend(self, patch: np.ndarray, cover: np.ndarray, colour: Colour, corner: tuple[int, int]) -> None:
        shape = self.shapes.setdefault(self.layer, np.zeros(self.image.shape[:2], bool))
        x, y = corner
        shape[y : y + patch.shape[0], x : x + patch.shape[1]] |= cover[..., 0] >= 0.4


class _Outlines(Renderer):
    """The renderer on a canvas of layers: ``hand``, ``arm``, ``tool``, ``clock``, ``cue``, ``thing0``..."""

    def shapes(self, t: int) -> Shapes:
        canvas = _Layers()
        self.draw(canvas, t)
        return canvas.shapes

    def _rest(self, canvas: Canvas, index: int, thing: Thing, t: int) -> None:
        self._as(canvas, f"thing{index}")
        super()._rest(canvas, index, thing, t)

    def _act(self, canvas: Canvas, step: Any, t: int) -> None:
        self._as(canvas, f"thing{step.thing}")
        super()._act(canvas, step, t)

    def _tool(self, canvas: Canvas, verb: str, palm: Point, working: bool) -> None:
        self._as(canvas, "tool")
        super()._tool(canvas, verb, palm, working)

    def _clock(self, canvas: Canvas, at: Point, t: int) -> None:
        self._as(canvas, "clock")
        super()._clock(canvas, at, t)

    def _cue(self, canvas: Canvas, cue: Cue) -> None:
        self._as(canvas, "cue")
        super()._cue(canvas, cue)

    def _hand(self, canvas: Canvas, palm: Point, closed: bool) -> None:
        self._as(canvas, "hand")
        super()._hand(canvas, palm, closed)
        assert isinstance(canvas, _Layers)
        wrist = max(0, round((palm[1] + 0.1) * FINE) + EDGE)
        if "hand" in canvas.shapes:
            hand = canvas.shapes["hand"]
            canvas.shapes["arm"] = hand.copy()
            canvas.shapes["arm"][:wrist] = False
            hand[wrist:] = False

    @staticmethod
    def _as(canvas: Canvas, layer: str) -> None:
        assert isinstance(canvas, _Layers)
        canvas.layer = layer


def _box(shape: np.ndarray) -> Box | None:
    """The rectangle around what is set; None without anything."""
    rows, columns = (np.flatnonzero(shape.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    at = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    left, top, right, bottom = (round((int(v) - EDGE) / FINE, 4) for v in at)
    return left, top, right, bottom


def _busy(plan: Plan, t: int) -> bool:
    """Whether anything but the clock may move or be relevant."""
    slides = any(x <= t <= x + plan.slide for thing in plan.things for x in (thing.born, thing.gone - plan.slide))
    return slides or plan.step_at(t) is not None or any(a <= t <= b for a, b in plan.fidgets)


def _boxes(outlines: _Outlines, t: int, now: Shapes, before: Shapes) -> Iterator[tuple[str, int, Box]]:
    """(layer, kind, box) of what is not static and irrelevant."""
    step = outlines.plan.step_at(t)
    told = {"hand", "tool", "cue", f"thing{step.thing}", f"thing{step.into}"} if step and t < step.end else set()
    for layer, shape in now.items():
        moves = layer not in before or not np.array_equal(shape, before[layer])
        kind = RELEVANT * (layer in told) + MOVING * moves
        box = _box(shape)
        if kind and box and layer != "clock":
            yield layer, kind, box


def relevance(plan: Plan, level: Level) -> dict[str, Any]:
    """The areas of a clip as plain JSON.

    ``areas``: rows of ``[kind, start, end, left, top, right, bottom]``, kind as in ``KINDS``, frames ``start <= t < end``;
    ``camera``: where the scene's origin lies in every frame, or None where it stays.
    """
    outlines = _Outlines(plan, FINE, level)
    areas: list[list[float]] = []
    running: dict[str, tuple[int, Box, int]] = {}
    before: Shapes = outlines.shapes(0)
    for t in range(plan.frames + 1):
        found: dict[str, tuple[int, Box]] = {}
        if t < plan.frames and _busy(plan, t):
            now = outlines.shapes(t)
            found = {layer: (kind, box) for layer, kind, box in _boxes(outlines, t, now, before)}
            before = now
        elif t < plan.frames and _busy(plan, t + 1):
            before = outlines.shapes(t)
        for layer in list(running):
            kind, box, start = running[layer]
            if found.get(layer) != (kind, box):
                areas.append([kind, start, t, *box])
                del running[layer]
        for layer, (kind, box) in found.items():
            running.setdefault(layer, (kind, box, t))
    if outlines.camera.clock:
        x, y = outlines.camera.clock
        areas.append([MOVING, 0, plan.frames, x - CLOCK, y - CLOCK, x + CLOCK, y + CLOCK])
    camera = None if level.still else [[round(float(v), 4) for v in at] for at in outlines.camera.offsets]
    return {"uid": plan.uid, "frames": plan.frames, "kinds": list(KINDS), "areas": areas, "camera": camera}


def write_relevance(path: Path, plan: Plan, level: Level) -> None:
    write_atomic(path, (json.dumps(relevance(plan, level), separators=(",", ":")) + "\n").encode())


def read_relevance(path: Path) -> dict[str, Any]:
    """A file of ``write_relevance``. Raises DataError naming file, key or row for one that ``rasterise`` could not use."""
    row = Row(path, "")
    value = row.mapping(read_json(path))
    for number, area in enumerate(row.get(value, "areas", list)):
        if not _numbers(area, 7) or area[0] not in range(len(KINDS)):
            raise row.at(f"areas {number}").error("expected [kind, start, end, left, top, right, bottom]")
    camera = row.get(value, "camera", object)
    if camera is not None and not (isinstance(camera, list) and all(_numbers(at, 2) for at in camera)):
        raise row.error("'camera' should be null or a list of [x, y] per frame", "wrong type")
    return value


def _numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many numbers that can be compared with floats."""
    good = isinstance(value, list) and len(value) == count
    return good and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e15 for v in value)


def rasterise(value: dict[str, Any], frame: int, grid: tuple[int, int], share: float = 0.25) -> np.ndarray:
    """The kind of every cell of a patch grid at a source frame: uint8 ``[rows, columns]``, an index into ``KINDS``.

    A cell is of a kind where the union of its boxes covers at least ``share`` of it; of several the highest counts. Raises
    DataError for a frame that the file has no camera for.
    """
    if value["camera"] and not 0 <= frame < len(value["camera"]):
        raise DataError(f"frame {frame} of {value.get('uid')!r}: 'camera' has {len(value['camera'])} frames")
    rows, columns = grid
    parts = 8  # samples per cell and direction
    x = (np.arange(columns * parts) + 0.5) / (columns * parts)
    y = (np.arange(rows * parts) + 0.5) / (rows * parts)
    dx, dy = value["camera"][frame] if value["camera"] else (0.0, 0.0)
    kinds = np.zeros(grid, np.uint8)
    for kind in range(1, len(KINDS)):
        cover = np.zeros((rows * parts, columns * parts), bool)
        for own, start, end, left, top, right, bottom in value["areas"]:
            if own == kind and start <= frame < end:
                inside = (x >= left + dx) & (x < right + dx)
                cover |= ((y >= top + dy) & (y < bottom + dy))[:, None] & inside
        filled = cover.reshape(rows, parts, columns, parts).mean(axis=(1, 3))
        kinds[filled >= share] = kind
    return kinds


def is_relevant(kinds: np.ndarray) -> np.ndarray:
    """bool, shaped like ``kinds``."""
    return kinds >= RELEVANT


def is_moving(kinds: np.ndarray) -> np.ndarray:
    """bool, shaped like ``kinds``."""
    return kinds % 2 == MOVING
