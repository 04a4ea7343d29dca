"""Teacher-forced scoring of one conversation: one forward over all of it, then the late frames of silent turns.

After a turn in which the model stays silent, the cache is cropped to just behind the last learned frame and the frames
that follow are fed until the reference's limit, to learn how late the model would have spoken. Silent turns are visited
from the last to the first, so that one cache, cropped by logical position, serves all of them without a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from vtskip.errors import DataError
from vtskip.eval.records import FrameScores, TurnRecord, leading
from vtskip.streaming.model import StreamModel
from vtskip.streaming.policy import decide
from vtskip.template import StreamTemplate

IGNORE = -100
Continuation = Literal["reference", "exact"]


@dataclass(frozen=True)
class StreamIds:
    """Token ids that structure a stream. interval_id None: silence is predicted as the end token (one-token models).

    reply_prefix: the tokens every reply starts with ("Assistant:"), which are not content.
    """

    frame_id: int
    frame_tokens: int
    eos_id: int
    interval_id: int | None
    reply_prefix: tuple[int, ...] = ()

    @classmethod
    def of(cls, template: StreamTemplate) -> "StreamIds":
        """The ids of a template."""
        prefix = tuple(template.reply_ids()[1:])
        return cls(template.frame_id, template.frame_tokens, template.eos_id, template.interval_id, prefix)

    @property
    def silent_id(self) -> int:
        """The token whose prediction at a frame means silence."""
        return self.eos_id if self.interval_id is None else self.interval_id

    def frames(self, count: int) -> list[int]:
        """``count`` further frames of a stream: each an interval token (if there is one) and its placeholders."""
        interval = [] if self.interval_id is None else [self.interval_id]
        return (interval + [self.frame_id] * self.frame_tokens) * count


@dataclass(frozen=True)
class Turn:
    """Token range of one turn with its learned stream and text positions; ``frames_from`` counts all earlier frames."""

    index: int
    frames: int
    frames_from: int
    stream: list[int]
    text: list[int]


def split_turns(input_ids: Sequence[int], labels: Sequence[int], ids: StreamIds) -> list[Turn]:
    """Turns end right after every end token; what follows the last one is in none. Raises DataError on a cut frame."""
    if len(input_ids) != len(labels):
        raise DataError(f"{len(input_ids)} input_ids with {len(labels)} labels; accepted: as many labels as ids")
    turns: list[Turn] = []
    start = seen = 0
    for stop in (p + 1 for p, token in enumerate(input_ids) if token == ids.eos_id):
        placeholders = sum(input_ids[p] == ids.frame_id for p in range(start, stop))
        frames, rest = divmod(placeholders, ids.frame_tokens)
        if rest:
            raise DataError(
                f"turn {len(turns)}: {placeholders} frame tokens; accepted: a multiple of {ids.frame_tokens}"
            )
        learned = [p for p in range(start, stop) if labels[p] != IGNORE]
        stream = [p for p in learned if input_ids[p] == ids.frame_id]
        text = [p for p in learned if input_ids[p] != ids.frame_id]
        turns.append(Turn(len(turns), frames, seen, stream, text))
        start, seen = stop, seen + frames
    return turns


def score(
    model: StreamModel,
    input_ids: Sequence[int],
    labels: Sequence[int],
    features: Any,
    ids: StreamIds,
    threshold: float = 0.0,
    continuation: Continuation = "reference",
) -> list[TurnRecord]:
    """Turn records of one conversation (batch 1). Turns without labels have none.

    labels: already shifted (labels[p] is predicted from p). features: ``model.encode`` of all frames.
    continuation: which frames follow a silent turn. ``reference`` skips unlearned frames at the turn's end and does not
    count the frames of unlearned turns, as the published code does; ``exact`` takes the frames that really come next.
    """
    turns = split_turns(input_ids, labels, ids)
    learned = [t for t in turns if t.stream or t.text]
    rows = [p for t in learned for p in sorted(t.stream + t.text)]
    if not rows:
        return []
    cache = model.new_cache()
    logits = model.step(input_ids, features, cache, rows)
    at = {p: r for r, p in enumerate(rows)}
    records = [
        _record(turns, t, logits[[at[p] for p in t.stream]], logits[[at[p] for p in t.text]], labels, ids)
        for t in learned
    ]
    counted = list(accumulate((t.frames for t in learned), initial=0))
    for i in reversed(range(len(learned))):
        turn, record = learned[i], records[i]
        if turn.stream and record.offered and not any(record.stream.spoken(threshold)):
            end = turn.stream[-1] + 1
            seen = sum(token == ids.frame_id for token in input_ids[:end]) // ids.frame_tokens
            first = counted[i] + turn.frames if continuation == "reference" else seen
            appended = _append(model, cache, end, features[first : first + record.offered], record.offered, ids)
            records[i] = replace(record, appended=appended)
    return records


def _append(model: StreamModel, cache: Any, end: int, features: Any, count: int, ids: StreamIds) -> FrameScores:
    """Predictions at the last token of ``count`` frames fed behind position ``end``; the cache is left at ``end``."""
    chunk = ids.frames(count)
    _crop(cache, end)
    per_frame = len(chunk) // count
    logits = model.step(chunk, features, cache, range(per_frame - 1, len(chunk), per_frame))
    _crop(cache, end)
    return _frame_scores(logits, ids)


def _crop(cache: Any, length: int) -> None:
    surplus = cache.get_seq_length() - length
    if surplus:
        cache.crop(-surplus)


def _frame_scores(logits: Tensor, ids: StreamIds) -> FrameScores:
    decisions = decide(logits, ids.silent_id, threshold=0.0)
    return FrameScores([d.p_interval for d in decisions], [d.argmax_speak for d in decisions])


def _record(
    turns: Sequence[Turn], turn: Turn, stream: Tensor, text: Tensor, labels: Sequence[int], ids: StreamIds
) -> TurnRecord:
    targets = [labels[p] for p in turn.text]
    is_last = turn.index + 1 == len(turns)
    following = 0 if is_last else turns[turn.index + 1].frames
    wide = text.float() if text.element_size() < 4 else text
    goal = torch.tensor(targets, dtype=torch.long, device=text.device)
    return TurnRecord(
        turn=turn.index,
        frames=turn.frames,
        first_frame=turn.frames_from,
        is_last=is_last,
        offered=max(0, min(following, turn.frames - 1)),
        stream=_frame_scores(stream, ids),
        target_speak=[labels[p] != ids.silent_id for p in turn.stream],
        text_ce=torch.nn.functional.cross_entropy(wide, goal, reduction="none").tolist(),
        text_target=targets,
        text_pred=text.argmax(-1).tolist(),
        text_content=content_mask(targets, ids),
    )


def content_mask(targets: Sequence[int], ids: StreamIds) -> list[bool]:
    """False at the tokens of the reply prefix that lead ``targets`` and at a closing end token, true elsewhere."""
    prefix = leading(a == b for a, b in zip(targets, ids.reply_prefix))
    stop = len(targets) - (bool(targets) and targets[-1] == ids.eos_id)
    return [prefix <= i < stop for i in range(len(targets))]
