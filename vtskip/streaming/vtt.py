"""Timed replies as WebVTT subtitles, and the one way result files are written."""

from collections.abc import Sequence
from pathlib import Path

from vtskip._files import write_atomic
from vtskip.errors import ConfigError
from vtskip.streaming.session import Event


def to_vtt(events: Sequence[Event], hold: float = 4.0) -> str:
    """WebVTT text: each reply is shown until the next one, at most ``hold`` seconds. Empty replies have no cue."""
    shown = [e for e in events if e.text]
    cues = ["WEBVTT"]
    for event in shown:
        later = [e.time for e in shown if e.time > event.time]
        end = min([event.time + hold, *later])
        asked = [f"Q: {_plain(event.query)}"] if event.query else []
        cues.append("\n".join([f"{_stamp(event.time)} --> {_stamp(end)}", *asked, _plain(event.text)]))
    return "\n\n".join(cues) + "\n"


def _stamp(seconds: float) -> str:
    millis = max(0, round(seconds * 1000))
    minutes, rest = divmod(millis, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _plain(text: str) -> str:
    """One line without the characters that would end the cue or open a tag."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` as a whole or not at all; missing folders are made. Raises ConfigError where that is not allowed."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content if isinstance(content, bytes) else content.encode())
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written ({e.strerror or e})") from None
