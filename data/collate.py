"""Samples to batches: token ids from the template, frames from the video files or their features from a cache."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from vtskip.data.features import FeatureCache
from vtskip.data.types import Sample, Shown
from vtskip.data.video import read_frames

IGNORE = -100


class _Template(Protocol):
    """``vtskip.template.StreamTemplate``: gives ``input_ids``, ``labels`` and ``num_frames`` of a conversation."""

    def encode(self, conversation: Any, generation_prompt: bool = False) -> Any: ...


class FrameCache:
    """Decoded frames of the videos used last, at most ``limit`` frames in all (0: keep nothing)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._clips: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def read(self, sample: Sample, size: int) -> np.ndarray:
        """uint8 ``[N, size, size, 3]``; the same values whether decoded now or before."""
        key = (sample.video, sample.files, size, tuple(sample.frames))
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        parts = [read_frames(path, indices, size) for path, indices in sample.clips]
        frames = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if len(frames) <= self.limit:
            self._clips[key] = frames
            self.held += len(frames)
            while self.held > self.limit:
                self.held -= len(self._clips.popitem(last=False)[1])
        return frames


class StreamCollator:
    """Turns samples into ``input_ids, attention_mask, labels [B, S]`` and ``frames uint8 [N, size, size, 3]``.

    ``frames`` holds the frames of the whole batch in row order. ``labels`` come shifted from the template, -100 where
    nothing is learned. ``padding`` is the side that shorter rows are filled on; ``cache_frames`` is how many decoded frames
    stay in memory (per process). With ``features`` no video is opened, and ``frame_features [N, F, D]`` take the place of
    ``frames``.
    """

    def __init__(
        self,
        template: _Template,
        image_size: int,
        pad_id: int,
        padding: Literal["right", "left"] = "right",
        cache_frames: int = 0,
        generation_prompt: bool = False,
        features: FeatureCache | None = None,
    ) -> None:
        self.template, self.image_size, self.pad_id = template, image_size, pad_id
        self.padding, self.generation_prompt = padding, generation_prompt
        self.cache, self.features = FrameCache(cache_frames), features

    def __call__(self, samples: Sequence[Sample | Shown]) -> dict[str, torch.Tensor]:
        """Of samples whose pictures are read here, or that come with them (``vtskip.data.guarded``)."""
        told = [s.sample if isinstance(s, Shown) else s for s in samples]
        encoded = [self.template.encode(s.conversation, generation_prompt=self.generation_prompt) for s in told]
        length = max(len(e.input_ids) for e in encoded)
        shown = [s.vision if isinstance(s, Shown) else self.look(s) for s in samples]
        return {
            "input_ids": self._rows([e.input_ids for e in encoded], length, self.pad_id),
            "attention_mask": self._rows([[1] * len(e.input_ids) for e in encoded], length, 0),
            "labels": self._rows([e.labels for e in encoded], length, IGNORE),
            "frames" if self.features is None else "frame_features": torch.cat(shown),
        }

    def look(self, sample: Sample) -> torch.Tensor:
        """What a sample shows, empty but there where it shows nothing. Raises DataError naming the file of a fault."""
        if self.features is not None:
            parts = [self.features.read(*clip) for clip in sample.clips]
            return torch.cat(parts or [self.features.empty()])
        if not sample.frames:
            return torch.zeros(0, self.image_size, self.image_size, 3, dtype=torch.uint8)
        return torch.from_numpy(self.cache.read(sample, self.image_size))

    def _rows(self, rows: list[list[int]], length: int, fill: int) -> torch.Tensor:
        padded = [
            row + [fill] * (length - len(row)) if self.padding == "right" else [fill] * (length - len(row)) + row
            for row in rows
        ]
        return torch.tensor(padded, dtype=torch.long)
