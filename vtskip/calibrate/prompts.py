"""Calibration prompts from the data of a streaming model: conversations that end where a reply begins."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtskip.data.types import Sample
from vtskip.data.video import read_frames
from vtskip.errors import ConfigError
from vtskip.streaming.loading import StreamCheckpoint
from vtskip.streaming.model import LlavaStream


def prompts_of(samples: Sequence[Sample]) -> list[Sample]:
    """Every conversation cut before each of its replies; those without a frame so far are left out."""
    prompts = []
    for sample in samples:
        seen = 0
        for i, turn in enumerate(sample.conversation):
            if turn["role"] == "stream":
                seen += turn["num_frames"]
            elif turn["role"] == "assistant" and seen:
                turns, frames = sample.conversation[:i], sample.frames[:seen]
                prompts.append(replace(sample, uid=f"{sample.uid}:{i}", frames=frames, conversation=turns))
    return prompts


def draw(prompts: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` of ``prompts`` without replacement: a pure function of the list and the seed."""
    if count > len(prompts):
        raise ConfigError(f"prompts {count}: the data hold {len(prompts)} replies; accepted: 1 to {len(prompts)}")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    return [prompts[i] for i in order[:count].tolist()]


def inputs_of(checkpoint: StreamCheckpoint, prompt: Sample) -> dict[str, Any]:
    """Forward arguments of one prompt, its frames through the tower already: every layer's pass needs the same ones."""
    model = checkpoint.model
    encoded = checkpoint.template.encode(prompt.conversation, generation_prompt=True)
    ids: Tensor = torch.tensor([encoded.input_ids], device=model.device)
    frames = read_frames(prompt.video, prompt.frames, model.config.image_size)
    return {"input_ids": ids, "frame_features": LlavaStream(model).encode(frames)}
