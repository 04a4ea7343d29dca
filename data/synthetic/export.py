"""One native timeline per clip, written as COIN and as both Ego4D narration files.

A timeline is plain JSON: ``uid, fps ("10" or "30000/1001"), frames, size, hash, steps [{verb, colour, shape, approach,
contact, end, away, box}]``, all moments as integer source frames; ``box`` is where the thing lies before it is touched (left,
top, right, bottom in units of the frame's side). Seconds are ``frame / fps`` in full precision.
"""

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtskip._files import replacing
from vtskip.data.files import write_json
from vtskip.data.synthetic.grammar import DISTRACTORS, DOMAIN, TASK, Action, actions

Timeline = dict[str, Any]


def seconds(frame: int, fps: str) -> float:
    return float(frame / Fraction(fps))


def action_of(step: dict[str, Any]) -> Action:
    return Action(step["verb"], step["colour"], step["shape"])


def write_coin(folder: Path, timelines: Sequence[Timeline], splits: dict[str, list[str]]) -> None:
    """``COIN.json`` (subsets training and testing only, as in COIN; the val list is in splits.json) and ``taxonomy.csv``."""
    ids = {action: str(number) for number, action in enumerate(actions(), 1)}
    database = {}
    for line in timelines:
        fps, length = line["fps"], seconds(line["frames"], line["fps"])
        steps = [(seconds(s["contact"], fps), seconds(s["end"], fps), action_of(s)) for s in line["steps"]]
        database[line["uid"]] = {
            "duration": length,
            "class": TASK,
            "video_url": f"synthetic:{line['uid']}",
            "start": max(0.0, steps[0][0] - 1) if steps else 0.0,
            "end": min(length, steps[-1][1] + 1) if steps else length,
            "subset": "testing" if line["uid"] in splits["test"] else "training",
            "recipe_type": 0,
            "annotation": [{"id": ids[a], "segment": [start, end], "label": a.label} for start, end, a in steps],
        }
    write_json(folder / "COIN.json", {"database": database})
    with replacing(folder / "taxonomy.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["Domain", "Target Id", "Target Label", "Action Id", "Action Label"])
        table.writerows([DOMAIN, 0, TASK, number, action.label] for action, number in ids.items())


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
            summary = f"#Summary C works with {len(line['steps'])} things on a table"
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
