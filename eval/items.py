"""Streaming metrics of one conversation as (value, weight), so that conversations can be added up, resampled and paired.

Over any set of conversations ``sum of values / sum of weights`` equals what ``vtskip.eval.metrics`` gives for them.
Perplexity over all tokens is no mean; its logarithm is there, ``nll_token``, in nats.
"""

from collections.abc import Sequence

from vtskip.eval import metrics
from vtskip.eval.records import SampleRecord

Count = tuple[float, float]
RATES = ("miss_rate", "late_rate", "false_trigger_rate", "timing_")


def stream_counts(
    sample: SampleRecord, tolerances: Sequence[float] = metrics.TOLERANCES
) -> dict[str, dict[str, Count]]:
    """Both flavours of one conversation."""
    reference = {name: (value, 1.0) for name, value in metrics.reference([sample]).items()}
    strict = {}
    for name, value in metrics.strict([sample], tolerances=tolerances).items():
        if name.startswith(RATES) or name in ("ppl_token", "token_accuracy"):
            continue
        turns = _measured(sample, name.removesuffix("_micro")) if name.endswith("_micro") else 1
        strict[name] = (0.0, 0.0) if value is None else (value * turns, float(turns))
    content = [right for turn in sample.turns for right in turn.content(turn.text_correct)]
    strict["token_accuracy"] = (float(sum(content)), float(len(content)))
    ce = [value for turn in sample.turns for value in turn.content(turn.text_ce)]
    strict["nll_token"] = (float(sum(ce)), float(len(ce)))
    rates = metrics.decision_counts([(turn, sample.threshold) for turn in sample.turns])
    strict |= {name: (float(part), float(whole)) for name, (part, whole) in rates.items()}
    return {"reference": reference, "strict": strict | _timing(sample, tolerances)}


def _measured(sample: SampleRecord, name: str) -> int:
    """How many turns a mean over turns is of."""
    of = {
        "fluency": lambda turn: metrics.strict_fluency(turn, sample.threshold),
        "correctness": metrics.content_correctness,
        "whole_reply": metrics.whole_reply,
        "ppl_turn": metrics.content_ppl,
    }.get(name, lambda turn: metrics.strict_frame_diff(turn, sample.threshold))
    return sum(of(turn) is not None for turn in sample.turns)


def _timing(sample: SampleRecord, tolerances: Sequence[float]) -> dict[str, Count]:
    out: dict[str, Count] = {}
    for tolerance in tolerances:
        predicted, due, hits = metrics.timing_counts([sample], tolerance)
        tag = f"@{tolerance:g}"
        out[f"timing_precision{tag}"] = (float(hits), float(predicted))
        out[f"timing_recall{tag}"] = (float(hits), float(due))
        out[f"timing_f1{tag}"] = (2.0 * hits, float(predicted + due))
        average = metrics.timing_ap(sample, tolerance)
        out[f"timing_ap{tag}"] = (0.0, 0.0) if average is None else (average, 1.0)
    return out
