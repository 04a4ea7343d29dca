"""Streaming metrics as pure functions of turn records, in two flavours.

``reference`` is VideoLLM-online's evaluation (arXiv 2406.11816) as its code computes it, quirks and default values
included, so that published tables can be compared. ``strict`` removes the quirks: silence is never on time, fluency
counts consecutively successful tokens, text metrics look at content tokens only, samples without data are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from statistics import fmean

from vtskip.errors import DataError
from vtskip.eval.records import FrameScores, SampleRecord, TurnRecord, leading

TOLERANCES = (0.5, 1.0, 2.0)


def first_trigger(turn: TurnRecord, threshold: float) -> int | None:
    """Signed offset of the first trigger in frames: 0 on time, positive early, negative late; None: never speaks."""
    spoken = turn.stream.spoken(threshold)
    if any(spoken):
        return turn.T - spoken.index(True) - 1
    late = _appended(turn, threshold)
    return -(late.index(True) + 1) if any(late) else None


def _appended(turn: TurnRecord, threshold: float) -> list[bool]:
    if turn.is_last or not turn.offered:
        return []
    if turn.appended is None:
        raise DataError(
            f"turn {turn.turn}: silent at threshold {threshold} but its {turn.offered} further frames were not scored; "
            "accepted: a threshold not below the one the records were scored with"
        )
    return turn.appended.spoken(threshold)


# ---------------------------------------------------------------------------------------------------------- reference


def frame_diff(turn: TurnRecord, threshold: float) -> int | None:
    """Signed frame offset d as the reference defines it: a silent last or one-frame turn counts as on time."""
    if not turn.T:
        return None
    trigger = first_trigger(turn, threshold)
    if trigger is not None:
        return trigger
    return 0 if turn.is_last else -turn.offered


def fluency(turn: TurnRecord, threshold: float) -> float | None:
    """(T+k)/(T+L) on time, (T-d)/(T+L) early, (T-1)/(T+L) late; None without frames or text."""
    d = frame_diff(turn, threshold)
    if d is None or not turn.L:
        return None
    good = turn.T + turn.k if d == 0 else turn.T - d if d > 0 else turn.T - 1
    return good / (turn.T + turn.L)


def reference_sample(sample: SampleRecord, threshold: float | None = None) -> dict[str, float]:
    """lm_ppl, frame_diff (frames, absolute), fluency, lm_correctness of one conversation; perfect if it has no data."""
    at = sample.threshold if threshold is None else threshold
    text = [t for t in sample.turns if t.L]
    diffs = [frame_diff(t, at) for t in sample.turns]
    return {
        "lm_ppl": _mean_or(1.0, [_exp(fmean(t.text_ce)) for t in text]),
        "frame_diff": _mean_or(0.0, [abs(d) for d in diffs if d is not None]),
        "fluency": _mean_or(1.0, [fluency(t, at) for t in sample.turns]),
        "lm_correctness": _mean_or(1.0, [t.k / t.L for t in text]),
    }


def reference(samples: Sequence[SampleRecord], threshold: float | None = None) -> dict[str, float]:
    """Mean over samples (macro); ``time_diff`` in seconds."""
    if not samples:
        raise DataError("no sample records to evaluate")
    rows = [reference_sample(s, threshold) for s in samples]
    out = {name: fmean(r[name] for r in rows) for name in rows[0]}
    return out | {"time_diff": fmean(r["frame_diff"] / s.fps for r, s in zip(rows, samples))}


# ------------------------------------------------------------------------------------------------------------- strict


def replies(turn: TurnRecord) -> bool:
    """Whether a reply is due at the turn's last learned frame (a stream cut short before a question has none)."""
    return bool(turn.T) and turn.target_speak[-1]


def strict_frame_diff(turn: TurnRecord, threshold: float) -> int | None:
    """Signed frame offset; silence costs every frame that was offered after the turn, and at least one."""
    if not replies(turn):
        return None
    trigger = first_trigger(turn, threshold)
    if trigger is not None:
        return trigger
    return -1 if turn.is_last else -max(turn.offered, 1)


def strict_fluency(turn: TurnRecord, threshold: float) -> float | None:
    """Share of consecutively successful tokens: leading right stream decisions, then leading right text tokens."""
    if not turn.T or not turn.L:
        return None
    right = leading(s == t for s, t in zip(turn.stream.spoken(threshold), turn.target_speak, strict=True))
    return (right + (turn.k if right == turn.T else 0)) / (turn.T + turn.L)


def content_correctness(turn: TurnRecord) -> float | None:
    """Leading correct content tokens over content tokens; None without content."""
    right = turn.content(turn.text_correct)
    return leading(right) / len(right) if right else None


def whole_reply(turn: TurnRecord) -> float | None:
    """1 where every content token is right, which greedy decoding would have given word for word; None without content."""
    right = turn.content(turn.text_correct)
    return float(all(right)) if right else None


def content_ppl(turn: TurnRecord) -> float | None:
    """exp of the mean cross-entropy over content tokens; None without content."""
    ce = turn.content(turn.text_ce)
    return _exp(fmean(ce)) if ce else None


