"""The same timelines as GoalStep, LTA version 2 and Ego-Exo4D files, in the shapes that those sets publish.

A *visit* is what is done to one thing in a row: GoalStep's step and Ego-Exo4D's keystep; its acts are the substeps and the
atomic descriptions. LTA needs clips of many actions, so ``join`` puts clips of one split end to end.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtskip.data.files import write_json
from vtskip.data.synthetic.export import first_pass, second_pass, seconds
from vtskip.data.synthetic.grammars import Timeline, Visit, action_of, grammar_of

LONG = 28  # actions of an LTA clip: 8 seen and 20 to come
FIDGET = "move the empty hand"
UNIQUE = 600  # keystep ids over all scenarios count from here


def _goal_step(fps: str, start: int, end: int, text: str, relevant: str) -> dict[str, Any]:
    return {
        "start_time": seconds(start, fps),
        "end_time": seconds(end, fps),
        "step_category": f"{text.split(' ')[0]}: {text}",
        "step_description": text,
        "is_continued": False,
        "is_procedural": relevant != "irrelevant",
        "is_relevant": relevant,
        "summary": [],
    }


def goalstep_segments(line: Timeline, fidgets: Sequence[tuple[int, int]] = ()) -> list[dict[str, Any]]:
    """Visits with their acts as substeps, and movements of the empty hand as irrelevant steps, in order of time."""
    fps, grammar, rows = line["fps"], grammar_of(line), []
    for visit in grammar.visits(line):
        row = _goal_step(fps, visit.acts[0]["approach"], visit.acts[-1]["end"], visit.text, visit.relevant)
        row["segments"] = [
            _goal_step(fps, s["contact"], s["end"], action_of(s).label, grammar.relevance(line, s, visit))
            for s in visit.acts
        ]
        rows.append(row)
    rows += [{**_goal_step(fps, a, b, FIDGET, "irrelevant"), "segments": []} for a, b in fidgets]
    return sorted(rows, key=lambda row: row["start_time"])


def write_goalstep(
    folder: Path,
    timelines: Sequence[Timeline],
    splits: Mapping[str, Sequence[str]],
    fidgets: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> None:
    """``goalstep_{train,val,test}.json``, and ``goalstep_test_unannotated.json``, which has texts and no times."""
    for split, uids in splits.items():
        videos = []
        for line in (t for t in timelines if t["uid"] in set(uids)):
            rows, grammar = goalstep_segments(line, (fidgets or {}).get(line["uid"], ())), grammar_of(line)
            videos.append(
                {
                    "video_uid": line["uid"],
                    "start_time": 0.0,
                    "end_time": seconds(line["frames"], line["fps"]),
                    "goal_category": f"{grammar.domain(line)}:{grammar.task(line)}".upper().replace(" ", "_"),
                    "goal_description": grammar.goal(line),
                    "goal_wikihow_url": "",
                    "summary": [visit.text for visit in grammar.visits(line)],
                    "is_procedural": True,
                    "segments": rows,
                }
            )
        write_json(folder / f"goalstep_{split}.json", {"videos": videos})
        if split == "test":
            hidden = [{k: v for k, v in video.items() if k not in ("segments", "summary")} for video in videos]
            for video, whole in zip(hidden, videos, strict=True):
                video["step_segments"] = [{"step_description": r["step_description"]} for r in whole["segments"]]
            write_json(folder / "goalstep_test_unannotated.json", {"videos": hidden})


def groups_of(timelines: Sequence[Timeline], least: int = LONG) -> list[list[Timeline]]:
    """Clips in order, as many of one frame rate together as have ``least`` actions.

    What is left over of a rate at the end joins its last group; where there is none, it is too short to be asked about.
    """
    rates = dict.fromkeys(line["fps"] for line in timelines)
    return [group for rate in rates for group in _groups([t for t in timelines if t["fps"] == rate], least)]


def _groups(timelines: Sequence[Timeline], least: int) -> list[list[Timeline]]:
    groups: list[list[Timeline]] = [[]]
    for line in timelines:
        if sum(len(t["steps"]) for t in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(line)
    if len(groups) > 1 and sum(len(t["steps"]) for t in groups[-1]) < least:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def join(lines: Sequence[Timeline], uid: str) -> Timeline:
    """One timeline of clips end to end, all of one frame rate. ``parts`` are their ids."""
    steps, shift = [], 0
    for line in lines:
        for step in line["steps"]:
            steps.append(step | {key: step[key] + shift for key in ("approach", "contact", "end", "away")})
        shift += line["frames"]
    joined = {
        "uid": uid, "fps": lines[0]["fps"], "frames": shift, "steps": steps, "parts": [t["uid"] for t in lines]
    }  # fmt: skip
    return joined | {key: lines[0][key] for key in ("grammar",) if key in lines[0]}


def _lta_clips(line: Timeline) -> Iterator[dict[str, Any]]:
    """Times of an action count from the start of its clip, the clip's from the start of the video."""
    fps, grammar = line["fps"], grammar_of(line)
    origin = line["steps"][0]["approach"] if line["steps"] else 0
    for number, step in enumerate(line["steps"]):
        action = action_of(step)
        row: dict[str, Any] = {
            "video_uid": line["uid"], "clip_uid": f"{line['uid']}-clip", "action_idx": number
        }  # fmt: skip
        for key, start, end in (
            ("action_clip", step["contact"] - origin, step["end"] - origin),
            ("clip_parent", origin, line["frames"]),
            ("interval", origin, line["frames"]),
        ):
            row |= {f"{key}_start_sec": seconds(start, fps), f"{key}_end_sec": seconds(end, fps)}
            row |= {f"{key}_start_frame": start, f"{key}_end_frame": end}
        labels = {
            "verb_label": list(grammar.verbs).index(action.verb),
            "noun_label": list(grammar.nouns).index(action.noun),
        }
        yield row | {"verb": grammar.verbs[action.verb], "noun": grammar.nouns[action.noun]} | labels


