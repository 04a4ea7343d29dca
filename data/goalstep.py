"""Ego4D GoalStep (``goalstep_train.json``, ``goalstep_val.json``): steps and substeps, told as they start."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from vtskip.data.dialogue import Dialogue, narration_samples
from vtskip.data.files import read_json
from vtskip.data.rows import OnError, Row, Splits, Watch, chosen, collect, find_video, slack_of
from vtskip.data.timeline import Narration, clean_text
from vtskip.data.types import Sample
from vtskip.data.video import VideoInfo, probe
from vtskip.errors import nearest

NARRATE = "Please say what I am doing whenever a new step begins."
Relevance = Literal["essential", "optional", "irrelevant"]
Level = Literal["steps", "substeps", "both"]


def read_goalstep(
    path: str | Path,
    videos: str | Path,
    fps: float,
    split: str | None = None,
    splits: Splits | None = None,
    level: Level = "both",
    relevance: Collection[Relevance] = get_args(Relevance),
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One stream per video of ``videos/{video_uid}.mp4``: the descriptions of its steps and substeps at their starts.

    Where a step and its first substep start on one frame the substep is told. ``relevance`` are the steps to tell. Raises
    DataError naming file, video and step, also for the unannotated test file, which has descriptions without times.
    """
    path, videos, row = Path(path), Path(videos), Row(Path(path), "")
    words = dialogue or Dialogue(instruction=NARRATE)
    records = {}
    for i, record in enumerate(row.get(read_json(path), "videos", list)):
        place = row.at(f"videos {i}")
        if "segments" not in place.mapping(record) and "step_segments" in record:
            raise place.error("'step_segments' have no times: this is the test file without annotations", "missing key")
        uid = place.text(record, "video_uid")
        if uid in records:
            raise place.error(f"video {uid!r} is there twice")
        records[uid] = record

    def read(uid: str) -> list[Sample]:
        place, record = row.at(f"video {uid!r}"), records[uid]
        info = probe(find_video(videos, uid))
        texts = sorted(_texts(place, record, info, fps, level, relevance), key=lambda n: n.time)
        goal = place.text(record, "goal_category") if "goal_category" in record else ""
        meta = {"video_uid": uid, "class": goal}
        return narration_samples(uid, info, fps, texts, words, path, meta)

    return collect(chosen(row, records, split, splits), read, on_error, path)


def _texts(
    row: Row, record: dict[str, Any], info: VideoInfo, fps: float, level: Level, relevance: Collection[str]
) -> Iterator[Narration]:
    """Steps before their substeps, so that a stable sort by time leaves the substep last."""
    for i, step in enumerate(row.get(record, "segments", list)):
        place = row.at(f"step {i}")
        if level != "substeps":
            yield from _text(place, step, info, fps, relevance)
        for k, substep in enumerate(place.get(step, "segments", list) if "segments" in place.mapping(step) else ()):
            if level != "steps":
                yield from _text(place.at(f"substep {k}"), substep, info, fps, relevance)


def _text(row: Row, step: Any, info: VideoInfo, fps: float, relevance: Collection[str]) -> Iterator[Narration]:
    text = row.text(step, "step_description")
    if not text.strip():
        raise row.error("'step_description' is empty", "empty text")
    start, end = (
        row.time(row.get(step, key, object), key, info.duration, slack_of(info, fps))
        for key in ("start_time", "end_time")
    )
    if start > end:
        raise row.error(f"'start_time' {start} comes after 'end_time' {end}", "wrong time")
    relevant = row.text(step, "is_relevant") if "is_relevant" in step else "essential"
    if relevant not in get_args(Relevance):
        accepted = get_args(Relevance)
        raise row.error(f"'is_relevant' is {relevant!r}{nearest(relevant, accepted)}; accepted: {', '.join(accepted)}")
    if relevant in relevance:
        yield Narration(start, clean_text(text))
