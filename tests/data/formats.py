"""A tiny file in every published format, written by hand: not what our own exporter writes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtskip.config import parse
from vtskip.data import DataConfig

COIN = {
    "database": {
        "a": {
            "duration": 6.0,
            "class": "ReplaceCDDriveWithSSD",
            "video_url": "https://www.youtube.com/embed/a",
            "start": 0.4,
            "end": 5.6,
            "subset": "training",
            "recipe_type": 41,
            "annotation": [
                {"id": "207", "segment": [0.6, 1.5], "label": "take out the CD drive"},
                {"id": "209", "segment": [2.0, 3.1], "label": "process (crop, fold) paper"},
                {"id": "212", "segment": [4.0, 5.2], "label": "put in the SSD"},
            ],
        },
        "b": {
            "duration": 3.0,
            "class": "BrewLeafTea",
            "video_url": "https://www.youtube.com/embed/b",
            "start": 0.0,
            "end": 3.0,
            "subset": "testing",
            "recipe_type": 7,
            "annotation": [{"id": "1", "segment": [1.0, 2.0], "label": "heat the water"}],
        },
    }
}

NARRATION = {
    "a": {
        "status": "complete",
        "narration_pass_1": {
            "narrations": [
                {
                    "timestamp_sec": 3.21,
                    "timestamp_frame": 96,
                    "narration_text": "#C C picks up a knife",
                    "annotation_uid": "a1",
                },
                {
                    "timestamp_sec": 5.8,
                    "timestamp_frame": 174,
                    "narration_text": "#C C cuts the #unsure",
                    "annotation_uid": "a1",
                },
            ],
            "summaries": [
                {"start_sec": 0.0, "end_sec": 6.0, "summary_text": "#Summary C made a salad", "annotation_uid": "a1"}
            ],
        },
        "narration_pass_2": {
            "narrations": [
                {
                    "timestamp_sec": 1.0,
                    "timestamp_frame": 30,
                    "narration_text": "#O A man X waves",
                    "annotation_uid": "a2",
                }
            ],
            "summaries": [],
        },
    },
    "b": {"status": "redacted"},
}

REDACTED = {
    "videos": {
        "a": {
            "narrations": [
                {
                    "time": 3.21,
                    "text": "#C C picks up a knife",
                    "_annotation_uid": "a1",
                    "_clip_time_start": 0.0,
                    "_clip_time_end": 300.0,
                    "_project_id": "p",
                    "annotator": 7,
                    "is_summary": False,
                },
                {
                    "time": 1.1,
                    "text": "#c c looks @c around.",
                    "_annotation_uid": "a1",
                    "_clip_time_start": 0.0,
                    "_clip_time_end": 300.0,
                    "_project_id": "p",
                    "annotator": 7,
                    "is_summary": False,
                },
            ],
            "summaries": [{"start_time": 0.0, "end_time": 6.0, "text": "#Summary C prepared a salad"}],
        }
    },
    "_map_errs": {},
}

STREAMS = {"a": {"a1": [{"time": 1.0, "text": "You pick up a knife."}, {"time": 2.0, "text": "You cut bread."}]}}

GOALSTEP = {
    "version": "v2",
    "videos": [
        {
            "video_uid": "a",
            "start_time": 0.0,
            "end_time": 6.0,
            "goal_category": "COOKING:MAKE_SALAD",
            "goal_description": "Make a salad",
            "goal_wikihow_url": "https://www.wikihow.com/Make-a-Salad",
            "summary": ["wash greens", "cut vegetables"],
            "is_procedural": True,
            "segments": [
                {
                    "start_time": 1.0,
                    "end_time": 4.0,
                    "step_category": "cut vegetables: chop",
                    "step_description": "chop the cucumber",
                    "is_continued": False,
                    "is_procedural": True,
                    "is_relevant": "essential",
                    "summary": [],
                    "segments": [
                        {
                            "start_time": 2.0,
                            "end_time": 3.0,
                            "step_category": "peel vegetables",
                            "step_description": "peel the cucumber",
                            "is_continued": False,
                            "is_procedural": True,
                            "is_relevant": "optional",
                            "summary": [],
                        }
                    ],
                },
                {
                    "start_time": 4.5,
                    "end_time": 5.0,
                    "step_category": "other",
                    "step_description": "look at the phone",
                    "is_continued": False,
                    "is_procedural": False,
                    "is_relevant": "irrelevant",
                    "summary": [],
                    "segments": [],
                },
            ],
        }
    ],
}


def lta_clip(index: int, start: float, verb: int, noun: int) -> dict[str, Any]:
    return {
        "video_uid": "a",
        "clip_uid": "c9",
        "action_idx": index,
        "action_clip_start_sec": start,
        "action_clip_end_sec": start + 0.4,
        "action_clip_start_frame": int(start * 30),
        "action_clip_end_frame": int((start + 0.4) * 30),
        "clip_parent_start_sec": 0.5,
        "clip_parent_end_sec": 6.0,
        "clip_parent_start_frame": 15,
        "clip_parent_end_frame": 180,
        "interval_start_sec": 0.5,
        "interval_end_sec": 6.0,
        "interval_start_frame": 15,
        "interval_end_frame": 180,
        "verb": VERBS[verb],
        "noun": NOUNS[noun],
        "verb_label": verb,
        "noun_label": noun,
    }


VERBS, NOUNS = ["cut_(trim,_slice,_chop)", "turn-on_(start)"], ["cucumber", "pot_(planter)", "pot"]
LTA_TAXONOMY = {"verbs": VERBS, "nouns": NOUNS}
# not in order: action_idx counts
LTA = {
    "version": "v2",
    "split": "train",
    "clips": [lta_clip(i, 0.5 * i, i % 2, i % 3) for i in (2, 0, 1, 3)],
}

TAKES = [
    {
        "take_uid": "t1",
        "take_name": "lab_cooking_03",
        "duration_sec": 6.0,
        "parent_task_name": "Cooking",
        "validated": True,
        "is_narrated": True,
        "frame_aligned_videos": {
            "aria01": {"rgb": {"relative_path": "frame_aligned_videos/aria01_214-1.mp4"}},
            "cam01": {"0": {"relative_path": "frame_aligned_videos/cam01.mp4"}},
        },
    }
]
ATOMIC = {
    "annotations": {
        "t1": [
            {
                "rejected": False,
                "reject_reason": None,
                "descriptions": [
                    {
                        "timestamp": 4.7,
                        "text": "C opens the jar with his right hand.",
                        "subject": "C",
                        "ego_visible": True,
                        "unsure": False,
                        "best_exo": {"cam_id": "cam01", "cam_number": 1},
                    },
                    {"timestamp": 5.0, "text": "O walks behind.", "subject": "O", "ego_visible": False},
                    {"timestamp": 1.2, "text": "C looks around.", "subject": "C", "ego_visible": True},
                ],
            },
            {"rejected": True, "reject_reason": "wrong take", "descriptions": []},
        ]
    },
    "take_cam_id_map": {"t1": {"cam01": 2}},
    "ds": "220817",
}
KEYSTEPS = {
    "annotations": {
        "t1": {
            "take_uid": "t1",
            "take_name": "lab_cooking_03",
            "scenario": "Making Tea",
            "segments": [
                {
                    "start_time": 3.0,
                    "end_time": 5.5,
                    "step_id": 12,
                    "step_unique_id": 612,
                    "step_name": "Boil water",
                    "step_description": "Boil water in the kettle",
                    "is_essential": True,
                },
                {
                    "start_time": 1.0,
                    "end_time": 2.0,
                    "step_id": 3,
                    "step_unique_id": 603,
                    "step_name": "Get a kettle",
                    "step_description": None,
                    "is_essential": True,
                },
            ],
        }
    },
    "taxonomy": {"Making Tea": {"12": {"unique_id": 612, "name": "Boil water"}}},
    "ds": "220817",
}

LLAVA = [
    {
        "id": "000000033471",
        "image": "coco/one.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colours are there?"},
            {"from": "gpt", "value": "Red and blue."},
            {"from": "human", "value": "Where?"},
            {"from": "gpt", "value": "Side by side."},
        ],
    },
    {
        "id": "v1",
        "data_source": "academic",
        "video": "a.mp4",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat happens?"},
            {"from": "gpt", "value": "It gets lighter."},
        ],
    },
    {
        "id": "000000033471",
        "image": ["coco/one.png", "coco/two.jpg"],
        "conversations": [
            {"from": "human", "value": "Compare <image> with <image>"},
            {"from": "gpt", "value": "They differ."},
        ],
    },
    {
        "id": "text",
        "model": "",
        "conversations": [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}],
    },
]
MESSAGES = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "A square."},
        ],
        "images": ["coco/one.png"],
    },
    {
        "id": 7,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": "b.mp4"},
                    {"type": "image_url", "image_url": {"url": "file://coco/one.png"}},
                    {"type": "text", "text": "Is it in the clip?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        ],
    },
    {"messages": [{"role": "user", "content": "What happens?"}], "video": "b.mp4"},
]


@dataclass(frozen=True)
class Format:
    """A value, its file name, how many samples it gives, and the keys of its data section beside kind and places."""

    kind: str
    name: str
    value: Any
    samples: int
    keys: dict[str, Any]

    def write(self, folder: Path, value: Any = None) -> Path:
        value = self.value if value is None else value
        if self.name.endswith(".jsonl"):
            text = "\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)
        else:
            text = json.dumps(value)
        path = folder / self.name
        path.write_text(text, encoding="utf-8")
        return path

    def config(self, path: Path, videos: Path, **more: Any) -> DataConfig:
        return parse(
            DataConfig, {"kind": self.kind, "annotations": path, "videos": videos, **self.keys, **more}, "test"
        )


def formats(folder: Path) -> Iterator[Format]:
    """All of them; the files that others need are written to ``folder``."""
    (folder / "fho_lta_taxonomy.json").write_text(json.dumps(LTA_TAXONOMY))
    (folder / "takes.json").write_text(json.dumps(TAKES))
    takes = {"takes": folder / "takes.json"}
    lta = {"taxonomy": folder / "fho_lta_taxonomy.json", "seen": 2, "ahead": 1}
    for task, count in {"narrate": 2, "step": 4, "next": 2, "task": 2, "procedure": 2, "procedure_goal": 2}.items():
        yield Format("coin", "COIN.json", COIN, count, {"task": task})
    yield Format("ego4d_narration", "narration.json", NARRATION, 2, {})
    yield Format("ego4d_narration", "all_narrations_redacted.json", REDACTED, 1, {})
    yield Format("ego4d_narration", "refined_narration_stream_train.json", STREAMS, 1, {})
    yield Format("goalstep", "goalstep_train.json", GOALSTEP, 1, {})
    yield Format("ego4d_lta", "fho_lta_train.json", LTA, 2, lta)
    yield Format("egoexo_atomic", "atomic_descriptions_train.json", ATOMIC, 1, takes)
    yield Format("egoexo_atomic", "refined_egocentric_atomic_descriptions.json", ATOMIC["annotations"], 1, {})
    yield Format("egoexo_keystep", "keystep_train.json", KEYSTEPS, 1, takes)
    yield Format("llava", "llava.json", LLAVA, 4, {})
    yield Format("messages", "chat.jsonl", MESSAGES, 3, {})
