"""The text form of a streaming conversation, as token ids: one place for training, the live session and the evaluation.

    <bos>system text
    \\n[<v>×F,<v>×F,…]                stream turn: F placeholders per frame, interval token between frames
    \\nUser: text
    \\nAssistant: text<eos>

(VideoLLM-online, arXiv 2406.11816.) ``]`` and the newline behind it are one token, the *close* token. At the last placeholder
of a frame the model says ``interval`` to stay silent and ``close`` to speak. Ids are joined segment by segment, never by
character offsets, so a live session that feeds the same segments sees exactly the ids of training with any tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vtskip.errors import ConfigError, DataError, nearest

IGNORE = -100
ROLES = ("system", "user", "stream", "assistant")
FRAME, INTERVAL, CLOSE = "<v>", ",", "]\n"


class Tokenizer(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]: ...


@dataclass(frozen=True)
class Encoded:
    """Ids and labels of one conversation; ``labels[p]`` is the target predicted at p (shifted), -100 where not learned."""

    input_ids: list[int]
    labels: list[int]
    num_frames: int


@dataclass
class _Row:
    """Ids with, per id, whether it is a target; ``answers`` holds what a placeholder is taught to say instead."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)

    def add(self, ids: Sequence[int], learn: bool = False) -> None:
        self.ids += ids
        self.learned += [learn] * len(ids)

    def labels(self) -> list[int]:
        targets = [i if learn else IGNORE for i, learn in zip(self.ids, self.learned)]
        labels = [*targets[1:], IGNORE]
        for place, answer in self.answers.items():
            labels[place] = answer
        return labels


