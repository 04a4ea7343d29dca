"""From timed texts to turns on the model's frame grid (VideoLLM-online, arXiv 2406.11816).

Frames are counted in integers: model frame ``k`` is the moment ``k / fps``. Multiplying differences of float times, as the
reference does, loses a frame in most adjacent pairs at 5 or 10 frames per second; ``reference_timeline`` keeps that
arithmetic for comparison with published numbers.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vtskip.data.types import Turn

_TAG = re.compile(r"#[cCoO]|@c|#[uU]nsure|#")
_GRID_NOISE = 1e-6  # of a frame: a stored time such as 29 * 1001 / 30000 must not be pushed to the next grid point

Mode = Literal["ceil", "round", "floor"]
_ROUNDING: dict[str, Callable[[float], int]] = {"ceil": math.ceil, "round": round, "floor": math.floor}


def clean_text(text: str) -> str:
    """Narration text without annotators' tags, first word capitalised, exactly one full stop at the end."""
    words = (_TAG.sub("", text).strip(".,\n ") + ".").split()
    return " ".join([words[0].capitalize(), *words[1:]])


def frame_at(time: float, fps: float, mode: Mode = "ceil") -> int:
    """Grid index of a time in seconds. ``ceil`` never shows a frame from before the event."""
    nudge = {"ceil": -_GRID_NOISE, "round": 0.0, "floor": _GRID_NOISE}[mode]
    return _ROUNDING[mode](time * fps + nudge)


def round_time(time: float, fps: float, max_time: float, mode: Mode = "ceil") -> float:
    """``time`` on the grid, clipped to ``[0, max_time]``, in the reference's float arithmetic (round: half to even)."""
    return max(min(_ROUNDING[mode](time * fps) / fps, max_time), 0)


@dataclass(frozen=True)
class Narration:
    """One text at one moment (seconds from the start of the video)."""

    time: float
    text: str


@dataclass(frozen=True)
class Timeline:
    """Alternating stream and assistant turns over the model frames ``first_frame`` .. ``last_frame``, both included."""

    conversation: list[Turn]
    first_frame: int
    last_frame: int


def reference_timeline(narrations: Sequence[Narration], duration: float, fps: float) -> Timeline | None:
    """The reference's mapping of time-ordered narrations to turns, float arithmetic included; None without narrations.

    A text equal to the previous one is skipped; of several texts on one frame the last one stays; nothing follows the frame
    at the video's end. The first stream turn has one frame. ``text_marks`` is the same rule in integers.
    """
    turns: list[Turn] = []
    start = last = 0.0
    previous: str | None = None
    for narration in narrations:
        time = round_time(narration.time, fps, duration)
        if not turns:
            start, last = time, time - 1 / fps
        if last >= duration:
            break
        if narration.text == previous:
            continue
        if time == last:
            turns[-1]["content"] = narration.text
        else:
            turns.append({"role": "stream", "num_frames": int((time - last) * fps), "learn": True})
            turns.append({"role": "assistant", "content": narration.text, "learn": True})
        last, previous = time, narration.text
    return Timeline(turns, int(start * fps), int(last * fps)) if turns else None


@dataclass(frozen=True)
class Window:
    """A stretch of a video: the model frames ``first`` .. ``last``, both included, and ``(frame, text)`` replies in order."""

    marks: list[tuple[int, str]]
    first: int
    last: int


def text_marks(narrations: Sequence[Narration], total: int, fps: float) -> list[tuple[int, str]]:
    """The rule of ``reference_timeline`` in integers, for a video of ``total`` model frames: ``(frame, text)`` per reply."""
    marks: list[tuple[int, str]] = []
    for narration in narrations:
        if marks and marks[-1][0] >= total - 1:
            break
        if marks and narration.text == marks[-1][1]:
            continue
        frame = max(0, min(frame_at(narration.time, fps), total - 1))
        if marks and frame <= marks[-1][0]:
            marks[-1] = (marks[-1][0], narration.text)
        else:
            marks.append((frame, narration.text))
    return marks


def windows(
    marks: Sequence[tuple[int, str]], total: int, max_frames: int | None, lead_in: bool, tail: bool
) -> list[Window]:
    """Cut a video into consecutive stretches of at most ``max_frames`` model frames, each with at least one text.

    Without ``lead_in`` a stretch starts at its first text, as in the reference; with it, where the one before ended (the
    first at the video's start). With ``tail`` it goes on to the next stretch's first text or the end of the video.
    """
    limit = max_frames or total
    result: list[Window] = []
    cursor, group = 0, list(marks)
    while group:
        first = cursor if lead_in else group[0][0]
        if group[0][0] >= first + limit:  # a silence longer than a whole stretch: leave its beginning out
            first = group[0][0] - limit + 1
        inside = [mark for mark in group if mark[0] < first + limit]
        group = group[len(inside) :]
        last = min(first + limit, total, group[0][0] if group else total) - 1 if tail else inside[-1][0]
        result.append(Window(inside, first, last))
        cursor = last + 1
    return result


def narration_turns(window: Window, system: str, instruction: str) -> list[Turn]:
    """A whole conversation: one frame that is not learned, the instruction, then stream and assistant turns in alternation.

    Frames after the last text teach silence only (``learn`` = all but the last: what follows it is unknown).
    """
    turns: list[Turn] = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "stream", "num_frames": 1, "learn": False}, {"role": "user", "content": instruction}]
    shown = window.first
    for frame, text in window.marks:
        if frame > shown:
            turns.append({"role": "stream", "num_frames": frame - shown, "learn": True})
        turns.append({"role": "assistant", "content": text, "learn": True})
        shown = frame
    rest = window.last - shown
    if rest:
        turns.append({"role": "stream", "num_frames": rest, "learn": rest - 1})
    return turns
