"""The small protocol that a session and the scorer speak to a model, and its implementation on ``StreamingLlava``."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vtskip.runtime.attach import attached
from vtskip.runtime.cache import SkipCache
from vtskip.runtime.forget import forget

ENCODE_BATCH = 64  # frames that go through the vision tower at once


class StreamModel(Protocol):
    """What streaming needs of a model. A cache is any object with ``get_seq_length()`` and ``crop(-n)``.

    A model whose positions end somewhere has also ``positions``, their number, and ``forget(cache, first, last)``, which takes
    rows out of the middle of a cache; without them a session is unbounded.
    """

    def new_cache(self) -> Any:
        """An empty cache."""

    def encode(self, frames: Any) -> Any:
        """N frames to whatever ``step`` takes for them, sliceable along the first dimension."""

    def step(self, ids: Sequence[int], features: Any, cache: Any, rows: Sequence[int]) -> Tensor:
        """Feed ``ids`` behind what ``cache`` holds (and extend it); returns the logits [len(rows), V] at ``rows``.

        features: those of the frames whose placeholders ``ids`` contains, None if there are none.
        """


class LlavaStream:
    """``StreamingLlava`` (attached or not) as a StreamModel, batch 1, without gradients. Puts the model in eval mode."""

    def __init__(self, model: Any):
        self.model = model.eval()

    @property
    def handle(self) -> Any:
        """The handle of the method attached to the model, or None."""
        return attached(self.model)

    @property
    def positions(self) -> int | None:
        """How many positions the language model was made for, None if it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def new_cache(self) -> Any:
        """A cache without sliding windows (those cannot be cropped), which grows by blocks."""
        return SkipCache()

    def forget(self, cache: Any, first: int, last: int) -> None:
        """Rows ``first`` to ``last`` leave the cache, later ones move up. Raises ModelError where that cannot be."""
        forget(self.model, cache, first, last)

    @torch.no_grad()
    def encode(self, frames: Any) -> Tensor:
        """frames: uint8 [N, H, W, 3] (array or tensor), N >= 1. Returns vision features [N, F, vision_dim]."""
        batches = torch.as_tensor(frames).split(ENCODE_BATCH)
        return torch.cat([self.model.encode_frames(batch.to(self.model.device)) for batch in batches])

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
