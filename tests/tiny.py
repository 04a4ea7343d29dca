"""One row per supported class and text backbone, and batches of long, short and text samples for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

from tests import tiny_families as t
from tests.tiny_families import IMAGE_ID, LAYERS, TEXT, VIDEO_ID, VOCAB, Part, pixels

__all__ = ["FAMILIES", "IMAGE_ID", "LAYERS", "TEXT", "VIDEO_ID", "VOCAB", "Part", "Tiny", "pixels"]
# Older releases repeat images of unequal size image by image for the sequences of a sample, not sample by sample.
ENCODES_FIRST = hasattr(hf.GenerationMixin, "_supports_mm_encoder_outputs")
PARTS = {"long": [0, 1], "short": [2], "text": []}


@dataclass(frozen=True)
class Tiny:
    """
    Attributes:
        build: the stock model. part: the i-th image or video of a sample.
        mrope: positions are the model's own, three numbers per row.
        types: ``ids -> inputs`` that name the modality of each token. next_type: their value for generated tokens.
        dtype, attn, tolerance: what the model can run on, and how far equal computations may lie apart there.
        beams: transformers can repeat encoded images or videos for several sequences per sample.
        chunked: rows never see later rows of another image, so that image by image equals one shot.
        per_sample: images are ``[samples, images, ...]`` with padding, not one list of the whole batch.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    part: Callable[[int], Part]
    mrope: bool = False
    types: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    next_type: int = 0
    dtype: torch.dtype = torch.float64
    attn: str = "sdpa"
    tolerance: float = 1e-12
    beams: bool = True
    chunked: bool = True
    per_sample: bool = False

    def model(self, dtype: torch.dtype | None = None) -> torch.nn.Module:
        torch.manual_seed(0)
        dtype = dtype or self.dtype
        model = self.build().to(dtype).eval()
        model.set_attn_implementation(self.attn)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # random everywhere, norms too: a forgotten weight must show
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
            parameter.data.add_(noise.to(dtype))
        model.generation_config.pad_token_id = 0
        return model

    def _layout(self, kind: str) -> tuple[list[int], list[Part], list[int]]:
        """Token ids, parts, and where each part begins."""
        text = {"long": [5, 7, 11, 6, 9], "short": [8, 5, 12], "text": [6, 13, 7, 8, 21, 9, 10]}[kind]
        ids, parts, starts = [1, *text[:2]], [self.part(i) for i in PARTS[kind]], []
        for i, part in zip(PARTS[kind], parts):
            starts.append(len(ids))
            ids += [*part.ids, 14 + i]
        return ids + text[2:], parts, starts

    def sample(self, kind: str) -> tuple[list[int], list[dict[str, Tensor]], list[int]]:
        """Token ids, vision inputs of each part and group sizes of a ``long``, ``short`` or ``text`` sample."""
        ids, parts, _ = self._layout(kind)
        return ids, [part.inputs for part in parts], [n for part in parts for n in part.groups]

    def starts(self, kind: str) -> list[int]:
        """Where in a sample its images and videos begin."""
        return self._layout(kind)[2]

    def batch(self, kinds: list[str], side: str = "left", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        samples = [self.sample(kind) for kind in kinds]
        length = max(len(ids) for ids, _, _ in samples)

        def padded(row: list[int]) -> list[int]:
            pad = [0] * (length - len(row))
            return pad + row if side == "left" else row + pad

        batch = {
            "input_ids": torch.tensor([padded(ids) for ids, _, _ in samples]),
            "attention_mask": torch.tensor([padded([1] * len(ids)) for ids, _, _ in samples]),
        }
        batch.update(self.join([inputs for _, inputs, _ in samples], dtype or self.dtype))
        batch.update(self.types(batch["input_ids"]))
        # Positions of the content, whatever the padding: a padded row of a batch is the same computation as alone.
        if not self.mrope:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return batch

    def join(self, samples: list[list[dict[str, Tensor]]], dtype: torch.dtype) -> dict[str, Tensor]:
        """The vision inputs of a batch; items of unequal shape are filled with zeros as the processors do."""
        joined = {}
        for name in sorted({k for sample in samples for inputs in sample for k in inputs}):
            rows = [[inputs[name] for inputs in sample if name in inputs] for sample in samples]
            if self.per_sample:
                empty = next(x for row in rows for x in row)[:, :1] * 0
                items = [torch.cat(row, 1) if row else empty for row in rows]
            else:
                items = [x for row in rows for x in row]
            shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in items))]
            filled = [F.pad(x, [n for a, b in zip(shape[::-1], x.shape[:0:-1]) for n in (0, a - b)]) for x in items]
            value = torch.cat(filled)
            joined[name] = value.to(dtype) if value.is_floating_point() else value
        return joined


