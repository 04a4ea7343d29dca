"""What the tests of DeepSpeed runs share: starting one in several processes, and reading what it left."""

import json
from pathlib import Path

import pytest

import vtskip.configs
from tests.processes import launch

WORKER = Path(__file__).with_name("zero_worker.py")
ZERO = Path(vtskip.configs.__path__[0]) / "deepspeed"
# By default small parameters stay whole, and these are all small: cut up every one, and gather them a few at a time.
CUT_UP = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 2000,
    "stage3_max_live_parameters": 4000,
    "stage3_max_reuse_distance": 0,
}


def zero(stage, folder):
    """The shipped settings of a stage (``3``, ``"3_offload"``), for a tiny model."""
    settings = json.loads((ZERO / f"zero{stage}.json").read_text())
    if settings["zero_optimization"]["stage"] == 3:
        settings["zero_optimization"] |= CUT_UP
    path = folder / "zero.json"
    path.write_text(json.dumps(settings))
    return str(path)


def start(values, folder, processes, resume=False):
    """Run the worker in ``processes`` processes; returns what each rank saw."""
    folder.mkdir(exist_ok=True)
    settings = folder / "settings.json"
    values = values | {"out": str(folder / "run")}
    settings.write_text(json.dumps({"config": values, "report": str(folder), "resume": resume}))
    launch(WORKER, settings, processes)
    return [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(processes)]


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "run" / "train_log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)
