"""A stock image-text model of the Hub, with a method attached and its processor, as something that answers chats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtskip.errors import CheckpointError, ConfigError, one_line
from vtskip.eval.chat import Answer, Decoding, Talk, parts_of, untrained
from vtskip.eval.media import Clip, clip_of
from vtskip.methods import MethodSpec, get_method
from vtskip.models.families import family_of
from vtskip.runtime.attach import Handle, attach
from vtskip.saving import CONFIG_NAME, method_state
from vtskip.streaming.loading import pick_device

PREPARED = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Prepared:
    """Messages with bare placeholders, and the images and videos that belong there, in order."""

    messages: list[dict[str, Any]]
    images: list[np.ndarray]
    clips: list[Clip]


def alike(talks: Sequence[Prepared]) -> list[list[int]]:
    """Places of talks that may share a batch: not every processor can put videos of different lengths or sizes together."""
    groups: dict[Any, list[int]] = {}
    for i, talk in enumerate(talks):
        groups.setdefault(tuple(clip.frames.shape for clip in talk.clips), []).append(i)
    return list(groups.values())


def _length(row: list[int], stops: set[int]) -> int:
    """Tokens of an answer, its end included; what stands behind it is padding."""
    return next((i + 1 for i, token in enumerate(row) if token in stops), len(row))


class StockAnswerer:
    """A stock image-text model with its processor."""

    def __init__(
        self, pretrained: str, method: MethodSpec | None, device: str, dtype: str, max_frames: int, **kwargs: Any
    ):
        self.max_frames = max_frames
        self.handle = _attached(pretrained, method, {"dtype": dtype} | kwargs)
        self.model: Any = self.handle.model
        if "device_map" not in kwargs:
            self.model.to(pick_device(device))
        self.device: torch.device = self.model.device
        self.processor = _processor(pretrained, self.model)
        self.processor.tokenizer.padding_side = "left"
        family = family_of(self.model)
        self.takes_videos = family is not None and family.video and hasattr(self.processor, "video_processor")

    def answer(self, talks: Sequence[Talk], decoding: Decoding) -> list[Answer]:
        prepared = [self.prepared(talk) for talk in talks]
        answers: dict[int, Answer] = {}
        for places in alike(prepared):
            found = self._answer([prepared[i] for i in places], decoding)
            answers |= dict(zip(places, found))
        return [answers[i] for i in range(len(talks))]

    @torch.no_grad()
    def _answer(self, batch: Sequence[Prepared], decoding: Decoding) -> list[Answer]:
        inputs = self.inputs(batch).to(self.device)
        for name in [name for name in inputs if name.startswith("pixel_values")]:
            inputs[name] = inputs[name].to(self.model.dtype)  # other floats are times, which bfloat16 would round
        tokenizer, ends = self.processor.tokenizer, self.model.generation_config.eos_token_id
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        sampled = decoding.temperature > 0
        out = self.model.generate(
            **inputs,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_p=decoding.top_p if sampled else None,
            top_k=None,
            pad_token_id=pad,
        )[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(out, skip_special_tokens=True)
        stops = {ends} if isinstance(ends, int) else set(ends or ())
        return [Answer(text.strip(), _length(row, stops)) for text, row in zip(texts, out.tolist())]

    def inputs(self, batch: Sequence[Prepared]) -> Any:
        """What the processor makes of a batch: text filled up on the left, images and videos in order."""
        texts = [
            self.processor.apply_chat_template(talk.messages, tokenize=False, add_generation_prompt=True)
            for talk in batch
        ]
        media: dict[str, Any] = {}
        if images := [image for talk in batch for image in talk.images]:
            media["images"] = images
        if clips := [clip for talk in batch for clip in talk.clips]:
            media["videos"] = [clip.frames for clip in clips]
            facts = [{"fps": c.fps, "total_num_frames": c.total, "frames_indices": c.indices} for c in clips]
            media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": facts}
        return self.processor(text=texts, padding=True, return_tensors="pt", **media)

    def prepared(self, talk: Talk) -> Prepared:
        """A model that takes no videos sees their frames as images."""
        messages: list[dict[str, Any]] = []
        images: list[np.ndarray] = []
        clips: list[Clip] = []
        for message in talk:
            parts: list[dict[str, Any]] = []
            for part in parts_of(message):
                if part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                    continue
                clip = clip_of(part, self.max_frames)
                if part["type"] == "video" and self.takes_videos:
                    clips.append(clip)
                    parts.append({"type": "video"})
                else:
                    images += list(clip.frames)
                    parts += [{"type": "image"}] * len(clip.frames)
            messages.append({"role": message["role"], "content": parts})
        return Prepared(messages, images, clips)


def _attached(pretrained: str, method: MethodSpec | None, kwargs: dict[str, Any]) -> Handle:
    """The model of a folder or id with the method that was saved or asked for; ``dense`` without either, to count costs."""
    from transformers import AutoModelForImageTextToText

    from vtskip.loading import load_pretrained

    if (Path(pretrained) / CONFIG_NAME).is_file():
        handle = load_pretrained(pretrained, **kwargs)
        if method is None:
            return handle
        handle.detach()
        model: Any = handle.model
    else:
        try:
            model = AutoModelForImageTextToText.from_pretrained(pretrained, **kwargs).eval()
        except (OSError, ValueError, RuntimeError) as e:
            raise CheckpointError(f"{pretrained}: no model that can be loaded ({one_line(e)})") from None
    handle = attach(model, "dense" if method is None else get_method(method))
    if method_state(model):
        raise ConfigError(untrained(method, pretrained))
    return handle


def _processor(pretrained: str, model: Any) -> Any:
    """From the folder if it holds one, else from where the base model came from."""
    from transformers import AutoProcessor

    here = Path(pretrained)
    own = not here.is_dir() or any((here / name).is_file() for name in PREPARED)
    source = pretrained if own else model.config._name_or_path
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{source}: no processor beside the model ({one_line(e)})") from None
