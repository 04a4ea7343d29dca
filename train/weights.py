"""The model's own files in a run's folder: a whole model, or adapters with what learned beside them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vtskip.errors import CheckpointError, one_line
from vtskip.loading import load_state
from vtskip.models.families import unwrap
from vtskip.models.streaming_llava import METHOD_KEY
from vtskip.runtime.attach import attached
from vtskip.saving import WEIGHTS_NAME
from vtskip.train.adapters import ADAPTER_NAME, is_adapted, load_trained, save_adapters


def write_weights(model: Any, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Configuration and weights without the method's, as safetensors. state: of ``model``, where it had to be gathered."""
    if is_adapted(model):
        save_adapters(model, folder, state)
        return
    state = model.state_dict() if state is None else state
    model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if METHOD_KEY not in k})


def read_weights(model: Any, folder: Path) -> None:
    """What :func:`write_weights` and ``vtskip.saving`` have written, into the model. Raises CheckpointError."""
    if is_adapted(model):
        read_adapter(model, folder)
        load_trained(model, folder)
    else:
        try:  # by transformers, which maps the names that it writes to those in the model
            saved = type(model).from_pretrained(folder, dtype=next(model.parameters()).dtype)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
            raise CheckpointError(f"{folder}: the model there cannot be read ({one_line(e)[:300]})") from None
        result = model.load_state_dict(saved.state_dict(), strict=False)
        if lost := [k for k in result.missing_keys if METHOD_KEY not in k] + result.unexpected_keys:
            raise CheckpointError(f"{folder}: another model: {lost[0]} is not in both")
    if attached(unwrap(model)) is not None:
        load_state(model, folder / WEIGHTS_NAME)


def read_adapter(model: Any, folder: Path) -> None:
    """PEFT's adapter file. Raises CheckpointError where it is missing, damaged or of another shape."""
    from peft import set_peft_model_state_dict

    path = folder / ADAPTER_NAME
    try:
        result: Any = set_peft_model_state_dict(model, load_file(path))
    except (OSError, RuntimeError, SafetensorError) as e:
        raise CheckpointError(f"{path}: cannot be read ({one_line(e)[:300]})") from None
    missing = [k for k in result.missing_keys if ".lora_" in k]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{path}: made for another adapter: {(missing + result.unexpected_keys)[0]} is not in both"
        )


def count(model: torch.nn.Module) -> tuple[int, int]:
    """Trained and all parameters, under ZeRO-3 too."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
