"""What the annotation readers share: errors that name file and row, checks of values, finding videos, skipping."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from vtskip.data.files import read_json
from vtskip.data.types import Sample
from vtskip.data.video import VideoInfo
from vtskip.errors import DataError, VideoError, nearest

log = logging.getLogger("vtskip.data")
OnError = Literal["stop", "skip"]
EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
T = TypeVar("T")
Splits = str | Path | Mapping[str, Sequence[str]]  # lists of video ids per split, or the JSON file that holds them


class Row:
    """A place in an annotation file; its checks raise DataError with file, place, key and value."""

    def __init__(self, file: Path, place: str) -> None:
        self.file, self.place = file, place

    def at(self, place: str) -> "Row":
        return Row(self.file, f"{self.place}, {place}" if self.place else place)

    def error(self, message: str) -> DataError:
        return DataError(f"{self.file}: {self.place + ': ' if self.place else ''}{message}")

    def mapping(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"expected an object, got {type(value).__name__}")
        return value

    def get(self, record: Any, key: str, kind: type[T]) -> T:
        record = self.mapping(record)
        if key not in record:
            raise self.error(f"missing key {key!r}{nearest(key, record)}; present: {', '.join(record) or 'none'}")
        if not isinstance(record[key], kind):
            raise self.error(f"{key!r} should be {kind.__name__}, got {record[key]!r}")
        return record[key]

    def time(self, value: Any, key: str, end: float, slack: float) -> float:
        """A time in seconds from 0 to ``end``, at most ``slack`` over it."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{key!r} should be a time in seconds, got {value!r}")
        if value < 0:
            raise self.error(f"{key!r} is {value} s; times start at 0")
        if value > end + slack:
            raise self.error(f"{key!r} is {value} s, past the end of the video ({end:.2f} s)")
        return float(value)


def find_video(folder: Path, uid: str) -> Path:
    """The file of a video id. Raises VideoError where none of the usual extensions exists."""
    for extension in EXTENSIONS:
        path = folder / f"{uid}{extension}"
        if path.is_file():
            return path
    raise VideoError(f"{folder / uid}{EXTENSIONS[0]}: no such video (looked for {', '.join(EXTENSIONS)})")


def split_uids(splits: Splits, split: str) -> list[str]:
    """The video ids of one split."""
    source, lists = "splits", splits
    if isinstance(splits, str | Path):
        source, lists = str(splits), read_json(Path(splits))
    if not isinstance(lists, Mapping) or not all(isinstance(names, list) for names in lists.values()):
        raise DataError(f"{source}: expected an object of lists, split name to video ids")
    if split not in lists:
        raise DataError(f"{source}: unknown split {split!r}{nearest(split, lists)}; accepted: {', '.join(lists)}")
    return list(lists[split])


def collect(uids: Iterable[str], read: Callable[[str], list[Sample]], on_error: OnError, source: Path) -> list[Sample]:
    """The samples of all videos. ``skip`` leaves out videos with a fault and tells which; none left over is an error."""
    samples: list[Sample] = []
    faults: list[DataError] = []
    for uid in uids:
        try:
            samples += read(uid)
        except DataError as e:
            if on_error == "stop":
                raise
            log.warning("skipped: %s", e)
            faults.append(e)
    if faults:
        log.warning("%s: %d videos skipped, %d samples read", source, len(faults), len(samples))
        if not samples:
            raise DataError(f"{source}: every video was skipped; the first fault: {faults[0]}")
    return samples


def slack_of(info: VideoInfo, fps: float) -> float:
    """How far past the end a time may lie: one model frame. Annotation tools and containers disagree by that much."""
    return max(1 / fps, float(1 / info.fps))
