"""Ego4D narrations, from either file the data set ships (streams as in VideoLLM-online, arXiv 2406.11816).

``narration.json``: video id -> ``narration_pass_1``/``narration_pass_2`` -> ``narrations`` with ``timestamp_sec`` and
``narration_text``. ``all_narrations_redacted.json``: ``videos`` -> video id -> ``narrations`` with ``time`` and ``text``.
Each annotator's pass over a clip is one stream.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtskip.data.dialogue import Dialogue, narration_samples
from vtskip.data.files import read_json
from vtskip.data.rows import OnError, Row, Splits, collect, find_video, slack_of, split_uids
from vtskip.data.timeline import Narration, clean_text
from vtskip.data.types import Sample
from vtskip.data.video import probe
from vtskip.errors import ConfigError

PASSES = (1, 2)
Entry = tuple[Row, Any, str, str, str]  # place, record, and the names of its time, text and annotator keys


def read_narrations(
    path: str | Path,
    videos: str | Path,
    fps: float,
    split: str | None = None,
    splits: Splits | None = None,
    passes: Sequence[int] | None = None,
    dialogue: Dialogue | None = None,
    on_error: OnError = "stop",
) -> list[Sample]:
    """One sample per annotator's stream (several where ``max_frames`` cuts it) of the videos in ``folder/{uid}.mp4``.

    ``split`` needs ``splits``, lists of video ids per split. ``passes`` chooses passes of the public file. Raises DataError
    naming file, video and narration for a missing key, a time that is not one or lies past the end, an unknown split.
    """
    path, videos = Path(path), Path(videos)
    records, redacted = _records(path)
    if passes is not None and redacted:
        raise ConfigError(f"{path}: this file does not tell the passes apart; leave 'passes' out")
    if split is None:
        uids = list(records)
    elif splits is None:
        raise ConfigError(f"{path}: split {split!r} needs 'splits', the lists of video ids per split")
    else:
        uids = [uid for uid in split_uids(splits, split) if uid in records]
        if not uids:
            raise Row(path, "").error(f"none of the videos of split {split!r} is in this file")

    def read(uid: str) -> list[Sample]:
        row = Row(path, f"video {uid!r}")
        entries = list(_redacted(row, records[uid]) if redacted else _public(row, records[uid], passes or PASSES))
        return _streams(uid, entries, videos, fps, dialogue or Dialogue(), path) if entries else []

    return collect(uids, read, on_error, path)


def _records(path: Path) -> tuple[dict[str, Any], bool]:
    """Video id -> record, and whether this is the redacted shape."""
    value = Row(path, "").mapping(read_json(path))
    if isinstance(value.get("videos"), dict):
        return value["videos"], True
    known = [
        r
        for r in value.values()
        if isinstance(r, dict) and ("status" in r or any(k.startswith("narration_pass") for k in r))
    ]
    if not known:
        raise Row(path, "").error(
            "not an Ego4D narration file; expected video ids with 'narration_pass_1'/'narration_pass_2', or the key 'videos'"
        )
    return value, False


def _public(row: Row, record: Any, passes: Sequence[int]) -> Iterator[Entry]:
    record = row.mapping(record)
    for number in passes:
        name = f"narration_pass_{number}"
        if name in record:  # either pass may be missing
            inner = row.at(name)
            for i, narration in enumerate(inner.get(record[name], "narrations", list)):
                yield inner.at(f"narration {i}"), narration, "timestamp_sec", "narration_text", "annotation_uid"


def _redacted(row: Row, record: Any) -> Iterator[Entry]:
    for i, narration in enumerate(row.get(record, "narrations", list)):
        yield row.at(f"narration {i}"), narration, "time", "text", "_annotation_uid"


def _streams(uid: str, entries: list[Entry], videos: Path, fps: float, dialogue: Dialogue, path: Path) -> list[Sample]:
    info = probe(find_video(videos, uid))
    streams: dict[str, list[Narration]] = defaultdict(list)
    for row, record, time_key, text_key, annotator_key in entries:
        text = clean_text(row.get(record, text_key, str))
        time = row.time(row.get(record, time_key, object), time_key, info.duration, slack_of(info, fps))
        annotator = row.get(record, annotator_key, str)
        if len(text.split()) >= 2:  # someone and a verb
            streams[annotator].append(Narration(time, text))
    samples = []
    for annotator, texts in streams.items():
        texts.sort(key=lambda narration: narration.time)
        meta = {"video_uid": uid, "annotator": annotator}
        samples += narration_samples(f"{uid}/{annotator}", info, fps, texts, dialogue, path, meta)
    return samples
