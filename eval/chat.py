"""What is asked and answered in chats: messages with text and media, answers, and how they are decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vtskip.errors import DataError
from vtskip.runtime.attach import Handle

Message = Mapping[str, Any]
Talk = Sequence[Message]
TIMED = "\nWrite one line for each thing that happens: its time in seconds, a colon, the text."


@dataclass(frozen=True)
class Answer:
    """A text and how many tokens it was."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded. ``temperature`` 0 is greedy or beam search. ``stream_fps``: a video is played as a stream at
    so many frames per second where the model can do that, and every reply is a line."""

    max_new_tokens: int = 128
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float | None = None
    stream_fps: float | None = None


class Answerer(Protocol):
    """A model that answers talks. ``handle`` is that of its method."""

    device: torch.device

    @property
    def handle(self) -> Handle:
        """Of the method that is attached."""

    def answer(self, talks: Sequence[Talk], decoding: Decoding) -> list[Answer]:
        """One answer per talk; talks of a batch do not change each other."""


def parts_of(message: Message) -> list[Mapping[str, Any]]:
    """The parts of a message; a plain text is one. Raises DataError for audio and the like."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    odd = next((part["type"] for part in parts if part["type"] not in ("text", "image", "video")), None)
    if odd is not None:
        raise DataError(f"message with a part of type {odd!r}; accepted: text, image, video")
    return parts


def untrained(method: Any, source: str) -> str:
    return f"method {method!r}: its parameters are not in {source}; train it, or choose one without any"
