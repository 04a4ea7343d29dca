"""The decoder and the batches a bench runs on: random weights, random rows, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip.eval.bench.config import Decoder, Setting
from vtskip.plan import RowMap

WARM_UP = 4  # decoded rows before the clock starts


def build_model(decoder: Decoder, device: str, dtype: torch.dtype, seed: int, **options: Any) -> Any:
    """A stock causal language model with random weights, made where it will run."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

    kinds: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    config = kinds[decoder.family](
        hidden_size=decoder.hidden,
        intermediate_size=decoder.ffn,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        vocab_size=decoder.vocab,
        **{"sliding_window": None, **options} if decoder.family == "mistral" else options,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@dataclass
class Batch:
    """``[B, N]`` rows of text, vision, text, padded on the left where samples are shorter than the longest.

    Attributes:
        embeds: ``[B, N, hidden]``. mask: ``[B, N + decoded rows]`` 0 on padding; None where there is none.
        positions: ``[B, N + decoded rows]`` of the rows among the sample's content.
        vision, group: ``[B, N]`` for ``Handle.rows``. tokens: ``[B, decoded rows]``, fed one by one after the prefill.
        labels: ``[B, N]``, -100 on vision, padding and the first row of each sample.
    """

    embeds: Tensor
    mask: Tensor | None
    positions: Tensor
    vision: np.ndarray
    group: np.ndarray
    tokens: Tensor
    labels: Tensor

    @property
    def length(self) -> int:
        return self.embeds.shape[1]

    @property
    def valid(self) -> np.ndarray:
        n = self.length
        return np.ones((len(self.embeds), n), bool) if self.mask is None else self.mask[:, :n].bool().cpu().numpy()

    @property
    def padding(self) -> float:
        """Share of the rows that are padding."""
        return float(1 - self.valid.mean())

    def inputs(self, columns: slice) -> dict[str, Any]:
        """Mask and positions of a forward over these columns, behind those before them."""
        mask = None if self.mask is None else self.mask[:, : columns.stop]
        return {"attention_mask": mask, "position_ids": self.positions[:, columns]}

    def row_map(self) -> RowMap:
        sizes = [np.unique(g[v], return_counts=True)[1].tolist() for g, v in zip(self.group, self.vision)]
        return RowMap.build(self.vision, self.valid, sizes, device=self.embeds.device)


def make_batch(
    setting: Setting, hidden: int, device: str, dtype: torch.dtype, seed: int, frame_rows: int | None = None
) -> Batch:
    """Random rows in the sizes of ``setting``; ``frame_rows``: so many vision rows per frame instead."""
    c = setting
    shares = torch.linspace(c.shortest, 1, c.batch).tolist() if c.batch > 1 else [1.0]
    per_frame = c.vision_rows / c.frames if frame_rows is None else frame_rows
    sizes = [(max(2, round(c.text_rows * s)), max(1, round(c.frames * per_frame * s))) for s in shares]
    length, later = max(map(sum, sizes)), WARM_UP + c.decode_rows
    valid, vision = np.zeros((c.batch, length + later), bool), np.zeros((c.batch, length), bool)
    group, unlabelled = np.zeros((c.batch, length), np.int64), np.zeros((c.batch, length), bool)
    for b, (text, rows) in enumerate(sizes):
        first = length - text - rows
        valid[b, first:] = True
        unlabelled[b, first] = True  # nothing real stands before a sample's first row to predict it from
        vision[b, first + text // 2 : first + text // 2 + rows] = True
        group[b, vision[b]] = np.arange(rows) * c.frames // rows
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(c.batch, length, hidden, generator=generator)
    labels = torch.randint(0, c.vocab, (c.batch, length), generator=generator)
    labels[torch.from_numpy(vision | unlabelled | ~valid[:, :length])] = -100
    real = torch.from_numpy(valid)
    return Batch(
        embeds=embeds.to(device, dtype),
        mask=None if valid.all() else real.long().to(device),
        positions=(real.long().cumsum(1) - 1).clamp(min=0).to(device),
        vision=vision,
        group=group,
        tokens=torch.randint(0, c.vocab, (c.batch, later), generator=generator).to(device),
        labels=labels.to(device),
    )
