"""What is evaluated: the protocol that tasks ask a model in, and a streaming checkpoint that speaks it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vtskip.eval.cost import MeteredStream, sample_cost
from vtskip.eval.guided import Guided, Seen, guide, motion
from vtskip.eval.records import TurnRecord
from vtskip.eval.stream_score import Continuation, StreamIds, score
from vtskip.eval.tasks import Generation
from vtskip.streaming.loading import StreamCheckpoint
from vtskip.streaming.session import StreamSession, play

Conversation = Sequence[Mapping[str, Any]]
Cost = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends where the answer is due, and the frames it shows: uint8 ``[N, H, W, 3]``."""

    conversation: Conversation
    frames: np.ndarray


class EvalModel(Protocol):
    """What a task may ask. Every method also says what it cost (see ``vtskip.eval.cost``), None where that is not known."""

    def generate(self, prompts: Sequence[Prompt], generation: Generation) -> tuple[list[list[str]], list[Cost | None]]:
        """Answers of every prompt, best first."""

    def stream_score(
        self, prompt: Prompt, threshold: float, continuation: Continuation
    ) -> tuple[list[TurnRecord], Cost | None]:
        """Turn records of one teacher-forced conversation."""

    def rollout(
        self, prompt: Prompt, fps: float, threshold: float, max_new_tokens: int
    ) -> tuple[list[tuple[int, str]], Cost | None]:
        """(frame, text) of every reply over the frames, the opening of the conversation given, the replies its own."""


class SeenStream(MeteredStream):
    """A stream whose frames carry the scores of guided rows with them; ``known`` are frames encoded before, by number."""

    known: Seen | None = None

    def encode(self, frames: Any) -> Any:
        if self.known is not None:
            return self.known[torch.as_tensor(frames).long()]
        features = super().encode(frames)
        guided = isinstance(self.handle.method, Guided)
        return Seen(features, motion(features) if guided else None)

    def step(self, ids: Sequence[int], features: Any, cache: Any, rows: Sequence[int]) -> torch.Tensor:
        guide(self.model, None if features is None else features.scores)
        return super().step(ids, None if features is None else features.features, cache, rows)


class StreamSubject:
    """A streaming checkpoint, with the method that is attached now, as an EvalModel. ``blind`` shows it black frames."""

    def __init__(self, checkpoint: StreamCheckpoint, blind: bool = False):
        self.checkpoint, self.blind = checkpoint, blind
        self.stream = SeenStream(checkpoint.model)

    @property
    def batches(self) -> bool:
        """Whether several prompts may be answered at once."""
        return not isinstance(self.checkpoint.method, Guided)

    def _seen(self, frames: np.ndarray) -> Seen | None:
        frames = np.zeros_like(frames) if self.blind else frames
        return self.stream.encode(frames) if len(frames) else None

    def stream_score(
        self, prompt: Prompt, threshold: float, continuation: Continuation
    ) -> tuple[list[TurnRecord], Cost | None]:
        """As EvalModel; the cost is that of the pass over the whole conversation."""
        template = self.checkpoint.template
        encoded = template.encode(prompt.conversation)
        self.stream.whole = None
        seen, ids = self._seen(prompt.frames), StreamIds.of(template)
        turns = score(self.stream, encoded.input_ids, encoded.labels, seen, ids, threshold, continuation)
        whole = self.stream.whole
        return turns, None if whole is None else sample_cost(whole, len(prompt.frames))

    def rollout(
        self, prompt: Prompt, fps: float, threshold: float, max_new_tokens: int
    ) -> tuple[list[tuple[int, str]], Cost | None]:
        """As EvalModel; frames are encoded at once, so that they are the same to the last bit in every row."""
        self.stream.known = self._seen(prompt.frames)
        try:
            session = self.session(prompt.conversation, threshold, max_new_tokens)
            numbers = ((k / fps, np.array(k)) for k in range(len(prompt.frames)))
            said = [(event.frame, event.text) for event in play(session, numbers)]
        finally:
            self.stream.known = None
        cost = session.cost()
        timed = {"seconds": cost["seconds"], "tokens": cost["reply_tokens"]}
        return said, sample_cost(self.stream.handle.report(), len(prompt.frames)) | timed

    def session(self, conversation: Conversation, threshold: float, max_new_tokens: int = 100) -> StreamSession:
        """A live session, opened as the conversation is: its system text and what is asked for after the first frame."""
        opening = {turn["role"]: turn["content"] for turn in conversation[:3] if turn["role"] in ("system", "user")}
        return StreamSession(
            self.stream,
            self.checkpoint.template,
            threshold=threshold,
            max_new_tokens=max_new_tokens,
            system=opening.get("system"),
            instruction=opening.get("user"),
        )

    def live_seconds(self, prompt: Prompt, fps: float, threshold: float) -> list[float]:
        """Seconds per frame of a live session over the frames; tower and replies included."""
        session = self.session(prompt.conversation, threshold)
        frames = np.zeros_like(prompt.frames) if self.blind else prompt.frames
        for _ in play(session, ((k / fps, frame) for k, frame in enumerate(frames))):
            pass
        return session.seconds

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], generation: Generation) -> tuple[list[list[str]], list[Cost | None]]:
        """As EvalModel, filled up on the left; the cost of a batch stands with its first prompt."""
        clock = FirstToken()
        model, template = self.checkpoint.model.eval(), self.checkpoint.template
        rows = [template.encode(p.conversation, generation_prompt=True).input_ids for p in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[template.eos_id] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        seen = [s for p in prompts if (s := self._seen(p.frames)) is not None]
        guide(model, seen[0].scores if len(seen) == 1 else None)
        self.stream.handle.reset()
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            frame_features=torch.cat([s.features for s in seen]) if seen else None,
            do_sample=False,
            pad_token_id=template.eos_id,
            eos_token_id=template.eos_id,
            stopping_criteria=[clock],
            **generation.model_dump(),
        )[:, longest:]
        timed = {"seconds": time.perf_counter() - clock.start, "first_token_seconds": clock.first}
        answers = [row[: row.index(template.eos_id)] if template.eos_id in row else row for row in out.tolist()]
        tokenizer: Any = template.tokenizer
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]
        n = generation.num_return_sequences
        cost = sample_cost(self.stream.handle.report(), sum(len(p.frames) for p in prompts))
        cost |= timed | {"tokens": sum(map(len, answers))}
        return [texts[i * n : (i + 1) * n] for i in range(len(prompts))], [cost] + [None] * (len(prompts) - 1)


class FirstToken:
    """A stopping criterion that never stops and notes when it is asked first: when the first token is there."""

    def __init__(self) -> None:
        self.start, self.first = time.perf_counter(), 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.first = self.first or time.perf_counter() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
