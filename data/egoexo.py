"""Ego-Exo4D: atomic descriptions and keysteps of takes (``annotations/{atomic_descriptions,keystep}_*.json``).

Both become streams over the take's own camera. Key names are those of public readers of the data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtskip.data.dialogue import Dialogue, narration_samples
from vtskip.data.files import read_json
from vtskip.data.rows import OnError, Row, Splits, Watch, chosen, collect, exists, find_video, slack_of
from vtskip.data.timeline import Narration, clean_text
from vtskip.data.types import Sample
from vtskip.data.video import VideoInfo, probe
from vtskip.errors import VideoError

STEPS = "Please name each step at the moment it starts."


def read_atomic(
    path: str | Path,
    videos: str | Path,
    fps: float,
    takes: str | Path | None = None,
    split: str | None = None,
    splits: Splits | None = None,
    ego_visible: bool = True,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One stream per annotator of a take; rejected passes are left out.

    ``ego_visible`` leaves out what the wearer's camera does not show. ``takes`` is ``takes.json``: a take's video is then
    ``videos/{take_name}/{relative_path}`` of its Aria camera, else ``videos/{take_uid}.mp4``. The flat form without
    ``annotations`` that other readers write is read as well. Raises DataError naming file, take and description.
    """
    path, row, folder = Path(path), Row(Path(path), ""), _Takes(Path(videos), takes)
    value = row.mapping(read_json(path))
    records = row.get(value, "annotations", dict) if "annotations" in value else value
    words = dialogue or Dialogue()

    def read(uid: str) -> list[Sample]:
        place = row.at(f"take {uid!r}")
        passes = place.get(records, uid, list)
        info = probe(folder.video(uid))
        samples: list[Sample] = []
        for number, one in enumerate(passes):
            inner = place.at(f"annotator {number}")
            if inner.mapping(one).get("rejected") is True:
                continue
            texts = sorted(_texts(inner, one, info, fps, ego_visible), key=lambda n: n.time)
            meta = {"video_uid": uid, "annotator": str(number), "class": folder.activity(uid)}
            samples += narration_samples(f"{uid}/{number}", info, fps, texts, words, path, meta)
        return samples

    return collect(chosen(row, records, split, splits), read, on_error, path)


def _texts(row: Row, record: Any, info: VideoInfo, fps: float, ego_visible: bool) -> Iterator[Narration]:
    for i, entry in enumerate(row.get(record, "descriptions", list)):
        place = row.at(f"description {i}")
        text = clean_text(place.text(entry, "text"))
        time = place.time(place.get(entry, "timestamp", object), "timestamp", info.duration, slack_of(info, fps))
        hidden = ego_visible and entry.get("ego_visible") is False
        if len(text.split()) >= 2 and not hidden:
            yield Narration(time, text)


def read_keysteps(
    path: str | Path,
    videos: str | Path,
    fps: float,
    takes: str | Path | None = None,
    split: str | None = None,
    splits: Splits | None = None,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One stream per take: the descriptions of its key steps (or their names) at their starts. Otherwise as ``read_atomic``."""
    path, row, folder = Path(path), Row(Path(path), ""), _Takes(Path(videos), takes)
    records = row.get(read_json(path), "annotations", dict)
    words = dialogue or Dialogue(instruction=STEPS)

    def read(uid: str) -> list[Sample]:
        place = row.at(f"take {uid!r}")
        record = place.get(records, uid, dict)
        name = place.text(record, "take_name") if "take_name" in record else None
        info = probe(folder.video(uid, name))
        texts = []
        for i, step in enumerate(place.get(record, "segments", list)):
            texts.append(_step(place.at(f"step {i}"), step, info, fps))
        texts.sort(key=lambda n: n.time)
        meta = {"video_uid": uid, "class": place.text(record, "scenario") if "scenario" in record else ""}
        return narration_samples(uid, info, fps, texts, words, path, meta)

    return collect(chosen(row, records, split, splits), read, on_error, path)


def _step(row: Row, step: Any, info: VideoInfo, fps: float) -> Narration:
    key = "step_description" if row.mapping(step).get("step_description") else "step_name"
    text = row.text(step, key)
    if not text.strip():
        raise row.error(f"{key!r} is empty", "empty text")
    start, end = (
        row.time(row.get(step, k, object), k, info.duration, slack_of(info, fps)) for k in ("start_time", "end_time")
    )
    if start > end:
        raise row.error(f"'start_time' {start} comes after 'end_time' {end}", "wrong time")
    return Narration(start, clean_text(text))


class _Takes:
    """Where the videos of takes lie, and what ``takes.json`` says about them."""

    def __init__(self, videos: Path, takes: str | Path | None) -> None:
        self.videos, self.takes = videos, dict[str, tuple[Row, dict[str, Any]]]()
        if takes is None:
            return
        row = Row(Path(takes), "")
        values = read_json(row.file)
        if not isinstance(values, list):
            raise row.error(f"expected a list of takes, got {type(values).__name__}", "wrong type")
        for i, take in enumerate(values):
            place = row.at(f"take {i}")
            self.takes[place.text(take, "take_uid")] = (place, take)

    def activity(self, uid: str) -> str:
        row, take = self.takes.get(uid, (None, {}))
        return row.text(take, "parent_task_name") if row and "parent_task_name" in take else ""

    def video(self, uid: str, name: str | None = None) -> Path:
        """The take's video of the wearer's camera. Raises VideoError that lists the places."""
        places = []
        if uid in self.takes:
            row, take = self.takes[uid]
            name = row.text(take, "take_name")
            for camera, streams in row.get(take, "frame_aligned_videos", dict).items():
                if camera.lower().startswith("aria") and "rgb" in row.at(camera).mapping(streams):
                    path = row.at(f"{camera}, rgb").text(streams["rgb"], "relative_path")
                    places += [self.videos / name / path, self.videos / path]
        found = next((place for place in places if exists(place)), None)
        if found:
            return found
        try:
            return find_video(self.videos, uid)
        except VideoError as e:
            if name and name != uid:
                try:
                    return find_video(self.videos, name)
                except VideoError:
                    pass
            also = f", {', '.join(map(str, places[:1]))}" if places else ""
            raise VideoError(f"{e}{also}") from None
