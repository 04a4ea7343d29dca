"""Where a run starts: anew, or from a checkpoint of the very same run; and what is left of a run that failed."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vtskip._files import write_atomic
from vtskip.config import read_yaml
from vtskip.data.config import KINDS, OWN_KEYS, DataConfig
from vtskip.errors import ConfigError, nearest
from vtskip.train.checkpoints import STAGE, checkpoints, processes_of
from vtskip.train.config import TrainConfig
from vtskip.train.locks import LOCK_NAME
from vtskip.train.options import BAD_BATCHES

OURS = {LOCK_NAME, BAD_BATCHES}  # what may lie in a folder that counts as empty, and outlives a run that failed
CONFIG_NAME, LOG_NAME = "train_config.yaml", "train_log.jsonl"
RESUME = ("auto", "never")
EARLY = {
    CONFIG_NAME,
    LOG_NAME,
    STAGE,
    "broken.jsonl",
    "pictures",
    "tensorboard",
    "wandb",
}  # what a run writes before it
# What may differ between a run and its resumption: its length, its logging, and what changes no number.
FREE_ON_RESUME = {
    "name",
    "out",
    "optim.steps",
    "optim.epochs",
    "validation",
    "evaluation",
    "best.patience",
    "report_to",
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "watch",
    "workers",
    "sampling.prefetch",
    "cache_frames",
}


def find_start(config: TrainConfig, resume: str | Path) -> Path | None:
    """The checkpoint to go on from, or None for a new run.

    resume: ``never`` wants ``config.out`` new or empty; ``auto`` goes on from the newest checkpoint there, or starts anew if
    the run ended before its first one; a path goes on from that checkpoint, or from the newest one of that run.
    Raises ConfigError for a folder that does not fit.
    """
    out, held = config.out, held_by(config)
    if resume == "never":
        if held:
            raise ConfigError(
                f"out {out}: not empty ({', '.join(held[:3])}); resume the run in it (--resume auto), or choose another folder"
            )
        return None
    if resume == "auto":
        found = checkpoints(out) if held else []
        if not found and (foreign := [name for name in held if name not in EARLY]):
            raise ConfigError(f"out {out}: not empty ({', '.join(foreign[:3])}), and no checkpoint to resume from")
        start = found[-1] if found else None
    else:
        start = named(Path(resume))
        if held and start.parent.resolve() != out.resolve():
            raise ConfigError(f"out {out}: not empty ({', '.join(held[:3])}), and {start} is of another run")
    if start is not None:
        check_same_run(config, start)
        check_same_processes(start)
    return start


def held_by(config: TrainConfig) -> list[str]:
    """Names in the run's folder, without its own data. Raises ConfigError where it is a file."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {out}: is a file; accepted: a folder, new or empty")
    sources = [*config.sources, *([config.validation] if config.validation else [])]
    roots = [d.root.resolve() for d in sources if d.root is not None]
    entries = [p for p in out.iterdir() if p.name not in OURS] if out.exists() else []
    return sorted(p.name for p in entries if not any(root.is_relative_to(p.resolve()) for root in roots))


def named(path: Path) -> Path:
    """The checkpoint that ``path`` means. Raises ConfigError."""
    if (path / "trainer_state.json").is_file():
        return path
    found = checkpoints(path) if path.is_dir() else []
    if not found:
        near = "" if path.exists() else nearest(str(path), RESUME)
        raise ConfigError(
            f"--resume {path}: no checkpoint there{near}; accepted: auto, never, a checkpoint or a run's folder"
        )
    return found[-1]


def check_same_run(config: TrainConfig, start: Path) -> None:
    """Raises ConfigError naming the first key in which ``config`` differs from the run that wrote ``start``."""
    path = start.parent / CONFIG_NAME
    saved, own = dict(leaves(read_yaml(path))), dict(leaves(as_yaml(config)))
    for key in [*own, *(k for k in saved if k not in own)]:
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_ON_RESUME)
        if not free and saved.get(key) != own.get(key):
            raise ConfigError(
                f"{path}: the run to resume has {key} {saved.get(key)!r}, this configuration {own.get(key)!r}; "
                "accepted: other lengths and logging"
            )


def check_same_processes(start: Path) -> None:
    """Raises ConfigError where ``start`` was written by another number of processes: steps would be of other samples."""
    before, now = processes_of(start), int(os.environ.get("WORLD_SIZE", 1))
    if before not in (None, now):
        raise ConfigError(
            f"{start}: written by {count(before)}, and this run has {count(now)}, whose steps would be of other samples; "
            f"resume with --nproc {before} (or a launcher's equal), or start a new run from the exported model"
        )


def count(processes: int | None) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of everything but groups; lists and empty groups are values."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def as_yaml(config: TrainConfig) -> dict[str, Any]:
    """Plain values, as they are written and compared. The model's defaults stay out: a checkpoint brings its own."""
    model = json.loads(config.model.model_dump_json(exclude_unset=True))
    values = json.loads(config.model_dump_json()) | {"model": model}
    sources = [plain_data(source) for source in config.sources]
    values["data"] = sources if isinstance(config.data, list) else sources[0]
    if config.validation is not None:
        values["validation"] = plain_data(config.validation)
    return values


def plain_data(source: DataConfig) -> dict[str, Any]:
    """With its defaults, but for keys of other kinds, which would be refused when they are read again."""
    unknown = OWN_KEYS - KINDS[source.kind].keys
    return {key: value for key, value in json.loads(source.model_dump_json()).items() if key not in unknown}


def write_config(config: TrainConfig) -> None:
    """``train_config.yaml``: what ran, in a form that can be run again."""
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / CONFIG_NAME, yaml.safe_dump(as_yaml(config), sort_keys=False).encode())


def forget(out: Path, before: set[Path]) -> None:
    """Remove what a failed run has written."""
    for path in set(out.iterdir()) - before if out.exists() else ():
        if path.name in OURS:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
