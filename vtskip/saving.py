"""Save a method beside a checkpoint, as peft saves an adapter: its configuration, what was trained, and the base it needs.

``vtskip_config.json`` holds the method, the base model's identity and the library's version; ``vtskip_model.safetensors``
the trained parameters under keys that no architecture changes; ``README.md`` is the model card.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from vtskip import __version__
from vtskip._files import write_atomic
from vtskip.errors import CheckpointError, one_line
from vtskip.model_card import write_card
from vtskip.models.families import decoder_of, shape_of, unwrap
from vtskip.models.sharding import gathered
from vtskip.runtime.attach import attached

CONFIG_NAME = "vtskip_config.json"
WEIGHTS_NAME = "vtskip_model.safetensors"
# A module that PEFT trains as a whole: the frozen original, and one copy per adapter.
PEFT_COPY = re.compile(r"(.+)\.(?:original_module|modules_to_save\.([^.]+))\.(.+)")


def base_facts(model: nn.Module) -> dict[str, Any]:
    """What identifies the base model a method was trained on."""
    decoder, _ = decoder_of(model)
    shape = shape_of(decoder)
    return {
        "model_class": type(model).__name__.removeprefix("FSDP"),
        "text_model_type": decoder.config.model_type,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "name_or_path": getattr(model.config, "_name_or_path", "") or None,
        "revision": getattr(model.config, "_commit_hash", None),
    }


def method_state(model: nn.Module) -> dict[str, Tensor]:
    """:func:`method_parameters` without their gradients. Under ZeRO-3 they are gathered: every process has to call this."""
    return {key: gathered(parameter) for key, parameter in method_parameters(model).items()}


def method_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters of the attached method, under keys that no architecture changes: ``layers.{i}.router.weight``.

    A parameter that several layers share appears once, under the first of them. Of a router that PEFT trains
    (``modules_to_save``) it is the active adapter's copy.
    """
    decoder, _ = decoder_of(unwrap(model))
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for i, layer in enumerate(decoder.layers):
        planner = layer._modules.get("vtskip")
        for name, parameter in planner.state_dict(keep_vars=True).items() if planner is not None else ():
            key = canonical(planner, name)
            if key is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                state[f"layers.{i}.{key}"] = parameter
    return state


def canonical(planner: nn.Module, name: str) -> str | None:
    """A parameter's name without PEFT's wrapper; None for a copy that is not in use."""
    match = PEFT_COPY.fullmatch(name)
    if match is None:
        return name
    wrapper: Any = planner.get_submodule(match[1])
    active = None if wrapper.disable_adapters or not wrapper.active_adapters else wrapper.active_adapters[0]
    return f"{match[1]}.{match[3]}" if match[2] == active else None


def whole(key: str, tensor: Tensor) -> Tensor:
    """``tensor`` on the CPU, gathered if FSDP2 has spread it (every process must call this). Raises CheckpointError."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    if tensor.numel() == 0 or tensor.is_meta:
        raise CheckpointError(f"{key} has no values here (a meta device): load it and pass state=")
    return tensor.cpu().contiguous()


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    state: dict[str, Tensor] | None = None,
    card: bool = True,
    name: str | None = None,
) -> None:
    """Write the attached method into ``folder``: configuration, trained parameters and a model card.

    Args:
        model: with a method attached, bare or inside a PEFT wrapper. The base model's own weights are not written.
        state: parameters gathered by the caller, by the keys of :func:`method_state`.
        card: write ``README.md`` too, or the method's part of one that is there already.
        name: what the card says to load; the folder's name by default.

    Raises:
        CheckpointError: no method is attached, or its parameters are not in this process.
    """
    model, folder = unwrap(model), Path(folder)
    handle = attached(model)
    if handle is None:
        raise CheckpointError(f"{type(model).__name__} has no method attached: nothing to save in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: whole(key, t) for key, t in (method_state(model) if state is None else state).items()}
    config = {
        "vtskip_version": __version__,
        "method": handle.method.model_dump(mode="json"),  # type: ignore[attr-defined]
        "base": base_facts(model),
    }
    write_atomic(folder / WEIGHTS_NAME, save(weights))
    write_atomic(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())
    if card:
        write_card(handle, config, folder, name or folder.name)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a vtskip method",
) -> str:
    """Upload what :func:`save_pretrained` writes to the Hugging Face Hub, and return the address of the commit.

    Raises CheckpointError if nobody is logged in or the Hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    if token is None and get_token() is None:
        raise CheckpointError(f"{repo_id}: not logged in to the Hugging Face Hub; run `hf auth login` or pass token=")
    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=repo_id)
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo.repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{repo_id}: the Hugging Face Hub refused it ({one_line(e)})") from None
    return commit.commit_url