def write_lta(folder: Path, joined: Mapping[str, Sequence[Timeline]]) -> None:
    """``fho_lta_{split}.json`` of joined timelines per split, and last ``fho_lta_taxonomy.json``.

    The test file is there a second time without labels, ``fho_lta_test_unannotated.json`` (with ``clip_id``, as published).
    """
    for split, lines in joined.items():
        rows = [row for line in lines for row in _lta_clips(line)]
        write_json(folder / f"fho_lta_{split}.json", {"clips": rows})
        if split == "test":
            labels = ("verb", "noun", "verb_label", "noun_label")
            hidden = [{k: v for k, v in row.items() if k not in labels} for row in rows]
            for number, row in enumerate(hidden):
                row["clip_id"] = number
            write_json(folder / "fho_lta_test_unannotated.json", {"clips": hidden})
    grammar = grammar_of(next(line for lines in joined.values() for line in lines))
    taxonomy = {"verbs": list(grammar.verbs.values()), "nouns": list(grammar.nouns.values())}
    write_json(folder / "fho_lta_taxonomy.json", taxonomy)


def write_egoexo(folder: Path, timelines: Sequence[Timeline], splits: Mapping[str, Sequence[str]]) -> None:
    """``takes.json``, ``annotations/{atomic_descriptions,keystep}_{split}.json`` and ``annotations/splits.json``.

    Two annotators describe a take; what the second says about other people is not visible to the wearer's camera.
    """
    grammars = {line["uid"]: grammar_of(line) for line in timelines}
    takes = [
        {
            "take_uid": line["uid"],
            "take_name": f"synthetic_{line['uid']}",
            "duration_sec": seconds(line["frames"], line["fps"]),
            "parent_task_name": grammars[line["uid"]].scenario(line),
            "validated": True,
            "is_narrated": True,
            "frame_aligned_videos": {"aria01": {"rgb": {"relative_path": f"{line['uid']}.mp4"}}},
        }
        for line in timelines
    ]
    write_json(folder / "takes.json", takes)
    taxonomy = {
        scenario: {str(k): {"unique_id": UNIQUE + k, "name": name} for k, name in names.items()}
        for scenario, names in grammar_of(timelines[0]).keysteps().items()
    }
    for split, uids in splits.items():
        lines = [t for t in timelines if t["uid"] in set(uids)]
        atomic = {t["uid"]: [_annotator(t, first_pass(t)), _annotator(t, second_pass(t))] for t in lines}
        cameras = {t["uid"]: {"cam01": 1} for t in lines}
        keysteps = {
            t["uid"]: {
                "take_name": f"synthetic_{t['uid']}",
                "scenario": grammars[t["uid"]].scenario(t),
                "segments": [_keystep(visit, t["fps"]) for visit in grammars[t["uid"]].visits(t)],
            }
            for t in lines
        }
        place = folder / "annotations"
        write_json(place / f"atomic_descriptions_{split}.json", {"annotations": atomic, "take_cam_id_map": cameras})
        write_json(place / f"keystep_{split}.json", {"annotations": keysteps, "taxonomy": taxonomy})
    write_json(folder / "annotations" / "splits.json", {"split_to_take_uids": {k: list(v) for k, v in splits.items()}})


def _annotator(line: Timeline, rows: Sequence[tuple[int, str]]) -> dict[str, Any]:
    entries = []
    for frame, text in rows:
        tag, _, words = text.partition(" ")
        entries.append(
            {
                "timestamp": seconds(frame, line["fps"]),
                "text": words.replace("#unsure", "something") + ".",
                "subject": tag.removeprefix("#"),
                "ego_visible": tag == "#C",
                "unsure": "#unsure" in words,
            }
        )
    return {"rejected": False, "descriptions": entries}


def _keystep(visit: Visit, fps: str) -> dict[str, Any]:
    return {
        "start_time": seconds(visit.acts[0]["approach"], fps),
        "end_time": seconds(visit.acts[-1]["end"], fps),
        "step_id": visit.number,
        "step_unique_id": UNIQUE + visit.number,
        "step_name": visit.text.capitalize(),
        "step_description": f"{visit.text}: " + ", ".join(action_of(s).label for s in visit.acts),
        "is_essential": visit.relevant == "essential",
    }
