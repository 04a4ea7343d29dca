"""The small protocol that a session and the scorer speak to a model, and its implementation on ``StreamingLlava``."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vtskip.runtime.attach import attached


class StreamModel(Protocol):
    """What streaming needs of a model. A cache is any object with ``get_seq_length()`` and ``crop(-n)``."""

    def new_cache(self) -> Any:
        """An empty cache."""

    def encode(self, frames: Any) -> Any:
        """N frames to whatever ``step`` takes for them, sliceable along the first dimension."""

    def step(self, ids: Sequence[int], features: Any, cache: Any, rows: Sequence[int]) -> Tensor:
        """Feed ``ids`` behind what ``cache`` holds (and extend it); returns the logits [len(rows), V] at ``rows``.

        features: those of the frames whose placeholders ``ids`` contains, None if there are none.
        """


class LlavaStream:
    """``StreamingLlava`` (attached or not) as a StreamModel, batch 1, without gradients."""

    def __init__(self, model: Any):
        self.model = model.eval()

    @property
    def handle(self) -> Any:
        """The handle of the method attached to the model, or None."""
        return attached(self.model)

    def new_cache(self) -> Any:
        """A cache that may hold a different number of rows per layer if the model is attached."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.get_decoder().config)

    @torch.no_grad()
    def encode(self, frames: Any) -> Tensor:
        """frames: uint8 [N, H, W, 3] (array or tensor). Returns vision features [N, F, vision_dim]."""
        return self.model.encode_frames(torch.as_tensor(frames).to(self.model.device))

    @torch.no_grad()
    def step(self, ids: Sequence[int], features: Tensor | None, cache: Any, rows: Sequence[int]) -> Tensor:
        """Logits [len(rows), V] of one chunk; only the asked rows go through the language-model head."""
        device = self.model.device
        out = self.model(
            input_ids=torch.tensor([list(ids)], device=device),
            frame_features=features,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor([r % len(ids) for r in rows], device=device),
        )
        return out.logits[0]


def as_stream_model(model: Any) -> StreamModel:
    """The model itself if it speaks the protocol, else a ``LlavaStream`` around it."""
    return model if hasattr(model, "step") else LlavaStream(model)
