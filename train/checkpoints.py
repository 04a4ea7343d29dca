"""Checkpoints that are whole or not there: written in a folder of their own, moved into place, and only then rotated."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vtskip.errors import CheckpointError, one_line

STAGE = ".saving"
NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found) if (p / "trainer_state.json").is_file()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def state_of(checkpoint: Path, rank: int) -> Path:
    """The file in which a process keeps what transformers' checkpoints leave out, see ``vtskip.train.state``."""
    return checkpoint / f"run_state_{rank}.safetensors"


def processes_of(checkpoint: Path) -> int | None:
    """How many processes wrote it; None where nothing tells. Raises CheckpointError for a damaged file."""
    path = state_of(checkpoint, 0)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["trainer"])["world"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: cannot be read ({one_line(e)}); --resume an earlier checkpoint") from None


def empty_stage(out: Path) -> Path:
    """The folder in which something is written first, without what an interrupted run has left there."""
    stage = out / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    return stage


def publish(out: Path, name: str, keep: int, best: str | None = None) -> None:
    """Move checkpoint ``name`` out of the stage; then remove the oldest beyond ``keep``, never this one nor ``best``.

    It is on the disk before it gets its name, so that not even a power cut leaves half a checkpoint.
    """
    staged, place = out / STAGE / name, out / name
    sync(staged)
    if place.exists():  # of an earlier attempt at the same step
        os.rename(place, out / STAGE / "replaced")
    os.rename(staged, place)
    sync_folder(out)
    shutil.rmtree(out / STAGE, ignore_errors=True)
    others = [p for p in checkpoints(out) if p != place and p.name != best]
    for old in others[: max(len(others) + 1 - keep, 0)]:
        shutil.rmtree(old, ignore_errors=True)


def publish_files(out: Path, staged: Path) -> None:
    """Move the files of a finished model to their places, each whole."""
    sync(staged)
    for path in sorted(staged.rglob("*")):
        if path.is_file():
            place = out / path.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    sync_folder(out)
    shutil.rmtree(out / STAGE, ignore_errors=True)


def set_aside_later(out: Path, step: int) -> None:
    """A run that goes on from an earlier checkpoint leaves the later ones behind, as ``abandoned-checkpoint-N``."""
    for later in checkpoints(out):
        if step_of(later) > step:
            aside = out / f"abandoned-{later.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(later, aside)


def sync(folder: Path) -> None:
    """Have the system write a folder's files to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def cleared(out: Path) -> Iterator[None]:
    """Where the block fails, what it has staged is removed: on a full disk that makes room again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(out / STAGE, ignore_errors=True)
        raise
