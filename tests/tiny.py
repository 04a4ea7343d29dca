"""Tiny random models of every supported family, and batches of long video, short video and text for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

LAYERS, VOCAB, IMAGE_ID, VIDEO_ID, START_ID, END_ID = 4, 120, 100, 101, 102, 103
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


@dataclass(frozen=True)
class Tiny:
    """One family: how to build it, the ids of a sample's parts, and the vision inputs of its images or videos.

    ``part(i)`` -> (placeholder id, rows, selection groups, vision inputs) of the i-th image or video of a sample.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    part: Callable[[int], tuple[int, int, list[int], dict[str, Tensor]]]
    wrap: tuple[int, ...] = ()

    def model(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        model = self.build().to(dtype).eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # random everywhere, norms too: a forgotten weight must show
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
            parameter.data.add_(noise.to(dtype))
        model.generation_config.pad_token_id = 0
        return model

    def sample(self, kind: str) -> tuple[list[int], list[dict[str, Tensor]], list[int]]:
        """Token ids, vision inputs and group sizes of a ``long``, ``short`` or ``text`` sample."""
        text = {"long": [5, 7, 11, 6, 9], "short": [8, 5, 12], "text": [6, 13, 7, 8, 21, 9, 10]}[kind]
        parts = {"long": [0, 1], "short": [2], "text": []}[kind]
        ids, inputs, groups = [1, *text[:2]], [], []
        for i in parts:
            token, rows, sizes, tensors = self.part(i)
            start, end = ([START_ID], [END_ID]) if self.wrap else ([], [])
            ids += [*start, *[token] * rows, *end, 14 + i]
            inputs.append(tensors)
            groups += sizes
        return ids + text[2:], inputs, groups

    def batch(self, kinds: list[str], side: str = "left", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        samples = [self.sample(kind) for kind in kinds]
        length = max(len(ids) for ids, _, _ in samples)
        rows, mask = [], []
        for ids, _, _ in samples:
            pad = [0] * (length - len(ids))
            rows.append(pad + ids if side == "left" else ids + pad)
            mask.append([0] * len(pad) + [1] * len(ids) if side == "left" else [1] * len(ids) + [0] * len(pad))
        batch = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        for name in sorted({k for _, inputs, _ in samples for tensors in inputs for k in tensors}):
            tensors = [t[name] for _, inputs, _ in samples for t in inputs if name in t]
            joined = torch.cat(tensors)
            batch[name] = joined.to(dtype) if joined.is_floating_point() else joined
        if self.wrap:
            ids = batch["input_ids"]
            batch["mm_token_type_ids"] = (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()
        # Positions of the content, whatever the padding: a padded row of a batch is the same computation as alone.
        if not self.wrap:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llava(text: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        config = LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=IMAGE_ID, image_seq_length=16, pad_token_id=0
        )
        return LlavaForConditionalGeneration(config)

    return build


def llava_part(i: int) -> tuple[int, int, list[int], dict[str, Tensor]]:
    return IMAGE_ID, 16, [16], {"pixel_values": pixels(i, 1, 3, 32, 32)}


def onevision() -> torch.nn.Module:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=8
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        image_grid_pinpoints=[[48, 48], [48, 96]],
        pad_token_id=0,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def onevision_part(i: int) -> tuple[int, int, list[int], dict[str, Tensor]]:
    return VIDEO_ID, 3 * 9 + 1, [9, 9, 10], {"pixel_values_videos": pixels(i, 1, 3, 3, 48, 48)}


def qwen2_5_vl() -> torch.nn.Module:
    vision = dict(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=16,
        fullatt_block_indexes=[1],
        out_hidden_size=TEXT["hidden_size"],
        in_channels=3,
    )
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_start_token_id=START_ID,
        vision_end_token_id=END_ID,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen_part(i: int) -> tuple[int, int, list[int], dict[str, Tensor]]:
    frames, height, width = (3, 2, 4)[i], 4, (6, 4, 6)[i]
    patches = pixels(i, frames * height * width, 3 * 2 * 4 * 4)
    if i == 1:  # an image between the videos
        patches = pixels(i, height * width, 3 * 2 * 4 * 4)
        return IMAGE_ID, 4, [4], {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, height, width]])}
    per_frame = height * width // 4
    inputs = {
        "pixel_values_videos": patches,
        "video_grid_thw": torch.tensor([[frames, height, width]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }
    return VIDEO_ID, frames * per_frame, [per_frame] * frames, inputs


FAMILIES = {
    t.name: t
    for t in (
        Tiny("llava-llama", llava(LlamaConfig(**TEXT)), llava_part),
        Tiny("llava-mistral", llava(MistralConfig(**TEXT, sliding_window=24)), llava_part),
        Tiny("llava-qwen2", llava(Qwen2Config(**TEXT)), llava_part),
        Tiny("llava_onevision", onevision, onevision_part),
        Tiny("qwen2_5_vl", qwen2_5_vl, qwen_part, wrap=(START_ID, END_ID)),
    )
}
