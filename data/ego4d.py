"""Ego4D narrations, from either file the data set ships (streams as in VideoLLM-online, arXiv 2406.11816).

``narration.json``: video id -> ``narration_pass_1``/``narration_pass_2`` -> ``narrations`` with ``timestamp_sec`` and
``narration_text``. ``all_narrations_redacted.json``: ``videos`` -> video id -> ``narrations`` with ``time`` and ``text``.
Each annotator's pass over a clip is one stream. The streams that VideoLLM-online and its descendants write themselves
(``narration_stream_*.json``, also the refined ones: video id -> annotator -> ``time`` and ``text``) are read as well.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtskip.data.dialogue import Dialogue, narration_samples
from vtskip.data.files import read_members
from vtskip.data.rows import OnError, Row, Splits, Watch, chosen, collect, find_video, slack_of
from vtskip.data.timeline import Narration, clean_text
from vtskip.data.types import Sample
from vtskip.data.video import probe
from vtskip.errors import ConfigError

PASSES, VIDEOS = (1, 2), "videos"
Entry = tuple[Row, Any, str, str, str]  # place, record, names of its time and text, who wrote it


def read_narrations(
    path: str | Path,
    videos: str | Path,
    fps: float,
    split: str | None = None,
    splits: Splits | None = None,
    passes: Sequence[int] | None = None,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One sample per annotator's stream (several where ``max_frames`` cuts it) of the videos in ``folder/{uid}.mp4``.

    In the order of the file, which is read twice, video by video: first to see what is in it and that it is whole. Its close to
    a gigabyte of text would be several of objects.

    ``split`` needs ``splits``, lists of video ids per split. ``passes`` chooses passes of the public file. Raises DataError
    naming file, video and narration for a missing key, a time that is not one or lies past the end, an unknown split.
    """
    path, videos = Path(path), Path(videos)
    uids, shape = _index(path)
    if passes is not None and shape is not _public:
        raise ConfigError(f"{path}: this file does not tell the passes apart; leave 'passes' out")
    wanted = set(chosen(Row(path, ""), dict.fromkeys(uids), split, splits))

    def read(unit: tuple[str, Any]) -> list[Sample]:
        uid, record = unit
        entries = list(shape(Row(path, f"video {uid!r}"), record, passes or PASSES))
        return _streams(uid, entries, videos, fps, dialogue or Dialogue(), path) if entries else []

    found = read_members(path, VIDEOS)
    units = ((uid, record) for under, uid, record in found if under == (shape is _redacted) and uid in wanted)
    return collect(units, read, on_error, path)


Shape = Callable[[Row, Any, Sequence[int]], Iterator[Entry]]


def _index(path: Path) -> tuple[list[str], Shape]:
    """The video ids of a file, and the reader of a record of its shape. Raises DataError for another shape, a fault in the
    file's JSON, a video that is there twice."""
    uids: dict[bool, dict[str, None]] = {False: {}, True: {}}
    public = written = False
    for under, uid, record in read_members(path, VIDEOS):
        if uid in uids[under]:
            raise Row(path, "").error(f"video {uid!r} is there twice")
        uids[under][uid] = None
        if not under and isinstance(record, dict):
            public |= "status" in record or any(key.startswith("narration_pass") for key in record)
            written |= bool(record) and all(isinstance(stream, list) for stream in record.values())
    if uids[True]:
        return list(uids[True]), _redacted
    if public or written:
        return list(uids[False]), _public if public else _written
    raise Row(path, "").error(
        "not an Ego4D narration file; expected video ids with 'narration_pass_1'/'narration_pass_2', or the key 'videos'"
    )


def _public(row: Row, record: Any, passes: Sequence[int]) -> Iterator[Entry]:
    record = row.mapping(record)
    for number in passes:
        name = f"narration_pass_{number}"
        if name in record:  # either pass may be missing
            inner = row.at(name)
            for i, narration in enumerate(inner.get(record[name], "narrations", list)):
                place = inner.at(f"narration {i}")
                yield place, narration, "timestamp_sec", "narration_text", place.text(narration, "annotation_uid")


def _redacted(row: Row, record: Any, passes: Sequence[int]) -> Iterator[Entry]:
    for i, narration in enumerate(row.get(record, "narrations", list)):
        place = row.at(f"narration {i}")
        yield place, narration, "time", "text", place.text(narration, "_annotation_uid")


def _written(row: Row, record: Any, passes: Sequence[int]) -> Iterator[Entry]:
    for annotator in row.mapping(record):
        for i, narration in enumerate(row.get(record, annotator, list)):
            yield row.at(f"{annotator!r}, narration {i}"), narration, "time", "text", annotator


def _streams(uid: str, entries: list[Entry], videos: Path, fps: float, dialogue: Dialogue, path: Path) -> list[Sample]:
    info = probe(find_video(videos, uid))
    streams: dict[str, list[Narration]] = defaultdict(list)
    for row, record, time_key, text_key, annotator in entries:
        text = clean_text(row.text(record, text_key))
        time = row.time(row.get(record, time_key, object), time_key, info.duration, slack_of(info, fps))
        if len(text.split()) >= 2:  # someone and a verb
            streams[annotator].append(Narration(time, text))
    samples = []
    for annotator, texts in streams.items():
        texts.sort(key=lambda narration: narration.time)
        meta = {"video_uid": uid, "annotator": annotator}
        samples += narration_samples(f"{uid}/{annotator}", info, fps, texts, dialogue, path, meta)
    return samples
