"""Stock Hugging Face models of the supported families as a starting point: model and processor, by id or folder."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vtskip.errors import ConfigError, one_line
from vtskip.loading import read_config
from vtskip.methods import get_method
from vtskip.models.families import family_of
from vtskip.models.sharding import full_shape, whole
from vtskip.saving import CONFIG_NAME, WEIGHTS_NAME
from vtskip.train.parts import part_of
from vtskip.train.sections import ModelRecipe

FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def load_stock(recipe: ModelRecipe, seed: int = 0) -> tuple[Any, Any]:
    """The model in fp32 and its processor. Raises ConfigError naming the key, ModelError for a family without support."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source, place = str(recipe.pretrained), {} if recipe.revision is None else {"revision": recipe.revision}
    attention = {} if recipe.attention is None else {"attn_implementation": recipe.attention}
    try:
        processor = AutoProcessor.from_pretrained(source, **place, **recipe.processor)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, **place, **attention)
    except FAULTS as e:
        raise ConfigError(f"model.pretrained {source!r}: cannot be loaded ({one_line(e)[:300]})") from None
    if family_of(model) is None or getattr(processor, "tokenizer", None) is None:
        raise ConfigError(
            f"model.pretrained {source!r}: {type(model).__name__} is no multimodal model with a processor"
        )
    if recipe.chat_template is not None:
        try:
            processor.chat_template = recipe.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"model.chat_template {recipe.chat_template}: cannot be read ({one_line(e)})") from None
    if recipe.lm is not None:
        take_language_model(model, str(recipe.lm))
    if recipe.connector is not None:
        torch.manual_seed(seed)  # anew: loading has drawn numbers, and under ZeRO-3 others
        start_connector(model, recipe.connector)
    return model, processor


def take_language_model(model: Any, source: str) -> None:
    """The weights of a plain language model of the same shape. Of a longer vocabulary the model's own rows stay behind its.

    Raises ConfigError where there is none, or where a shape differs.
    """
    from transformers import AutoModelForCausalLM

    try:
        donor = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except FAULTS as e:
        raise ConfigError(f"model.lm {source!r}: cannot be loaded ({one_line(e)[:300]})") from None
    pairs = [(model.get_decoder(), donor.get_decoder()), (model.get_output_embeddings(), donor.get_output_embeddings())]
    for own, other in pairs:
        given = other.state_dict(keep_vars=True)
        for name, tensor in own.state_dict(keep_vars=True).items():
            theirs, shape = given.get(name), full_shape(tensor)
            there = None if theirs is None else full_shape(theirs)
            shorter = there is not None and there[1:] == shape[1:] and there[:1] < shape[:1]
            if theirs is None or not (there == shape or (shorter and (own is pairs[1][0] or "embed" in name))):
                found = "nothing" if there is None else list(there)
                raise ConfigError(f"model.lm {source!r}: {name} is {found} there, {list(shape)} in model.pretrained")
            with torch.no_grad(), whole([theirs]), whole([tensor], write=True):
                tensor[: len(theirs)].copy_(theirs)


def start_connector(model: nn.Module, source: str) -> None:
    """``new`` random weights, or those in a file, by the names in the model, their ends, or their order. Raises ConfigError."""
    own = {name: p for name, p in model.named_parameters() if part_of(name) == "connector"}
    own = {name: p for name, p in own.items() if name.endswith((".weight", ".bias"))}  # a lone row (a newline's) stays
    if source == "new":
        modules = {name.rpartition(".")[0] for name in own}
        for module in (model.get_submodule(name) for name in sorted(modules)):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                with whole(module.parameters(recurse=False), write=True):
                    reset()
        return
    given = read_tensors(source)
    named = [[k for k in given if name == k or name.endswith(f".{k}") or k.endswith(f".{name}")] for name in own]
    if not any(named):  # another name for each, in the same order: the releases number their layers
        # A safetensors file is sorted by name, one of torch's own kind is as the model was.
        for theirs, ours in (([*given], [*own]), (sorted(given), sorted(own))):
            if [given[k].shape for k in theirs] == [full_shape(own[k]) for k in ours]:
                pairs = dict(zip(ours, theirs))
                named = [[pairs[name]] for name in own]
                break
    for (name, parameter), found in zip(own.items(), named):
        if len(found) != 1 or given[found[0]].shape != full_shape(parameter):
            there = [f"{key} {list(given[key].shape)}" for key in found or given]
            raise ConfigError(
                f"model.connector {source}: {name} {list(full_shape(parameter))} is not there once, but {there}"
            )
        with torch.no_grad(), whole([parameter], write=True):
            parameter.copy_(given[found[0]])


def read_tensors(path: str) -> dict[str, Tensor]:
    """Of a safetensors file, or of torch's own kind without running what is pickled in it. Raises ConfigError."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, RuntimeError, EOFError, TypeError, ValueError, UnpicklingError) as e:
        raise ConfigError(
            f"model.connector {path!r}: no file of tensors ({one_line(e)[:200]}); accepted: new, a file"
        ) from None


def family_name(model: nn.Module) -> str:
    family = family_of(model)
    return "" if family is None else family.name


def saved_beside(source: str) -> dict[str, Any] | None:
    """The method that was saved with a model, None without one."""
    return read_config(Path(source))["method"] if (Path(source) / CONFIG_NAME).is_file() else None


def weights_beside(source: str, method: Any) -> Path | None:
    """The file of routers saved with a model, where they are of the very method that is attached."""
    path = Path(source) / WEIGHTS_NAME
    saved = saved_beside(source)
    same = saved is not None and method is not None and get_method(saved) == get_method(method)
    return path if path.is_file() and same else None
