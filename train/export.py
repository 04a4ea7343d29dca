"""A run or a checkpoint as one plain model: adapters merged, shards joined, safetensors throughout."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vtskip.config import load_config
from vtskip.errors import CheckpointError, ConfigError, one_line
from vtskip.runtime.attach import attached
from vtskip.saving import save_pretrained
from vtskip.train.adapters import ADAPTER_NAME
from vtskip.train.checkpoints import checkpoints
from vtskip.train.config import TrainConfig
from vtskip.train.start import CONFIG_NAME

WHOLE = ("model.safetensors", "model.safetensors.index.json")


def export(run: Path, out: Path, zero: bool = False) -> dict[str, Any]:
    """Write the model of ``run`` (a run's folder, or a checkpoint in it) to ``out``, for ``vtskip.load_pretrained``.

    zero: from the fp32 weights in DeepSpeed's own shards, where the folder has both these and 16-bit ones. They are pickled:
    for checkpoints of one's own runs only. Raises CheckpointError for a folder without a model, ConfigError for ``out``.
    """
    from vtskip.train.setup import quiet

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: not empty; accepted: a new folder")
    folder = model_folder(run)
    config = run_config(folder)
    model, processing = shards_of(config, folder) if zero or sharded(folder) else rebuilt(config, folder)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with quiet():
            model.save_pretrained(
                stage, state_dict={k: v for k, v in model.state_dict().items() if ".vtskip." not in k}
            )
        processing.save_pretrained(stage)
        if attached(model) is not None:
            save_pretrained(model, stage, name=out.name)
        os.chmod(stage, 0o755)
        if out.exists():
            out.rmdir()
        stage.rename(out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    handle = attached(model)
    return {
        "out": str(out),
        "from": str(folder),
        "model": type(model).__name__,
        "method": None if handle is None else handle.method.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    }


def has_model(folder: Path) -> bool:
    return (folder / ADAPTER_NAME).is_file() or any((folder / name).is_file() for name in WHOLE)


def sharded(folder: Path) -> bool:
    """Whether there is nothing but DeepSpeed's own files."""
    return not has_model(folder) and any(folder.glob("global_step*"))


def model_folder(run: Path) -> Path:
    """Where the weights are: the folder itself, else its newest checkpoint. Raises CheckpointError."""
    for folder in (run, *reversed(checkpoints(run) if run.is_dir() else [])):
        if has_model(folder) or any(folder.glob("global_step*")):
            return folder
    raise CheckpointError(f"{run}: no model there: neither {WHOLE[0]}, nor {ADAPTER_NAME}, nor a checkpoint")


def run_config(folder: Path) -> TrainConfig:
    """The configuration of the run that wrote ``folder``. Raises CheckpointError."""
    path = next((p / CONFIG_NAME for p in (folder, folder.parent) if (p / CONFIG_NAME).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: no {CONFIG_NAME} there or above it: not a run of vtskip train")
    return load_config(TrainConfig, path)


def empty(config: TrainConfig, folder: Path) -> tuple[Any, Any]:
    """The run's model as it began, on the CPU, and its tokenizer or processor as saved."""
    from vtskip.train.build import build_model
    from vtskip.train.setup import quiet

    model = config.model
    if model.pretrained is None and model.checkpoint is None:  # its words are those of the texts it was trained on
        model = model.model_copy(update={"tokenizer": str(folder)})
    with quiet():
        built, processing, _ = build_model(config.model_copy(update={"model": model, "precision": "fp32"}), [])
    return built, processing


def rebuilt(config: TrainConfig, folder: Path) -> tuple[Any, Any]:
    from vtskip.train.setup import quiet
    from vtskip.train.weights import read_weights

    model, processing = empty(config, folder)
    with quiet():
        read_weights(model, folder)
    return model, processing


def shards_of(config: TrainConfig, folder: Path) -> tuple[Any, Any]:
    """The model with the weights that DeepSpeed has spread over files, whatever its stage. Raises CheckpointError."""
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise ConfigError("deepspeed: not installed; pip install 'vtskip[deepspeed]'") from None
    try:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    except Exception as e:  # it raises kinds of its own, and bare ones
        raise CheckpointError(f"{folder}: no DeepSpeed checkpoint that can be joined ({one_line(e)[:300]})") from None
    model, processing = empty(config, folder)
    result = model.load_state_dict(state, strict=False)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    if lost := [k for k in result.missing_keys if k in learned] + result.unexpected_keys:
        raise CheckpointError(f"{folder}: another model: {lost[0]} is not in both")
    return model, processing
