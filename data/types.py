"""What every reader of annotations returns and the collator consumes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Turn = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation over one video.

    ``frames`` are integer indices of source frames, one per frame the model sees, at ``fps`` model frames per second.
    ``conversation`` is a list of turns: ``{"role": "system"|"user", "content"}``, ``{"role": "stream", "num_frames", "learn"}``,
    ``{"role": "assistant", "content", "learn"}``; the stream turns' frame counts add up to ``len(frames)``.
    """

    uid: str
    video: Path
    fps: float
    frames: list[int]
    conversation: list[Turn]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = sum(turn["num_frames"] for turn in self.conversation if turn["role"] == "stream")
        if shown != len(self.frames):
            raise ValueError(
                f"sample {self.uid!r}: the conversation shows {shown} frames, {len(self.frames)} are given"
            )
