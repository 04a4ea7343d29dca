"""LoRA through PEFT, and the files of a run whose model is mostly frozen.

Such a run saves PEFT's own adapter files, the method's two, and ``trained.safetensors``: the parameters that learned in full
(connector, norms, ...) by their names in the bare model. PEFT's ``modules_to_save`` would copy whole modules for these, and
copying a planner turns skipping off.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vtskip._files import write_atomic
from vtskip.errors import CheckpointError, ConfigError, nearest
from vtskip.models.streaming_llava import METHOD_KEY
from vtskip.train.parts import matching, part_of, plain
from vtskip.train.sections import Lora

TRAINED_NAME = "trained.safetensors"
ADAPTER_NAME = "adapter_model.safetensors"


def add_lora(model: nn.Module, lora: Lora, precision: str = "fp32") -> Any:
    """``model`` inside PEFT with adapters on ``lora.targets``; what learned in full before still does.

    precision ``bf16`` holds frozen weights in bf16. Raises ConfigError without PEFT, or where a pattern matches no layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("lora: PEFT is not installed; pip install 'vtskip[peft]'") from None
    targets = linear_layers(model, lora)
    in_full = {
        name for name, p in model.named_parameters() if p.requires_grad and name.rpartition(".")[0] not in targets
    }
    if precision == "bf16":
        for name, parameter in model.named_parameters():
            if name not in in_full and METHOD_KEY not in name and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    options = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        target_modules=targets,
    )
    with warnings.catch_warnings():  # PEFT asks transformers by a name that is going to change
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        adapted = get_peft_model(model, options)
    for name, parameter in adapted.named_parameters():
        if plain(name) in in_full:
            parameter.requires_grad_(True)
    return adapted


def linear_layers(model: nn.Module, lora: Lora) -> list[str]:
    """Names of the layers that get an adapter. Raises ConfigError where a pattern matches none."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and METHOD_KEY not in f".{name}." and part_of(name) in lora.parts
    ]
    return sorted({name for pattern in lora.targets for name in matching(pattern, names, "lora.targets")})


def is_adapted(model: nn.Module) -> bool:
    """Whether PEFT is around ``model``."""
    return hasattr(model, "peft_config")


def full_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns in full inside PEFT, the method's parameters apart: plain name -> parameter."""
    return {
        plain(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and METHOD_KEY not in name and ".lora_" not in name
    }


def save_adapters(model: Any, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Adapter files and ``trained.safetensors``. state: of the wrapped model, where it had to be gathered."""
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    whole = {plain(name): tensor for name, tensor in (state or {}).items()}
    tensors = {name: whole.get(name, parameter.detach()) for name, parameter in full_parameters(model).items()}
    write_atomic(folder / TRAINED_NAME, save({k: t.cpu().contiguous() for k, t in tensors.items()}))


def load_trained(model: Any, folder: Path) -> None:
    """``trained.safetensors`` of ``folder`` into the model. Raises CheckpointError where they do not fit."""
    path = folder / TRAINED_NAME
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: cannot be read ({e})") from None
    own = {plain(name): parameter for name, parameter in model.named_parameters()}
    for name, tensor in saved.items():
        if name not in own:
            raise CheckpointError(f"{path}: unexpected parameter {name!r}{nearest(name, own)}")
        if own[name].shape != tensor.shape:
            raise CheckpointError(f"{path}: {name} is {list(tensor.shape)}, the model has {list(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(tensor)
