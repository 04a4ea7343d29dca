"""One training run, from a configuration to a folder with the trained model."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from vtskip._files import write_atomic
from vtskip.config import read_yaml
from vtskip.errors import ConfigError, DataError
from vtskip.train.config import TrainConfig

CONFIG_NAME = "train_config.yaml"
GATHER = "stage3_gather_16bit_weights_on_model_save"
# What may differ between a run and its resumption: everything else would make the second half another experiment.
FREE_ON_RESUME = {
    "name",
    "out",
    "validation",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "workers",
    "cache_frames",
}


def run(config: TrainConfig, resume: bool = False, progress: bool = True) -> dict[str, Any]:
    """Train and write the run's folder; returns its summary (out, steps, loss, seconds, trained parameters).

    resume: go on from the newest checkpoint in ``config.out``, bit for bit as if never interrupted.
    Raises VtskipError on bad input; a run that fails before its first checkpoint leaves nothing behind.
    """
    checkpoint = find_start(config, resume)
    settings = read_deepspeed(config)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns whenever transformers looks for it
    from vtskip.data import build
    from vtskip.train.build import build_model
    from vtskip.train.setup import make_trainer, quiet, training_arguments

    with quiet():
        arguments = training_arguments(config, settings)
        with arguments.main_process_first(local=False):  # one process makes a missing synthetic set
            samples = build(config.data, progress=progress)
            held_out = build(config.validation, progress=progress) if config.validation else None
        if not samples:
            raise DataError(f"no conversations to train on in {config.data}")
        model, tokenizer, template = build_model(config, samples)
        existed = config.out.exists()
        before = set(config.out.iterdir()) if existed else set()
        trainer, bar = make_trainer(config, model, tokenizer, template, arguments, samples, held_out, progress)
        start = time.monotonic()
        try:
            if arguments.should_save:
                write_config(config)
            trainer.fit(checkpoint)
        except BaseException:
            if arguments.should_save and checkpoint is None and not checkpoints(config.out):
                forget(config.out, before, existed)
            raise
        finally:
            bar.stop()
        return {
            "out": str(config.out),
            "main_process": arguments.should_save,
            "steps": trainer.state.global_step,
            "loss": next((e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e), None),
            "seconds": round(time.monotonic() - start, 2),
            "samples": len(samples),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        } | (final_evaluation(trainer) if held_out else {})


def final_evaluation(trainer: Any) -> dict[str, float]:
    """The validation scores of the finished model; taken anew only where the last step did not take them."""
    last = trainer.state.log_history[-2:]
    done = [entry for entry in last if entry["step"] == trainer.state.global_step and "eval_loss" in entry]
    return {"eval_loss": (done[0] if done else trainer.evaluate())["eval_loss"]}


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in ``folder``, oldest first; one whose writing was interrupted has no trainer state."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if (p / "trainer_state.json").is_file()), key=lambda p: int(p.name[11:]))


def find_start(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None for a new run. Raises ConfigError for a folder that does not fit."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {out}: is a file; accepted: a folder, new or empty")
    roots = [d.root.resolve() for d in (config.data, config.validation) if d is not None and d.root is not None]
    entries = list(out.iterdir()) if out.exists() else []
    held = [p.name for p in entries if not any(root.is_relative_to(p.resolve()) for root in roots)]
    if not resume:
        if held:
            raise ConfigError(
                f"out {out}: not empty ({', '.join(sorted(held)[:3])}); resume the run in it, or choose another folder"
            )
        return None
    found = checkpoints(out) if held else []
    if not found:
        raise ConfigError(f"out {out}: no checkpoint to resume from (save_every writes them)")
    check_same_run(config)
    return found[-1]


def check_same_run(config: TrainConfig) -> None:
    """Raises ConfigError naming the first key in which ``config`` differs from the run in its folder."""
    path = config.out / CONFIG_NAME
    saved, own = read_yaml(path), as_yaml(config)
    for key in own:
        if key not in FREE_ON_RESUME and saved.get(key) != own[key]:
            raise ConfigError(
                f"{path}: the run to resume has {key} {saved.get(key)!r}, this configuration {own[key]!r}"
            )


def as_yaml(config: TrainConfig) -> dict[str, Any]:
    """Plain values, as they are written and compared. The model's defaults stay out: a checkpoint brings its own."""
    model = json.loads(config.model.model_dump_json(exclude_unset=True))
    return json.loads(config.model_dump_json()) | {"model": model}


def write_config(config: TrainConfig) -> None:
    """``train_config.yaml``: what ran, with every default, in a form that can be run again."""
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / CONFIG_NAME
    write_atomic(path, yaml.safe_dump(as_yaml(config), sort_keys=False).encode())


def read_deepspeed(config: TrainConfig) -> dict[str, Any] | None:
    """The DeepSpeed settings in a JSON file. Raises ConfigError if it is missing, damaged or would write no model."""
    path = config.deepspeed
    if path is None:
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"deepspeed {path}: cannot be read ({e.strerror or e})") from None
    except ValueError as e:
        raise ConfigError(f"deepspeed {path}: not valid JSON ({e})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"deepspeed {path}: expected an object, got {type(settings).__name__}")
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") == 3 and not zero.setdefault(GATHER, True):
        raise ConfigError(f"deepspeed {path}: {GATHER} false: no model could be written; accepted: true")
    return settings


def forget(out: Path, before: set[Path], existed: bool) -> None:
    """Remove what a failed run has written."""
    for path in set(out.iterdir()) - before if out.exists() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not existed and out.exists() and not any(out.iterdir()):
        out.rmdir()
