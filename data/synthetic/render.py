"""From a plan to pictures: table, things in their states, hand and tool."""

from collections.abc import Iterator

import numpy as np

from vtskip.data.synthetic.draw import Canvas, Colour, Point, texture
from vtskip.data.synthetic.grammar import COLOURS
from vtskip.data.synthetic.plan import SLIDE, Plan, Step, Thing

SKINS = ((238, 190, 158), (214, 160, 124), (176, 120, 86), (128, 84, 60))
STEEL, DARK, MILK, CLOTH = (206, 212, 220), (24, 22, 24), (250, 250, 246), (120, 236, 240)
RADIUS = 0.135  # of a thing
GRIP = (0.02, 0.115)  # where the palm is, seen from the thing it works on


class Renderer:
    """Draws the frames of one plan. All randomness comes from the plan's seed."""

    def __init__(self, plan: Plan, size: int, noise: float = 2.0) -> None:
        self.plan, self.size, self.noise = plan, size, noise
        rng = np.random.default_rng((*plan.seed, 1))
        self.background = texture(rng, size)
        self.skin: Colour = SKINS[int(rng.integers(len(SKINS)))]
        self.sleeve: Colour = tuple(rng.uniform(40, 110) + rng.uniform(-8, 8, 3))
        self.entry = float(rng.uniform(0.4, 0.7))
        self.grain = rng.standard_normal((size, size, 1)).astype(np.float32) * noise
        self.shifts = rng.integers(0, size, (plan.frames, 2))

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 RGB ``[size, size, 3]``."""
        return (self.frame(t) for t in range(self.plan.frames))

    def frame(self, t: int) -> np.ndarray:
        canvas = Canvas(self.background)
        step = next((s for s in self.plan.steps if s.approach <= t < s.away), None)
        for index, thing in enumerate(self.plan.things):
            if thing.born <= t < thing.gone and not (step and index == step.thing and t >= step.contact):
                self._rest(canvas, index, thing, t)
        if step:
            self._act(canvas, step, t)
        self._fidget(canvas, t)
        if self.noise:
            canvas.image += np.roll(self.grain, tuple(self.shifts[t]), axis=(0, 1))
        return np.clip(canvas.image + 0.5, 0, 255).astype(np.uint8)

    def _rest(self, canvas: Canvas, index: int, thing: Thing, t: int) -> None:
        """A thing nobody touches: it slides in from and out to the upper edge, and shows what was last done to it."""
        carried = any(s.moved == index for s in self.plan.steps)
        let_go = any(s.moved is not None and s.thing == index for s in self.plan.steps)
        coming = 1.0 if carried else min(1.0, (t - thing.born) / SLIDE)
        going = 0.0 if let_go else max(0.0, 1 - (thing.gone - t) / SLIDE)
        y = thing.y - (1 - min(coming, 1 - going)) * (thing.y + RADIUS * 1.5)
        done = [s.action.verb for s in self.plan.steps if s.thing == index and s.end <= t]
        draw_thing(canvas, thing, (thing.x, y), state=done[-1] if done else "", strength=0.5)

    def _act(self, canvas: Canvas, step: Step, t: int) -> None:
        """The hand on its way to the thing, at work, and on its way back."""
        thing = self.plan.things[step.thing]
        verb, spot = step.action.verb, (thing.x, thing.y)
        home = (self.entry, 1.25)
        if t < step.contact:
            way = (t - step.approach + 1) / (step.contact - step.approach + 1)
            draw_hand(canvas, self, _mix(home, _add(spot, (GRIP[0], GRIP[1] + 0.10)), way), verb, False)
            return
        if t < step.end:
            part = (t - step.contact) / max(1, step.end - 1 - step.contact)
            self._work(canvas, step, thing, part, t)
            return
        way = (t - step.end + 1) / (step.away - step.end + 1)
        if step.moved is None:
            self._rest(canvas, step.thing, thing, t)
            start = spot
        else:
            start = (self.plan.things[step.moved].x, self.plan.things[step.moved].y)
        draw_hand(canvas, self, _mix(_add(start, (GRIP[0], GRIP[1] + 0.10)), home, way), verb, False)

    def _work(self, canvas: Canvas, step: Step, thing: Thing, part: float, t: int) -> None:
        """Each verb's own motion; ``part`` runs from 0 at contact to 1 at the last frame of the action."""
        verb, spot = step.action.verb, (thing.x, thing.y)
        beat = np.sin(2 * np.pi * (t - step.contact) / 4 + 0.8)
        hand = _add(spot, GRIP)
        if verb == "pick" and step.moved is not None:
            goal = self.plan.things[step.moved]
            spot = _add(_mix(spot, (goal.x, goal.y), part), (0, -0.03))
            draw_thing(canvas, thing, spot, scale=1.5, lifted=True)
            hand = _add(spot, (GRIP[0], GRIP[1] + 0.05))
        elif verb == "shake":
            swing = _add(spot, (0.075 * beat, 0))
            for side in (-1, 1):
                ghost = _add(spot, (side * 0.15, 0))
                for k in (-1, 0, 1):
                    canvas.bar(
                        _add(ghost, (side * 0.03 * (1 - abs(k)), 0.07 * k - 0.03)),
                        _add(ghost, (side * 0.03 * (1 - abs(k)), 0.07 * k + 0.03)),
                        0.009,
                        DARK,
                    )
            draw_thing(canvas, thing, swing, angle=0.35 * beat)
            hand = _add(swing, GRIP)
        else:
            draw_thing(canvas, thing, spot, state=verb, strength=1.0)
            offset = {
                "cut": (0.0, 0.04 * beat),
                "wipe": (0.07 * beat, -0.06),
                "open": (0.10, -0.02),
                "fill": (0.13, -0.05),
            }
            hand = _add(hand, offset[verb])
        draw_hand(canvas, self, hand, verb, True)

    def _fidget(self, canvas: Canvas, t: int) -> None:
        """The empty hand shows at the lower edge and touches nothing."""
        for start, end in self.plan.fidgets:
            if start <= t < end:
                rise = np.sin(np.pi * (t - start + 1) / (end - start + 1))
                draw_hand(canvas, self, (self.entry, 1.1 - 0.22 * float(rise)), "", False)