class StreamTemplate:
    """Renders conversations to ids. Pure: the same conversation always gives the same ids.

    Args:
        tokenizer: anything with ``encode(text, add_special_tokens=False) -> list[int]``.
        frame_tokens: placeholders per frame, F.
        frame_id: the placeholder ``<v>``.
        interval_id: the token between frames; None for models without one, where silence is ``eos_id`` (one-token frames).
        close_id: the token of ``"]\\n"``.
        bos_id: None if the tokenizer has none.
        eos_id: ends a reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        frame_tokens: int,
        frame_id: int,
        interval_id: int | None,
        close_id: int,
        bos_id: int | None,
        eos_id: int,
    ):
        if frame_tokens < 1:
            raise ConfigError(f"frame_tokens {frame_tokens}: a frame needs at least one token")
        self.tokenizer = tokenizer
        self.frame_tokens = frame_tokens
        self.frame_id, self.interval_id, self.close_id = frame_id, interval_id, close_id
        self.bos_id, self.eos_id = bos_id, eos_id

    @classmethod
    def from_config(cls, tokenizer: Tokenizer, config: Any) -> "StreamTemplate":
        """The template of a ``StreamingLlavaConfig``."""
        return cls(
            tokenizer,
            config.frame_tokens,
            config.frame_id,
            config.interval_id,
            config.close_id,
            config.bos_id,
            config.eos_id,
        )

    # -- segments, shared by training and the live session ---------------------------------------------------------

    def text(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def system_ids(self, system: str | None) -> list[int]:
        """``<bos>system\\n``; without a system text just ``<bos>``."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return bos if system is None else bos + self.text(system + "\n")

    def frame_ids(self) -> list[int]:
        """The placeholders of one frame."""
        return [self.frame_id] * self.frame_tokens

    def open_ids(self) -> list[int]:
        """``\\n[``: a stream begins."""
        return self.text("\n") + self.text("[")

    def start_ids(self, system: str | None) -> list[int]:
        """What stands before the first frame of a session."""
        return self.system_ids(system) + self.open_ids()

    def resume_ids(self) -> list[int]:
        """What stands between the eos of a reply and the next frame."""
        return self.open_ids()

    def reply_ids(self) -> list[int]:
        """What is fed after a frame to begin a reply: ``]\\nAssistant:``."""
        return [self.close_id, *self.text("Assistant:")]

    def query_ids(self, text: str) -> list[int]:
        """What is fed after a frame to ask: ``]\\nUser: text\\nAssistant:``."""
        return [self.close_id, *self._user(text), *self.text("\n"), *self.text("Assistant:")]

    def _user(self, text: str) -> list[int]:
        return self.text("User: " + text)

    # -- whole conversations ---------------------------------------------------------------------------------------

    def encode(self, conversation: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> Encoded:
        """Ids and shifted labels of ``conversation``: turns with ``role`` and ``content``, or ``num_frames`` for a stream.

        ``learn`` on a stream teaches interval at every frame but the last and close at the last; an integer n teaches only
        its first n frames. ``learn`` on an assistant turn teaches it from the word Assistant to eos. A stream that ends the
        conversation stays open: its last frame is taught nothing. Raises DataError on a malformed turn.
        """
        row, frames, in_stream = _Row(), 0, False
        if not conversation or conversation[0].get("role") != "system":
            row.add(self.system_ids(None))
        for number, turn in enumerate(conversation):
            role = _role(turn, number)
            if in_stream:
                row.add([self.close_id])
            elif role in ("user", "assistant"):
                row.add(self.text("\n"))
            if role == "system":
                row.add(self.system_ids(turn["content"]))
            elif role == "user":
                row.add(self._user(turn["content"]))
            elif role == "assistant":
                row.add(self._reply(turn["content"]), bool(turn.get("learn", False)))
            else:
                row.add(self.text("[") if in_stream else self.open_ids())
                last = number == len(conversation) - 1 and not generation_prompt
                self._stream(row, turn["num_frames"], turn.get("learn", False), last)
                frames += turn["num_frames"]
            in_stream = role == "stream"
        if generation_prompt:
            row.add(self.reply_ids() if in_stream else self.text("\n") + self.text("Assistant:"))
        return Encoded(row.ids, row.labels(), frames)

    def _reply(self, text: str) -> list[int]:
        return [*self.text("Assistant:"), *self.text(" " + text), self.eos_id]

    def _stream(self, row: _Row, num_frames: int, learn: bool | int, left_open: bool) -> None:
        taught = (num_frames if learn else 0) if isinstance(learn, bool) else min(int(learn), num_frames)
        silent = self.eos_id if self.interval_id is None else self.interval_id
        for frame in range(num_frames):
            if frame and self.interval_id is not None:
                row.add([self.interval_id])
            row.add(self.frame_ids())
            final = frame == num_frames - 1
            if frame < taught and not (final and left_open):
                row.answers[len(row.ids) - 1] = self.close_id if final else silent


def _role(turn: Mapping[str, Any], number: int) -> str:
    role = turn.get("role")
    if role not in ROLES:
        raise DataError(f"turn {number}: role {role!r}{nearest(str(role), ROLES)}; accepted: {', '.join(ROLES)}")
    if role == "system" and number:
        raise DataError(f"turn {number}: a system turn can only be the first one")
    if role == "stream":
        frames = turn.get("num_frames")
        if not isinstance(frames, int) or frames < 1:
            raise DataError(f"turn {number} (stream): num_frames {frames!r}; accepted: an integer of at least 1")
    elif not isinstance(turn.get("content"), str):
        raise DataError(f"turn {number} ({role}): content {turn.get('content')!r}; accepted: a text")
    return str(role)


def special_ids(tokenizer: Any, frame: str = FRAME, interval: str = INTERVAL) -> dict[str, int | None]:
    """Ids a model configuration needs from a Hugging Face tokenizer: ``frame_id, interval_id, close_id, bos_id, eos_id``.

    ``<v>`` and ``"]\\n"`` are added to the tokenizer where it does not hold them as single tokens. Raises ConfigError if
    the interval is not one token or there is no eos.
    """
    for text in (frame, CLOSE):
        if (
            len(tokenizer.encode(text, add_special_tokens=False)) != 1
            or _single(tokenizer, text) == tokenizer.unk_token_id
        ):
            tokenizer.add_special_tokens({"additional_special_tokens": [text]}, replace_extra_special_tokens=False)
    ids: dict[str, int | None] = {"frame_id": _single(tokenizer, frame), "interval_id": _single(tokenizer, interval)}
    ids["close_id"] = _single(tokenizer, CLOSE)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"tokenizer {type(tokenizer).__name__}: it has no eos token, which ends every reply")
    return ids | {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}


def _single(tokenizer: Any, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"tokenizer {type(tokenizer).__name__}: {text!r} is {len(ids)} tokens, it has to be exactly one"
        )
    return int(ids[0])
