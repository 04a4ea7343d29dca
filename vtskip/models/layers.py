"""Decoder layers that are known to be safe to split, and where their norms are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vtskip.errors import ModelError


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

LAYER_CLASSES: dict[str, LayerParts] = {
    "LlamaDecoderLayer": PRE_NORM,
    "MistralDecoderLayer": PRE_NORM,
    "Qwen2DecoderLayer": PRE_NORM,
    "Qwen3DecoderLayer": PRE_NORM,
    "Qwen2VLDecoderLayer": PRE_NORM,
    "Qwen2_5_VLDecoderLayer": PRE_NORM,
    "Qwen3VLTextDecoderLayer": PRE_NORM,
    "Qwen3VLMoeTextDecoderLayer": PRE_NORM,
    "GemmaDecoderLayer": PRE_NORM,
    "Gemma2DecoderLayer": GEMMA,
    "Gemma3DecoderLayer": GEMMA,
    "Glm4vTextDecoderLayer": GLM,
}


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
                f"decoder layer {i} is a {name}, which vtskip does not know; known: {', '.join(LAYER_CLASSES)}"
            )
        children, known = {n for n, _ in layer.named_children()}, LAYER_CLASSES[name].children
        if children != known:
            raise ModelError(f"decoder layer {i} ({name}) has children {sorted(children)}, expected {sorted(known)}")
        attention = {n for n, _ in layer.self_attn.named_children()}
        if not ATTENTION_CHILDREN <= attention <= ATTENTION_CHILDREN | OPTIONAL_ATTENTION_CHILDREN:
            raise ModelError(
                f"attention of layer {i} ({name}) has children {sorted(attention)}, which vtskip does not know"
            )
