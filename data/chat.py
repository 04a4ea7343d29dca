"""What LLaVA's JSON and messages JSONL share: records with text, images and videos become samples of one conversation.

Images and clips stand in the text where their placeholders are. They carry no times, so nothing is learned at their frames.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vtskip.data.dialogue import Dialogue
from vtskip.data.files import first_character, parse_json, read_array, read_lines
from vtskip.data.rows import OnError, Row, Watch, collect
from vtskip.data.still import STILLS
from vtskip.data.types import Sample, Turn
from vtskip.data.video import model_frames, probe, source_index, spread
from vtskip.errors import VideoError, nearest

Kind = Literal["image", "video"]
LONGEST = 1000  # characters of a path
PLACEHOLDER = re.compile(r"<(image|video)>")
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_REMOTE = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:")  # http:, s3:, data:, but no drive letter


@dataclass(frozen=True)
class Medium:
    """An image or a video at its place in a text; ``path`` is None where the record lists it elsewhere."""

    kind: Kind
    path: str | None = None


Message = tuple[str, list[str | Medium]]  # role, and text with media in between
Parse = Callable[[Row, dict[str, Any]], tuple[list[Message], list[Medium]]]  # messages, and the record's list of media


def read_chat(
    path: Path, media: Path, fps: float, parse: Parse, dialogue: Dialogue | None, on_error: OnError | Watch
) -> Iterator[Sample]:
    """One sample per record of a JSON array or of JSON lines, read record by record.

    Media lie in the folder ``media``. Of videos the frames at ``fps`` are shown, ``max_frames`` spread ones where there are
    more. Raises DataError naming file and record.
    """
    words, seen = dialogue or Dialogue(system=""), set[str]()

    def read(unit: tuple[str, Any]) -> list[Sample]:
        place, value = unit
        row = Row(path, place)
        record = row.mapping(parse_json(value, f"{path}: {place}") if isinstance(value, str) else value)
        messages, listed = parse(row, record)
        uid = str(record["id"]) if isinstance(record.get("id"), str | int) else place
        if uid in seen:
            uid = f"{uid} ({place})"  # LLaVA's own files use an id more than once
        seen.add(uid)
        return [_sample(row, uid, _placed(row, messages, listed), media, fps, words)]

    return collect(_records(path), read, on_error, path)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """``(place, value)`` from an array, ``(place, unparsed line)`` from JSON lines."""
    if first_character(path) == "[":
        yield from ((f"record {i}", value) for i, value in enumerate(read_array(path)))
    else:
        yield from ((f"line {number}", line) for number, line in read_lines(path))


def split_text(text: str) -> list[str | Medium]:
    """``"<image>\\nWhat is it?"`` -> the image, then the question."""
    kinds = PLACEHOLDER.split(text)  # text, kind, text, kind, ...
    parts = [Medium(part) if i % 2 else part.strip() for i, part in enumerate(kinds)]  # type: ignore[arg-type]
    return [part for part in parts if part]


def paths(row: Row, record: dict[str, Any], kind: Kind) -> list[Medium]:
    """The media under ``image``/``images`` or ``video``/``videos``: one path, a list of them, or nothing."""
    found = []
    for key in (kind, f"{kind}s"):
        value = record.get(key)
        for i, one in enumerate(value if isinstance(value, list) else [] if value in (None, "") else [value]):
            one = one.get("path", one.get("url")) if isinstance(one, dict) else one
            found.append(Medium(kind, row.at(key).text({str(i): one}, str(i))))
    return found


def role_of(row: Row, record: dict[str, Any], key: str) -> str:
    given = row.text(record, key)
    role = ROLES.get(given, given)
    accepted = ("system", "user", "assistant")
    if role not in accepted:
        raise row.error(f"{key!r} is {given!r}{nearest(given, [*ROLES, *accepted])}; accepted: {', '.join(accepted)}")
    return role


def _placed(row: Row, messages: list[Message], listed: list[Medium]) -> list[Message]:
    """The listed media at their placeholders; in front of the first user text where there is no placeholder at all."""
    holes = [p for _, parts in messages for p in parts if isinstance(p, Medium) and p.path is None]
    if not holes and listed:
        first = next((parts for role, parts in messages if role == "user"), None)
        if first is None:
            raise row.error("no user message that the images or videos could belong to")
        first[:0] = listed
        return messages
    if len(holes) != len(listed):
        raise row.error(
            f"the texts have {len(holes)} placeholders <image> or <video>, the record lists {len(listed)} files"
        )
    kinds = {m.kind for m in listed}
    left: dict[str, Iterator[Medium]] = {
        kind: iter([m for m in listed if m.kind == kind]) for kind in ("image", "video")
    }
    result = []
    for role, parts in messages:
        filled: list[str | Medium] = []
        for part in parts:
            if isinstance(part, Medium) and part.path is None:
                # LLaVA's video sets write <image> for a video: with one kind of file any placeholder means it
                medium = next(left[part.kind if len(kinds) > 1 else listed[0].kind], None)
                if medium is None:
                    raise row.error(f"more placeholders <{part.kind}> than files of that kind")
                part = medium
            filled.append(part)
        result.append((role, filled))
    return result


def _sample(row: Row, uid: str, messages: list[Message], media: Path, fps: float, words: Dialogue) -> Sample:
    turns: list[Turn] = [{"role": "system", "content": words.system}] if words.system else []
    frames: list[int] = []
    files: list[tuple[Path, int]] = []
    for number, (role, parts) in enumerate(messages):
        place = row.at(f"message {number}")
        if not parts:
            raise place.error("the message is empty", "empty text")
        if role == "system":
            if number:
                raise place.error("a system message can only be the first one")
            turns = []  # the record's own words
        for part in parts:
            if isinstance(part, str):
                turns.append({"role": role, "content": part} | ({"learn": True} if role == "assistant" else {}))
            elif role == "user":
                path, shown = _frames(place, part, media, fps, words.max_frames)
                turns.append({"role": "stream", "num_frames": len(shown), "learn": False})
                frames, files = frames + shown, [*files, (path, len(shown))]
            else:
                raise place.error(f"an {part.kind} in a message of the {role}; accepted: in those of the user")
    if not any(turn["role"] in ("user", "assistant") for turn in turns):
        raise row.error("no messages", "empty text")
    texts = {role: [t["content"] for t in turns if t["role"] == role] for role in ("user", "assistant")}
    meta = {"question": "\n".join(texts["user"][-1:]), "answers": texts["assistant"][-1:]}
    video = files[0][0] if files else Path()
    meta |= {"video_uid": str(video) if files else uid}
    return Sample(uid, video, fps, frames, turns, str(row.file), meta, tuple(files) if len(files) > 1 else ())


def _frames(row: Row, medium: Medium, media: Path, fps: float, most: int | None) -> tuple[Path, list[int]]:
    """The file and its source frames that are shown."""
    name = str(medium.path)
    if len(name) > LONGEST:
        raise row.error(f"a path of {len(name)} characters: {name[:80]!r}")
    if _REMOTE.match(name):
        raise row.error(f"{name[:80]!r} is no file; accepted: paths in the folder of media")
    path = media / name.removeprefix("file://")
    if medium.kind == "image" and path.suffix.lower() not in STILLS:
        raise VideoError(f"{path}: not an image by its name; accepted: {', '.join(sorted(STILLS))}")
    info = probe(path)
    if path.suffix.lower() in STILLS:
        return path, [0]
    return path, [source_index(info, k, fps) for k in spread(model_frames(info, fps), most)]
