"""From a plan to pictures: table, things in their states, hand and tool."""

from collections.abc import Iterator

import numpy as np

from vtskip.data.synthetic.draw import Canvas, Colour, Point, add, mix, shade, texture, window
from vtskip.data.synthetic.levels import DEFAULT, LEVELS, Camera, Level
from vtskip.data.synthetic.plan import Cue, Plan, Step, Thing
from vtskip.data.synthetic.things import DARK, MILK, PAINT, RADIUS, RECEIVED, SMALL, STEEL, draw_body, draw_thing

SKINS = ((238, 190, 158), (214, 160, 124), (176, 120, 86), (128, 84, 60))
CLOTH, HANDLE, WOOD = (120, 240, 244), (40, 36, 40), (226, 140, 40)
JUG, JUG_SIDE = (96, 64, 130), (66, 42, 96)
CLOCK = 0.08  # radius
CELL = 1 / 7  # side of a cell of the usual patch grid
# Where the hand is while it does a verb, from its usual place, and how far it swings to either side.
REACH: dict[str, tuple[Point, Point]] = {
    "cut": ((0.0, 0.0), (0.0, 0.06)),
    "wipe": ((0.0, -0.06), (0.08, 0.0)),
    "open": ((0.2, 0.0), (0.0, 0.0)),
    "fill": ((0.26, 0.0), (0.0, 0.0)),
    "close": ((0.06, 0.0), (0.0, 0.03)),
    "stir": ((0.08, 0.06), (0.05, 0.0)),
    "press": ((-0.02, -0.06), (0.0, 0.02)),
    "screw": ((0.12, 0.12), (0.02, 0.0)),
    "turn": ((0.16, -0.02), (0.0, 0.08)),
    "light": ((-0.24, 0.02), (0.0, 0.01)),
    "tap": ((0.2, 0.1), (0.0, 0.06)),
}


