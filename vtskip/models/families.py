"""One row per architecture: where its vision rows come from, and which decoder layers are known to be safe to split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vtskip.errors import ModelError
from vtskip.plan import DecoderShape


@dataclass(frozen=True)
class LayerParts:
    """Names of a decoder layer's norms: before and after its attention, before and after its FFN (None: it has none there).

    Beside ``self_attn`` and ``mlp`` these are all its children. Compared exactly: Gemma2 and GLM-4V have the children of a
    Llama layer and two norms more, and would run and answer wrongly.
    """

    attn_in: str = "input_layernorm"
    attn_out: str | None = None
    ffn_in: str = "post_attention_layernorm"
    ffn_out: str | None = None

    @property
    def children(self) -> set[str]:
        return {"self_attn", "mlp", *filter(None, (self.attn_in, self.attn_out, self.ffn_in, self.ffn_out))}


PRE_NORM = LayerParts()
GEMMA = LayerParts(
    attn_out="post_attention_layernorm", ffn_in="pre_feedforward_layernorm", ffn_out="post_feedforward_layernorm"
)
GLM = LayerParts(attn_out="post_self_attn_layernorm", ffn_out="post_mlp_layernorm")
ATTENTION_CHILDREN = {"q_proj", "k_proj", "v_proj", "o_proj"}
OPTIONAL_ATTENTION_CHILDREN = {"q_norm", "k_norm", "rotary_emb"}

Sizes = list[int] | None
GroupSizes = Callable[[str, np.ndarray, dict[str, Any], Any], Sizes]


@dataclass(frozen=True)
class Family:
    """How a model family marks its vision rows.

    Attributes:
        name: short name. model_class: the Hugging Face class.
        text: text backbones it was tested with.
        tokens: modality -> config attribute with its placeholder token id.
        inputs: names of forward arguments that bring vision into a step; without one a step is text only.
        groups: ``(modality, here, inputs, config) -> sizes`` of that modality's selection groups (images, frames) over
            the whole batch in order, or None where only the runs of placeholders tell; ``here`` ``[B, S]`` marks these.
        base: ``parent`` if the forward of the decoder's parent sees the inputs, ``model`` if the model's own does.
    """

    name: str
    model_class: str
    text: tuple[str, ...]
    tokens: dict[str, str]
    inputs: tuple[str, ...]
    groups: GroupSizes
    base: str = "parent"
    video: bool = False


def _encoded(modality: str, inputs: dict[str, Any]) -> Any:
    outputs = inputs.get("mm_encoder_outputs") or {}
    return outputs.get(modality)


def _encoded_sizes(modality: str, inputs: dict[str, Any]) -> Sizes:
    """Rows per image or video of features that ``generate`` encoded beforehand."""
    encoded = _encoded(modality, inputs)
    return None if encoded is None else [len(item) for item in encoded.pooler_output]


def _equal_parts(rows: int, parts: int) -> list[int]:
    if parts == 0 or rows % parts:
        raise ModelError(f"{rows} placeholder tokens cannot be shared evenly by {parts} images or videos")
    return [rows // parts] * parts


def _llava_groups(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    pixels = inputs.get("pixel_values")
    if isinstance(pixels, torch.Tensor) and inputs.get("image_sizes") is None:
        return _equal_parts(int(here.sum()), pixels.shape[0])
    return _encoded_sizes(modality, inputs)


def _onevision_groups(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """Images of any size are runs of placeholders; a video is frames of equal size and one closing newline row."""
    if modality == "image":
        return _encoded_sizes(modality, inputs)
    pixels, encoded = inputs.get("pixel_values_videos"), _encoded(modality, inputs)
    if isinstance(pixels, torch.Tensor):
        videos, frames = pixels.shape[:2]
    elif encoded is not None:
        videos = len(encoded.pooler_output)
        frames = encoded.last_hidden_state.shape[0] // max(videos, 1)
    else:
        return None
    sizes = []
    for total in _equal_parts(int(here.sum()), videos):
        per_frame = _equal_parts(total - 1, frames)
        sizes += [*per_frame[:-1], per_frame[-1] + 1]
    return sizes


def _grid_groups(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """Qwen-VL grids: ``t`` groups of ``h * w / merge^2`` rows per image or video.

    ``generate`` encodes the images beforehand and drops the grids; the height and width positions then tell where a frame
    begins: they return to those of the first row.
    """
    grid = inputs.get(f"{modality}_grid_thw")
    if grid is None:
        positions = inputs.get("position_ids")
        return _grids_from_positions(here, positions) if positions is not None and positions.dim() == 3 else None
    merge = config.vision_config.spatial_merge_size**2
    return [h * w // merge for t, h, w in grid.tolist() for _ in range(t)]


def _grids_from_positions(here: np.ndarray, positions: torch.Tensor) -> list[int]:
    """Frame sizes from M-RoPE positions ``[3 or 4, B, S]`` (time, height, width last)."""
    height_width = positions[-2:].expand(-1, here.shape[0], -1).cpu().numpy()
    sizes = []
    for row, places in zip(here, height_width.swapaxes(0, 1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for start, stop in zip(edges[::2], edges[1::2]):
            run = places[:, start:stop]
            frames = np.flatnonzero((run == run[:, :1]).all(0))
            sizes += np.diff([*frames, stop - start]).tolist()
    return sizes


def _streaming_groups(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    return _equal_parts(int(here.sum()), int(here.sum()) // config.frame_tokens)


_IMAGE, _IMAGE_VIDEO = {"image": "image_token_id"}, {"image": "image_token_id", "video": "video_token_id"}

FAMILIES: dict[str, Family] = {
    f.model_class: f
    for f in (
        Family(
            "llava",
            "LlavaForConditionalGeneration",
            ("llama", "mistral", "qwen2"),
            _IMAGE,
            ("pixel_values", "mm_encoder_outputs"),
            _llava_groups,
        ),
        Family(
            "llava_onevision",
            "LlavaOnevisionForConditionalGeneration",
            ("qwen2",),
            _IMAGE_VIDEO,
            ("pixel_values", "pixel_values_videos", "mm_encoder_outputs"),
            _onevision_groups,
            video=True,
        ),
        Family(
            "qwen2_5_vl",
            "Qwen2_5_VLForConditionalGeneration",
            ("qwen2_5_vl_text",),
            _IMAGE_VIDEO,
            ("pixel_values", "pixel_values_videos", "mm_encoder_outputs"),
            _grid_groups,
            video=True,
        ),
        Family(
            "streaming_llava",
            "StreamingLlava",
            ("llama", "mistral", "qwen2"),
            {"video": "frame_id"},
            ("frames", "frame_features"),
            _streaming_groups,
            base="model",
            video=True,
        ),
    )
}

# Text models: their layers are supported, the layout of the vision rows is given by the caller (`Handle.rows`).
TEXT_CLASSES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "LlamaModel",
    "MistralModel",
    "Qwen2Model",
)
LAYER_CLASSES: dict[str, LayerParts] = {
    "LlamaDecoderLayer": PRE_NORM,
    "MistralDecoderLayer": PRE_NORM,
    "Qwen2DecoderLayer": PRE_NORM,
    "Qwen2_5_VLDecoderLayer": PRE_NORM,
    "Gemma2DecoderLayer": GEMMA,
    "Gemma3DecoderLayer": GEMMA,
    "Glm4vTextDecoderLayer": GLM,
}


def supported() -> str:
    return ", ".join(FAMILIES) + " (and, with rows given by hand, " + ", ".join(TEXT_CLASSES) + ")"


def unwrap(model: nn.Module) -> nn.Module:
    """The stock model inside a PEFT wrapper."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, None for a plain text model. Raises ModelError with the list of what is supported."""
    names = [cls.__name__ for cls in type(model).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    if any(name in TEXT_CLASSES for name in names):
        return None
    raise ModelError(f"{names[0]} is not a supported model; supported: {supported()}")


def layer_class(layer: nn.Module) -> str:
    """Class name of a decoder layer; FSDP2 puts its own prefix before it."""
    return type(layer).__name__.removeprefix("FSDP")


def parts_of(layer: nn.Module) -> LayerParts:
    return LAYER_CLASSES[layer_class(layer)]


def check_layers(layers: nn.ModuleList) -> None:
    """Raises ModelError unless every decoder layer is of a known class with exactly the known children."""
    for i, layer in enumerate(layers):
        name = layer_class(layer)
        if name not in LAYER_CLASSES:
            raise ModelError(
                f"decoder layer {i} is a {name}, which vtskip does not know; known: {', '.join(LAYER_CLASSES)}; "
                f"supported models: {supported()}"
            )
        children, known = {n for n, _ in layer.named_children()}, LAYER_CLASSES[name].children
        if children != known:
            raise ModelError(f"decoder layer {i} ({name}) has children {sorted(children)}, expected {sorted(known)}")
        attention = {n for n, _ in layer.self_attn.named_children()}
        if not ATTENTION_CHILDREN <= attention <= ATTENTION_CHILDREN | OPTIONAL_ATTENTION_CHILDREN:
            raise ModelError(
                f"attention of layer {i} ({name}) has children {sorted(attention)}, which vtskip does not know"
            )


def decoder_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The decoder (with ``.layers``) and the module whose forward sees the model's inputs."""
    family = family_of(model)
    decoder = model.get_decoder()
    if family is not None and family.base == "model":
        return decoder, model
    path = next(name for name, module in model.named_modules() if module is decoder)
    return decoder, model.get_submodule(path.rpartition(".")[0])


def shape_of(decoder: nn.Module) -> DecoderShape:
    config = decoder.config
    heads = config.num_attention_heads
    return DecoderShape(
        layers=len(decoder.layers),
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=decoder.layers[0].self_attn.head_dim,
        vocab=config.vocab_size,
    )
