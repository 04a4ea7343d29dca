"""COIN: steps of instructional videos (``COIN.json``), as questions about a segment or as a stream of steps.

The question tasks follow VideoLLM-online (arXiv 2406.11816): the question comes before the frames, and the segment's first
and last time are rounded up to the frame grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vtskip.data.dialogue import Dialogue, narration_samples
from vtskip.data.files import read_json
from vtskip.data.labels import step_words, task_words
from vtskip.data.rows import OnError, Row, Splits, Watch, collect, find_video, slack_of, split_uids
from vtskip.data.timeline import Narration, clean_text, frame_at
from vtskip.data.types import Sample, Turn
from vtskip.data.video import VideoInfo, model_frames, probe, source_index, spread
from vtskip.errors import ConfigError, nearest

CoinTask = Literal["narrate", "step", "next", "task", "procedure", "procedure_goal"]
_SEVERAL = "what are the next {n} actions for the video? Name one action per numbered line."
QUESTIONS: dict[str, str] = {
    "step": "What is the action in the video? Name the action only.",
    "next": "What is the next action for the video? Name the action only.",
    "task": "What is the overall activity in the video? Name the activity only.",
    "procedure": _SEVERAL[0].upper() + _SEVERAL[1:],
    "procedure_goal": "To {goal}, " + _SEVERAL,
}
NEXT_GOAL = "To {goal}, what is the next action for the video? Name the action only."
NARRATE = "Please name each step of the activity at the moment it starts."
HORIZON = 5  # actions that a procedure question asks for at most
# The data set's own description says "validation" for what its file calls "testing".
SYNONYMS = {
    "train": "training",
    "training": "training",
    "test": "testing",
    "testing": "testing",
    "validation": "testing",
}


@dataclass(frozen=True)
class Segment:
    """One step: seconds and label."""

    start: float
    end: float
    label: str


def read_coin(
    path: str | Path,
    videos: str | Path,
    fps: float,
    split: str | None = None,
    task: CoinTask = "narrate",
    splits: Splits | None = None,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """Samples of one task over the videos in ``videos/{id}.mp4``, video by video.

    ``split`` is a subset of the file (train/training, test/testing/validation), or a name in ``splits`` where lists of ids
    are given. ``narrate`` gives one stream per video, the questions one sample per segment (``task``: per video). Raises
    DataError naming file, video and step for a missing key, wrong times, an unknown or empty split.
    """
    path, videos = Path(path), Path(videos)
    if task not in ("narrate", *QUESTIONS):
        raise ConfigError(
            f"unknown COIN task {task!r}{nearest(task, QUESTIONS)}; accepted: narrate, {', '.join(QUESTIONS)}"
        )
    row = Row(path, "")
    database = row.get(read_json(path), "database", dict)
    uids = _chosen(row, database, split, splits)
    words = dialogue or Dialogue(instruction=NARRATE)

    def read(uid: str) -> list[Sample]:
        place = row.at(f"video {uid!r}")
        record = place.mapping(database[uid])
        info = probe(find_video(videos, uid))
        steps = sorted(_segments(place, record, info, fps), key=lambda step: step.start)
        meta = {"video_uid": uid, "class": place.text(record, "class"), "task": task}
        if task == "narrate":
            texts = [Narration(s.start, clean_text(s.label)) for s in steps]
            return narration_samples(uid, info, fps, texts, words, path, meta)
        if task == "task":
            whole = [place.get(record, key, object) for key in ("start", "end")]
            goal = task_words(meta["class"])
            asked = [Question(QUESTIONS[task], _times(place, whole, info, fps, "start, end"), (goal,))]
        else:
            asked = list(_questions(task, steps, task_words(meta["class"])))
        return [_sample(f"{uid}/{task}{i}", info, fps, q, words, path, meta) for i, q in enumerate(asked)]

    return collect(uids, read, on_error, path)


def categories(path: str | Path, split: str | None = None) -> tuple[list[str], list[str]]:
    """(tasks, steps) in words, sorted: the closed sets that answers are matched with.

    Those of ``split`` alone are what the reference matches with; ``vtskip.data.taxonomy`` has the data set's own.
    """
    row = Row(Path(path), "")
    database = row.get(read_json(row.file), "database", dict)
    tasks, steps = set(), set()
    for uid in _chosen(row, database, split, None):
        place = row.at(f"video {uid!r}")
        tasks.add(task_words(place.text(database[uid], "class")))
        for i, entry in enumerate(place.get(database[uid], "annotation", list)):
            steps.add(step_words(place.at(f"step {i}").text(entry, "label")))
    return sorted(tasks), sorted(steps)


def _chosen(row: Row, database: dict[str, Any], split: str | None, splits: Splits | None) -> list[str]:
    """Video ids of a split, from the lists or from the records' ``subset``."""
    if split is None:
        return list(database)
    if splits is not None:
        uids = [uid for uid in split_uids(splits, split) if uid in database]
    else:
        subset = {uid: row.at(f"video {uid!r}").text(record, "subset") for uid, record in database.items()}
        present = sorted(set(subset.values()))
        accepted = sorted({*SYNONYMS, *present})
        if split not in accepted:
            hint = f"{nearest(split, accepted)}; accepted: {', '.join(accepted)}"
            raise row.error(f"unknown split {split!r}{hint} (the file holds {', '.join(present)})")
        wanted = SYNONYMS.get(split, split)
        uids = [uid for uid, name in subset.items() if SYNONYMS.get(name, name) == wanted]
    if not uids:
        raise row.error(f"no video of split {split!r} in this file")
    return uids


