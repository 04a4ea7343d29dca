"""What lies on the table: six shapes, and what was done to them."""

from collections.abc import Callable

import numpy as np

from vtskip.data.synthetic.draw import Canvas, Colour, Point, add, shade
from vtskip.data.synthetic.grammar import COLOURS
from vtskip.data.synthetic.plan import Thing

DARK, MILK, STEEL, GLOW = (20, 18, 20), (252, 252, 248), (222, 228, 236), (255, 250, 190)
RADIUS, SMALL = 0.19, 0.07  # of a thing in front, on the shelf
COVER = ("grey", "cover")  # a thing that does not show what it is
RECEIVED = {"pour": "fill", "insert": "received"}  # state of what something went into, by the verb
PAINT: dict[str, Colour] = {**COLOURS, "grey": (134, 132, 130)}


def draw_thing(
    canvas: Canvas,
    thing: Thing,
    at: Point,
    state: str = "",
    strength: float = 0.0,
    radius: float = RADIUS,
    angle: float = 0.0,
    lifted: bool = False,
) -> None:
    """One object and what was done to it.

    ``state`` is a verb, ``strength`` how much of its change shows: 1 while it is done, less for the trace that stays.
    """
    colour: Colour = PAINT[thing.colour]
    radius *= thing.scale
    drop = 0.09 if lifted else 0.1 * radius
    canvas.disc(add(at, (drop, drop)), radius, (20, 18, 16), 0.5 if lifted else 0.3)
    if state == "cut":
        for side in (-1, 1):
            _half(canvas, thing.shape, add(at, (side * (0.06 + 0.12 * strength), 0)), radius, colour)
        return
    if state == "light":
        canvas.disc(at, radius * (1.1 + 0.5 * strength), GLOW, 0.25 + 0.45 * strength)
    draw_body(canvas, thing.shape, at, radius, colour, {"shake": 0.3, "turn": 0.8}.get(state, angle))
    if state in TRACES:
        TRACES[state](canvas, at, radius, strength, colour)


def draw_body(canvas: Canvas, shape: str, at: Point, r: float, colour: Colour, angle: float = 0.0) -> None:
    """A shape alone, turned by ``angle``. A cup is a rimmed disc with a handle, a box a square with a white ribbon across."""

    def along(x: float, y: float) -> Point:
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        return at[0] + r * (cos * x - sin * y), at[1] + r * (sin * x + cos * y)

    dark = shade(colour, 0.6)
    if shape == "cup":
        canvas.ring(
            add(at, (1.1 * r * float(np.cos(angle)), 1.1 * r * float(np.sin(angle)))), r * 0.4, r * 0.24, colour
        )
        canvas.disc(at, r, dark)
        canvas.disc(at, r * 0.84, colour)
    elif shape == "box":
        canvas.box(at, (r * 0.98, r * 0.98), angle, colour)
        canvas.box(at, (r * 0.98, r * 0.2), angle, MILK)
        canvas.box(at, (r * 0.2, r * 0.98), angle, MILK)
    elif shape == "bottle":
        canvas.bar(along(0, 0.5), along(0, -0.95), r * 0.3, dark)
        canvas.bar(along(0, 0.5), along(0, -0.2), r * 0.6, colour)
        canvas.disc(along(0, -0.95), r * 0.24, MILK)
    elif shape == "plate":
        canvas.disc(at, r * 1.1, MILK)
        canvas.disc(at, r * 0.95, colour)
        canvas.ring(at, r * 0.6, r * 0.1, dark)
    elif shape == "lamp":
        canvas.box(at, (r * 0.85, r * 0.85), angle + np.pi / 4, dark)
        canvas.box(at, (r * 0.65, r * 0.65), angle + np.pi / 4, colour)
        canvas.disc(at, r * 0.2, GLOW)
    elif shape == "radio":
        canvas.bar(along(0.7, -0.6), along(1.0, -1.2), r * 0.09, DARK)
        canvas.box(at, (r * 1.1, r * 0.68), angle, colour)
        for x in (-0.6, 0.6):
            canvas.disc(along(x, 0.1), r * 0.26, DARK)
    else:  # a cover
        canvas.disc(at, r, dark)
        canvas.disc(at, r * 0.9, colour)


