"""What the tests of runs share: starting one, and reading its log."""

import json
from pathlib import Path

from safetensors.torch import load_file

from vtskip.config import parse
from vtskip.train import TrainConfig, run

# What a log line says about the machine and not about the training.
OF_THE_MACHINE = {"seconds", "tokens_per_second", "data_wait", "memory_gib"}


def train(values, resume="never"):
    return run(parse(TrainConfig, values, "test"), resume=resume, progress=False)


def log(out):
    """The lines of the steps, without what depends on the machine."""
    lines = [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines if "loss" in line]


def losses(out):
    return [line["loss"] for line in log(out)]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors") | load_file(Path(folder) / "vtskip_model.safetensors")
