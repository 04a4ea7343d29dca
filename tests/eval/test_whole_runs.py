"""Whole evaluations through the program: killed and started again, on damaged clips, in other batches and on two processes."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vtskip.data.synthetic.damage import damage

ROOT = Path(__file__).resolve().parents[2]
TIMED = ("seconds_per_frame", "frames_per_second", "tokens_per_second", "first_token_seconds", "peak_memory")
TASKS = [
    {"task": "ego4d_narration", "data": {"lead_in": True}},
    {"task": "ego4d_narration_rollout", "data": {"lead_in": True}, "max_samples": 1},
    "coin_step",
    "coin_next",
]
ROWS = ["blind", "dense", "random", "uniform", "motion", "oracle", "anti_oracle", "downsample", "majority", "bigram"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder of the synthetic smoke tier."""
    from vtskip.data.synthetic import make

    return make("smoke", tmp_path_factory.mktemp("smoke"), progress=False)


@pytest.fixture(scope="module")
def values(checkpoint, smoke):
    data = {"kind": "synthetic", "root": str(smoke), "tier": "smoke"}
    return {"model": str(checkpoint), "data": data, "tasks": TASKS, "rows": ROWS, "max_samples": 3, "batch_size": 2}


def started(values, folder, *launcher, **changes):
    """``vtskip eval`` as a process of its own that writes into ``folder``."""
    folder.mkdir(exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(values | {"out": str(folder)} | changes))
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), "-m", "vtskip", "eval", str(path)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, code=0):
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, err[-3000:]
    return out, err


def record_of(folder, scores_alone=False):
    """The record without times and places; ``scores_alone`` without costs, which count a batch's padding."""
    record = copy.deepcopy(json.loads((folder / "record.json").read_text()))
    for key in ("provenance", "peak_memory_bytes", "peak_memory_of"):
        del record[key]
    for key in ("out", "batch_size"):
        del record["config"][key]
    for task in record["tasks"].values():
        if scores_alone:
            del task["cost"]
            continue
        for cost in task["cost"].values():
            for key in [key for key in cost if key.startswith(TIMED)]:
                del cost[key]
    return record


@pytest.fixture(scope="module")
def whole(values, tmp_path_factory):
    """The folder of an evaluation that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finished(started(values, folder))
    return folder


def test_killed_twice_and_started_again_ends_with_the_same_record(values, whole, tmp_path):
    total = len((whole / "samples.jsonl").read_text().splitlines())
    out = tmp_path / "killed"
    journal = out / "samples.partial.0.jsonl"
    for share in (0.2, 0.6):
        process = started(values, out)
        while process.poll() is None and (not journal.is_file() or journal.read_text().count("\n") <= share * total):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        finished(process, -signal.SIGKILL)
        assert not (out / "record.json").exists()
    held = journal.read_text().count("\n") - 1
    assert total / 2 < held < total, "killed in the middle"
    finished(started(values, out))
    assert record_of(out) == record_of(whole)
    assert sorted(path.name for path in out.iterdir()) == ["record.json", "samples.jsonl"]


def test_batches_and_processes_change_no_score(values, whole, tmp_path):
    finished(started(values, tmp_path / "single", batch_size=1))
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29547"]
    finished(started(values, tmp_path / "torchrun", sys.executable, "-m", *torchrun))
    accelerate = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    accelerate += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=29548"]
    finished(started(values, tmp_path / "accelerate", sys.executable, "-m", *accelerate))
    for other in ("single", "torchrun", "accelerate"):
        assert record_of(tmp_path / other, scores_alone=True) == record_of(whole, scores_alone=True), other


def test_a_fifth_of_the_clips_damaged(values, smoke, tmp_path):
    import shutil

    data = Path(shutil.copytree(smoke, tmp_path / "data"))
    broken = damage(data / "videos", 0.2)
    assert len(broken) == 2
    narration = {"kind": "ego4d_narration", "annotations": str(data / "ego4d/narration.json"), "passes": [1]}
    coin = {"kind": "coin", "annotations": str(data / "coin/COIN.json"), "task": "step"}
    tasks = [{"task": "ego4d_narration", "data": narration}, {"task": "coin_step", "data": coin}]
    videos = {"videos": str(data / "videos")}
    tasks = [task | {"data": task["data"] | videos} for task in tasks]
    given = values | {
        "data": None,
        "tasks": tasks,
        "rows": ["blind", "majority"],
        "max_samples": None,
        "prior_split": "test",
    }
    (tmp_path / "splits.json").write_text(json.dumps({"test": [f"smoke-{k:04d}" for k in range(12)]}))
    for task in tasks:
        task["data"] |= {"splits": str(tmp_path / "splits.json"), "split": "test"}
    stopped = started(given, tmp_path / "stopped")
    out, err = finished(stopped, 2)
    assert out == ""
    assert any(name in err for name in broken), err
    assert "Traceback" not in err
    assert not list((tmp_path / "stopped").iterdir())
    out, _ = finished(started(given, tmp_path / "skipped", on_error="skip"))
    record = json.loads((tmp_path / "skipped/record.json").read_text())
    assert record["n_skipped"] == 2
    faults = " ".join(fault["fault"] for fault in record["skipped"])
    for name in broken:
        assert name in faults
        assert f"skipped {name.removesuffix('.mp4')}" in out
    assert record["tasks"]["ego4d_narration"]["n_clusters"] == 10
    assert record["tasks"]["coin_step"]["n_clusters"] == 10
