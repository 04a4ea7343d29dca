"""Open everything that a data section names, and say what is wrong with it and what it holds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtskip.data.config import DataConfig, iterate
from vtskip.data.rows import RowError
from vtskip.data.types import Sample
from vtskip.data.video import probe, read_frames
from vtskip.errors import DataError, VideoError

SIDE = 64  # pixels: how large frames are decoded to see whether they can be
EMPTY = " \t\r\n.,;:!?"  # a text of only these says nothing
Progress = Callable[[str], None]


@dataclass
class Report:
    """What was found. ``faults`` are (unit, kind, message): a unit is a video or record, of which the first fault is told."""

    units: int = 0
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    samples: int = 0
    files: dict[Path, float] = field(default_factory=dict)  # seconds; 0 for images
    frames: list[int] = field(default_factory=list)  # per conversation
    replies: list[int] = field(default_factory=list)  # per conversation
    words: list[int] = field(default_factory=list)  # per reply
    classes: Counter = field(default_factory=Counter)

    def fault(self, unit: str, kind: str, message: str) -> None:
        if (unit, kind, message) not in self.faults[-2:]:  # the same video in the next conversation
            self.faults.append((unit, kind, message))

    @property
    def share(self) -> float:
        """Share of units with a fault; 1 where there is nothing at all."""
        return len({unit for unit, *_ in self.faults}) / self.units if self.units else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kinds = Counter(kind for _, kind, _ in self.faults)
        return {
            "units": self.units,
            "failed": len({unit for unit, *_ in self.faults}),
            "share_failed": self.share,
            "faults": [{"unit": u, "kind": k, "message": m} for u, k, m in self.faults],
            "faults_by_kind": dict(kinds.most_common()),
            "conversations": self.samples,
            "files": len(self.files),
            "seconds": summary([s for s in self.files.values() if s]),
            "frames_per_conversation": summary(self.frames),
            "replies_per_conversation": summary(self.replies),
            "words_per_reply": summary(self.words),
            "classes": dict(self.classes.most_common()),
        }


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Count, total, least, median, mean, largest; None without values."""
    if not values:
        return None
    ordered, middle = sorted(values), len(values) // 2
    median = ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    total = sum(values)
    return {
        "count": len(values),
        "total": total,
        "min": ordered[0],
        "median": median,
        "mean": total / len(values),
        "max": ordered[-1],
    }


def check(config: DataConfig, all_frames: bool = False, progress: Progress | None = None) -> Report:
    """Read every record, open every file and decode its first, middle and last frame that is used (or all of them).

    Faults are collected, whatever ``on_error`` says; a file of annotations that cannot be read at all is one.
    """
    report, current, tried = Report(), [""], dict[Path, str | None]()

    def watch(unit: str, fault: DataError | None) -> None:
        current[0] = unit
        report.units += 1
        if fault is not None:
            report.fault(unit, kind_of(fault), str(fault))
        if progress is not None:
            progress(unit)

    try:
        for sample in iterate(config, progress=False, on_error=watch):
            _look(sample, current[0], report, tried, all_frames)
    except DataError as e:
        report.units += 1
        report.fault(str(config.annotations or config.root), kind_of(e), str(e))
    if not report.units:
        place = str(config.annotations or config.root)
        report.units = 1
        report.fault(place, "nothing there", f"{place}: no videos or records")
    return report


def kind_of(fault: DataError) -> str:
    """What a fault is counted under."""
    if isinstance(fault, RowError):
        return fault.kind
    if isinstance(fault, VideoError):
        return "missing file" if "no such video" in str(fault) or "No such file" in str(fault) else "broken file"
    return "unreadable annotations"


def _look(sample: Sample, unit: str, report: Report, tried: dict[Path, str | None], all_frames: bool) -> None:
    report.samples += 1
    texts = [turn["content"] for turn in sample.conversation if turn["role"] == "assistant"]
    empty = [i for i, turn in enumerate(sample.conversation) if not str(turn.get("content", "x")).strip(EMPTY)]
    if empty:
        report.fault(unit, "empty turn", f"{sample.source}: {sample.uid!r}: turn {empty[0]} is empty")
    for path, indices in sample.clips:
        wanted = indices if all_frames else sorted({indices[0], indices[len(indices) // 2], indices[-1]})
        if path not in tried or all_frames:
            tried[path] = _decode(path, wanted)
            if tried[path] is None:
                info = probe(path)
                report.files[path] = info.duration if info.frames > 1 else 0.0
        fault = tried[path]
        if fault is not None:
            report.fault(unit, "broken file", fault)
    report.frames.append(len(sample.frames))
    report.replies.append(len(texts))
    report.words += [len(text.split()) for text in texts]
    if sample.meta.get("class"):
        report.classes[sample.meta["class"]] += 1


def _decode(path: Path, indices: Sequence[int]) -> str | None:
    """What is wrong with these frames."""
    try:
        for start in range(0, len(indices), 256):
            read_frames(path, indices[start : start + 256], SIDE)
    except VideoError as e:
        return str(e)
    return None