def _half(canvas: Canvas, shape: str, at: Point, r: float, colour: Colour) -> None:
    """One of the two pieces of a cut thing."""
    if shape in ("box", "lamp", "radio"):
        high = {"box": 0.98, "lamp": 0.8, "radio": 0.68}[shape]
        canvas.box(at, (r * 0.46, r * high), 0.0, colour)
        if shape == "box":
            canvas.box(at, (r * 0.46, r * 0.2), 0.0, MILK)
        else:
            canvas.disc(at, r * 0.2, GLOW if shape == "lamp" else DARK)
    else:
        rim = MILK if shape == "plate" else shade(colour, 0.6)
        canvas.bar(add(at, (0, -r * 0.55)), add(at, (0, r * 0.55)), r * 0.5, rim)
        canvas.bar(add(at, (0, -r * 0.55)), add(at, (0, r * 0.55)), r * (0.28 if shape == "bottle" else 0.36), colour)


# -- traces: what each verb leaves on a thing, by its place, radius, strength and colour -----------------------------------


def _open(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    canvas.disc(at, r * (0.35 + 0.4 * strength), DARK)
    if strength == 1:
        canvas.disc(add(at, (0.25, -0.02)), r * 0.6, shade(colour, 0.55))


def _fill(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    canvas.disc(at, r * (0.3 + 0.4 * strength), MILK)


def _wipe(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    if strength < 1:
        canvas.bar(add(at, (-0.07, -0.07)), add(at, (0.0, -0.11)), 0.014, MILK, 0.9)


def _close(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    lid = add(at, (0.03, -0.03)) if strength == 1 else at
    canvas.disc(lid, r * (0.55 + 0.5 * strength), shade(colour, 0.4))
    canvas.disc(lid, r * 0.2, STEEL)


def _stir(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    for part in (0.7, 0.4, 0.12):
        canvas.ring(at, r * part * (0.5 + 0.5 * strength), r * 0.12, MILK)


def _press(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    canvas.disc(at, r * (0.3 + 0.3 * strength), DARK)
    canvas.disc(at, r * 0.2, (255, 90, 200))
    if strength == 1:
        canvas.ring(at, r * 1.3, r * 0.14, (255, 90, 200))


def _screw(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    for x, y in ((-0.5, -0.5), (0.5, 0.5)):
        spot = add(at, (x * r, y * r))
        canvas.disc(spot, r * (0.14 + 0.1 * strength), STEEL)
        canvas.bar(add(spot, (-0.1 * r, 0)), add(spot, (0.1 * r, 0)), 0.006, DARK)


def _turn(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    if strength == 1:
        canvas.ring(at, r * 1.35, r * 0.08, STEEL)


def _tap(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    for k in range(6 if strength == 1 else 3):
        way = (float(np.cos(k * np.pi / 3 + 0.2)) * r, float(np.sin(k * np.pi / 3 + 0.2)) * r)
        reach = 0.35 + 1.1 * strength
        canvas.bar(add(at, (0.15 * way[0], 0.15 * way[1])), add(at, (reach * way[0], reach * way[1])), 0.012, DARK)


def _pour(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    canvas.bar(add(at, (-0.15 * r, -0.9 * r)), add(at, (-0.75 * r, 0.45 * r)), r * (0.1 + 0.1 * strength), MILK)


def _received(canvas: Canvas, at: Point, r: float, strength: float, colour: Colour) -> None:
    canvas.box(at, (r * 0.55, r * 0.4), 0.3, DARK)
    canvas.box(at, (r * 0.4, r * 0.26), 0.3, STEEL)


TRACES: dict[str, Callable[[Canvas, Point, float, float, Colour], None]] = {
    "open": _open,
    "fill": _fill,
    "wipe": _wipe,
    "close": _close,
    "stir": _stir,
    "press": _press,
    "screw": _screw,
    "turn": _turn,
    "tap": _tap,
    "pour": _pour,
    RECEIVED["insert"]: _received,
}
