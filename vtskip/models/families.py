"""One row per architecture: where its vision rows come from, and how they are grouped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from torch import nn

from vtskip.errors import ModelError
from vtskip.models import groups as g
from vtskip.models.refused import reason_against
from vtskip.plan import DecoderShape, View

PIXEL_INPUTS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "mm_encoder_outputs")


@dataclass(frozen=True)
class Family:
    """How a model family marks its vision rows.

    Attributes:
        name: short name. model_class: the Hugging Face class; its bare model without a head is the same family.
        text: text backbones it was tested with (``model_type`` of the decoder's configuration).
        groups: modality -> its selection groups, a function of :mod:`vtskip.models.groups`.
        by: what these groups are, in words: one per image, video frame or tile.
        tokens: modality -> configuration attribute with its placeholder token id.
        inputs: names of forward arguments that bring vision into a step; without one a step is text only.
        base: ``parent`` if the forward of the decoder's parent sees the inputs, ``model`` if the model's own does.
        attends: ``causal``, or the rows that see each other both ways: those of one ``image``, or the whole ``prompt``.
        views: ``(image_sizes, config) -> how the rows of each image lie``, where its tiles can be told apart.
        deepstack: configuration attribute that lists the tower layers whose features are added after early decoder layers.
    """

    name: str
    model_class: str
    text: tuple[str, ...]
    groups: dict[str, g.GroupSizes]
    by: tuple[str, ...] = ("image",)
    video: bool = False
    tokens: tuple[tuple[str, str], ...] = (("image", "image_token_id"), ("video", "video_token_id"))
    inputs: tuple[str, ...] = PIXEL_INPUTS
    base: Literal["parent", "model"] = "parent"
    attends: Literal["causal", "image", "prompt"] = "causal"
    deepstack: str | None = None
    views: Callable[[Any, Any], list[View]] | None = None

    @property
    def vision(self) -> list[str]:
        """What it takes: image, video."""
        return [*(["image"] if "image" in self.groups else []), *(["video"] if self.video else [])]

    def token_ids(self, config: Any) -> dict[str, int]:
        """Modality -> placeholder token id of this model."""
        ids = {modality: getattr(config, name, None) for modality, name in self.tokens if modality in self.groups}
        return {modality: value for modality, value in ids.items() if value is not None}

    def deepstack_layers(self, config: Any) -> int:
        """After how many of the first decoder layers features are added to the vision rows: rows dropped for good before
        the last of them would lose these."""
        return len(attrgetter(self.deepstack)(config)) if self.deepstack else 0


_FRAMES: tuple[str, ...] = ("image", "frame")
_GRIDS: dict[str, g.GroupSizes] = {"image": g.grids, "video": g.grids}

FAMILIES: dict[str, Family] = {
    f.model_class: f
    for f in (
        Family("llava", "LlavaForConditionalGeneration", ("llama", "mistral", "qwen2"), {"image": g.images}),
        Family("vipllava", "VipLlavaForConditionalGeneration", ("llama",), {"image": g.images}),
        Family(
            "llava_next",
            "LlavaNextForConditionalGeneration",
            ("mistral",),
            {"image": g.anyres_images},
            views=g.anyres_views,
        ),
        Family(
            "llava_next_video",
            "LlavaNextVideoForConditionalGeneration",
            ("llama",),
            {"image": g.anyres_images, "video": g.pooled_frames},
            _FRAMES,
            video=True,
        ),
        Family(
            "llava_onevision",
            "LlavaOnevisionForConditionalGeneration",
            ("qwen2",),
            {"image": g.anyres_images, "video": g.frames_and_newline},
            _FRAMES,
            video=True,
        ),
        Family(
            "video_llava",
            "VideoLlavaForConditionalGeneration",
            ("llama",),
            {"image": g.images, "video": g.frames},
            _FRAMES,
            video=True,
        ),
        Family("qwen2_vl", "Qwen2VLForConditionalGeneration", ("qwen2_vl_text",), _GRIDS, _FRAMES, video=True),
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", ("qwen2_5_vl_text",), _GRIDS, _FRAMES, video=True),
        Family(
            "qwen3_vl",
            "Qwen3VLForConditionalGeneration",
            ("qwen3_vl_text",),
            _GRIDS,
            _FRAMES,
            video=True,
            deepstack="vision_config.deepstack_visual_indexes",
        ),
        Family(
            "qwen3_vl_moe",
            "Qwen3VLMoeForConditionalGeneration",
            ("qwen3_vl_moe_text",),
            _GRIDS,
            _FRAMES,
            video=True,
            deepstack="vision_config.deepstack_visual_indexes",
        ),
        # Frames of a video are images to InternVL, SmolVLM and GLM-V: the template puts the image token between their times.
        Family("internvl", "InternVLForConditionalGeneration", ("qwen2",), {"image": g.runs}, _FRAMES, video=True),
        Family(
            "smolvlm", "SmolVLMForConditionalGeneration", ("llama",), {"image": g.tiles}, ("tile", "frame"), video=True
        ),
        Family("idefics3", "Idefics3ForConditionalGeneration", ("llama",), {"image": g.tiles}, ("tile",)),
        Family("glm4v", "Glm4vForConditionalGeneration", ("glm4v_text",), {"image": g.grids}, _FRAMES, video=True),
        Family("glm46v", "Glm46VForConditionalGeneration", ("glm4v_text",), {"image": g.grids}, _FRAMES, video=True),
        Family("mistral3", "Mistral3ForConditionalGeneration", ("mistral",), {"image": g.images}),
        Family(
            "video_llama_3",
            "VideoLlama3ForConditionalGeneration",
            ("qwen2",),
            {"image": g.merged_grids, "video": g.merged_grids},
            _FRAMES,
            video=True,
        ),
        Family(
            "paligemma", "PaliGemmaForConditionalGeneration", ("gemma", "gemma2"), {"image": g.images}, attends="prompt"
        ),
        Family("gemma3", "Gemma3ForConditionalGeneration", ("gemma3_text",), {"image": g.images}, attends="image"),
        Family(
            "streaming_llava",
            "StreamingLlava",
            ("llama", "mistral", "qwen2"),
            {"video": g.streamed_frames},
            ("frame",),
            video=True,
            tokens=(("video", "frame_id"),),
            inputs=("frames", "frame_features"),
            base="model",
        ),
    )
}
_BARE = {name.replace("ForConditionalGeneration", "Model"): family for name, family in FAMILIES.items()}

# Text models: their layers are supported, the layout of the vision rows is given by the caller (`Handle.rows`).
TEXT_MODELS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")
TEXT_CLASSES = (
    *(f"{name}ForCausalLM" for name in TEXT_MODELS),
    *(f"{name}Model" for name in TEXT_MODELS if name != "Gemma3"),
    "Gemma3TextModel",
)


def supported() -> str:
    return ", ".join(FAMILIES) + " (and, with rows given by hand, " + ", ".join(TEXT_CLASSES) + ")"


def unwrap(model: nn.Module) -> nn.Module:
    """The stock model inside a PEFT wrapper."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, None for a plain text model.

    Raises ModelError with the reason for a class that cannot be supported, and with the list of what is for any other.
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    for name in names:
        if family := FAMILIES.get(name) or _BARE.get(name):
            return family
        if name in TEXT_CLASSES:
            return None
        if reason := reason_against(name):
            raise ModelError(f"{names[0]} cannot be supported: {reason}")
    for place, child in model.named_children():
        if type(child).__name__ in (*FAMILIES, *TEXT_CLASSES):
            raise ModelError(
                f"{names[0]} holds a {type(child).__name__}: attach the method to that, its .{place}, before the model is "
                "wrapped or compiled"
            )
    raise ModelError(f"{names[0]} is not a supported model; supported: {supported()}")


def decoder_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The decoder (with ``.layers``) and the module whose forward sees the model's inputs."""
    family = family_of(model)
    decoder = model.get_decoder()
    if family is not None and family.base == "model":
        return decoder, model
    path = next(name for name, module in model.named_modules() if module is decoder)
    return decoder, model.get_submodule(path.rpartition(".")[0])


def shape_of(decoder: nn.Module) -> DecoderShape:
    """Sizes of a decoder. Of a mixture of experts the FFN is as wide as what one row runs, the router not counted."""
    config = decoder.config
    experts = getattr(config, "num_experts", None)
    heads = config.num_attention_heads
    return DecoderShape(
        layers=len(decoder.layers),
        hidden=config.hidden_size,
        ffn=config.num_experts_per_tok * config.moe_intermediate_size if experts else config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=decoder.layers[0].self_attn.head_dim,
        vocab=config.vocab_size,
    )
