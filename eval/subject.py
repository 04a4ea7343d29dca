"""What is evaluated: the protocol that tasks ask a model in, and a streaming checkpoint that speaks it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vtskip.errors import DataError
from vtskip.eval import areas
from vtskip.eval.cost import MeteredStream, sample_cost, synchronised
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
    """A conversation that ends where the answer is due, and the frames it shows: uint8 ``[N, H, W, 3]``.

    kinds: the areas of the frames where they are known (``vtskip.eval.areas.kinds_of``).
    """

    conversation: Conversation
    frames: np.ndarray
    kinds: np.ndarray | None = None


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
    kept: list[np.ndarray] | None = None  # of the frames fed, where somebody wants to know
    first_tokens: list[float]  # seconds from a frame to the first token of the reply that follows it

    def __init__(self, model: Any):
        super().__init__(model)
        self.first_tokens = []
        self._began: float | None = None

    def encode(self, frames: Any) -> Any:
        self._began = time.perf_counter()
        return Seen(super().encode(frames)) if self.known is None else self.known[torch.as_tensor(frames).long()]

    def step(self, ids: Sequence[int], features: Any, cache: Any, rows: Sequence[int]) -> torch.Tensor:
        guide(self.model, [] if features is None or features.scores is None else [features.scores])
        logits = super().step(ids, None if features is None else features.features, cache, rows)
        if features is None and self._began is not None:
            synchronised(logits.device)
            self.first_tokens.append(time.perf_counter() - self._began)
            self._began = None
        if features is not None and self.kept is not None:
            self.kept += areas.kept_of(self.handle)
        return logits


class StreamSubject:
    """A streaming checkpoint, with the method that is attached now, as an EvalModel. ``blind`` shows it black frames.

    ``areas``: after every call, per prompt, what the rows kept have to do with the prompt's areas; None where those are unknown.
    """

    def __init__(self, checkpoint: StreamCheckpoint, blind: bool = False):
        self.checkpoint, self.blind = checkpoint, blind
        self.stream = SeenStream(checkpoint.model)
        self.areas: list[dict[str, Any] | None] = []

    def _seen(self, prompt: Prompt) -> Seen | None:
        """The frames' features, with the scores of a guided row."""
        if not len(prompt.frames):
            return None
        seen = self.stream.encode(np.zeros_like(prompt.frames) if self.blind else prompt.frames)
        method, kinds = self.checkpoint.method, self._kinds(prompt)
        if not isinstance(method, Guided):
            return seen
        if method.by == "motion":
            return Seen(seen.features, motion(seen.features))
        if kinds is None:
            raise DataError(f"row {method.by!r}: a sample without known areas")
        return Seen(seen.features, areas.scores_of(kinds, method.by == "oracle", method.seed))

    def _kinds(self, prompt: Prompt) -> np.ndarray | None:
        """``[N, F]`` kinds of the rows as they are now; None where they are unknown or have no place."""
        pool = self.checkpoint.model.config.pool
        if prompt.kinds is None or pool is None or not len(prompt.frames):
            return None
        return areas.pooled(prompt.kinds, pool, self.checkpoint.template.frame_tokens)

    def _watch(self, prompt: Prompt) -> None:
        self.stream.kept = None if self._kinds(prompt) is None else []

    def _found(self, prompts: Sequence[Prompt], kept: Sequence[np.ndarray]) -> None:
        """Set ``areas``; ``kept`` is of the prompts with frames, in order."""
        shown = iter(kept)
        masks = [next(shown, None) if len(p.frames) else None for p in prompts]
        kinds = [self._kinds(prompt) for prompt in prompts]
        self.areas = [None if k is None or m is None else areas.found(m, k) for k, m in zip(kinds, masks)]
        self.stream.kept = None

    def stream_score(
        self, prompt: Prompt, threshold: float, continuation: Continuation
    ) -> tuple[list[TurnRecord], Cost | None]:
        """As EvalModel; the cost is that of the pass over the whole conversation."""
        template = self.checkpoint.template
        encoded = template.encode(prompt.conversation)
        self.stream.whole = None
        self._watch(prompt)
        seen, ids = self._seen(prompt), StreamIds.of(template)
        turns = score(self.stream, encoded.input_ids, encoded.labels, seen, ids, threshold, continuation)
        whole = self.stream.whole
        self._found([prompt], (self.stream.kept or [])[:1])  # not the late frames of silent turns
        return turns, None if whole is None else sample_cost(whole, len(prompt.frames))

    def rollout(
        self, prompt: Prompt, fps: float, threshold: float, max_new_tokens: int
    ) -> tuple[list[tuple[int, str]], Cost | None]:
        """As EvalModel; frames are encoded at once, so that they are the same to the last bit in every row."""
        self.stream.known = self._seen(prompt)
        self._first_tokens()
        self._watch(prompt)
        try:
            session = self.session(prompt.conversation, threshold, max_new_tokens)
            numbers = ((k / fps, np.array(k)) for k in range(len(prompt.frames)))
            said = [(event.frame, event.text) for event in play(session, numbers)]
        finally:
            self.stream.known = None
        kept = self.stream.kept
        self._found([prompt], [np.concatenate(kept, axis=1)] if kept else [])
        cost = session.cost()
        timed = {
            "seconds": cost["seconds"],
            "tokens": cost["reply_tokens"],
            "first_token_seconds": self._first_tokens(),
        }
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

    def _first_tokens(self) -> list[float]:
        """Those since the last call."""
        found, self.stream.first_tokens = self.stream.first_tokens, []
        return found

    def live(self, prompt: Prompt, fps: float, threshold: float) -> dict[str, list[float]]:
        """Times of a live session over the frames: seconds per frame, tower and replies included, and to first tokens."""
        session = self.session(prompt.conversation, threshold)
        frames = np.zeros_like(prompt.frames) if self.blind else prompt.frames
        self._first_tokens()
        for _ in play(session, ((k / fps, frame) for k, frame in enumerate(frames))):
            pass
        return {"live_seconds": session.seconds, "first_token_seconds": self._first_tokens()}

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], generation: Generation) -> tuple[list[list[str]], list[Cost | None]]:
        """As EvalModel, filled up on the left; the cost of a batch stands with its first prompt."""
        clock = FirstToken()
        model, template = self.checkpoint.model.eval(), self.checkpoint.template
        rows = [template.encode(p.conversation, generation_prompt=True).input_ids for p in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[template.eos_id] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        found = [self._seen(prompt) for prompt in prompts]
        seen = [s for s in found if s is not None]
        guide(
            model, [None if s is None else s.scores for s in found] if any(s.scores is not None for s in seen) else []
        )
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
        known = any(p.kinds is not None for p in prompts)
        self._found(prompts, areas.kept_of(self.stream.handle)[:: generation.num_beams] if known else [])
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
        if not self.first:
            synchronised(input_ids.device)
            self.first = time.perf_counter() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
