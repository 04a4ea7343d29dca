"""The words of the synthetic set: an act is a verb and a noun, a noun is a colour and a shape. Some acts have a second noun,
the thing that the first one goes into.

The grammar ``table`` is all of these: one task, in which any act follows any other. ``tasks`` has the full grammar.

Every text the data set can hold comes from here, so that a vocabulary can be listed without making a clip.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """``base`` is COIN's imperative, ``third`` Ego4D's narration, ``other`` the second annotator's word for the same act."""

    base: str
    third: str
    other: str


VERBS = {
    "pick": Verb("pick up", "picks up", "lifts"),
    "open": Verb("open", "opens", "uncovers"),
    "cut": Verb("cut", "cuts", "slices"),
    "shake": Verb("shake", "shakes", "rattles"),
    "wipe": Verb("wipe", "wipes", "cleans"),
    "fill": Verb("fill", "fills", "pours milk into"),
}
# What the grammar of tasks has besides; the table's verbs are drawn from ``VERBS`` alone.
ALL_VERBS = VERBS | {
    "place": Verb("place", "places", "puts down"),
    "close": Verb("close", "closes", "covers"),
    "stir": Verb("stir", "stirs", "mixes"),
    "press": Verb("press", "presses", "pushes"),
    "screw": Verb("screw", "screws", "tightens"),
    "turn": Verb("turn", "turns", "rotates"),
    "light": Verb("switch on", "switches on", "lights"),
    "tap": Verb("hammer", "hammers", "knocks on"),
    "pour": Verb("pour", "pours", "tips"),
    "insert": Verb("put", "puts", "drops"),
}
INTO = ("pour", "insert")  # verbs with a second noun
COLOURS = {"red": (214, 38, 38), "green": (38, 158, 62), "blue": (40, 84, 214), "yellow": (244, 208, 40)}
SHAPES = ("cup", "box")
TASK = "WorkAtTheTable"
DOMAIN = "Synthetic Kitchen"
DISTRACTORS = ("#O X walks past the table", "#O A woman X talks to C", "#O A man Y looks at the table")


@dataclass(frozen=True)
class Action:
    """What happens in one step. ``into``: the second noun ("blue cup"), empty for verbs that have none."""

    verb: str
    colour: str
    shape: str
    into: str = ""

    @property
    def noun(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def _object(self) -> str:
        return f"the {self.noun} into the {self.into}" if self.into else f"the {self.noun}"

    @property
    def label(self) -> str:
        """COIN step label."""
        return f"{ALL_VERBS[self.verb].base} {self._object}"

    @property
    def narration(self) -> str:
        """Ego4D narration, with the tag of the camera wearer."""
        return f"#C C {ALL_VERBS[self.verb].third} {self._object}"

    @property
    def paraphrase(self) -> str:
        """The same step in the second annotator's words."""
        return f"#C C {ALL_VERBS[self.verb].other} {self._object}"


def actions() -> list[Action]:
    """Every possible step, in a fixed order: the step ids of the exported COIN file."""
    return [Action(verb, colour, shape) for verb in VERBS for colour in COLOURS for shape in SHAPES]
