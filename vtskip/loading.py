"""Load what :mod:`vtskip.saving` wrote: attach the saved method to its base model, or load both."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vtskip import __version__
from vtskip.config import parse
from vtskip.errors import CheckpointError, ConfigError, one_line
from vtskip.methods import METHODS, Method, get_method
from vtskip.models.families import unwrap
from vtskip.runtime.attach import Handle, attach
from vtskip.saving import CONFIG_NAME, WEIGHTS_NAME, base_facts, method_state

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_pretrained(
    model: nn.Module | str | Path, folder: str | Path | None = None, *, revision: str | None = None, **kwargs: Any
) -> Handle:
    """Attach a saved method with its trained parameters: ``load_pretrained(model, folder)``.

    ``load_pretrained(folder)`` loads the base model too, from the folder itself if one lies there, else by the id and
    revision on record; ``handle.model`` is the model.

    Args:
        folder: written by :func:`save_pretrained`, or the id of a Hub repository, whose ``revision`` this is.
        kwargs: for the base model's ``from_pretrained``.

    Raises:
        CheckpointError: a damaged file, another base model, or parameters that do not fit. The model is left as it was.
    """
    if isinstance(model, nn.Module):
        if folder is None or kwargs:
            raise TypeError(f"load_pretrained(model, folder): got folder {folder!r} and {sorted(kwargs)}")
        place = local(folder, revision)
        config = read_config(place)
    else:
        if folder is not None:
            raise TypeError(f"load_pretrained takes a model and a folder, or a folder alone; got {model!r}, {folder!r}")
        place = local(model, revision)
        config = read_config(place)
        model = load_base(config["base"], place, **kwargs)
    check_base(config["base"], base_facts(unwrap(model)), place)
    handle = attach(model, saved_method(config, place / CONFIG_NAME))
    try:
        load_state(model, place / WEIGHTS_NAME)
    except BaseException:
        handle.detach()
        raise
    return handle


def local(folder: str | Path, revision: str | None) -> Path:
    """``folder``, or where the files of that Hub repository have been put. Raises CheckpointError."""
    path = Path(folder)
    if path.is_dir() or not (isinstance(folder, str) and REPO_ID.fullmatch(folder)):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(folder, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{folder}: no folder here, and not read from the Hub ({one_line(e)})") from None


def read_config(folder: Path) -> dict[str, Any]:
    """``vtskip_config.json`` of a folder. Raises CheckpointError that names the file and what is wrong with it."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(config["method"]["name"], str) and isinstance(config["base"], dict)):
            raise TypeError("method and base must be objects")
    except (OSError, ValueError, KeyError, TypeError) as e:
        hint = (
            ""
            if path.exists()
            else "; vtskip.save_pretrained(model, folder) writes it, beside what a model itself saves"
        )
        raise CheckpointError(f"{path}: not a vtskip checkpoint ({type(e).__name__}: {one_line(e)}){hint}") from None
    return config


def load_base(base: dict[str, Any], folder: Path, **kwargs: Any) -> nn.Module:
    """The base model on record, in eval mode. Raises CheckpointError if there is none or it cannot be read."""
    name: Any = base.get("model_class")
    source: Any = folder
    if not (folder / "config.json").is_file():
        source, revision = base.get("name_or_path"), base.get("revision")
        kwargs = kwargs if revision is None else {"revision": revision} | kwargs
    if source is None:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} names no base model to load ({name} was built, not loaded); "
            "load it yourself and call load_pretrained(model, folder)"
        )
    try:
        return model_class(name, folder).from_pretrained(source, **kwargs).eval()
    except (OSError, SafetensorError, RuntimeError, KeyError) as e:
        raise CheckpointError(f"{folder}: the base model {str(source)!r} cannot be read ({one_line(e)})") from None


def model_class(name: Any, folder: Path) -> Any:
    """The class on record: ours, or a model of transformers and nothing else of it. Raises CheckpointError."""
    import transformers

    from vtskip.models.streaming_llava import StreamingLlava

    found = StreamingLlava if name == StreamingLlava.__name__ else getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: base model class {name!r} is not in transformers {transformers.__version__}; "
            "load the model yourself and call load_pretrained(model, folder)"
        )
    return found


