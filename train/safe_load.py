"""Checkpoints are read without running what is in them, also where DeepSpeed would."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vtskip.errors import CheckpointError

SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # DeepSpeed asks torch.load for everything; this has the last word
# Plain records without code of their own that stand in DeepSpeed's optimizer states.
RECORDS = (
    ("deepspeed.runtime.fp16.loss_scaler", ("LossScaler", "DynamicLossScaler")),
    ("deepspeed.utils.tensor_fragment", ("fragment_address",)),
    ("deepspeed.runtime.zero.config", ("ZeroStageEnum",)),
)


@contextmanager
def numbers_only(checkpoint: Path | None, deepspeed: bool) -> Iterator[None]:
    """Inside, ``torch.load`` takes tensors and plain values alone. Raises CheckpointError for a file with more."""
    if checkpoint is None:
        yield
        return
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        with torch.serialization.safe_globals(_records() if deepspeed else []):
            yield
    except UnpicklingError as e:
        last = str(e).partition("WeightsUnpickler error: ")[2].partition(" Please use")[0].partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint}: more than numbers in it, so it is not read ({last or 'damaged'})"
        ) from None
    finally:
        if before is None:
            os.environ.pop(SWITCH)
        else:
            os.environ[SWITCH] = before


def _records() -> list[Any]:
    found = []
    for module, names in RECORDS:
        loaded = import_module(module)
        found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return found
