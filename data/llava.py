"""LLaVA's JSON: records with ``conversations`` of ``from`` and ``value``, and ``image`` or ``video`` (a path, or several)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtskip.data.chat import Medium, Message, paths, read_chat, role_of, split_text
from vtskip.data.dialogue import Dialogue
from vtskip.data.rows import OnError, Row, Watch
from vtskip.data.types import Sample


def read_llava(
    path: str | Path,
    media: str | Path,
    fps: float,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One sample per record; ``<image>`` and ``<video>`` in the texts say where the files are shown.

    Raises DataError naming file and record for another shape, VideoError for a file that is missing or broken.
    """
    return read_chat(Path(path), Path(media), fps, _parse, dialogue, on_error)


def _parse(row: Row, record: dict[str, Any]) -> tuple[list[Message], list[Medium]]:
    messages: list[Message] = []
    for i, turn in enumerate(row.get(record, "conversations", list)):
        place = row.at(f"message {i}")
        messages.append((role_of(place, turn, "from"), split_text(place.text(turn, "value"))))
    return messages, paths(row, record, "image") + paths(row, record, "video")
