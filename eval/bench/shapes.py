"""Sizes of published models, to be run with random weights: a time and a byte do not ask what a weight says."""

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # Vicuna-7B behind 576 rows of one CLIP-L/336 image and a short question.
    "llava-1.5-7b": {
        "hidden": 4096,
        "ffn": 11008,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "vocab": 32000,
        "frames": 1,
        "vision_rows": 576,
        "text_rows": 58,
    },
    # The same decoder, any-resolution: 576 + 48 x 48 + 48 rows of one image.
    "llava-next-7b": {
        "hidden": 4096,
        "ffn": 11008,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "vocab": 32000,
        "frames": 1,
        "vision_rows": 2928,
        "text_rows": 58,
    },
    # VideoLLM-MoD's setting: 600 frames of CLS + 3 x 3 rows.
    "llama-3-8b-video": {
        "hidden": 4096,
        "ffn": 14336,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "vocab": 128256,
        "frames": 600,
        "vision_rows": 6000,
        "text_rows": 64,
    },
    # 24 temporal patches (48 sampled frames) of 336 x 616 pixels, 12 x 22 merged rows each.
    "qwen2.5-vl-7b-video": {
        "family": "qwen2",
        "hidden": 3584,
        "ffn": 18944,
        "layers": 28,
        "heads": 28,
        "kv_heads": 4,
        "vocab": 152064,
        "frames": 24,
        "vision_rows": 6336,
        "text_rows": 64,
    },
}
