"""Save a method beside a checkpoint: its configuration, what was trained of it, and the base model it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vtskip import __version__
from vtskip._files import write_atomic
from vtskip.config import parse
from vtskip.errors import CheckpointError
from vtskip.methods import METHODS, get_method
from vtskip.models.families import decoder_of, shape_of, unwrap
from vtskip.runtime.attach import Handle, attach, attached

CONFIG_NAME = "vtskip_config.json"
WEIGHTS_NAME = "vtskip_model.safetensors"


def base_facts(model: nn.Module) -> dict[str, Any]:
    """What identifies the base model a method was trained on."""
    decoder, _ = decoder_of(model)
    shape = shape_of(decoder)
    return {
        "model_class": type(model).__name__,
        "text_model_type": decoder.config.model_type,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "name_or_path": getattr(model.config, "_name_or_path", "") or None,
    }


def method_state(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters of the attached method, under keys that no architecture changes: ``layers.{i}.router.weight``."""
    decoder, _ = decoder_of(unwrap(model))
    return {
        f"layers.{i}.{name}": parameter.detach()
        for i, layer in enumerate(decoder.layers)
        if hasattr(layer, "vtskip")
        for name, parameter in layer.vtskip.state_dict(keep_vars=True).items()
    }


def save_method(model: nn.Module, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write ``vtskip_config.json`` and ``vtskip_model.safetensors``. Raises CheckpointError if no method is attached.

    ``state``: parameters gathered by the caller (ZeRO-3), by the keys of :func:`method_state`.
    """
    model, folder = unwrap(model), Path(folder)
    handle = attached(model)
    if handle is None:
        raise CheckpointError(f"{type(model).__name__} has no method attached: nothing to save in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    weights = method_state(model) if state is None else state
    write_atomic(folder / WEIGHTS_NAME, save({k: t.cpu().contiguous() for k, t in weights.items()}))
    config = {
        "vtskip_version": __version__,
        "method": handle.method.model_dump(mode="json"),  # type: ignore[attr-defined]
        "base": base_facts(model),
    }
    write_atomic(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())


def read_config(folder: str | Path) -> dict[str, Any]:
    """``vtskip_config.json`` of a folder. Raises CheckpointError that names the file and what is wrong with it."""
    path = Path(folder) / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(config["method"]["name"], str) and isinstance(config["base"], dict)):
            raise TypeError("method and base must be objects")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: not a vtskip checkpoint ({type(e).__name__}: {e})") from None
    return config


def load_method(model: nn.Module, folder: str | Path) -> Handle:
    """Attach the saved method with its trained parameters.

    Raises:
        CheckpointError: a damaged file, another base model, or parameters that do not fit. The model is left as it was.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_base(config["base"], base_facts(unwrap(model)), folder)
    method = config["method"]
    if method["name"] in METHODS:
        spec = parse(METHODS[method["name"]], method, str(folder / CONFIG_NAME))
    else:
        spec = get_method(method)  # raises with the known names
    handle = attach(model, spec)
    try:
        load_state(model, folder / WEIGHTS_NAME)
    except BaseException:
        handle.detach()
        raise
    return handle


def load_state(model: nn.Module, path: Path) -> None:
    """Copy saved parameters into the attached method. Raises CheckpointError on missing, extra or misshapen ones."""
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: cannot be read ({e})") from None
    own = method_state(model)
    if saved.keys() != own.keys():
        missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        raise CheckpointError(f"{path}: missing parameters {missing}, unexpected parameters {extra}")
    for key, tensor in saved.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(f"{path}: {key} is {list(tensor.shape)}, the model has {list(own[key].shape)}")
    with torch.no_grad():
        for key, tensor in saved.items():
            own[key].copy_(tensor)


def check_base(saved: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    different = [k for k in own if k != "name_or_path" and saved.get(k) != own[k]]
    if different:
        facts = ", ".join(f"{k} {saved.get(k)!r} (this model: {own[k]!r})" for k in different)
        raise CheckpointError(f"{folder / CONFIG_NAME}: made for another base model: {facts}")


def load(folder: str | Path, method: Any = None, **kwargs: Any) -> tuple[nn.Module, Handle | None]:
    """A StreamingLlava checkpoint with its saved method attached.

    Args:
        folder: written by ``vtskip train`` or ``save_pretrained``. method: attach this one instead of the saved one.
        kwargs: for ``StreamingLlava.from_pretrained``.

    Returns:
        The model in eval mode, and the handle of its method (None: none was saved, the model is dense).
    """
    from vtskip.models.streaming_llava import StreamingLlava

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no model there (config.json is missing)")
    try:
        model = StreamingLlava.from_pretrained(folder, **kwargs).eval()
    except (OSError, SafetensorError, RuntimeError, KeyError) as e:
        raise CheckpointError(f"{folder}: the model cannot be read ({' '.join(str(e).split())})") from None
    if method is not None:
        return model, attach(model, method)
    return model, load_method(model, folder) if (folder / CONFIG_NAME).is_file() else None
