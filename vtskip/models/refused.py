"""Architectures that cannot work, and why: said by name instead of tried."""

_FUSED = "its attention makes q, k and v in one fused projection, so K and V cannot be had without Q"
_RUNNING = "some layers are linear attention or convolutions whose running state changes when rows are left out"
_SHARED_KV = "later layers reuse K and V of earlier ones, so a layer cannot leave rows out for itself"
_PARALLEL = "attention and FFN run side by side on one norm, and some layers do not rotate their keys"
_CROSS = "its decoder reads the image by cross-attention, so there are no vision rows in the sequence"
_ENCODER = "it is an encoder-decoder: vision rows end in the encoder"

REFUSED: dict[str, str] = {
    "Llama4ForConditionalGeneration": "its layers attend in chunks and hold their FFN, dense or experts, as `feed_forward`",
    "MllamaForConditionalGeneration": _CROSS,
    "IdeficsForVisionText2Text": _CROSS,
    "Gemma3nForConditionalGeneration": _SHARED_KV,
    "Gemma4ForConditionalGeneration": _SHARED_KV,
    "Gemma4UnifiedForConditionalGeneration": _SHARED_KV,
    "Qwen3_5ForConditionalGeneration": _RUNNING,
    "Qwen3_5MoeForConditionalGeneration": _RUNNING,
    "Lfm2VlForConditionalGeneration": _RUNNING,
    "Cohere2VisionForConditionalGeneration": _PARALLEL,
    "AyaVisionForConditionalGeneration": _PARALLEL,
    "Cohere2ForCausalLM": _PARALLEL,
    "Phi4MultimodalForCausalLM": _FUSED,
    "Phi3ForCausalLM": _FUSED,
    "Molmo2ForConditionalGeneration": "one layer class puts its norms before or after its parts by a setting",
    "Florence2ForConditionalGeneration": _ENCODER,
    "T5Gemma2ForConditionalGeneration": _ENCODER,
}
_HEADS = ("ForConditionalGeneration", "ForVisionText2Text", "ForCausalLM", "TextModel", "Model")


def _stem(name: str) -> str:
    return next((name.removesuffix(head) for head in _HEADS if name.endswith(head)), name)


_STEMS = {_stem(name): reason for name, reason in REFUSED.items()}


def reason_against(name: str) -> str | None:
    """Why a model class cannot be supported, with whatever head it comes; None for a class that is not listed."""
    return _STEMS.get(_stem(name))