def strict(
    samples: Sequence[SampleRecord], threshold: float | None = None, tolerances: Sequence[float] = TOLERANCES
) -> dict[str, float | None]:
    """All strict metrics. Plain names are macro (mean over samples of the mean over turns), ``*_micro`` over turns.

    time_diff*: seconds. miss_rate: due replies never triggered; late_rate: triggered only after the turn;
    false_trigger_rate: spoken frames among those that should stay silent. timing_*@t: see ``timing``. ppl_token,
    token_accuracy: over all content tokens. None where nothing was there to measure.
    """
    if not samples:
        raise DataError("no sample records to evaluate")
    pairs = [(s, t, s.threshold if threshold is None else threshold) for s in samples for t in s.turns]
    diffs = [None if (d := strict_frame_diff(t, at)) is None else d / s.fps for s, t, at in pairs]
    per_turn: dict[str, Sequence[float | None]] = {
        "time_diff": [None if d is None else abs(d) for d in diffs],
        "time_diff_signed": diffs,
        "fluency": [strict_fluency(t, at) for _, t, at in pairs],
        "correctness": [content_correctness(t) for _, t, _ in pairs],
        "whole_reply": [whole_reply(t) for _, t, _ in pairs],
        "ppl_turn": [content_ppl(t) for _, t, _ in pairs],
    }
    out: dict[str, float | None] = {}
    for name, values in per_turn.items():
        out[name] = _macro(values, [s for s, _, _ in pairs])
        out[f"{name}_micro"] = _mean(values)
    ce = [v for _, t, _ in pairs for v in t.content(t.text_ce)]
    right = [v for _, t, _ in pairs for v in t.content(t.text_correct)]
    out |= {"ppl_token": _exp(fmean(ce)) if ce else None, "token_accuracy": _mean(right)}
    counts = decision_counts([(t, at) for _, t, at in pairs])
    out |= {name: part / whole if whole else None for name, (part, whole) in counts.items()}
    for tolerance in tolerances:
        out |= timing(samples, tolerance, threshold)
    return out


def decision_counts(turns: Sequence[tuple[TurnRecord, float]]) -> dict[str, tuple[int, int]]:
    """(how often, out of how many) of the rates of ``strict``, over (turn, threshold) pairs."""
    due = [first_trigger(t, at) for t, at in turns if replies(t)]
    silent = [
        spoken
        for t, at in turns
        for spoken, target in zip(t.stream.spoken(at), t.target_speak, strict=True)
        if not target
    ]
    return {
        "miss_rate": (sum(d is None for d in due), len(due)),
        "late_rate": (sum(d is not None and d < 0 for d in due), len(due)),
        "false_trigger_rate": (sum(silent), len(silent)),
    }


def timing(
    samples: Sequence[SampleRecord], tolerance: float, threshold: float | None = None
) -> dict[str, float | None]:
    """Precision, recall, F1 of each turn's first trigger; a hit lies within ``tolerance`` seconds of the due frame. And
    ``timing_ap``, the mean over conversations, which needs no threshold."""
    predicted, due, hits = timing_counts(samples, tolerance, threshold)
    tag = f"@{tolerance:g}"
    return {
        f"timing_precision{tag}": hits / predicted if predicted else None,
        f"timing_recall{tag}": hits / due if due else None,
        f"timing_f1{tag}": 2 * hits / (predicted + due) if predicted + due else None,
        f"timing_ap{tag}": _mean([timing_ap(sample, tolerance) for sample in samples]),
    }


def timing_counts(
    samples: Sequence[SampleRecord], tolerance: float, threshold: float | None = None
) -> tuple[int, int, int]:
    """(turns that trigger, replies due, triggers within ``tolerance`` seconds of a due frame)."""
    predicted = due = hits = 0
    for sample in samples:
        at = sample.threshold if threshold is None else threshold
        for turn in sample.turns:
            trigger = first_trigger(turn, at) if turn.T else None
            predicted += trigger is not None
            due += replies(turn)
            hits += replies(turn) and trigger is not None and abs(trigger) / sample.fps <= tolerance + 1e-9
    return predicted, due, hits


def timing_ap(sample: SampleRecord, tolerance: float) -> float | None:
    """Average precision of one conversation's learned frames, ranked by their probability to speak; None: no reply is due.

    Of the frames within ``tolerance`` seconds of a due one the most probable is right, the others are neither right nor wrong
    (the reply has been given); all further away are wrong. Frames of equal probability are one step.
    """
    ranked = sorted(
        (silent, number, replies(turn) and (turn.T - 1 - frame) / sample.fps <= tolerance + 1e-9)
        for number, turn in enumerate(sample.turns)
        for frame, silent in enumerate(turn.stream.p_interval)
    )
    due = sum(replies(turn) for turn in sample.turns)
    found, wrong, area = set[int](), 0, 0.0
    for _, step in groupby(ranked, key=itemgetter(0)):
        frames, before = list(step), len(found)
        found |= {number for _, number, near in frames if near}
        wrong += sum(not near for _, _, near in frames)
        area += (len(found) - before) * len(found) / (len(found) + wrong) if found else 0.0
    return area / due if due else None


# ---------------------------------------------------------------------------------------------------------- baselines


def with_policy(sample: SampleRecord, speak: bool) -> SampleRecord:
    """The same conversation under a policy that always (or never) speaks; the text records stay as they are."""
    turns = [
        replace(t, stream=FrameScores.constant(t.T, speak), appended=FrameScores.constant(t.offered, speak))
        for t in sample.turns
    ]
    return replace(sample, turns=turns)


# ------------------------------------------------------------------------------------------------------------ helpers


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # a larger one is no finite float, which JSON cannot hold


def _mean(values: Sequence[float | None]) -> float | None:
    present = [float(v) for v in values if v is not None]
    return fmean(present) if present else None


def _mean_or(default: float, values: Sequence[float | None]) -> float:
    mean = _mean(values)
    return default if mean is None else mean


def _macro(values: Sequence[float | None], owners: Sequence[SampleRecord]) -> float | None:
    by_sample: dict[int, list[float | None]] = {}
    for value, owner in zip(values, owners, strict=True):
        by_sample.setdefault(id(owner), []).append(value)
    return _mean([_mean(v) for v in by_sample.values()])
