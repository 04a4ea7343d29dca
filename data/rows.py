"""What the annotation readers share: errors that name file and row, checks of values, finding videos, skipping."""

import logging
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from vtskip.data.files import read_json, read_lines
from vtskip.data.types import Sample
from vtskip.data.video import VideoInfo
from vtskip.errors import ConfigError, DataError, VideoError, nearest

log = logging.getLogger("vtskip.data")
Watch = Callable[[str, DataError | None], None]  # told of every unit (video or row): its fault, or None
OnError = Literal["stop", "skip"]
EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
T = TypeVar("T")
Splits = str | Path | Mapping[str, Sequence[str]]  # lists of video ids per split, or the file that holds them
SPLIT_LISTS = "split_to_take_uids"  # where Ego-Exo4D's splits.json keeps its lists

_short = reprlib.Repr()
_short.maxstring, _short.maxother, _short.maxlevel, _short.maxlong = 80, 80, 3, 30


def _cut(text: str, most: int = 400) -> str:
    """A file's own words may be of any length."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


class RowError(DataError):
    """A fault in an annotation file; ``kind`` is what it is counted under."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Row:
    """A place in an annotation file; its checks raise RowError with file, place, key and value."""

    def __init__(self, file: Path, place: str) -> None:
        self.file, self.place = file, place

    def at(self, place: str) -> "Row":
        return Row(self.file, f"{self.place}, {place}" if self.place else place)

    def error(self, message: str, kind: str = "wrong value") -> RowError:
        place = f"{_cut(self.place)}: " if self.place else ""
        return RowError(f"{self.file}: {place}{_cut(message)}", kind)

    def mapping(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"expected an object, got {type(value).__name__}", "wrong type")
        return value

    def get(self, record: Any, key: str, kind: type[T]) -> T:
        record = self.mapping(record)
        if key not in record:
            present = _short.repr(", ".join(list(record)[:20]))[1:-1] or "none"
            raise self.error(f"missing key {key!r}{nearest(key, record)}; present: {present}", "missing key")
        if not isinstance(record[key], kind):
            raise self.error(f"{key!r} should be {kind.__name__}, got {_short.repr(record[key])}", "wrong type")
        return record[key]

    def text(self, record: Any, key: str) -> str:
        """A string that can be written as UTF-8, which a lone surrogate cannot and no tokenizer takes."""
        value = self.get(record, key, str)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"{key!r} holds half of a character pair: {_short.repr(value)}") from None
        return value

    def index(self, record: Any, key: str) -> int:
        """An integer of at least 0."""
        value = self.get(record, key, int)
        if isinstance(value, bool) or value < 0:
            raise self.error(f"{key!r} should be an integer of at least 0, got {_short.repr(value)}")
        return value

    def seconds(self, value: Any, key: str) -> float:
        """A finite number of at least 0."""
        try:
            good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
        except OverflowError:  # an integer beyond all floats
            good = False
        if not good:
            raise self.error(f"{key!r} should be a time in seconds, got {_short.repr(value)}", "wrong time")
        if value < 0:
            raise self.error(f"{key!r} is {value} s; times start at 0", "wrong time")
        return float(value)

    def time(self, value: Any, key: str, end: float, slack: float) -> float:
        """A time in seconds from 0 to ``end``, at most ``slack`` over it."""
        seconds = self.seconds(value, key)
        if seconds > end + slack:
            raise self.error(f"{key!r} is {seconds} s, past the end of the video ({end:.2f} s)", "time past the end")
        return seconds


def exists(path: Path) -> bool:
    """Whether ``path`` is a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def find_video(folder: Path, uid: str) -> Path:
    """The file of a video id. Raises VideoError where none of the usual extensions exists."""
    for extension in EXTENSIONS:
        path = folder / f"{uid}{extension}"
        if exists(path):
            return path
    raise VideoError(f"{folder / _cut(uid)}{EXTENSIONS[0]}: no such video (looked for {', '.join(EXTENSIONS)})")


def _read_lists(path: Path) -> Any:
    """JSON, or a text file with one id per line that has the name of its split."""
    if path.suffix.lower() != ".txt":
        return read_json(path)
    return {path.stem: [line.strip() for _, line in read_lines(path)]}


def split_uids(splits: Splits, split: str) -> list[str]:
    """The video ids of one split."""
    source, lists = "splits", cast(Any, splits)
    if isinstance(splits, str | Path):
        source, lists = str(splits), _read_lists(Path(splits))
    if isinstance(lists, Mapping) and split not in lists and isinstance(lists.get(SPLIT_LISTS), dict):
        lists = lists[SPLIT_LISTS]
    if not isinstance(lists, Mapping) or not all(isinstance(names, list) for names in lists.values()):
        raise DataError(f"{source}: expected an object of lists, split name to video ids")
    if split not in lists:
        raise DataError(f"{source}: unknown split {split!r}{nearest(split, lists)}; accepted: {', '.join(lists)}")
    wrong = next((name for name in lists[split] if not isinstance(name, str)), None)
    if wrong is not None:
        raise DataError(f"{source}: split {split!r}: a video id should be a string, got {_short.repr(wrong)}")
    return list(lists[split])


def chosen(row: Row, records: Mapping[str, Any], split: str | None, splits: Splits | None) -> list[str]:
    """The ids in ``records`` that belong to ``split`` of ``splits``; all without a split."""
    if split is None:
        return list(records)
    if splits is None:
        raise ConfigError(f"{row.file}: split {split!r} needs 'splits', the lists of video ids per split")
    uids = [uid for uid in split_uids(splits, split) if uid in records]
    if not uids:
        raise row.error(f"none of the videos of split {split!r} is in this file")
    return uids


def collect(
    units: Iterable[T], read: Callable[[T], Sequence[Sample]], on_error: OnError | Watch, source: Path
) -> Iterator[Sample]:
    """The samples of all units (videos, or rows of a file), each read when it is asked for.

    ``skip`` leaves out units with a fault and tells which; none left over is an error. A function is told of every unit,
    before its samples, and decides itself what to do about a fault.
    """
    watch = on_error if callable(on_error) else None
    first: DataError | None = None
    faults = samples = 0
    for unit in units:
        name = str(unit[0] if isinstance(unit, tuple) else unit)
        try:
            found = read(unit)
        except DataError as e:
            if on_error == "stop":
                raise
            if watch is None:
                log.warning("skipped: %s", e)
            else:
                watch(name, e)
            first, faults = first or e, faults + 1
            continue
        if watch is not None:
            watch(name, None)
        samples += len(found)
        yield from found
    if faults and watch is None:
        log.warning("%s: %d videos skipped, %d samples read", source, faults, samples)
        if not samples:
            raise DataError(f"{source}: every video was skipped; the first fault: {first}")


def slack_of(info: VideoInfo, fps: float) -> float:
    """How far past the end a time may lie: one model frame. Annotation tools and containers disagree by that much."""
    return max(1 / fps, float(1 / info.fps))
