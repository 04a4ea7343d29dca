"""One native timeline per clip, written as COIN and as both Ego4D narration files.

A timeline is plain JSON: ``uid, fps ("10" or "30000/1001"), frames, size, hash, steps [{verb, colour, shape, approach,
contact, end, away, box}]``, all moments as integer source frames; ``box`` is where the thing lies before it is touched (left,
top, right, bottom in units of the frame's side). With the full grammar these are the acts; those with a second noun have it in
``into`` ("blue cup") and where that thing lies in ``into_box``. There are also ``grammar, task, hard, task_steps [{kind, shape,
into, first, last, optional}]``: a task's step says which of them are its own. Seconds are ``frame / fps`` in full precision.

In the published formats a second noun is in the texts alone: none of them has a field for it, and LTA's noun is the first.
"""

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtskip._files import replacing
from vtskip.data.files import write_json
from vtskip.data.synthetic.grammar import DISTRACTORS
from vtskip.data.synthetic.grammars import Timeline, action_of, grammar_of


def seconds(frame: int, fps: str) -> float:
    return float(frame / Fraction(fps))


def write_coin(folder: Path, timelines: Sequence[Timeline], splits: dict[str, list[str]]) -> None:
    """``COIN.json`` (subsets training and testing only, as in COIN; the val list is in splits.json) and ``taxonomy.csv``."""
    database = {}
    for line in timelines:
        fps, length, grammar = line["fps"], seconds(line["frames"], line["fps"]), grammar_of(line)
        steps = [(seconds(s.start, fps), seconds(s.end, fps), s) for s in grammar.segments(line)]
        database[line["uid"]] = {
            "duration": length,
            "class": grammar.task(line),
            "video_url": f"synthetic:{line['uid']}",
            "start": max(0.0, steps[0][0] - 1) if steps else 0.0,
            "end": min(length, steps[-1][1] + 1) if steps else length,
            "subset": "testing" if line["uid"] in splits["test"] else "training",
            "recipe_type": grammar.task_number(line),
            "annotation": [{"id": str(s.number), "segment": [a, b], "label": s.label} for a, b, s in steps],
        }
    write_json(folder / "COIN.json", {"database": database})
    with replacing(folder / "taxonomy.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["Domain", "Target Id", "Target Label", "Action Id", "Action Label"])
        table.writerows(grammar_of(timelines[0]).taxonomy())


def first_pass(line: Timeline) -> list[tuple[int, str]]:
    """The exact record: every step at its contact frame."""
    return [(step["contact"], action_of(step).narration) for step in line["steps"]]


def second_pass(line: Timeline) -> list[tuple[int, str]]:
    """A second annotator: up to 0.4 s off, other words, one step in ten missed, some unsure, remarks on other people."""
    rng = np.random.default_rng((*line["seed"], 2))
    slack = round(0.4 * Fraction(line["fps"]))
    rows = []
    for step in line["steps"]:
        missed, unsure, shift = rng.random() < 0.10, rng.random() < 0.03, int(rng.integers(-slack, slack + 1))
        action = action_of(step)
        text = action.paraphrase.replace(action.noun, "#unsure") if unsure else action.paraphrase
        if not missed:
            rows.append((min(max(0, step["contact"] + shift), line["frames"] - 1), text))
    for text in rng.choice(DISTRACTORS, 2, replace=False):
        rows.append((int(rng.integers(line["frames"])), str(text)))
    return sorted(rows)


def summary_of(line: Timeline) -> str:
    if "task" in line:
        return f"#Summary C does {len(line['task_steps'])} steps to {grammar_of(line).goal(line).lower()}"
    return f"#Summary C works with {len(line['steps'])} things on a table"


def write_ego4d(folder: Path, timelines: Sequence[Timeline]) -> None:
    """``narration.json`` (public shape, two passes) and ``all_narrations_redacted.json`` (one list with annotation ids)."""
    public: dict[str, Any] = {}
    redacted: dict[str, Any] = {}
    for line in timelines:
        uid, fps, length = line["uid"], line["fps"], seconds(line["frames"], line["fps"])
        public[uid] = {"status": "complete"}
        redacted[uid] = {"narrations": [], "summaries": []}
        for number, rows in enumerate((first_pass(line), second_pass(line)), 1):
            annotator = f"{uid}-pass{number}"
            summary = summary_of(line)
            public[uid][f"narration_pass_{number}"] = {
                "narrations": [
                    {
                        "timestamp_sec": seconds(frame, fps),
                        "timestamp_frame": frame,
                        "narration_text": text,
                        "annotation_uid": annotator,
                    }
                    for frame, text in rows
                ],
                "summaries": [
                    {"start_sec": 0.0, "end_sec": length, "summary_text": summary, "annotation_uid": annotator}
                ],
            }
            redacted[uid]["narrations"] += [
                {
                    "time": seconds(frame, fps),
                    "text": text,
                    "_annotation_uid": annotator,
                    "_clip_time_start": 0.0,
                    "_clip_time_end": length,
                    "_project_id": "synthetic",
                    "annotator": number,
                    "is_summary": False,
                }
                for frame, text in rows
            ]
            redacted[uid]["summaries"].append({"start_time": 0.0, "end_time": length, "text": summary})
    write_json(folder / "narration.json", public)
    write_json(folder / "all_narrations_redacted.json", {"videos": redacted, "_map_errs": {}})
