"""Fixtures of a tiny checkpoint, real clips, and annotations of both in COIN's, LTA's and LLaVA's formats."""

import json

import pytest

from tests.fixtures_stream import checkpoint, clips, copied, eval_config

__all__ = ["checkpoint", "clips", "copied", "eval_config"]

STEPS = {"a": ["cut the bread", "open the lid", "cut the bread"], "b": ["look around", "open the lid"]}


@pytest.fixture(scope="session")
def coin(clips, tmp_path_factory):
    """Data section over the two clips, one step per second; ``splits`` puts clip a into train and both into test."""
    folder = tmp_path_factory.mktemp("coin")
    database = {
        uid: {
            "class": "MakeBread",
            "start": 0.0,
            "end": 4.0,
            "subset": "testing",
            "annotation": [
                {"id": str(i), "segment": [float(i), i + 1.0], "label": label} for i, label in enumerate(labels)
            ],
        }
        for uid, labels in STEPS.items()
    }
    (folder / "COIN.json").write_text(json.dumps({"database": database}))
    (folder / "splits.json").write_text(json.dumps({"train": ["a"], "test": ["a", "b"]}))
    files = {"annotations": str(folder / "COIN.json"), "splits": str(folder / "splits.json")}
    return {"kind": "coin", "videos": str(clips / "videos"), "split": "test", **files}


@pytest.fixture
def damaged(clips, tmp_path):
    """The data section of five clips, of which one is empty, and one ends before its last frames can be decoded."""
    import shutil

    (tmp_path / "videos").mkdir()
    passes = json.loads((clips / "narration.json").read_text())
    for uid in ("c", "d", "e"):
        passes[uid] = passes["a"]
    for uid in passes:
        shutil.copy(clips / "videos" / f"{'b' if uid == 'b' else 'a'}.mp4", tmp_path / "videos" / f"{uid}.mp4")
    (tmp_path / "videos/d.mp4").write_bytes(b"")
    (tmp_path / "narration.json").write_text(json.dumps(passes))
    return {
        "kind": "ego4d_narration",
        "annotations": str(tmp_path / "narration.json"),
        "videos": str(tmp_path / "videos"),
    }
