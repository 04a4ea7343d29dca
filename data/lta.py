"""Ego4D long-term action anticipation, version 2 (``fho_lta_{train,val,test_unannotated}.json``, ``fho_lta_taxonomy.json``).

As in VideoLLM-online (arXiv 2406.11816): the actions of a clip in order, a window of 8 seen and 20 to come, moved on by one;
times are rounded to the nearest frame, unlike everywhere else.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtskip.data.dialogue import Dialogue
from vtskip.data.files import read_json
from vtskip.data.labels import class_words
from vtskip.data.rows import OnError, Row, Splits, Watch, chosen, collect, find_video, slack_of
from vtskip.data.timeline import frame_at
from vtskip.data.types import Sample, Turn
from vtskip.data.video import VideoInfo, model_frames, probe, source_index, spread

SEEN, AHEAD = 8, 20
QUESTION = "After these {frames} frames, what are the next {n} actions? Name one action per numbered line."


@dataclass(frozen=True)
class Taxonomy:
    """Verb and noun classes by label id, as in the file."""

    verbs: list[str]
    nouns: list[str]

    def words(self, verb: int, noun: int) -> str:
        return f"{class_words(self.verbs[verb])} {class_words(self.nouns[noun])}"


def read_taxonomy(path: str | Path) -> Taxonomy:
    """Raises DataError naming file and key."""
    row = Row(Path(path), "")
    value = row.mapping(read_json(row.file))
    lists = []
    for key in ("verbs", "nouns"):
        names = row.get(value, key, list)
        lists.append([row.at(f"{key} {i}").text({"name": name}, "name") for i, name in enumerate(names)])
        if not names:
            raise row.error(f"{key!r} is empty")
    return Taxonomy(*lists)


@dataclass(frozen=True)
class Action:
    """Seconds in the whole video; labels are None in the unannotated file."""

    index: int
    start: float
    end: float
    verb: int | None
    noun: int | None


def read_lta(
    path: str | Path,
    videos: str | Path,
    fps: float,
    taxonomy: str | Path,
    split: str | None = None,
    splits: Splits | None = None,
    seen: int = SEEN,
    ahead: int = AHEAD,
    dialogue: Dialogue | None = None,
    on_error: OnError | Watch = "stop",
) -> Iterator[Sample]:
    """One sample per window over the clips of ``videos/{video_uid}.mp4``; clips with too few actions give none.

    ``meta`` holds ``verb_labels`` and ``noun_labels`` (absent without annotations) and the key of a submission:
    ``clip_uid`` and ``last_visible_action_idx``. Raises DataError naming file, clip and row.
    """
    path, videos, row = Path(path), Path(videos), Row(Path(path), "")
    classes = read_taxonomy(taxonomy)
    words = dialogue or Dialogue()
    clips: dict[str, list[tuple[Row, Any]]] = defaultdict(list)
    owner: dict[str, str] = {}
    for i, record in enumerate(row.get(read_json(path), "clips", list)):
        place = row.at(f"clips {i}")
        uid, video = place.text(record, "clip_uid"), place.text(record, "video_uid")
        if owner.setdefault(uid, video) != video:
            raise place.error(f"clip {uid!r} is of video {video!r} here and of {owner[uid]!r} above")
        clips[uid].append((place, record))
    wanted = set(chosen(row, dict.fromkeys(owner.values()), split, splits))

    def read(uid: str) -> list[Sample]:
        if len(clips[uid]) < seen + ahead:
            return []
        info = probe(find_video(videos, owner[uid]))
        actions = sorted((_action(p, r, info, fps, classes) for p, r in clips[uid]), key=lambda a: a.index)
        count = len(actions) - seen - ahead + 1
        parts = [(actions[i : i + seen], actions[i + seen : i + seen + ahead]) for i in range(count)]
        meta = {"video_uid": owner[uid], "clip_uid": uid}
        return [_sample(info, fps, before, after, classes, words, path, meta) for before, after in parts]

    return collect([uid for uid in clips if owner[uid] in wanted], read, on_error, path)


def _action(row: Row, record: Any, info: VideoInfo, fps: float, classes: Taxonomy) -> Action:
    origin = row.seconds(row.get(record, "clip_parent_start_sec", object), "clip_parent_start_sec")
    times = []
    for key in ("action_clip_start_sec", "action_clip_end_sec"):
        own = row.seconds(row.get(record, key, object), key)
        times.append(row.time(origin + own, f"clip_parent_start_sec + {key}", info.duration, slack_of(info, fps)))
    if times[0] > times[1]:
        raise row.error(f"the action starts at {times[0]} s and ends at {times[1]} s", "wrong time")
    labels: list[int | None] = []
    for key, names in (("verb_label", classes.verbs), ("noun_label", classes.nouns)):
        label = row.index(record, key) if key in record else None
        if label is not None and label >= len(names):
            raise row.error(f"{key!r} is {label}; the taxonomy has 0 to {len(names) - 1}")
        labels.append(label)
    if (labels[0] is None) != (labels[1] is None):
        raise row.error("only one of 'verb_label' and 'noun_label' is there", "missing key")
    return Action(row.index(record, "action_idx"), times[0], times[1], labels[0], labels[1])


def _sample(
    info: VideoInfo,
    fps: float,
    before: list[Action],
    after: list[Action],
    classes: Taxonomy,
    words: Dialogue,
    path: Path,
    meta: dict[str, Any],
) -> Sample:
    total = model_frames(info, fps)
    first = min(frame_at(before[0].start, fps, "round"), total - 1)
    last = max(first, min(frame_at(before[-1].end, fps, "round"), total - 1))
    shown = [first + k for k in spread(last - first + 1, words.max_frames)]
    turns: list[Turn] = [{"role": "system", "content": words.system}] if words.system else []
    turns.append({"role": "user", "content": QUESTION.format(frames=len(shown), n=len(after))})
    pairs = [(a.verb, a.noun) for a in after if a.verb is not None and a.noun is not None]
    annotated = len(pairs) == len(after)
    turns.append({"role": "stream", "num_frames": len(shown), "learn": annotated})
    facts = {**meta, "last_visible_action_idx": before[-1].index, "duration": info.duration, "first_frame": first}
    if annotated:
        lines = [f"{n}. {classes.words(*pair).capitalize()}." for n, pair in enumerate(pairs, 1)]
        turns.append({"role": "assistant", "content": "\n".join(lines), "learn": True})
        facts |= {"verb_labels": [v for v, _ in pairs], "noun_labels": [n for _, n in pairs]}
        facts["class"] = classes.words(*pairs[0])
    frames = [source_index(info, k, fps) for k in shown]
    uid = f"{meta['clip_uid']}_{before[-1].index}"
    return Sample(uid, info.path, fps, frames, turns, str(path), facts)