def check_base(saved: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError, with both values, where class or shape differ; a copy under another name is welcome."""
    different = [k for k in own if k not in ("name_or_path", "revision") and saved.get(k) != own[k]]
    if different:
        facts = ", ".join(f"{k} {saved.get(k)!r} (this model: {own[k]!r})" for k in different)
        raise CheckpointError(f"{folder / CONFIG_NAME}: made for another base model: {facts}")


def saved_method(config: dict[str, Any], path: Path) -> Method:
    """The method on record. From a newer vtskip, keys unknown here are left out with a warning; else they are errors."""
    values, version = config["method"], config.get("vtskip_version")
    known = METHODS.get(values["name"])
    if known is None:
        return get_method(values)  # raises with the known names
    if newer(version):
        values, dropped = known_keys(values)
        if dropped:
            warnings.warn(
                f"{path}: written by vtskip {version}, this is {__version__}: left out {', '.join(dropped)}, "
                "which it does not know",
                stacklevel=3,
            )
    return parse(known, values, str(path))


def newer(version: Any) -> bool:
    try:
        return Version(str(version)) > Version(__version__)
    except InvalidVersion:
        return False


def known_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """:func:`without_unknown` of a method on record, and of those that it composes."""
    parts, dropped = values.get("methods"), []
    if values["name"] == "compose" and isinstance(parts, list):
        parts = [known_keys(p) if isinstance(p, dict) and p.get("name") in METHODS else (p, []) for p in parts]
        values = values | {"methods": [part for part, _ in parts]}
        dropped = [f"methods.{i}.{key}" for i, (_, keys) in enumerate(parts) for key in keys]
    values, own = without_unknown(METHODS[values["name"]], values)
    return values, own + dropped


def without_unknown(method: type[Method], values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of ``values`` without the keys that ``method`` does not have, and their dotted names."""
    values, dropped = copy.deepcopy(values), []
    try:
        method.model_validate(values)
    except ValidationError as e:
        for location in (fault["loc"] for fault in e.errors() if fault["type"] == "extra_forbidden"):
            node: Any = values
            path: list[str] = []
            for part in location[:-1]:
                in_file = isinstance(node, list) or part in node
                if in_file:  # else the tag of a union
                    node, path = node[part], [*path, str(part)]
            del node[location[-1]]
            dropped.append(".".join([*path, str(location[-1])]))
    return values, dropped


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


def load(folder: str | Path, method: Any = None, **kwargs: Any) -> tuple[nn.Module, Handle | None]:
    """A StreamingLlava checkpoint, dense or with a method.

    Args:
        folder: written by ``vtskip train``. method: attach this one instead of the saved one.
        kwargs: for ``StreamingLlava.from_pretrained``.

    Returns:
        The model in eval mode, and the handle of its method (None: none was saved, the model is dense).
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        why = "an adapter alone: `vtskip export` merges it" if adapter else "config.json is missing"
        raise CheckpointError(f"{folder}: no model there ({why})")
    if method is None and (folder / CONFIG_NAME).is_file():
        handle = load_pretrained(folder, **kwargs)
        return handle.model, handle
    model = load_base({"model_class": "StreamingLlava"}, folder, **kwargs)
    return model, None if method is None else attach(model, method)


def read_lm(folder: str, key: str) -> Any:
    """The causal language model in ``folder`` (or by id), in fp32. Raises ConfigError, which names ``key``, if there is none."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(f"{key} {folder!r}: no causal language model there ({one_line(e)})") from None


def read_tokenizer(folder: str | Path, key: str, accepted: str = "a folder") -> Any:
    """The tokenizer in ``folder`` (or by id). Raises ConfigError, which names ``key``, if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(f"{key} {str(folder)!r}: no tokenizer there ({one_line(e)}); accepted: {accepted}") from None
