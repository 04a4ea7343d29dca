"""The words of the synthetic kitchen: a step is a verb and a noun, a noun is a colour and a shape.

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
        return f"{VERBS[self.verb].base} the {self.noun}"

    @property
    def narration(self) -> str:
        """Ego4D narration, with the tag of the camera wearer."""
        return f"#C C {VERBS[self.verb].third} the {self.noun}"

    @property
    def paraphrase(self) -> str:
        """The same step in the second annotator's words."""
        return f"#C C {VERBS[self.verb].other} the {self.noun}"


def actions() -> list[Action]:
    """Every possible step, in a fixed order: the step ids of the exported COIN file."""
    return [Action(verb, colour, shape) for verb in VERBS for colour in COLOURS for shape in SHAPES]


def sentences() -> list[str]:
    """Every text of the COIN and Ego4D narration files, tags removed: what a vocabulary must cover."""
    from vtskip.data.timeline import clean_text

    steps = actions()
    texts = [
        t for a in steps for t in (clean_text(a.narration), clean_text(a.paraphrase), a.label, clean_text(a.label))
    ]
    return texts + [clean_text(text) for text in DISTRACTORS]
