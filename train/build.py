"""From a model recipe to a model with its method and adapters, its tokenizer or processor, and its template."""

import json
from typing import Any, cast

import torch
from transformers import AutoConfig
from transformers.modeling_utils import set_zero3_state

from vtskip.data.config import DataConfig
from vtskip.data.tokenizer import build_word_tokenizer, conversation_texts
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, nearest, one_line
from vtskip.loading import load, load_state, read_lm, read_tokenizer
from vtskip.methods import get_method
from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig
from vtskip.runtime.attach import attach
from vtskip.streaming.loading import load_stream
from vtskip.template import StreamTemplate, special_ids
from vtskip.train.adapters import add_lora
from vtskip.train.chat import ChatTemplate
from vtskip.train.config import ModelRecipe, TrainConfig
from vtskip.train.parts import choose_trained
from vtskip.train.stock import family_name, load_stock, saved_beside, start_connector, weights_beside


def build_model(config: TrainConfig, samples: list[Sample]) -> tuple[Any, Any, StreamTemplate | ChatTemplate]:
    """Model with its method attached and its adapters in place, tokenizer or processor, template.

    Weights are a pure function of ``config.seed`` and files. Raises ConfigError, ModelError or CheckpointError that names the
    key or file.
    """
    torch.manual_seed(config.seed)
    if config.model.pretrained is not None:
        model, processing = load_stock(config.model, config.seed)
        method = config.method or saved_beside(config.model.pretrained)
        handle = None if method is None else attach(model, get_method(method))
        if handle is not None and (weights := weights_beside(config.model.pretrained, method)):
            load_state(model, weights)
        template: StreamTemplate | ChatTemplate = ChatTemplate(processing, family_name(model), config.max_tokens)
    else:
        model, processing = build_stream(config, samples)
        template = StreamTemplate.from_config(processing, model.config)
    choose_trained(model, config.training)
    if config.lora is not None:
        torch.manual_seed(config.seed)  # anew: loading has drawn numbers, and under ZeRO-3 others
        model = add_lora(model, config.lora, config.precision if config.deepspeed is None else "fp32")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"trains {config.training.model_dump(exclude_defaults=True)}: no parameter is left to train")
    return model, processing, template


def build_stream(config: TrainConfig, samples: list[Sample]) -> tuple[StreamingLlava, Any]:
    """A StreamingLlava, new or from a checkpoint, with its method attached, and its tokenizer."""
    if config.model.checkpoint is None:
        model, tokenizer = new_model(config.model, config.sources[0], samples)
        if config.method is not None:
            attach(model, get_method(config.method))
    elif config.method is None:
        loaded, _ = load(config.model.checkpoint)
        model, tokenizer = cast(StreamingLlava, loaded), read_tokenizer(config.model.checkpoint, "model.checkpoint")
    else:
        checkpoint = load_stream(config.model.checkpoint, device="cpu")
        checkpoint.use(get_method(config.method))  # goes on from the saved routers where they fit
        model, tokenizer = checkpoint.model, checkpoint.template.tokenizer
    if config.loss.stream_weight is not None:
        model.config.stream_loss_weight = config.loss.stream_weight
    return model, tokenizer


def new_model(recipe: ModelRecipe, data: DataConfig, samples: list[Sample]) -> tuple[StreamingLlava, Any]:
    """A StreamingLlava with the recipe's tower and language model, in fp32."""
    tokenizer = make_tokenizer(recipe, samples)
    ids: dict[str, Any] = special_ids(tokenizer)
    if isinstance(recipe.lm, str):
        language_model = read_lm(recipe.lm, "model.lm")
        if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
            language_model.resize_token_embeddings(len(tokenizer))
        text_config = language_model.config
    else:
        language_model, text_config = None, tiny_lm_config(dict(recipe.lm or {}), tokenizer)
    config = StreamingLlavaConfig(
        **tower_options(recipe),
        fps=data.fps,
        text_config=text_config,
        system_prompt=data.system,
        instruction=data.dialogue().instruction,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        **ids,
    )
    with set_zero3_state():  # random weights are drawn whole and cut up later: the same ones without DeepSpeed
        model = StreamingLlava(config, language_model)
    model.load_vision()
    if recipe.connector not in (None, "new"):
        start_connector(model, str(recipe.connector))
    return model, tokenizer


def tower_options(recipe: ModelRecipe) -> dict[str, Any]:
    """What the configuration says of the tower and of the rows it gives."""
    return {
        "vision": recipe.vision,
        "vision_pretrained": recipe.vision_pretrained,
        "image_size": recipe.image_size,
        "cls_token": recipe.cls_token,
        "pool": list(recipe.pool) if recipe.pool else None,
    }


def make_tokenizer(recipe: ModelRecipe, samples: list[Sample]) -> Any:
    """The recipe's tokenizer; ``words`` builds one from the texts of ``samples``."""
    source = recipe.tokenizer or recipe.lm
    if source == "words":
        return build_word_tokenizer(conversation_texts(samples))
    return read_tokenizer(str(source), "model.tokenizer", "'words' or a folder")


def tiny_lm_config(values: dict[str, Any], tokenizer: Any) -> Any:
    """A language model's configuration from a dict; the vocabulary is the tokenizer's. Raises ConfigError in our words."""
    name = values.pop("model_type")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    try:
        config = AutoConfig.for_model(name, **{"vocab_size": len(tokenizer), **ids, **values})
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError(f"model.lm {json.dumps(values)}: {one_line(e)}") from None
    accepted = type(config)().to_dict().keys()
    for key in values:
        if key not in accepted:
            raise ConfigError(f"model.lm: unknown key {key!r} of a {name} configuration{nearest(key, accepted)}")
    return config
