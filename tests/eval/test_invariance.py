"""Scores of every kind of task depend on the samples alone: not on the batch, the number of processes, or how a stream is cut."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.eval.test_stream_score import TALK
from tests.tiny_stream import METHODS, Biased, tiny, video
from vtskip import attach
from vtskip.config import parse
from vtskip.eval import EvalConfig, run
from vtskip.eval.shard import Shard
from vtskip.eval.stream_score import StreamIds, score

QUESTIONS = ["coin_step", "coin_next", "coin_task", "coin_procedure", "coin_procedure_goal"]


@pytest.fixture(scope="module")
def tasks(request, tmp_path_factory):
    """Every task there is, each with a few samples of unequal length."""
    clips, coin = request.getfixturevalue("clips"), request.getfixturevalue("coin")
    root, videos = tmp_path_factory.mktemp("every"), {"videos": str(clips / "videos")}

    def written(name, value):
        (root / name).write_text(json.dumps(value))
        return str(root / name)

    acts = [
        {"video_uid": uid, "clip_uid": uid, "action_idx": i, "clip_parent_start_sec": 0.0, "verb_label": i % 2}
        | {"action_clip_start_sec": i / 2, "action_clip_end_sec": i / 2 + 0.4 * (uid == "a"), "noun_label": i % 2}
        for uid in "ab"
        for i in range(7)
    ]
    names = {"verbs": ["cut", "open"], "nouns": ["bread", "lid"]}
    lta = {"kind": "ego4d_lta", "annotations": written("lta.json", {"clips": acts}), "seen": 2, "ahead": 4, **videos}
    steps = [{"start_time": float(i), "end_time": i + 1.0, "step_description": f"cuts {w}"} for i, w in enumerate("ab")]
    told = [{"timestamp": t, "text": "C opens the lid.", "ego_visible": True} for t in (1.0, 2.0)]
    goalstep = {"videos": [{"video_uid": uid, "segments": steps[: 1 + (uid == "a")]} for uid in "ab"]}
    atomic = {"annotations": {uid: [{"rejected": False, "descriptions": told}] for uid in "ab"}}
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(root / "i.png")
    talk = [{"from": "human", "value": "<image>\nCut?"}, {"from": "gpt", "value": "Open the lid."}]
    alone = [{"from": "human", "value": "Cut the bread and open the lid?"}, {"from": "gpt", "value": "bread"}]
    asked = [{"id": 1, "image": "i.png", "conversations": talk}, *({"id": k, "conversations": alone} for k in (2, 3))]
    data = {
        "ego4d_narration": {"kind": "ego4d_narration", "annotations": str(clips / "narration.json"), **videos},
        "goalstep_narration": {"kind": "goalstep", "annotations": written("goalstep.json", goalstep), **videos},
        "egoexo_narration": {"kind": "egoexo_atomic", "annotations": written("atomic.json", atomic), **videos},
    }
    streams = [{"task": name + end, "data": own} for name, own in data.items() for end in ("", "_rollout")]
    visual = {"kind": "llava", "annotations": written("qa.json", asked), "videos": str(root)}
    return [
        *({"task": name, "data": coin} for name in QUESTIONS),
        *streams,
        {"task": "ego4d_lta", "data": lta | {"taxonomy": written("taxonomy.json", names)}},
        {"task": "visual_qa", "data": visual},
    ]


@pytest.fixture
def evaluated(checkpoint, tasks, monkeypatch):
    """Runs all tasks with some changes; answers are short. Returns the rows of each task."""
    from vtskip.eval import sets

    real = sets.load_task

    def short(*args):
        task = real(*args)
        generation = task.generation.model_copy(update={"max_new_tokens": 12})
        return task.model_copy(update={"generation": generation})

    monkeypatch.setattr(sets, "load_task", short)

    def rows_of(**changes):
        values = {"model": str(checkpoint), "rows": ["random"], "live_clips": 0, "tasks": tasks}
        record = run(parse(EvalConfig, values | changes, "test"))
        return {name: task["rows"] for name, task in record.get("tasks", {}).items()}

    return rows_of


def test_neither_batches_nor_processes_change_a_score(evaluated, tasks, tmp_path, monkeypatch):
    alone = evaluated()
    assert list(alone) == [task["task"] for task in tasks] and len(alone) == 13
    assert all(row.keys() == {"model", "random"} for row in alone.values())
    assert evaluated(batch_size=3) == alone
    monkeypatch.setattr(Shard, "wait", lambda self: None)
    for rank in (2, 1, 0):  # as three processes, one after the other; the first writes the record
        monkeypatch.setattr(Shard, "of_environment", classmethod(lambda cls, rank=rank: cls(rank, 3)))
        shared = evaluated(batch_size=2, out=str(tmp_path / "out"))
    assert shared == alone


class InChunks(Biased):
    """Feeds a stream on frame by frame, with what is said in between."""

    def __init__(self, model, ids):
        super().__init__(model)
        self.ids, self.pieces = ids, 0

    def step(self, ids, features, cache, rows):
        import torch

        frame = [i for i, token in enumerate(ids) if token == self.ids.frame_id]
        ends = [i + 1 for k, i in enumerate(frame, 1) if k % self.ids.frame_tokens == 0 and i + 1 < len(ids)]
        logits, start, shown = [], 0, 0
        for end in [*ends, len(ids)]:
            own = [r - start for r in rows if start <= r < end]
            count = sum(start <= i < end for i in frame) // self.ids.frame_tokens
            part = None if not count else features[shown : shown + count]
            logits.append(super().step(ids[start:end], part, cache, own))
            start, shown, self.pieces = end, shown + count, self.pieces + 1
        return torch.cat(logits)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_stream_in_pieces_has_the_same_turns(method):
    model, template = tiny()
    ids, encoded = StreamIds.of(template), template.encode(TALK)
    with attach(model, method):
        whole, chunked = Biased(model), InChunks(model, ids)
        features = whole.encode(video(encoded.num_frames))
        turns = [score(s, encoded.input_ids, encoded.labels, features, ids, 0.5) for s in (whole, chunked)]
    assert chunked.pieces > encoded.num_frames
    for one, other in zip(*turns, strict=True):
        assert one.stream.p_interval == pytest.approx(other.stream.p_interval, rel=1e-9)
        assert one.text_ce == pytest.approx(other.text_ce, rel=1e-9)
        assert one.text_pred == other.text_pred and one.offered == other.offered
        assert (one.appended is None) == (other.appended is None)
        if one.appended is not None:
            assert one.appended.p_interval == pytest.approx(other.appended.p_interval, rel=1e-9)
