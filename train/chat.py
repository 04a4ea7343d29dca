"""Conversations in a stock model's own words: its chat template, its processor, and labels on the replies.

Rendered as the processor renders them, so that training sees the ids of a later ``generate``. What is learned of a reply is what
stands behind its generation prompt, to the token that ends it: a template that writes none (LLaVA-1.5's) is given the
tokenizer's eos there, or the model would never learn to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtskip.data.collate import IGNORE
from vtskip.data.still import STILLS
from vtskip.data.types import Sample
from vtskip.data.video import probe, read_frames
from vtskip.errors import DataError, one_line

Message = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A still image, or the frames of a clip that are shown. ``pixels`` uint8 ``[N, H, W, 3]``; ``fps`` if there is no file."""

    path: Path
    frames: list[int]
    pixels: np.ndarray
    fps: float | None = None


@dataclass
class Rendered:
    """A conversation as text, and the spans ``[start, end)`` of characters in it that are learned."""

    text: str = ""
    learned: list[tuple[int, int]] = field(default_factory=list)


class ChatTemplate:
    """Samples to a stock model's inputs.

    Args:
        processor: with a chat template and a ``tokenizer``. family: of the model, for messages.
        max_tokens: longer conversations are cut behind it.
    """

    def __init__(self, processor: Any, family: str, max_tokens: int | None = None) -> None:
        self.processor, self.tokenizer, self.family, self.max_tokens = (
            processor,
            processor.tokenizer,
            family,
            max_tokens,
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.videos = getattr(processor, "video_processor", None) is not None

    # -- text ----------------------------------------------------------------------------------------------------------

    def messages(self, sample: Sample) -> list[Message]:
        """Roles with parts, as chat templates take them. Raises DataError for a stream whose frames are to be learned."""
        messages: list[Message] = []
        shown = iter(clip for clip, _ in runs(sample))
        for number, turn in enumerate(sample.conversation):
            if turn["role"] == "stream":
                if turn.get("learn"):
                    raise DataError(
                        f"sample {sample.uid!r}, turn {number}: a stream to narrate; a {self.family} model answers questions, "
                        "a StreamingLlava (model.lm) learns when to speak"
                    )
                path, role = next(shown), "user"
                kinds = ["image"] * turn["num_frames"] if self._as_image(path) else ["video"]
                parts: list[Any] = [{"type": kind} for kind in kinds]
            else:
                role, parts = turn["role"], [{"type": "text", "text": turn["content"]}]
            if messages and messages[-1]["role"] == role == "user":
                messages[-1]["content"] += parts
            else:
                messages.append({"role": role, "content": parts, "learn": bool(turn.get("learn"))})
        return messages

    def _as_image(self, path: Path) -> bool:
        return not self.videos or path.suffix.lower() in STILLS

    def kinds(self, sample: Sample) -> set[str]:
        """Which of ``image`` and ``video`` the model gets."""
        return {"image" if self._as_image(path) else "video" for path, _ in sample.clips}

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Raises DataError where the template refuses a conversation, or rewrites earlier turns when later ones come."""
        done, before = Rendered(), ""
        for number, message in enumerate(messages):
            upto = self._apply(messages[: number + 1], False)
            if not upto.startswith(before):
                raise DataError(
                    f"chat template of {self.family}: turn {number} changes the text of the turns before it"
                )
            added = upto[len(before) :]
            if message["role"] == "assistant" and message.get("learn"):
                prompt = common(self._apply(messages[:number], True), upto)
                start = len(done.text) + max(0, prompt - len(before))
                done.text += self._ended(added)
                done.learned.append((start, len(done.text)))
            else:
                done.text += added
            before = upto
        return done

    def _ended(self, turn: str) -> str:
        body = turn.rstrip()
        ends = any(body.endswith(token) for token in self.tokenizer.all_special_tokens)
        return turn if ends or self.tokenizer.eos_token is None else body + self.tokenizer.eos_token

    def _apply(self, messages: Sequence[Message], prompt: bool) -> str:
        if not messages:
            return ""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        try:
            return self.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
        except Exception as e:  # jinja's own kinds of errors, and ValueError for a processor without a template
            raise DataError(f"chat template of {self.family}: {one_line(e)[:300]}") from None

    def ids(self, text: str) -> list[int]:
        """Token ids, without what the processor makes of images. A template's own <bos> is not doubled."""
        bos = self.tokenizer.bos_token
        return self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]

    # -- pictures ------------------------------------------------------------------------------------------------------

    def look(self, sample: Sample) -> list[Picture]:
        """What a sample shows, at full size, in its order. Raises DataError naming the file of a fault."""
        return [Picture(path, frames, read_frames(path, frames)) for path, frames in runs(sample)]

    def inputs(self, text: str, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The processor's tensors of one text, ``input_ids [1, S]`` among them. Raises DataError in our words."""
        bos = self.tokenizer.bos_token
        options: dict[str, Any] = {"add_special_tokens": not (bos and text.startswith(bos)), "return_tensors": "pt"}
        stills = [frame for p in pictures if self._as_image(p.path) for frame in p.pixels]
        clips = [p for p in pictures if not self._as_image(p.path)]
        if stills:
            options["images"] = stills
        if clips:
            options |= {"videos": [p.pixels for p in clips], "do_sample_frames": False}
            options["video_metadata"] = [metadata(p) for p in clips]
        try:
            made = self.processor(text=[text], **options)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as e:
            names = ", ".join(dict.fromkeys(str(p.path) for p in pictures)) or "a text"
            raise DataError(f"processor of {self.family} on {names}: {one_line(e)[:300]}") from None
        return {k: v if isinstance(v, Tensor) else torch.as_tensor(v) for k, v in made.items()}

    # -- labels --------------------------------------------------------------------------------------------------------

    def question(self, sample: Sample) -> dict[str, Tensor]:
        """The processor's tensors of a conversation to which a reply is due, its generation prompt included."""
        return self.inputs(self._apply(self.messages(sample), True), self.look(sample))

    def encode(self, sample: Sample, pictures: Sequence[Picture] | None = None) -> dict[str, Tensor]:
        """The processor's tensors of a sample with ``labels [1, S]``, not shifted: -100 but on what is learned."""
        rendered = self.render(self.messages(sample))
        pictures = self.look(sample) if pictures is None else list(pictures)
        made = self.inputs(rendered.text, pictures)
        ids = made["input_ids"][0].tolist()
        labels = torch.full_like(made["input_ids"], IGNORE)
        for span in rendered.learned:
            start, end = (self._place(rendered.text, char, ids, pictures) for char in span)
            labels[0, start:end] = made["input_ids"][0, start:end]
        return self._cut(sample, made | {"labels": labels})

    def _place(self, text: str, char: int, ids: list[int], pictures: Sequence[Picture]) -> int:
        """Where the token that begins at character ``char`` of ``text`` stands in ``ids``, in which images are expanded.

        Behind the last image, places counted from the end are those of the text alone; else the text before is processed,
        with its images.
        """
        whole = self.ids(text)
        place = common(self.ids(text[:char]), whole)
        shift = len(ids) - len(whole)
        if ids[place + shift :] == whole[place:]:
            return place + shift
        before = self.inputs(text[:char], pictures[: self._shown(text[:char])])
        return common(before["input_ids"][0].tolist(), ids)

    def _shown(self, text: str) -> int:
        """How many pictures a text shows."""
        tokens = {getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video")} - {None}
        return sum(text.count(str(token)) for token in tokens)

    def _cut(self, sample: Sample, made: dict[str, Tensor]) -> dict[str, Tensor]:
        length, most = made["input_ids"].shape[1], self.max_tokens
        if most is None or length <= most:
            return made
        cut = {k: v[:, :most] if token_like(v, length) else v for k, v in made.items()}
        marks = [getattr(self.processor, f"{kind}_token_id", None) for kind in ("image", "video")]
        lost = made["input_ids"][0, most:]
        if any(bool((lost == mark).any()) for mark in marks if mark is not None):
            raise DataError(
                f"sample {sample.uid!r}: its images alone are longer than max_tokens {most} ({length} tokens)"
            )
        return cut

    def length(self, sample: Sample) -> int:
        """About how many tokens a sample has: its text, and for each frame as many as a picture of 336 x 336 has."""
        if not hasattr(self, "_rows"):
            blank = blank_picture()
            with_image = self.inputs(self.render([blank_message()]).text, [blank])["input_ids"].shape[1]
            self._rows = with_image - len(self.ids(self.render([blank_message()]).text)) + 1
        texts = " ".join(turn["content"] for turn in sample.conversation if "content" in turn)
        total = len(self.ids(texts)) + 4 * len(sample.conversation) + self._rows * len(sample.frames)
        return min(total, self.max_tokens or total)


def runs(sample: Sample) -> list[tuple[Path, list[int]]]:
    """``(file, source frames)`` of every stream turn of a sample."""
    frames = iter([(path, index) for path, indices in sample.clips for index in indices])
    found = []
    for turn in sample.conversation:
        if turn["role"] == "stream":
            part = [next(frames) for _ in range(turn["num_frames"])]
            found.append((part[0][0], [index for _, index in part]))
    return found


def metadata(picture: Picture) -> Any:
    """What a video processor is told of the frames: when they were."""
    from transformers.video_utils import VideoMetadata

    if picture.fps is None:
        info = probe(picture.path)
        total, fps, width, height, duration = info.frames, float(info.fps), info.width, info.height, info.duration
    else:
        total, height, width = picture.pixels.shape[:3]
        fps, duration = picture.fps, total / picture.fps
    return VideoMetadata(
        total_num_frames=total,
        fps=fps,
        width=width,
        height=height,
        duration=duration,
        frames_indices=list(picture.frames),
    )


def blank_picture(side: int = 336, kind: str = "image") -> Picture:
    """An image, or a clip of two seconds."""
    if kind == "image":
        return Picture(Path("blank.png"), [0], np.zeros((1, side, side, 3), np.uint8))
    return Picture(Path("blank.mp4"), [0, 1, 2, 3], np.zeros((4, side, side, 3), np.uint8), fps=2.0)


def blank_message(kind: str = "image") -> Message:
    return {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "."}]}


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def token_like(tensor: Tensor, length: int) -> bool:
    """Whether a tensor of one sample has a value per token."""
    return tensor.ndim == 2 and tensor.shape == (1, length)
