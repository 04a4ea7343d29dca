"""One training run, from a configuration to a folder with the trained model."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtskip._shipped import file_or_shipped
from vtskip.errors import ConfigError
from vtskip.train.checkpoints import checkpoints
from vtskip.train.config import TrainConfig
from vtskip.train.locks import run_lock
from vtskip.train.start import find_start, forget, write_config

if TYPE_CHECKING:
    from vtskip.train.scoring import Scorer

GATHER = "stage3_gather_16bit_weights_on_model_save"


def run(
    config: TrainConfig,
    resume: str | Path | bool = "never",
    progress: bool = True,
    scorer: "Scorer | None" = None,
) -> dict[str, Any]:
    """Train and write the run's folder; returns its summary (out, steps, loss, seconds, trained parameters, last scores).

    scorer: what takes the scores of ``config.evaluation``: ``vtskip.eval.training.scorer_of(config.evaluation, config.out)``.
    resume: ``never``, ``auto`` (from the newest checkpoint in ``config.out``, if there is one) or the path of a checkpoint; a
    run that goes on does so bit for bit as if never interrupted.
    Raises VtskipError on bad input; a run that fails before its first checkpoint leaves nothing behind.
    """
    if isinstance(resume, bool):
        resume = "auto" if resume else "never"
    if config.evaluation is not None and scorer is None:
        raise ConfigError(
            "evaluation: from Python, run(..., scorer=vtskip.eval.training.scorer_of(config.evaluation, config.out))"
        )
    settings = read_deepspeed(config)
    if os.environ.get("RANK", "0") != "0":
        return train(config, find_start(config, resume), settings, False, scorer)
    find_start(config, resume)  # what is wrong with the folder is told first, and leaves it as it is
    with run_lock(config.out):
        return train(config, find_start(config, resume), settings, progress, scorer)


def train(
    config: TrainConfig,
    checkpoint: Path | None,
    settings: dict[str, Any] | None,
    progress: bool,
    scorer: "Scorer | None",
) -> dict[str, Any]:
    """What :func:`run` does in a folder that is its own."""
    from vtskip.data import build
    from vtskip.train.build import build_model
    from vtskip.train.loop import BROKEN_LOG
    from vtskip.train.mixture import note_left_out, training_samples
    from vtskip.train.reports import reports
    from vtskip.train.setup import make_trainer, quiet, training_arguments
    from vtskip.train.weights import count

    with quiet():
        reports(config)  # what is not installed is better known now
        arguments = training_arguments(config, settings)
        with arguments.main_process_first(local=False):  # one process makes a missing synthetic set
            left_out: dict[str, str] = {}
            samples = training_samples(config, progress, left_out)
            held_out = build(config.validation, progress=progress) if config.validation else None
            if scorer is not None:
                scorer.read()
        model, processing, template = build_model(config, samples)
        if scorer is not None:
            scorer.fits(template)
        before = set(config.out.iterdir()) if config.out.exists() else set()
        trainer, bar = make_trainer(config, model, processing, template, arguments, samples, held_out, progress, scorer)
        start = time.monotonic()
        try:
            if arguments.should_save:
                write_config(config)
                note_left_out(config.out / BROKEN_LOG, left_out)
            trainer.fit(checkpoint)
        except BaseException:
            if arguments.should_save and checkpoint is None and not checkpoints(config.out):
                forget(config.out, before)
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
            "broken": len(trainer.broken_samples()),
            "trained_parameters": count(model)[0],
            "best": None if trainer.best is None else trainer.best.checkpoint,
            "ended_early": trainer.best is not None and trainer.best.exhausted,
        } | (final_evaluation(trainer) if trainer.evaluates else {})


def final_evaluation(trainer: Any) -> dict[str, float]:
    """The held-out loss and the task scores of the finished model; taken anew only where its step did not take them."""
    from vtskip.train.scoring import is_score

    of_step = [entry for entry in trainer.state.log_history if entry["step"] == trainer.finished_step]
    found = {key: value for entry in of_step for key, value in entry.items() if is_score(key)}
    return found or {key: value for key, value in trainer.evaluate().items() if is_score(key)}


def read_deepspeed(config: TrainConfig) -> dict[str, Any] | None:
    """The DeepSpeed settings in a JSON file, or in a shipped one by its name (``zero2``).

    Raises ConfigError if it is missing, damaged or would write no model.
    """
    if config.deepspeed is None:
        return None
    path = file_or_shipped(config.deepspeed, "deepspeed")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"deepspeed {path}: cannot be read ({e.strerror or e})") from None
    except ValueError as e:
        raise ConfigError(f"deepspeed {path}: not valid JSON ({e})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"deepspeed {path}: expected an object, got {type(settings).__name__}")
    agree(settings, config, str(path))
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") == 3 and not zero.setdefault(GATHER, True):
        raise ConfigError(f"deepspeed {path}: {GATHER} false: no model could be written; accepted: true")
    return settings


def agree(settings: dict[str, Any], config: TrainConfig, path: str) -> None:
    """Raises ConfigError where a DeepSpeed file says what the run's file says, and says it otherwise."""
    optim = config.optim
    for key, name in (("optimizer", "optim"), ("scheduler", "optim.schedule")):
        if key in settings:
            raise ConfigError(f"deepspeed {path}: {key!r} would take the place of {name!r} of the run; leave it out")
    if (settings.get("fp16") or {}).get("enabled") is True:
        raise ConfigError(f"deepspeed {path}: fp16 enabled; accepted: precision fp32 or bf16 of the run")
    said = settings | {"bf16.enabled": (settings.get("bf16") or {}).get("enabled")}
    for key, name, own in (
        ("bf16.enabled", "precision", config.precision == "bf16"),
        ("gradient_clipping", "optim.clip", optim.clip),
        ("gradient_accumulation_steps", "optim.accumulate", optim.accumulate),
        ("train_micro_batch_size_per_gpu", "optim.batch_size", optim.batch_size),
        ("train_batch_size", "optim.batch_size", "auto"),
    ):
        if said.get(key) not in (None, "auto", own):
            raise ConfigError(f'deepspeed {path}: {key} {said[key]!r} is not what {name!r} says; accepted: "auto"')
