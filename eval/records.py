"""Raw turn records: what one teacher-forced pass over a conversation says, before any metric is taken.

A *turn* ends right after an end-of-sequence token and holds frames, optional user text and one reply. Every metric of
``vtskip.eval.metrics`` is a pure function of these records, so results can be recomputed from the JSONL at any
threshold that is not below the one they were scored with.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vtskip.errors import DataError
from vtskip.streaming.policy import speaks


@dataclass(frozen=True)
class FrameScores:
    """Stream predictions, one entry per frame: probability of staying silent and whether the argmax says to speak."""

    p_interval: list[float] = field(default_factory=list)
    argmax_speak: list[bool] = field(default_factory=list)

    def spoken(self, threshold: float) -> list[bool]:
        """Per frame, whether the model speaks at ``threshold``."""
        return [speaks(p, a, threshold) for p, a in zip(self.p_interval, self.argmax_speak, strict=True)]

    @classmethod
    def constant(cls, frames: int, speak: bool) -> "FrameScores":
        """A policy that does not look: always (or never) speak, at any threshold."""
        return cls([0.0 if speak else 1.0] * frames, [speak] * frames)


@dataclass(frozen=True)
class TurnRecord:
    """One learned turn.

    frames: all frames of the turn (N); first_frame: index of the first one in the video.
    stream: predictions at the T learned frames; target_speak: the T targets.
    text_*: the L learned text positions (reply prefix, content, end token): cross-entropy in nats, target and argmax
    ids; text_content marks the content. is_last: last turn of the conversation.
    offered: further frames the reference feeds after a silent turn; appended: predictions there (None if never fed).
    """

    turn: int
    frames: int
    first_frame: int
    is_last: bool
    offered: int
    stream: FrameScores
    target_speak: list[bool]
    text_ce: list[float]
    text_target: list[int]
    text_pred: list[int]
    text_content: list[bool]
    appended: FrameScores | None = None

    @property
    def T(self) -> int:
        """Learned frames."""
        return len(self.target_speak)

    @property
    def L(self) -> int:
        """Learned text tokens."""
        return len(self.text_ce)

    @property
    def text_correct(self) -> list[bool]:
        """Per learned text token: the argmax is the target."""
        return [p == t for p, t in zip(self.text_pred, self.text_target, strict=True)]

    @property
    def k(self) -> int:
        """Leading correct text tokens."""
        return leading(self.text_correct)

    def content(self, values: Iterable[Any]) -> list[Any]:
        """The entries of a per-text-token list that belong to content tokens."""
        return [v for v, keep in zip(values, self.text_content, strict=True) if keep]


@dataclass(frozen=True)
class SampleRecord:
    """All learned turns of one conversation. fps: of the frames the model sees; threshold: the one scored with."""

    uid: str
    fps: float
    turns: list[TurnRecord]
    threshold: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; T, L, k of every turn are added for the reader."""
        out = asdict(self)
        for row, turn in zip(out["turns"], self.turns):
            row |= {"T": turn.T, "L": turn.L, "k": turn.k}
        return out

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "SampleRecord":
        """Inverse of ``as_dict``. Raises DataError that names a missing key."""
        try:
            turns = [_turn(t) for t in row["turns"]]
            return cls(row["uid"], row["fps"], turns, row["threshold"], row.get("meta", {}))
        except KeyError as e:
            raise DataError(f"sample record {row.get('uid')!r}: missing key {e}") from None


def _turn(row: dict[str, Any]) -> TurnRecord:
    values = {f.name: row[f.name] for f in fields(TurnRecord)}
    values["stream"] = FrameScores(**values["stream"])
    values["appended"] = FrameScores(**values["appended"]) if values["appended"] else None
    return TurnRecord(**values)


def leading(flags: Iterable[bool]) -> int:
    """How many entries are true before the first false one."""
    count = 0
    for flag in flags:
        if not flag:
            break
        count += 1
    return count
