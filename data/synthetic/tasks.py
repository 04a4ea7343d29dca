"""The full grammar: four domains, twelve tasks, forty-one steps.

A step does two to four acts to one thing and is named after the thing's shape ("clean the cup"), or after two of them where one
goes into the other ("pour the bottle into the cup"); colours are drawn anew each time and are only in the narrations. A task is
a partial order of steps, written as a series of blocks: fixed, in any order, optional, repeated. The tasks of a domain begin
alike and share steps with other tasks, so that what comes next is open and the goal tells more than the step before. Every
distribution here is small enough to be enumerated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations, product

from vtskip.data.synthetic.grammar import INTO, Action

SHAPES = ("cup", "box", "bottle", "plate", "lamp", "radio")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fetch": ("fetch the {}", ("place", "turn")),
    "clean": ("clean the {}", ("fill", "wipe")),
    "mix": ("mix in the {}", ("fill", "stir", "shake")),
    "refresh": ("refresh the {}", ("open", "fill", "stir", "close")),
    "unpack": ("unpack the {}", ("cut", "open")),
    "slice": ("slice the {}", ("turn", "cut", "shake")),
    "strip": ("take apart the {}", ("screw", "open", "shake", "pick")),
    "fix": ("repair the {}", ("open", "screw", "close")),
    "mount": ("assemble the {}", ("place", "tap", "screw")),
    "inspect": ("inspect the {}", ("turn", "shake", "tap")),
    "test": ("test the {}", ("press", "light")),
    "seal": ("seal the {}", ("close", "press", "turn")),
    "store": ("put away the {}", ("close", "pick")),
    "pour": ("pour the {} into the {}", ("open", "pour")),
    "stow": ("stow the {} in the {}", ("turn", "insert")),
}
Path = tuple["Step", ...]


@dataclass(frozen=True)
class Step:
    """What is done to a thing of some shape. ``into``: the shape of the thing it goes into, empty where there is none."""

    kind: str
    shape: str
    into: str = ""

    @property
    def label(self) -> str:
        return KINDS[self.kind][0].format(self.shape, self.into)

    @property
    def verbs(self) -> tuple[str, ...]:
        return KINDS[self.kind][1]

    def actions(self, colour: str, other: str = "") -> list[Action]:
        """The acts on a thing of ``colour``; ``other``: the colour of the thing it goes into."""
        into = f"{other} {self.into}"
        return [Action(verb, colour, self.shape, into if verb in INTO else "") for verb in self.verbs]


@dataclass(frozen=True)
class Block:
    """A part of a task: its ways with their probabilities. ``held``: those that a hold-out of orders keeps from training."""

    ways: Mapping[Path, float]
    optional: bool = False
    held: frozenset[Path] = frozenset()


def _steps(names: str) -> Path:
    """``"clean cup, mix cup"``."""
    return tuple(Step(*name.split()) for name in names.split(", "))


def _then(names: str) -> Block:
    return Block({_steps(names): 1.0})


def _any(names: str) -> Block:
    """In any order, all equally likely. Training with held-out orders never begins with the last one named."""
    steps = _steps(names)
    ways = list(permutations(steps))
    return Block({way: 1 / len(ways) for way in ways}, held=frozenset(way for way in ways if way[0] == steps[-1]))


def _maybe(name: str, chance: float = 0.5) -> Block:
    return Block({_steps(name): chance, (): 1 - chance}, optional=True)


def _again(name: str, chance: float = 0.5) -> Block:
    """Once or twice."""
    return Block({_steps(name) * 2: chance, _steps(name): 1 - chance})


@dataclass(frozen=True)
class Task:
    """A goal, and the ways to it. ``name`` is a COIN class."""

    domain: str
    name: str
    blocks: tuple[Block, ...]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Each step once, in the order of the blocks."""
        return tuple(dict.fromkeys(step for block in self.blocks for way in block.ways for step in way))

    def optional(self, step: Step) -> bool:
        """Whether the task is also done without it."""
        return any(block.optional and (step,) in block.ways for block in self.blocks)

    def paths(self, orders: bool | None = None) -> dict[Path, float]:
        """Every sequence of steps with its probability. ``orders``: only those that a hold-out keeps (False: all others)."""
        choices = [
            {
                way: p
                for way, p in block.ways.items()
                if orders is None or not block.held or (way in block.held) == orders
            }
            for block in self.blocks
        ]
        found: dict[Path, float] = {}
        for ways in product(*(choice.items() for choice in choices)):
            path, chance = sum((way for way, _ in ways), ()), 1.0
            for (_, p), choice in zip(ways, choices, strict=True):
                chance *= p / sum(choice.values())
            found[path] = found.get(path, 0.0) + chance
        return found


def _domain(domain: str, prefix: str, **tasks: tuple[Block, ...]) -> list[Task]:
    return [Task(domain, name, (_then(prefix), *blocks)) for name, blocks in tasks.items()]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *_domain(
            "Kitchen",
            "fetch cup, clean cup",
            BrewTheTea=(_any("refresh bottle, unpack box"), _then("pour bottle cup"), _maybe("seal bottle"), _then("store cup")),
            CookTheSoup=(_any("slice box, refresh cup"), _again("inspect cup"), _then("pour cup plate")),
            BakeTheCake=(_then("unpack box"), _any("mix plate, test lamp"), _maybe("slice plate"), _then("stow plate box")),
        ),
        *_domain(
            "Workshop",
            "fetch box, mount box",
            RepairTheRadio=(_then("strip radio"), _any("clean radio, fix radio"), _then("test radio"), _maybe("stow radio box")),
            RepairTheLamp=(_then("strip lamp"), _any("fix lamp, inspect lamp"), _then("test lamp")),
            BuildTheShelf=(_any("mount plate, slice plate, unpack box"), _maybe("inspect plate"), _then("store box")),
        ),
        *_domain(
            "Office",
            "test lamp, unpack box",
            SendTheParcel=(_any("fetch plate, slice box"), _then("stow plate box, seal box"), _maybe("inspect box")),
            InstallTheRadio=(_any("fetch radio, clean radio"), _then("mount radio, test radio"), _maybe("store box")),
            ChangeTheBattery=(_maybe("strip lamp"), _any("inspect radio, fix lamp"), _again("test lamp", 0.25)),
        ),
        *_domain(
            "Garden",
            "fetch bottle, refresh bottle",
            WaterThePlants=(_maybe("clean plate"), _then("pour bottle cup"), _maybe("store bottle")),
            FeedTheBirds=(_any("slice plate, unpack box"), _again("pour cup plate"), _then("seal plate")),
            LightTheParty=(_then("mount lamp"), _any("clean lamp, fetch cup"), _then("test lamp"), _maybe("seal lamp")),
        ),
    )
}  # fmt: skip


@lru_cache(maxsize=1)
def steps() -> tuple[Step, ...]:
    """Every step of every task, in a fixed order: the step ids of the exported COIN file count from 1."""
    return tuple(dict.fromkeys(step for task in TASKS.values() for step in task.steps))
