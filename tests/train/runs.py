"""What the tests of runs share: starting one, and reading its log."""

import json
from pathlib import Path

from safetensors.torch import load_file

from vtskip.config import parse
from vtskip.eval.training import scorer_of
from vtskip.train import TrainConfig, run

# What a log line says about the machine and not about the training.
OF_THE_MACHINE = {"seconds", "tokens_per_second", "data_wait", "memory_gib"}


def tiny_values(root, out):
    """Values of a TrainConfig: three steps of a tiny model with ``mod`` routers on the smoke tier in ``root``."""
    return {
        "out": str(out),
        "method": {"name": "mod", "keep": 0.4},
        "model": {
            "vision": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 16, "image_size": 32},
            "pool": [2, 2],
            "lm": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "tokenizer": "words",
        },
        "data": {
            "kind": "synthetic",
            "root": str(root),
            "tier": "smoke",
            "split": "train",
            "system": "You see it.",
            "instruction": "Narrate.",
        },
        "optim": {"steps": 3, "batch_size": 2, "lr": 0.01},
        "log_every": 1,
        "cache_frames": 1000,
    }


def train(values, resume="never"):
    config = parse(TrainConfig, values, "test")
    scorer = None if config.evaluation is None else scorer_of(config.evaluation, config.out)
    return run(config, resume=resume, progress=False, scorer=scorer)


def log(out):
    """The lines of the steps, without what depends on the machine."""
    lines = [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines if "loss" in line]


def losses(out):
    return [line["loss"] for line in log(out)]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors") | load_file(Path(folder) / "vtskip_model.safetensors")