class Renderer:
    """Draws the frames of one plan. All randomness comes from the plan's seed."""

    def __init__(self, plan: Plan, size: int, level: Level = LEVELS[DEFAULT]) -> None:
        self.plan, self.size = plan, size
        self.camera, self.still = Camera(level, plan.seed, plan.frames, float(plan.rate)), level.still
        # what the moving camera may come to see beyond the frame's edges
        self.margin = 0 if self.still else int(np.ceil(np.abs(self.camera.offsets).max() * size)) + 1
        rng = np.random.default_rng((*plan.seed, 1))
        self.skin: Colour = SKINS[int(rng.integers(len(SKINS)))]
        grey = rng.uniform(40, 110)
        self.sleeve: Colour = (grey, grey, grey)
        self.entry = float(rng.uniform(0.4, 0.6))
        self.grain = rng.standard_normal((size, size, 1)).astype(np.float32) * level.noise
        self.shifts = rng.integers(0, size, (plan.frames, 2))
        table = Canvas(texture(rng, size + 2 * self.margin, plan.tone), size, (self.margin, self.margin))
        for thing in plan.shelf:
            draw_thing(table, thing, (thing.x, thing.y), radius=SMALL)
        self.background = table.image

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 RGB ``[size, size, 3]``."""
        return (self.frame(t) for t in range(self.plan.frames))

    def frame(self, t: int) -> np.ndarray:
        canvas = self._view(t)
        self.draw(canvas, t)
        if self.camera.gains[t] != 1:
            canvas.image *= np.float32(self.camera.gains[t])
        canvas.image += np.roll(self.grain, tuple(self.shifts[t]), axis=(0, 1))
        return np.clip(canvas.image + 0.5, 0, 255).astype(np.uint8)

    def _view(self, t: int) -> Canvas:
        """The bare table as the camera sees it."""
        if self.still:
            return Canvas(self.background)
        x, y = (float(v) for v in self.camera.offsets[t] * self.size)
        return Canvas(window(self.background, (self.margin - x, self.margin - y), self.size), self.size, (x, y))

    def draw(self, canvas: Canvas, t: int) -> None:
        """Everything that lies or moves on the table."""
        step = self.plan.step_at(t)
        touched = step.thing if step and t >= step.contact and (t < step.end or step.action.verb == "pick") else None
        if self.camera.clock:
            self._clock(canvas, self.camera.clock, t)
        for index, thing in enumerate(self.plan.things):
            if thing.born <= t < thing.gone and index != touched:
                self._rest(canvas, index, thing, t)
        if step:
            self._act(canvas, step, t)
        for start, end in self.plan.fidgets:
            if start <= t < end:  # the empty hand shows at the lower edge and touches nothing
                rise = float(np.sin(np.pi * (t - start + 1) / (end - start + 1)))
                self._hand(canvas, (self.entry, 1.12 - 0.2 * rise), closed=False)
        for cue in self.plan.cues:
            if cue.start <= t < cue.end:
                self._cue(canvas, cue)

    def _cue(self, canvas: Canvas, cue: Cue) -> None:
        """A card of two cells beside the thing: its colour, and its shape in black."""
        x, y = cue.at
        canvas.box((x, y), (0.95 * CELL, 0.46 * CELL), 0.0, MILK)
        canvas.box((x - 0.5 * CELL, y), (0.38 * CELL, 0.36 * CELL), 0.0, PAINT[cue.colour])
        draw_body(canvas, cue.shape, (x + 0.46 * CELL, y), 0.33 * CELL, DARK)

    def _clock(self, canvas: Canvas, at: Point, t: int) -> None:
        """Its hand goes round in two seconds and has nothing to do with what is done."""
        angle = np.pi * t / self.plan.pace / 10
        canvas.disc(at, CLOCK, MILK)
        canvas.bar(at, add(at, (0.8 * CLOCK * float(np.sin(angle)), -0.8 * CLOCK * float(np.cos(angle)))), 0.012, DARK)

    def _rest(self, canvas: Canvas, index: int, thing: Thing, t: int) -> None:
        """A thing nobody touches: it slides in, lies there with the trace of what was last done to it, and slides out."""
        coming = min(1.0, (t - thing.born) / self.plan.slide)
        leaving = max(0.0, 1 - (thing.gone - t) / self.plan.slide)
        x = thing.x + thing.side * (1 - coming) * 0.75 - thing.side * leaving * 0.75
        past = [s for s in self.plan.steps if s.end <= t and index in (s.thing, s.into)]
        done = [s.action.verb if s.thing == index else RECEIVED[s.action.verb] for s in past]
        draw_thing(canvas, thing, (x, thing.y), state=done[-1] if done else "", strength=0.35)

    def _act(self, canvas: Canvas, step: Step, t: int) -> None:
        """The hand on its way to the thing, at work, and on its way back."""
        thing = self.plan.things[step.thing]
        verb, home, near = step.action.verb, (self.entry, 1.3), (thing.x + 0.02, thing.y + 0.34)
        if step.contact <= t < step.end:
            self._work(canvas, step, (t - step.contact) / self.plan.pace)
        elif t < step.contact:
            way = (t - step.approach + 1) / (step.contact - step.approach + 1)
            if verb == "place":  # it comes with the hand
                draw_thing(canvas, thing, add(mix(home, near, way), (-0.02, -0.24)), radius=RADIUS * 1.4, lifted=True)
            self._tool(canvas, verb, mix(home, near, way), working=False)
            self._hand(canvas, mix(home, near, way), closed=False)
        else:
            way = (t - step.end + 1) / (step.away - step.end)
            if verb == "pick":  # it leaves with the hand
                place = mix((thing.x, thing.y - 0.06), (thing.x, 1.3), way)
                draw_thing(canvas, thing, place, radius=RADIUS * 1.4, lifted=True)
                self._hand(canvas, add(place, (0.02, 0.22)), closed=True)
            else:
                self._tool(canvas, verb, mix(near, home, way), working=False)
                self._hand(canvas, mix(near, home, way), closed=False)

    def _work(self, canvas: Canvas, step: Step, since: float) -> None:
        """Each verb's own motion and change of state, ``since`` tenths of a second after the contact."""
        verb, thing = step.action.verb, self.plan.things[step.thing]
        spot = (thing.x, thing.y)
        beat = float(np.sin(2 * np.pi * since / 4 + 0.8))
        palm = add(spot, (0.02, 0.19))
        if verb == "pick":
            spot = add(spot, (0, -0.06))
            draw_thing(canvas, thing, spot, radius=RADIUS * 1.4, lifted=True)
            palm = add(spot, (0.02, 0.22))
        elif verb == "shake":
            for side in (-1, 1):
                for far in (0.27, 0.34):
                    edge = add(spot, (side * far, 0))
                    canvas.bar(add(edge, (-side * 0.03, -0.12)), edge, 0.017, DARK)
                    canvas.bar(add(edge, (-side * 0.03, 0.12)), edge, 0.017, DARK)
            spot = add(spot, (0.05 * beat, 0))
            draw_thing(canvas, thing, spot, angle=0.6 * beat)
            palm = add(spot, (0.02, 0.19))
        elif verb == "place":  # it is let down
            draw_thing(canvas, thing, spot, radius=RADIUS * max(1.0, 1.3 - 0.06 * since), lifted=since < 4)
            palm = add(spot, (0.02, 0.24))
        elif step.into is not None:
            palm = self._transfer(canvas, verb, thing, self.plan.things[step.into], since)
        else:
            draw_thing(canvas, thing, spot, state=verb, strength=1.0)
            (x, y), (dx, dy) = REACH[verb]
            palm = add(palm, (x + dx * beat, y + dy * beat))
        self._tool(canvas, verb, palm, working=True)
        self._hand(canvas, palm, closed=True)

    def _transfer(self, canvas: Canvas, verb: str, thing: Thing, other: Thing, since: float) -> Point:
        """One thing goes into another, or what is in it does; where the hand is."""
        goal, spot = (other.x, other.y), (thing.x, thing.y)
        if verb == "pour":
            place = add(mix(spot, goal, 0.25), (0.05, -0.08))
            canvas.bar(add(place, (-0.15, -0.02)), add(goal, (0.02, 0)), 0.035, MILK)
            draw_thing(canvas, thing, place, angle=-0.9, lifted=True)
            return add(place, (0.1, 0.2))
        way = min(1.0, since / 5)
        draw_thing(canvas, thing, mix(spot, goal, way), radius=RADIUS * (1.3 - 0.9 * way), lifted=way < 1)
        return add(mix(spot, goal, way), (0.02, 0.22))

    def _tool(self, canvas: Canvas, verb: str, palm: Point, working: bool) -> None:
        """What the hand holds for a verb."""
        if verb == "wipe":
            cloth = add(palm, (0, -0.12))
            canvas.box(cloth, (0.20, 0.11), 0.1, CLOTH)
            canvas.box(cloth, (0.20, 0.012), 0.1, MILK)
        elif verb == "cut":
            canvas.bar(add(palm, (0, -0.05)), add(palm, (-0.02, -0.42)), 0.038, HANDLE)
            canvas.bar(add(palm, (0, -0.10)), add(palm, (-0.02, -0.42)), 0.03, STEEL)
        elif verb == "fill":
            jug = add(palm, (-0.02, -0.2))
            if working:
                canvas.bar(add(jug, (-0.08, 0)), add(jug, (-0.22, 0.04)), 0.04, MILK)
            canvas.box(jug, (0.12, 0.15), -0.6 if working else 0.0, JUG_SIDE)
            canvas.box(jug, (0.08, 0.12), -0.6 if working else 0.0, JUG)
        elif verb == "stir":
            bowl = add(palm, (-0.12, -0.28))
            canvas.bar(palm, bowl, 0.022, WOOD)
            canvas.disc(bowl, 0.055, WOOD)
        elif verb == "screw":
            tip = add(palm, (-0.14, -0.26))
            canvas.bar(mix(palm, tip, 0.3), tip, 0.014, STEEL)
            canvas.bar(palm, mix(palm, tip, 0.45), 0.045, (250, 60, 160))
        elif verb == "tap":
            head = add(palm, (-0.16, -0.26))
            canvas.bar(palm, head, 0.024, WOOD)
            canvas.box(head, (0.12, 0.055), 0.5, HANDLE)

    def _hand(self, canvas: Canvas, palm: Point, closed: bool) -> None:
        """Arm from the lower edge with its sleeve, palm, and fingers: spread on the way, curled at work."""
        elbow = (self.entry + 0.4 * (palm[0] - self.entry), 1.25)
        edge = shade(self.skin, 0.8)
        canvas.bar(mix(palm, elbow, 0.5), elbow, 0.095, self.sleeve)
        canvas.bar(palm, mix(palm, elbow, 0.5), 0.06, self.skin)
        length = 0.09 if closed else 0.15
        for dx in (-0.06, -0.02, 0.02, 0.055) if closed else (-0.1, -0.04, 0.02, 0.08):
            tip, root = add(palm, (dx, -length)), add(palm, (dx * 0.6, 0))
            canvas.bar(root, tip, 0.026, edge)
            canvas.bar(root, tip, 0.021, self.skin)
        canvas.disc(palm, 0.085, self.skin)