def mm_types(ids: Tensor, image: int = 1) -> dict[str, Tensor]:
    return {"mm_token_type_ids": image * (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()}


def gemma3_types(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE_ID).long()}


def prefix_types(ids: Tensor) -> dict[str, Tensor]:
    """PaliGemma: the whole prompt is prefix (0), in which every row sees every other; what is generated is suffix (1)."""
    return {"token_type_ids": torch.zeros_like(ids)}


_PREFIX: dict[str, Any] = dict(types=prefix_types, next_type=1, chunked=False)
_EAGER: dict[str, Any] = dict(dtype=torch.float32, attn="eager", tolerance=1e-5)  # soft-capped logits: no sdpa

FAMILIES = {
    f.name: f
    for f in (
        Tiny("llava-llama", lambda: t.llava(hf.LlamaConfig(**TEXT)), t.image),
        Tiny("llava-mistral", lambda: t.llava(hf.MistralConfig(**TEXT, sliding_window=24)), t.image),
        Tiny("llava-qwen2", lambda: t.llava(hf.Qwen2Config(**TEXT)), t.image),
        Tiny("vipllava", t.vipllava, t.image),
        Tiny("llava_next", t.llava_next, t.anyres, beams=ENCODES_FIRST),
        Tiny("llava_next_video", t.llava_next_video, t.anyres_and_video),
        Tiny("llava_onevision", t.onevision, t.onevision_part),
        Tiny("video_llava", t.video_llava, t.video_llava_part),
        Tiny("qwen2_vl", t.qwen2_vl, t.qwen_part, mrope=True, types=mm_types),
        Tiny("qwen2_5_vl", t.qwen2_5_vl, t.qwen2_5_part, mrope=True, types=mm_types),
        Tiny("qwen3_vl", t.qwen3_vl, t.timed_part, mrope=True, types=mm_types),
        Tiny("qwen3_vl_moe", t.qwen3_vl_moe, t.timed_part, mrope=True, types=mm_types),
        Tiny("internvl", t.internvl, t.internvl_part),
        Tiny("smolvlm", lambda: t.tiled("SmolVLM"), t.tiled_part, per_sample=True),
        Tiny("idefics3", lambda: t.tiled("Idefics3"), t.tiled_part, per_sample=True),
        Tiny("glm4v", lambda: t.glm("Glm4v"), t.glm_image, mrope=True, types=mm_types),
        Tiny(
            "glm4v-video",
            lambda: t.glm("Glm4v"),
            t.glm_video,
            mrope=True,
            types=partial(mm_types, image=2),
            beams=False,
        ),
        Tiny("glm46v", lambda: t.glm("Glm46V"), t.glm_image, mrope=True, types=mm_types),
        Tiny("mistral3", t.mistral3, t.mistral3_part, beams=ENCODES_FIRST),
        Tiny("video_llama_3", t.video_llama_3, t.video_llama_3_part, beams=False),
        Tiny("paligemma", lambda: t.paligemma(hf.GemmaConfig(**t.GEMMA)), t.image, **_PREFIX),
        Tiny("paligemma-gemma2", lambda: t.paligemma(hf.Gemma2Config(**t.SOFTCAP)), t.image, **_PREFIX, **_EAGER),
        Tiny("gemma3", t.gemma3, t.gemma3_part, types=gemma3_types),
    )
}