def _times(row: Row, pair: Any, info: VideoInfo, fps: float, key: str = "segment") -> tuple[float, float]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise row.error(f"{key!r} should be [start, end] in seconds, got {pair!r}")
    start, end = (row.time(value, key, info.duration, slack_of(info, fps)) for value in pair)
    if start >= end:
        raise row.error(f"{key!r} is {pair!r}: the start must come before the end")
    return start, end


def _segments(row: Row, record: dict[str, Any], info: VideoInfo, fps: float) -> Iterator[Segment]:
    for i, entry in enumerate(row.get(record, "annotation", list)):
        step = row.at(f"step {i}")
        label = step.text(entry, "label")
        if not label.strip():
            raise step.error("'label' is empty", "empty text")
        yield Segment(*_times(step, step.get(entry, "segment", list), info, fps), step_words(label))


@dataclass(frozen=True)
class Question:
    """What is asked over which seconds, and the labels that answer it, in order; ``seen`` is the label of the step shown."""

    text: str
    seconds: tuple[float, float]
    labels: tuple[str, ...]
    seen: str | None = None

    @property
    def answer(self) -> str:
        if len(self.labels) == 1:
            return clean_text(self.labels[0])
        return "\n".join(f"{n}. {clean_text(label)}" for n, label in enumerate(self.labels, 1))


def _questions(task: str, steps: list[Segment], goal: str) -> Iterator[Question]:
    """One question per step: what it is, what comes next, or what the next few are."""
    for i, step in enumerate(steps):
        shown = (step.start, step.end)
        if task == "step":
            yield Question(QUESTIONS[task], shown, (step.label,), step.label)
            continue
        coming = tuple(s.label for s in steps[i + 1 : i + 1 + (1 if task == "next" else HORIZON)])
        if coming:
            # a procedure of one action is asked as the next step
            alone = NEXT_GOAL if task == "procedure_goal" else QUESTIONS["next"]
            text = alone if len(coming) == 1 else QUESTIONS[task]
            yield Question(text.format(n=len(coming), goal=goal), shown, coming, step.label)


def _sample(
    uid: str, info: VideoInfo, fps: float, asked: Question, words: Dialogue, path: Path, meta: dict[str, Any]
) -> Sample:
    total = model_frames(info, fps)
    first, last = (min(frame_at(time, fps), total - 1) for time in asked.seconds)
    shown = [first + k for k in spread(last - first + 1, words.max_frames)]
    turns: list[Turn] = [{"role": "system", "content": words.system}] if words.system else []
    turns += [
        {"role": "user", "content": asked.text},
        {"role": "stream", "num_frames": len(shown), "learn": True},
        {"role": "assistant", "content": asked.answer, "learn": True},
    ]
    frames = [source_index(info, k, fps) for k in shown]
    facts = {**meta, "labels": list(asked.labels), "seen": asked.seen, "duration": info.duration, "first_frame": first}
    return Sample(uid, info.path, fps, frames, turns, str(path), facts)
