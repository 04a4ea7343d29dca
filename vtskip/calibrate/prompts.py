"""Calibration prompts from the data of a streaming model: conversations that end where a reply begins."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from vtskip.data.collate import FrameCache
from vtskip.data.types import Sample
from vtskip.errors import ConfigError
from vtskip.streaming.loading import StreamCheckpoint
from vtskip.streaming.model import LlavaStream

End = Literal["start", "inside"]


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
                meta = {"reply": turn["content"]}
                prompts.append(replace(sample, uid=f"{sample.uid}:{i}", frames=frames, conversation=turns, meta=meta))
    return prompts


def draw(prompts: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` of ``prompts`` without replacement, each with a place in its reply: a function of the list and the seed."""
    if count > len(prompts):
        raise ConfigError(f"prompts {count}: the data hold {len(prompts)} replies; accepted: 1 to {len(prompts)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(prompts), generator=generator)[:count].tolist()
    places = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return [replace(prompts[i], meta=prompts[i].meta | {"place": place}) for i, place in zip(order, places)]


def inputs_of(checkpoint: StreamCheckpoint, prompt: Sample, end: End = "start") -> dict[str, Any]:
    """Forward arguments of one prompt, its frames through the tower already: every layer's pass needs the same ones."""
    model, template = checkpoint.model, checkpoint.template
    ids = template.encode(prompt.conversation, generation_prompt=True).input_ids
    if end == "inside":
        reply = template.text(" " + prompt.meta["reply"])
        ids = ids + reply[: int(prompt.meta["place"] * len(reply))]
    frames = FrameCache(0).read(prompt, model.config.image_size)
    return {
        "input_ids": torch.tensor([ids], device=model.device),
        "frame_features": LlavaStream(model).encode(frames),
    }
