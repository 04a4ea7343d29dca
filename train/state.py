"""What transformers' checkpoints leave out: the unfinished log interval, and what the probe saw last. One file per process."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vtskip._files import write_atomic
from vtskip.train.checkpoints import state_of
from vtskip.train.probe import Probe
from vtskip.train.watch import Watcher

KEPT = "probe."


def save_state(folder: Path, rank: int, trainer: Any, watcher: Watcher, probe: Probe | None) -> None:
    """Into the checkpoint ``folder``. Numbers as JSON in the file's header; nothing in it is ever unpickled."""
    numbers, tensors = watcher.state()
    loss = {
        "last_logged": trainer._globalstep_last_logged,
        "total_loss": trainer._total_loss_scalar,
        "world": trainer.args.world_size,
    }
    held: dict[str, Tensor] = {"loss": trainer._tr_loss.detach().cpu().reshape(1), **tensors}
    if probe is not None:
        held |= {f"{KEPT}{layer}": kept.contiguous() for layer, kept in probe.before.items()}
    write_atomic(state_of(folder, rank), save(held, {"watch": json.dumps(numbers), "trainer": json.dumps(loss)}))


def load_state(folder: Path, rank: int, trainer: Any, watcher: Watcher, probe: Probe | None) -> None:
    """From a checkpoint; nothing to do where something else wrote it."""
    path = state_of(folder, rank)
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    with torch.no_grad():
        trainer._tr_loss += tensors.pop("loss").reshape(()).to(trainer._tr_loss.device)
    trainer._globalstep_last_logged = facts["trainer"]["last_logged"]
    trainer._total_loss_scalar = facts["trainer"]["total_loss"]
    kept = {int(key.removeprefix(KEPT)): tensors.pop(key) for key in [*tensors] if key.startswith(KEPT)}
    if probe is not None:
        probe.before = kept
    watcher.restore(facts["watch"], tensors)
