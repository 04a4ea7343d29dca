"""Tiny random models of every supported class, and the images and videos of a sample for each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor

LAYERS, VOCAB, IMAGE_ID, VIDEO_ID, START_ID, END_ID, TIME_ID = 4, 120, 100, 101, 102, 103, 104
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GEMMA = {**TEXT, "head_dim": 8}
SOFTCAP = {**GEMMA, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5, "sliding_window": 24}
MROPE = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=8)
IDS: dict[str, Any] = dict(image_token_id=IMAGE_ID, video_token_id=VIDEO_ID)
EDGES: dict[str, Any] = dict(vision_start_token_id=START_ID, vision_end_token_id=END_ID)


@dataclass(frozen=True)
class Part:
    """One image or video of a sample: its token ids, the sizes of its selection groups, and its vision inputs."""

    ids: list[int]
    groups: list[int]
    inputs: dict[str, Tensor] = field(default_factory=dict)


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip(size: int = 32) -> Any:
    return hf.CLIPVisionConfig(**TOWER, image_size=size)


def siglip(size: int) -> Any:
    return hf.SiglipVisionConfig(**TOWER, image_size=size)


# ---------------------------------------------------------------- Llava and its descendants


def llava(text: Any) -> Any:
    config = hf.LlavaConfig(vision_config=clip(), text_config=text, image_token_id=IMAGE_ID, image_seq_length=16)
    return hf.LlavaForConditionalGeneration(config)


def vipllava() -> Any:
    text = hf.LlamaConfig(**TEXT)
    config = hf.VipLlavaConfig(
        vision_config=clip(),
        text_config=text,
        image_token_id=IMAGE_ID,
        image_seq_length=16,
        vision_feature_layers=[-2, -1],  # the older name, which newer versions map
    )
    return hf.VipLlavaForConditionalGeneration(config)


def image(i: int, rows: int = 16, size: int = 32) -> Part:
    return Part([IMAGE_ID] * rows, [rows], {"pixel_values": pixels(i, 1, 3, size, size)})


PINPOINTS = [[32, 64], [64, 32], [64, 64]]
# Image size -> its tiles, and rows: 16 of the whole view, then the joined grid without padding and a newline per grid row.
ANYRES = {(32, 64): (2, 16 + 4 * 8 + 4), (60, 30): (2, 16 + 8 * 4 + 8), (30, 64): (2, 16 + 4 * 8 + 4)}


def anyres(i: int) -> Part:
    size, (count, rows) = list(ANYRES.items())[i]
    inputs = {"pixel_values": pixels(i, 1, 1 + count, 3, 32, 32), "image_sizes": torch.tensor([size])}
    return Part([IMAGE_ID] * rows, [rows], inputs)


def llava_next() -> Any:
    text = hf.MistralConfig(**TEXT, sliding_window=None)
    config = hf.LlavaNextConfig(
        vision_config=clip(), text_config=text, image_token_id=IMAGE_ID, image_grid_pinpoints=PINPOINTS
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_next_video() -> Any:
    text = hf.LlamaConfig(**TEXT)
    config = hf.LlavaNextVideoConfig(vision_config=clip(), text_config=text, image_grid_pinpoints=PINPOINTS, **IDS)
    return hf.LlavaNextVideoForConditionalGeneration(config)


def anyres_and_video(i: int) -> Part:
    """Videos around an image; a frame is pooled to a quarter of its rows."""
    if i == 1:
        return anyres(1)
    return Part([VIDEO_ID] * 3 * 4, [4, 4, 4], {"pixel_values_videos": pixels(i, 1, 3, 3, 32, 32)})


def onevision() -> Any:
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(48), text_config=hf.Qwen2Config(**TEXT), image_grid_pinpoints=[[48, 48], [48, 96]], **IDS
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def onevision_part(i: int) -> Part:
    """Videos around an image of 2 tiles, half of one cut off: 36 rows and a grid of 6 times 10 with its newlines."""
    if i == 1:
        inputs = {"pixel_values": pixels(i, 1, 3, 3, 48, 48), "image_sizes": torch.tensor([[48, 80]])}
        return Part([IMAGE_ID] * (36 + 66), [36 + 66], inputs)
    return Part([VIDEO_ID] * (3 * 9 + 1), [9, 9, 10], {"pixel_values_videos": pixels(i, 1, 3, 3, 48, 48)})


def video_llava() -> Any:
    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_seq_length=16,
        video_seq_length=17 * 2,
    )
    return hf.VideoLlavaForConditionalGeneration(config)


def video_llava_part(i: int) -> Part:
    """Frames keep the class row of the tower, images do not."""
    if i == 1:
        newer = "pixel_values" in inspect.signature(hf.VideoLlavaForConditionalGeneration.forward).parameters
        part = image(i)
        return Part(
            part.ids, part.groups, {"pixel_values" if newer else "pixel_values_images": pixels(i, 1, 3, 32, 32)}
        )
    return Part([VIDEO_ID] * 34, [17, 17], {"pixel_values_videos": pixels(i, 1, 2, 3, 32, 32)})


# ---------------------------------------------------------------- grids of patches


def qwen2_5_vl() -> Any:
    vision = dict(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        patch_size=4,
        window_size=16,
        fullatt_block_indexes=[1],
        out_hidden_size=TEXT["hidden_size"],
        in_channels=3,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(vision_config=vision, text_config=MROPE, **IDS, **EDGES)
    )


def qwen2_vl() -> Any:
    vision = dict(depth=2, embed_dim=16, hidden_size=TEXT["hidden_size"], num_heads=2, mlp_ratio=2, patch_size=4)
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=vision, text_config=MROPE, **IDS, **EDGES))


DEEPSTACK = dict(
    depth=3,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    patch_size=4,
    out_hidden_size=TEXT["hidden_size"],
    num_position_embeddings=64,
    deepstack_visual_indexes=[0, 1],
)


def qwen3_vl() -> Any:
    text = {**MROPE, "head_dim": 8}
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(vision_config=DEEPSTACK, text_config=text, **IDS, **EDGES)
    )


def qwen3_vl_moe() -> Any:
    text = {**MROPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = hf.Qwen3VLMoeConfig(vision_config=DEEPSTACK, text_config=text, **IDS, **EDGES)
    model = hf.Qwen3VLMoeForConditionalGeneration(config)
    model.set_experts_implementation("eager")  # the grouped product has no float64
    return model


def glm(model: str) -> Any:
    vision = dict(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        patch_size=4,
        image_size=32,
        out_hidden_size=TEXT["hidden_size"],
    )
    rope = {**MROPE["rope_parameters"], "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
    edges = dict(
        image_start_token_id=START_ID, image_end_token_id=END_ID, video_start_token_id=105, video_end_token_id=106
    )
    text = {**TEXT, "rope_parameters": rope}
    config = getattr(hf, f"{model}Config")(vision_config=vision, text_config=text, **IDS, **edges)
    return getattr(hf, f"{model}ForConditionalGeneration")(config)


def patches(seed: int, grid: tuple[int, int, int], values: int) -> Tensor:
    return pixels(seed, grid[0] * grid[1] * grid[2], values)


def grid_image(i: int, height: int = 4, width: int = 4) -> Part:
    rows = height * width // 4
    inputs = {
        "pixel_values": patches(i, (1, height, width), 96),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }
    return Part([START_ID, *[IMAGE_ID] * rows, END_ID], [rows], inputs)


def grid_video(i: int) -> tuple[int, int, dict[str, Tensor]]:
    """Frames, rows per frame, inputs."""
    frames, height, width = (3, 2, 4)[i], 4, (6, 4, 6)[i]
    grid = {"video_grid_thw": torch.tensor([[frames, height, width]])}
    return frames, height * width // 4, {"pixel_values_videos": patches(i, (frames, height, width), 96), **grid}


def qwen_part(i: int) -> Part:
    """Videos around an image; all frames of a video are one run."""
    if i == 1:
        return grid_image(i)
    frames, rows, inputs = grid_video(i)
    return Part([START_ID, *[VIDEO_ID] * frames * rows, END_ID], [rows] * frames, inputs)


def qwen2_5_part(i: int) -> Part:
    part = qwen_part(i)
    return part if i == 1 else Part(part.ids, part.groups, {**part.inputs, "second_per_grid_ts": torch.tensor([1.0])})


def timed_part(i: int, token: int = VIDEO_ID) -> Part:
    """As Qwen's, but each frame is a run of its own after its time."""
    if i == 1:
        return grid_image(i)
    frames, rows, inputs = grid_video(i)
    return Part([TIME_ID, START_ID, *[token] * rows, END_ID] * frames, [rows] * frames, inputs)


