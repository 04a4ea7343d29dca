"""What every reader of annotations returns and the collator consumes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Turn = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation over one video, over a few still images and clips, or over text alone.

    ``frames`` are integer indices of source frames, one per frame the model sees, at ``fps`` model frames per second.
    ``conversation`` is a list of turns: ``{"role": "system"|"user", "content"}``, ``{"role": "stream", "num_frames", "learn"}``,
    ``{"role": "assistant", "content", "learn"}``; the stream turns' frame counts add up to ``len(frames)``.
    ``files`` is empty where all frames are from ``video``; else it says, in order, how many are from which file.
    """

    uid: str
    video: Path
    fps: float
    frames: list[int]
    conversation: list[Turn]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    files: tuple[tuple[Path, int], ...] = ()

    def __post_init__(self) -> None:
        shown = sum(turn["num_frames"] for turn in self.conversation if turn["role"] == "stream")
        if shown != len(self.frames):
            raise ValueError(
                f"sample {self.uid!r}: the conversation shows {shown} frames, {len(self.frames)} are given"
            )
        held = sum(count for _, count in self.files)
        if self.files and held < len(self.frames):
            raise ValueError(f"sample {self.uid!r}: its files give {held} frames, {len(self.frames)} are asked for")

    @property
    def clips(self) -> list[tuple[Path, list[int]]]:
        """``(file, source frames)`` in the order of ``frames``; a conversation that was cut short shows fewer."""
        runs, left = [], list(self.frames)
        for path, count in self.files or ((self.video, len(left)),):
            runs.append((path, left[:count]))
            left = left[count:]
        return [(path, indices) for path, indices in runs if indices]


class Shown(NamedTuple):
    """A sample with what it shows: frames uint8 ``[N, S, S, 3]``, or features ``[N, F, D]``."""

    sample: Sample
    vision: "Tensor"
