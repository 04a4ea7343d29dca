"""A live session: frames go in one at a time, timed replies come out, the KV cache stays.

What is fed to the model, and when, is VideoLLM-online's demo loop (arXiv 2406.11816), without its assertion: when the
model decides to speak, the reply opener is fed whatever its runner-up token was.
"""

import math
import time as clock
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from torch import Tensor

from vtskip.errors import ConfigError
from vtskip.streaming.model import as_stream_model
from vtskip.streaming.policy import Decision, check_threshold, decide
from vtskip.template import StreamTemplate


@dataclass(frozen=True)
class Event:
    """One reply. time: video seconds of the frame (or of the question); frame: index of the last frame fed before it."""

    time: float
    text: str
    query: str | None
    frame: int


class StreamSession:
    """Batch-1 streaming inference on a ``StreamingLlava`` or any object that speaks the StreamModel protocol.

    threshold: speak if P(interval) falls below it (or the argmax is another token); in [0, 1], higher speaks more.
    max_new_tokens: bound on a reply; a longer one is cut and closed. system: opening text. instruction: what the user wants
    narrated; as in training it stands after the first frame and gets no reply of its own. The sums of an attached method's
    handle start anew.

    window: rows of history (vision and text, before skipping) that the cache may hold beside the opening, which stays: once
    another turn would not fit, the oldest ones leave and later rows move up in position (``vtskip.runtime.forget``). None:
    as many as the model has positions for. Memory and time per frame are bounded by it.

    on_frame: called with each frame and its time right after the forward that took it in.

    Raises:
        ConfigError: a threshold, max_new_tokens or window that is not accepted; a question too long for the window.
    """

    def __init__(
        self,
        model: Any,
        template: StreamTemplate,
        *,
        threshold: float = 0.725,
        max_new_tokens: int = 100,
        system: str | None = None,
        instruction: str | None = None,
        window: int | None = None,
        on_frame: Callable[[Any, float], None] | None = None,
    ):
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {max_new_tokens}: accepted is 1 or more")
        self.model = as_stream_model(model)
        self.template = template
        self.tokenizer: Any = template.tokenizer
        self.threshold = check_threshold(threshold)
        self.max_new_tokens = max_new_tokens
        self.on_frame = on_frame
        self.cache = self.model.new_cache()
        if self._handle is not None:
            self._handle.reset()
        self.decisions: list[Decision] = []
        self.seconds: list[float] = []
        self.replies = self.reply_tokens = 0
        self._questions: deque[tuple[float, str]] = deque()
        self._pending = template.start_ids(system)
        self._after_first = [] if instruction is None else instruction_ids(template, system, instruction)
        self.forgotten = 0  # rows that have left
        self._opening = len(self._pending) + template.frame_tokens + len(self._after_first)
        self.window = self._window(window)
        self._turns: deque[int] = deque()  # where in the cache the turns behind the opening begin

    @property
    def frames(self) -> int:
        """Frames fed so far."""
        return len(self.seconds)

    def ask(self, text: str, time: float) -> None:
        """Queue a question asked at video time ``time``.

        It is answered before the first later frame, or right after a frame of the same time, once the opening (first
        frame and instruction) is in.
        """
        self._questions.append((time, text))

    def push(self, frame: Any, time: float) -> list[Event]:
        """Feed one frame (uint8 [H, W, 3]) of video time ``time`` seconds; returns the replies it led to, in order."""
        start = clock.perf_counter()
        events = self._answer(lambda asked: asked < time)
        self._make_room(self._turn_rows)
        logits = self._feed_frame(frame)
        if self.on_frame is not None:
            self.on_frame(frame, time)
        interval = self.template.interval_id
        decision = decide(logits, self.template.eos_id if interval is None else interval, self.threshold)[0]
        self.decisions.append(decision)
        self.seconds.append(0.0)  # counted as fed before replies name it; its time follows
        self._pending = [] if interval is None else [interval]
        answers = self._answer(lambda asked: asked <= time)
        events += answers
        if self._instructed:
            if decision.speak and not answers:
                events.append(Event(time, self._reply(self.template.reply_ids()), None, self.frames - 1))
        else:
            self._pending = self._after_first
        self.seconds[-1] = clock.perf_counter() - start
        return events

    def finish(self) -> list[Event]:
        """Answer the questions that were asked after the last frame."""
        return self._answer(lambda asked: True)

    def cost(self) -> dict[str, Any]:
        """What the session has cost so far.

        frames, replies, reply_tokens; seconds and frames_per_second (encoder, decoder and replies together);
        seconds_per_frame p50, p95; rows_held in the cache, before skipping, and rows_forgotten. With an attached method
        also, per layer, the vision rows of a frame that ran attention and FFN (kept_per_frame, kept_ffn_per_frame), and
        kv_bytes of the cache now and of a dense one.
        """
        total = sum(self.seconds)
        p50, p95 = percentiles(self.seconds)
        out: dict[str, Any] = {
            "frames": self.frames,
            "replies": self.replies,
            "reply_tokens": self.reply_tokens,
            "seconds": total,
            "frames_per_second": self.frames / total if total else 0.0,
            "seconds_per_frame_p50": p50,
            "seconds_per_frame_p95": p95,
            "rows_held": self.cache.get_seq_length(),
            "rows_forgotten": self.forgotten,
        }
        if self._handle is not None:
            report, rows = self._handle.report(), self.template.frame_tokens
            out |= {
                "kept_per_frame": [layer.kept * rows for layer in report.layers],
                "kept_ffn_per_frame": [layer.kept_ffn * rows for layer in report.layers],
                "kv_bytes": report.kv_bytes,
                "kv_bytes_dense": report.kv_bytes_dense,
            }
        return out

    @property
    def _handle(self) -> Any:
        return getattr(self.model, "handle", None)

    @property
    def _turn_rows(self) -> int:
        """Most rows that a frame and the reply to it add."""
        waiting = 1 + len(self.template.resume_ids()) + len(self._after_first)
        return waiting + self.template.frame_tokens + len(self.template.reply_ids()) + self.max_new_tokens

    def _window(self, asked: int | None) -> int | None:
        positions, least = getattr(self.model, "positions", None), 2 * self._turn_rows
        if asked is None and positions is None:
            return None
        most = None if positions is None else int(positions) - self._opening
        window: Any = most if asked is None else asked
        if window < least or (most is not None and window > most):
            limit = f"up to {most} (the model's {positions} positions less the opening's {self._opening})"
            raise ConfigError(
                f"window {window}: accepted is {least} (two turns with replies of max_new_tokens {self.max_new_tokens}) "
                f"{'or more' if most is None else limit}"
            )
        return window

    def _make_room(self, rows: int) -> None:
        """A turn of at most ``rows`` rows begins: where it might not fit, the oldest turns leave, an eighth of the window or
        more at once, so that few steps pay for moving the others.
        """
        length = self.cache.get_seq_length()
        if self.window is not None:
            if rows > self.window:
                raise ConfigError(
                    f"a question and its reply may take {rows} rows, which the window of {self.window} lacks"
                )
            if length + rows > self._opening + self.window:
                leave = max(length + rows - self._opening - self.window, self.window // 8)
                cut = next((turn for turn in self._turns if turn - self._opening >= leave), length)
                bounded: Any = self.model
                bounded.forget(self.cache, self._opening, cut)
                gone, length = cut - self._opening, length - (cut - self._opening)
                self.forgotten += gone
                self._turns = deque(turn - gone for turn in self._turns if turn >= cut)
        if length >= self._opening:
            self._turns.append(length)

    def _feed_frame(self, frame: Any) -> Tensor:
        """Pending tokens and the frame's placeholders in one call; logits [1, V] at the last placeholder."""
        features = self.model.encode(frame[None])
        return self._step(self._pending + [self.template.frame_id] * self.template.frame_tokens, features)

    @property
    def _instructed(self) -> bool:
        """Past the opening: the first frame is in, and so is the instruction behind it if there is one."""
        return self.frames > bool(self._after_first)

    def _answer(self, due: Callable[[float], bool]) -> list[Event]:
        """Answer queued questions, in the order asked, while ``due(time)``.

        As in the published loop the token waiting to be fed (interval, or the end of the last reply) is dropped.
        """
        events = []
        while self._instructed and self._questions and due(self._questions[0][0]):
            time, query = self._questions.popleft()
            prompt = self.template.query_ids(query)
            self._make_room(len(prompt) + self.max_new_tokens)
            events.append(Event(time, self._reply(prompt), query, self.frames - 1))
        return events

    def _reply(self, prompt: Sequence[int]) -> str:
        """Feed ``prompt`` and decode greedily; the reply's end and the stream's reopening wait for the next frame."""
        tokens: list[int] = []
        feed = list(prompt)
        while len(tokens) < self.max_new_tokens:
            token = self._next_token(self._step(feed))
            if token == self.template.eos_id:
                feed = []
                break
            tokens.append(token)
            feed = [token]
        self.replies += 1
        self.reply_tokens += len(tokens)
        self._pending = [*feed, self.template.eos_id, *self.template.resume_ids()]
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _next_token(self, logits: Tensor) -> int:
        """Greedy choice [1, V] -> id; a frame placeholder is no text and cannot be chosen."""
        best = logits[0].topk(2).indices.tolist()
        return best[1] if best[0] == self.template.frame_id else best[0]

    def _step(self, ids: Sequence[int], features: Any = None) -> Tensor:
        return self.model.step(ids, features, self.cache, [len(ids) - 1])


def play(
    session: StreamSession, frames: Iterable[tuple[float, Any]], questions: Sequence[tuple[float, str]] = ()
) -> Iterator[Event]:
    """Run ``(time, frame)`` pairs through a session and yield replies as they come, those to late questions last.

    questions: ``(time, text)``; each is asked just before the first frame that is not earlier than it.
    """
    waiting = deque(sorted(questions, key=lambda q: q[0]))
    for time, frame in frames:
        while waiting and waiting[0][0] <= time:
            asked, text = waiting.popleft()
            session.ask(text, asked)
        yield from session.push(frame, time)
    for asked, text in waiting:
        session.ask(text, asked)
    yield from session.finish()


def parse_question(text: str) -> tuple[float, str]:
    """``TEXT@SECONDS`` to ``(seconds, text)``. Raises ConfigError for anything else."""
    question, at, seconds = text.rpartition("@")
    try:
        time = float(seconds)
    except ValueError:
        time = math.nan
    if not (at and question.strip() and 0 <= time < math.inf):
        raise ConfigError(f"query {text!r}: accepted is TEXT@SECONDS, e.g. 'What is this?@3.5'")
    return time, question.strip()


def instruction_ids(template: StreamTemplate, system: str | None, instruction: str) -> list[int]:
    """Tokens between the first frame and the second one: the stream closed, the instruction, the stream opened again."""
    turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    turns += [{"role": "stream", "num_frames": 1}, {"role": "user", "content": instruction}]
    before = len(template.start_ids(system)) + template.frame_tokens
    return [*template.encode(turns).input_ids[before:], *template.open_ids()]


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile (linear interpolation); zeros for no values."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]
