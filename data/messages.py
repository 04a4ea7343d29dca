"""Messages JSONL: one record per line with ``messages`` of ``role`` and ``content``, as chat templates take them.

``content`` is a text with ``<image>`` and ``<video>`` in it, or a list of parts ``{"type": "text", "text"}``,
``{"type": "image", "image"}``, ``{"type": "video", "video"}``. Paths stand in the parts (under ``image``, ``video``, ``path``
or ``url``) or beside the messages as ``image``/``images``, ``video``/``videos``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtskip.data.chat import Kind, Medium, Message, paths, read_chat, role_of, split_text
from vtskip.data.dialogue import Dialogue
from vtskip.data.rows import OnError, Row, Watch
from vtskip.data.types import Sample

_KINDS: dict[str, Kind] = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}


def read_messages(
    path: str | Path,
    media: str | Path,
    fps: float,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One sample per line. Raises DataError naming file and line, VideoError for a file that is missing or broken."""
    return read_chat(Path(path), Path(media), fps, _parse, dialogue, on_error)


def _parse(row: Row, record: dict[str, Any]) -> tuple[list[Message], list[Medium]]:
    messages: list[Message] = []
    for i, message in enumerate(row.get(record, "messages", list)):
        place = row.at(f"message {i}")
        role = role_of(place, message, "role")
        content = place.get(message, "content", object)
        if isinstance(content, list):
            messages.append((role, [part for k, p in enumerate(content) for part in _part(place.at(f"part {k}"), p)]))
        else:
            messages.append((role, split_text(place.text(message, "content"))))
    return messages, paths(row, record, "image") + paths(row, record, "video")


def _part(row: Row, part: Any) -> list[str | Medium]:
    """A part of a message's content; its text is taken as it is."""
    kind = row.text(part, "type")
    if kind == "text":
        text = row.text(part, "text").strip()
        return [text] if text else []
    if kind not in _KINDS:
        raise row.error(f"'type' is {kind!r}; accepted: text, {', '.join(_KINDS)}")
    for key in (kind, _KINDS[kind], "path", "url"):
        value = part.get(key)
        value = value.get("url") if isinstance(value, dict) else value
        if value is not None:
            return [Medium(_KINDS[kind], row.text({key: value}, key))]
    return [Medium(_KINDS[kind])]
