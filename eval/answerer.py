"""A model by folder or id that answers chats: a stock model, or a streaming checkpoint of ``vtskip train``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtskip.errors import CheckpointError, ConfigError, one_line
from vtskip.eval.chat import TIMED, Answer, Answerer, Decoding, Talk, parts_of, untrained
from vtskip.eval.media import clip_of
from vtskip.eval.stock import StockAnswerer
from vtskip.eval.subject import Prompt, StreamSubject
from vtskip.eval.tasks import Generation
from vtskip.methods import MethodSpec, get_method
from vtskip.runtime.attach import Handle
from vtskip.streaming.loading import load_stream


def load_answerer(
    pretrained: str,
    method: MethodSpec | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_frames: int = 32,
    threshold: float = 0.725,
    **kwargs: Any,
) -> Answerer:
    """A model by folder or Hub id.

    Args:
        pretrained: a stock model that is supported, a folder of ``save_pretrained``, or one of ``vtskip train``.
        method: attach this one instead of the saved one; without either the model is dense.
        max_frames: of a video that comes as a file. threshold: for speaking, where a stream is played.
        kwargs: for ``from_pretrained`` of a stock model.

    Raises CheckpointError for what is no model, ConfigError for a method whose parameters nobody trained.
    """
    if _config(pretrained).get("model_type") == "streaming_llava":
        return StreamAnswerer(pretrained, method, device, dtype, max_frames, threshold)
    return StockAnswerer(pretrained, method, device, dtype, max_frames, **kwargs)


def _config(pretrained: str) -> dict[str, Any]:
    path = Path(pretrained) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise CheckpointError(f"{path}: not JSON ({one_line(e)})") from None


class StreamAnswerer:
    """A checkpoint of ``vtskip train``: videos become stream turns, images streams of one frame."""

    def __init__(
        self, folder: str, method: MethodSpec | None, device: str, dtype: str, max_frames: int, threshold: float
    ):
        self.checkpoint = load_stream(folder, device, dtype)
        if method is not None and not self.checkpoint.use(get_method(method)):
            raise ConfigError(untrained(method, folder))
        self.subject = StreamSubject(self.checkpoint)
        self.device: torch.device = self.checkpoint.model.device
        self.max_frames, self.threshold = max_frames, threshold

    @property
    def handle(self) -> Handle:
        return self.checkpoint.handle

    def answer(self, talks: Sequence[Talk], decoding: Decoding) -> list[Answer]:
        if decoding.temperature > 0:
            raise ConfigError(
                f"temperature {decoding.temperature}: a streaming checkpoint answers greedily; accepted: 0"
            )
        prompts = [self.prompt(talk) for talk in talks]
        if decoding.stream_fps is not None:
            return [self._played(prompt, decoding.stream_fps, decoding.max_new_tokens) for prompt in prompts]
        texts, costs = self.subject.generate(prompts, Generation(**_searched(decoding)))
        tokens = sum(cost["tokens"] for cost in costs if cost)
        shares = [tokens // len(prompts) + (k < tokens % len(prompts)) for k in range(len(prompts))]
        return [Answer(text[0], share) for text, share in zip(texts, shares)]

    def _played(self, prompt: Prompt, fps: float, most: int) -> Answer:
        said, cost = self.subject.rollout(prompt, fps, self.threshold, most)
        return Answer("\n".join(f"{frame / fps:g}: {text}" for frame, text in said), (cost or {}).get("tokens", 0))

    def prompt(self, talk: Talk) -> Prompt:
        """The conversation as it is trained on, and its frames."""
        side = self.checkpoint.model.config.image_size
        turns: list[dict[str, Any]] = []
        frames = [np.zeros((0, side, side, 3), np.uint8)]
        for message in talk:
            for part in parts_of(message):
                if part["type"] == "text":
                    turns.append({"role": message["role"], "content": part["text"].removesuffix(TIMED)})
                    continue
                frames.append(clip_of(part, self.max_frames, side).frames)
                turns.append({"role": "stream", "num_frames": len(frames[-1]), "learn": False})
        return Prompt(turns, np.concatenate(frames))


def _searched(decoding: Decoding) -> dict[str, int]:
    return {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams}