def glm_image(i: int) -> Part:
    return grid_image(i, 4, (4, 6, 8)[i])


def glm_video(i: int) -> Part:
    return timed_part(2 * (i > 0), IMAGE_ID)


def video_llama_3() -> Any:
    vision = {**TOWER, "patch_size": 4}
    config = hf.VideoLlama3Config(vision_config=vision, text_config=hf.Qwen2Config(**TEXT).to_dict(), **IDS)
    return hf.VideoLlama3ForConditionalGeneration(config)


def video_llama_3_part(i: int) -> Part:
    """Videos of 3 frames (4 rows, then what the compression leaves of 4) around an image."""
    if i == 1:
        inputs = {
            "pixel_values": pixels(i, 4 * 6, 48),
            "image_grid_thw": torch.tensor([[1, 4, 6]]),
            "image_merge_sizes": torch.tensor([1]),
        }
        return Part([IMAGE_ID] * 24, [24], inputs)
    kept = torch.tensor([True] * 4 + [True, False, True, True] + [False, False, True, False])
    inputs = {
        "pixel_values_videos": pixels(i, 3 * 4 * 4, 48),
        "video_grid_thw": torch.tensor([[3, 4, 4]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": kept,
    }
    ids = [token for rows in (4, 3, 1) for token in (TIME_ID, *[VIDEO_ID] * rows)]
    return Part(ids, [4, 3, 1], inputs)


# ---------------------------------------------------------------- tiles


def internvl() -> Any:
    vision = {**TOWER, "image_size": [32, 32], "patch_size": [8, 8]}
    config = hf.InternVLConfig(
        vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE_ID, image_seq_length=4
    )
    return hf.InternVLForConditionalGeneration(config)


def internvl_part(i: int) -> Part:
    """An image of 3 tiles, and videos of 3 frames; all are 32 x 32 pixels and 4 rows to the model."""
    inputs = {"pixel_values": pixels(i, 3, 3, 32, 32)}
    if i == 1:
        return Part([START_ID, *[IMAGE_ID] * 12, END_ID], [12], inputs)
    return Part([TIME_ID, START_ID, *[IMAGE_ID] * 4, END_ID] * 3, [4, 4, 4], inputs)


def tiled(model: str) -> Any:
    vision = {**TOWER, "image_size": 32}
    config = getattr(hf, f"{model}Config")(
        vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE_ID, scale_factor=2
    )
    return getattr(hf, f"{model}ForConditionalGeneration")(config)


def tiled_part(i: int) -> Part:
    count = (3, 1, 2)[i]
    inputs = {
        "pixel_values": pixels(i, 1, count, 3, 32, 32),
        "pixel_attention_mask": torch.ones(1, count, 32, 32, dtype=torch.long),
    }
    return Part([START_ID, TIME_ID, *[IMAGE_ID] * 4] * count + [END_ID], [4] * count, inputs)


# ---------------------------------------------------------------- others


def mistral3() -> Any:
    vision = hf.PixtralVisionConfig(**TOWER, image_size=64, head_dim=8)
    config = hf.Mistral3Config(
        vision_config=vision,
        text_config=hf.MistralConfig(**TEXT, sliding_window=None),
        image_token_index=IMAGE_ID,
        spatial_merge_size=2,
    )
    return hf.Mistral3ForConditionalGeneration(config)


def mistral3_part(i: int) -> Part:
    """Rows of an image are runs with a break token between; the image is one group."""
    lines, columns = ((2, 3), (1, 2), (2, 2))[i]
    size = (16 * lines, 16 * columns)
    inputs = {"pixel_values": pixels(i, 1, 3, *size), "image_sizes": torch.tensor([size])}
    return Part([*[IMAGE_ID] * columns, TIME_ID] * lines, [lines * columns], inputs)


def paligemma(text: Any) -> Any:
    vision = siglip(32)
    vision.projection_dim = TEXT["hidden_size"]
    config = hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, projection_dim=TEXT["hidden_size"]
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def gemma3() -> Any:
    text = hf.Gemma3TextConfig(**GEMMA, sliding_window=16, sliding_window_pattern=2, query_pre_attn_scalar=8)
    config = hf.Gemma3Config(
        vision_config=siglip(64), text_config=text, image_token_index=IMAGE_ID, mm_tokens_per_image=16
    )
    return hf.Gemma3ForConditionalGeneration(config)


def gemma3_part(i: int) -> Part:
    part = image(i, 16, 64)
    return Part([START_ID, *part.ids, END_ID], part.groups, part.inputs)