def _add(a: Point, b: Point) -> Point:
    return a[0] + b[0], a[1] + b[1]


def _mix(a: Point, b: Point, part: float) -> Point:
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255.0, c * factor) for c in colour)


def draw_thing(
    canvas: Canvas,
    thing: Thing,
    at: Point,
    state: str = "",
    strength: float = 0.0,
    scale: float = 1.0,
    angle: float = 0.0,
    lifted: bool = False,
) -> None:
    """One object with what was done to it: ``state`` is a verb, ``strength`` how strongly its trace shows (1 while it is done)."""
    colour: Colour = COLOURS[thing.colour]
    radius = RADIUS * scale
    drop = 0.07 if lifted else 0.015
    canvas.disc(_add(at, (drop, drop)), radius, (20, 18, 16), 0.45 if lifted else 0.3)
    if state == "shake":
        angle = 0.5
    halves = [at]
    if state == "cut":
        gap = 0.02 + 0.05 * strength
        halves = [_add(at, (-gap, 0)), _add(at, (gap, 0))]
    for side, spot in enumerate(halves):
        half = None if len(halves) == 1 else side
        _body(canvas, thing.shape, spot, radius, colour, angle, half)
    if state == "open":
        canvas.disc(at, radius * (0.45 + 0.25 * strength), DARK)
        canvas.disc(_add(at, (0.17, -0.06)), radius * (0.4 + 0.3 * strength), _shade(colour, 0.6))
    elif state == "fill":
        canvas.disc(at, radius * (0.35 + 0.3 * strength), MILK)
    elif state == "wipe" and strength < 1:
        canvas.bar(_add(at, (-0.05, -0.05)), _add(at, (0.0, -0.08)), 0.014, (255, 255, 255), 0.9)


def _body(canvas: Canvas, shape: str, at: Point, r: float, colour: Colour, angle: float, half: int | None) -> None:
    """A whole thing, or its left (0) or right (1) half."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))

    def turn(x: float, y: float) -> Point:
        return at[0] + r * (cos * x - sin * y), at[1] + r * (sin * x + cos * y)

    rim = _shade(colour, 0.62)
    if shape == "cup":
        if half != 0:
            canvas.ring(turn(1.1, 0), r * 0.38, r * 0.22, rim)
        if half is None:
            canvas.disc(at, r, rim)
            canvas.disc(at, r * 0.82, colour)
        else:
            canvas.bar(turn(0, -0.62), turn(0, 0.62), r * 0.42, rim)
            canvas.bar(turn(0, -0.6), turn(0, 0.6), r * 0.3, colour)
    else:
        wide = 0.95 if half is None else 0.42
        canvas.box(at, (r * wide, r * 0.95), angle, colour)
        canvas.box(at, (r * wide, r * 0.15), angle, MILK)
        if half is None:
            canvas.box(at, (r * 0.15, r * 0.95), angle, MILK)


def draw_hand(canvas: Canvas, look: Renderer, palm: Point, verb: str, closed: bool) -> None:
    """Arm from the lower edge, sleeve, palm, fingers (spread on the way, curled at work) and the verb's tool."""
    elbow = (look.entry + 0.4 * (palm[0] - look.entry), 1.2)
    skin, edge = look.skin, _shade(look.skin, 0.8)
    tool_at = _add(palm, (0, -0.07))
    if verb == "wipe":
        canvas.box(tool_at, (0.13, 0.075), 0.1, CLOTH)
        canvas.box(tool_at, (0.13, 0.012), 0.1, (255, 255, 255))
    elif verb == "cut":
        canvas.bar(_add(palm, (0, -0.02)), _add(palm, (-0.02, -0.25)), 0.02, STEEL)
        canvas.bar(_add(palm, (0, 0.02)), _add(palm, (0, -0.05)), 0.026, DARK)
    elif verb == "fill":
        jug = _add(palm, (-0.02, -0.10))
        if closed:
            canvas.bar(_add(jug, (-0.05, 0)), _add(jug, (-0.13, 0.04)), 0.03, MILK)
        canvas.box(jug, (0.075, 0.10), -0.6 if closed else 0.0, (72, 74, 84))
        canvas.box(jug, (0.05, 0.075), -0.6 if closed else 0.0, (110, 112, 124))
    canvas.bar(_mix(palm, elbow, 0.35), elbow, 0.075, look.sleeve)
    canvas.bar(palm, _mix(palm, elbow, 0.4), 0.05, skin)
    spread = (-0.075, -0.03, 0.02, 0.065) if not closed else (-0.05, -0.02, 0.015, 0.045)
    length = 0.115 if not closed else 0.075
    for dx in spread:
        canvas.bar(_add(palm, (dx * 0.6, 0)), _add(palm, (dx, -length)), 0.019, edge)
        canvas.bar(_add(palm, (dx * 0.6, 0)), _add(palm, (dx, -length)), 0.015, skin)
    canvas.disc(palm, 0.068, skin)
