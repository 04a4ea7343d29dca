"""From a data section of a YAML file to samples."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vtskip.config import StrictModel
from vtskip.data.coin import NARRATE, CoinTask, read_coin
from vtskip.data.dialogue import INSTRUCTION, SYSTEM, Dialogue
from vtskip.data.ego4d import read_narrations
from vtskip.data.rows import OnError
from vtskip.data.types import Sample
from vtskip.errors import DataError


class DataConfig(StrictModel):
    """Which conversations to read.

    ``kind: synthetic`` needs only ``root``; the tier is made there if it is missing, and ``task: narration`` reads its Ego4D
    file, the other tasks its COIN file. ``ego4d_narration`` and ``coin`` need ``annotations`` (the JSON file) and ``videos``
    (a folder of ``{id}.mp4``), relative to ``root`` if that is given. ``splits`` is a JSON file of id lists per split; COIN
    has its own subsets without one. ``lead_in``, ``tail``, ``max_frames``: see ``vtskip.data.dialogue.Dialogue``.
    """

    kind: Literal["ego4d_narration", "coin", "synthetic"]
    root: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    splits: Path | None = None
    split: str | None = None
    task: Literal["narration"] | CoinTask | None = None
    fps: float = Field(default=2.0, gt=0)
    max_frames: int | None = Field(default=None, ge=2)
    passes: list[Literal[1, 2]] | None = None
    system: str = SYSTEM
    instruction: str | None = None
    lead_in: bool = False
    tail: bool = False
    tier: str = "small"
    seed: int = Field(default=0, ge=0)
    on_error: OnError = "stop"

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        if self.kind == "synthetic":
            if self.root is None:
                raise ValueError("kind 'synthetic' needs 'root', the folder of the data set")
        elif self.annotations is None or self.videos is None:
            raise ValueError(f"kind {self.kind!r} needs 'annotations' (the JSON file) and 'videos' (the folder)")
        narration = self.task in (None, "narration")
        if (self.kind == "ego4d_narration" and not narration) or (self.kind == "coin" and self.task == "narration"):
            raise ValueError(f"kind {self.kind!r} has no task {self.task!r}")
        return self

    def dialogue(self) -> Dialogue:
        narrate = NARRATE if self.kind == "coin" or self.task == "narrate" else INSTRUCTION
        return Dialogue(
            system=self.system,
            instruction=self.instruction or narrate,
            max_frames=self.max_frames,
            lead_in=self.lead_in,
            tail=self.tail,
        )


def build(config: DataConfig, progress: bool = True) -> list[Sample]:
    """The samples of a configuration. Raises DataError or VideoError unless ``on_error`` is ``skip``."""
    root = config.root or Path()
    annotations, videos = root / (config.annotations or ""), root / (config.videos or "")
    splits = root / config.splits if config.splits else None
    passes, task = config.passes, config.task
    if config.kind == "synthetic":
        from vtskip.data.synthetic import make

        make(config.tier, root, config.seed, progress=progress)
        task = task or "narration"
        annotations = root / ("ego4d/narration.json" if task == "narration" else "coin/COIN.json")
        videos, splits, passes = root / "videos", root / "splits.json", passes or [1]
    if config.kind == "coin" or task not in (None, "narration"):
        coin_task: CoinTask = task if task and task != "narration" else "narrate"
        samples = read_coin(
            annotations, videos, config.fps, config.split, coin_task, splits, config.dialogue(), config.on_error
        )
    else:
        samples = read_narrations(
            annotations, videos, config.fps, config.split, splits, passes, config.dialogue(), config.on_error
        )
    if not samples:
        raise DataError(f"{annotations}: no conversations in split {config.split!r}")
    return samples
