"""From a data section of a YAML file to samples."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import Field, model_validator

from vtskip.config import StrictModel
from vtskip.data import coin, egoexo, goalstep, lta
from vtskip.data.coin import CoinTask, read_coin
from vtskip.data.dialogue import INSTRUCTION, SYSTEM, Dialogue
from vtskip.data.ego4d import read_narrations
from vtskip.data.egoexo import read_atomic, read_keysteps
from vtskip.data.goalstep import Level, Relevance, read_goalstep
from vtskip.data.llava import read_llava
from vtskip.data.lta import read_lta
from vtskip.data.messages import read_messages
from vtskip.data.rows import OnError, Watch
from vtskip.data.synthetic.grammars import GRAMMARS
from vtskip.data.synthetic.holdout import HOLDOUTS
from vtskip.data.synthetic.levels import DEFAULT, LEVELS
from vtskip.data.types import Sample
from vtskip.errors import DataError, nearest

Kind = Literal[
    "coin",
    "ego4d_narration",
    "goalstep",
    "ego4d_lta",
    "egoexo_atomic",
    "egoexo_keystep",
    "llava",
    "messages",
    "synthetic",
]


class DataConfig(StrictModel):
    """Which conversations to read.

    ``kind: synthetic`` needs only ``root``; the tier is made there if it is missing, and ``task: narration`` reads its Ego4D
    file, the other tasks its COIN file. Every other kind needs ``annotations`` (the published file) and ``videos`` (a folder
    of ``{id}.mp4``, for llava and messages of what the records name), relative to ``root`` if that is given. A key that the
    kind does not know is an error.

    Attributes:
        splits: JSON file of id lists per split, or ``val.txt`` with an id per line; COIN has its own subsets without one.
        max_frames: longer videos are cut into several samples (streams) or sampled more thinly (questions).
        system, instruction, lead_in, tail: see ``vtskip.data.dialogue.Dialogue``.
        passes: of the public Ego4D narration file.
        level: which steps of GoalStep are told (steps, substeps or both); of the synthetic set what changes between frames
            although nothing happens (L0 to L4). relevance: of GoalStep's steps.
        taxonomy: of LTA the class names; of COIN its workbook or table, for answers that are matched with all of its labels.
        seen, ahead: of LTA: how many actions are seen and asked for.
        takes: Ego-Exo4D's ``takes.json``. ego_visible: leave out what the wearer's camera does not show.
        tier, seed, holdout, grammar: of the synthetic set, see ``vtskip.data.synthetic.make``.
        features: folder of a frame-feature cache (``vtskip data features``) to train on in place of the videos.
        on_error: ``skip`` leaves out videos or records with a fault, and tells which.
    """

    kind: Kind
    root: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    splits: Path | None = None
    split: str | None = None
    task: Literal["narration"] | CoinTask | None = None
    fps: float = Field(default=2.0, gt=0)
    max_frames: int | None = Field(default=None, ge=2)
    passes: list[Literal[1, 2]] | None = None
    level: str | None = None
    relevance: list[Relevance] = list(get_args(Relevance))
    taxonomy: Path | None = None
    seen: int = Field(default=lta.SEEN, ge=1)
    ahead: int = Field(default=lta.AHEAD, ge=1)
    takes: Path | None = None
    ego_visible: bool = True
    system: str = SYSTEM
    instruction: str | None = None
    lead_in: bool = False
    tail: bool = False
    tier: str = "small"
    seed: int = Field(default=0, ge=0)
    holdout: str | None = None
    grammar: str | None = None
    features: Path | None = None
    on_error: OnError = "stop"

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        if self.kind == "synthetic":
            if self.root is None:
                raise ValueError("kind 'synthetic' needs 'root', the folder of the data set")
        elif self.annotations is None or self.videos is None:
            raise ValueError(f"kind {self.kind!r} needs 'annotations' (the JSON file) and 'videos' (the folder)")
        if self.kind == "ego4d_lta" and self.taxonomy is None:
            raise ValueError("kind 'ego4d_lta' needs 'taxonomy' (fho_lta_taxonomy.json)")
        kind = KINDS[self.kind]
        if self.task is not None and self.task not in kind.tasks:
            raise ValueError(
                f"kind {self.kind!r} has no task {self.task!r}; accepted: {', '.join(kind.tasks) or 'none'}"
            )
        for key in sorted(self.model_fields_set & OWN_KEYS - kind.keys):
            others = ", ".join(name for name, other in KINDS.items() if key in other.keys)
            raise ValueError(f"kind {self.kind!r} has no key {key!r}: it belongs to {others}")
        for key, accepted in kind.choices.items():
            value = getattr(self, key)
            if value is not None and value not in accepted:
                raise ValueError(f"{key} {value!r}{nearest(value, accepted)}; accepted: {', '.join(accepted)}")
        return self

    def dialogue(self) -> Dialogue:
        narrate = coin.NARRATE if self.task == "narrate" else KINDS[self.kind].instruction
        return Dialogue(
            system=self.system if KINDS[self.kind].streams or "system" in self.model_fields_set else "",
            instruction=self.instruction or narrate,
            max_frames=self.max_frames,
            lead_in=self.lead_in,
            tail=self.tail,
        )


@dataclass(frozen=True)
class Files:
    """Where things lie, root included."""

    annotations: Path
    videos: Path
    splits: Path | None
    root: Path


Reader = Callable[[DataConfig, Files, OnError | Watch], Iterator[Sample]]


@dataclass(frozen=True)
class KindSpec:
    """A kind: its reader, the keys and tasks that only some kinds have, and what a stream over it is asked for.

    ``choices``: the values of keys that are not the same for every kind.
    """

    read: Reader
    keys: frozenset[str]
    tasks: tuple[str, ...] = ()
    instruction: str = INSTRUCTION
    streams: bool = True
    choices: Mapping[str, Collection[str]] = field(default_factory=dict)


STREAM = frozenset({"instruction", "lead_in", "tail"})
LISTS = frozenset({"splits", "split"})


def _coin(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    task = cast(CoinTask, c.task or "narrate")
    return read_coin(f.annotations, f.videos, c.fps, c.split, task, f.splits, c.dialogue(), on_error)


def _ego4d(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    return read_narrations(f.annotations, f.videos, c.fps, c.split, f.splits, c.passes, c.dialogue(), on_error)


def _goalstep(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    level = cast(Level, c.level or "both")
    return read_goalstep(f.annotations, f.videos, c.fps, c.split, f.splits, level, c.relevance, c.dialogue(), on_error)


def _lta(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    taxonomy = f.root / (c.taxonomy or "")
    return read_lta(
        f.annotations, f.videos, c.fps, taxonomy, c.split, f.splits, c.seen, c.ahead, c.dialogue(), on_error
    )


def _atomic(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    takes = f.root / c.takes if c.takes else None
    return read_atomic(f.annotations, f.videos, c.fps, takes, c.split, f.splits, c.ego_visible, c.dialogue(), on_error)


def _keysteps(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    takes = f.root / c.takes if c.takes else None
    return read_keysteps(f.annotations, f.videos, c.fps, takes, c.split, f.splits, c.dialogue(), on_error)


def _llava(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    return read_llava(f.annotations, f.videos, c.fps, c.dialogue(), on_error)


def _messages(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    return read_messages(f.annotations, f.videos, c.fps, c.dialogue(), on_error)


def _synthetic(c: DataConfig, f: Files, on_error: OnError | Watch) -> Iterator[Sample]:
    """The exact pass of the Ego4D file for narrations, the COIN file for the rest."""
    videos, splits = f.root / "videos", f.root / "splits.json"
    if c.task in (None, "narration"):
        files = Files(f.root / "ego4d/narration.json", videos, splits, f.root)
        return _ego4d(c.model_copy(update={"passes": c.passes or [1]}), files, on_error)
    return _coin(c, Files(f.root / "coin/COIN.json", videos, splits, f.root), on_error)


COIN_TASKS = get_args(CoinTask)
KINDS: dict[str, KindSpec] = {
    "coin": KindSpec(_coin, STREAM | LISTS | {"taxonomy"}, COIN_TASKS, coin.NARRATE),
    "ego4d_narration": KindSpec(_ego4d, STREAM | LISTS | {"passes"}, ("narration",)),
    "goalstep": KindSpec(
        _goalstep,
        STREAM | LISTS | {"level", "relevance"},
        ("narration",),
        goalstep.NARRATE,
        choices={"level": get_args(Level)},
    ),
    "ego4d_lta": KindSpec(_lta, LISTS | {"taxonomy", "seen", "ahead"}),
    "egoexo_atomic": KindSpec(_atomic, STREAM | LISTS | {"takes", "ego_visible"}, ("narration",)),
    "egoexo_keystep": KindSpec(_keysteps, STREAM | LISTS | {"takes"}, ("narration",), egoexo.STEPS),
    "llava": KindSpec(_llava, frozenset(), streams=False),
    "messages": KindSpec(_messages, frozenset(), streams=False),
    "synthetic": KindSpec(
        _synthetic,
        STREAM | LISTS | {"passes", "tier", "seed", "level", "holdout", "grammar"},
        ("narration", *COIN_TASKS),
        choices={"level": LEVELS, "holdout": HOLDOUTS, "grammar": GRAMMARS},
    ),
}
OWN_KEYS = frozenset().union(*(kind.keys for kind in KINDS.values()))


def iterate(config: DataConfig, progress: bool = True, on_error: OnError | Watch | None = None) -> Iterator[Sample]:
    """The samples of a configuration, each read when it is asked for. ``on_error`` stands in for the configuration's.

    Raises DataError or VideoError unless faults are skipped; there being nothing to read is no error here.
    """
    root = config.root or Path()
    if config.kind == "synthetic":
        from vtskip.data.synthetic import make

        make(config.tier, root, config.seed, progress, None, config.level or DEFAULT, config.holdout, config.grammar)
    splits = root / config.splits if config.splits else None
    files = Files(root / (config.annotations or ""), root / (config.videos or ""), splits, root)
    return KINDS[config.kind].read(config, files, on_error or config.on_error)


def build(config: DataConfig, progress: bool = True) -> list[Sample]:
    """All samples of a configuration. Raises DataError or VideoError unless ``on_error`` is ``skip``; none is an error."""
    samples = list(iterate(config, progress))
    if not samples:
        source = config.root if config.kind == "synthetic" else (config.root or Path()) / (config.annotations or "")
        raise DataError(f"{source}: no conversations in split {config.split!r}")
    return samples
