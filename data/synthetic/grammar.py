"""The words of the synthetic set: an act is a verb and a noun, a noun is a colour and a shape.

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
}
COLOURS = {"red": (214, 38, 38), "green": (38, 158, 62), "blue": (40, 84, 214), "yellow": (244, 208, 40)}
SHAPES = ("cup", "box")
TASK = "WorkAtTheTable"
DOMAIN = "Synthetic Kitchen"
DISTRACTORS = ("#O X walks past the table", "#O A woman X talks to C", "#O A man Y looks at the table")


@dataclass(frozen=True)
class Action:
    """What happens in one step."""

    verb: str
    colour: str
    shape: str

    @property
    def noun(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> str:
        """COIN step label."""
        return f"{ALL_VERBS[self.verb].base} the {self.noun}"

    @property
    def narration(self) -> str:
        """Ego4D narration, with the tag of the camera wearer."""
        return f"#C C {ALL_VERBS[self.verb].third} the {self.noun}"

    @property
    def paraphrase(self) -> str:
        """The same step in the second annotator's words."""
        return f"#C C {ALL_VERBS[self.verb].other} the {self.noun}"


def actions() -> list[Action]:
    """Every possible step, in a fixed order: the step ids of the exported COIN file."""
    return [Action(verb, colour, shape) for verb in VERBS for colour in COLOURS for shape in SHAPES]
