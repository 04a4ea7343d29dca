"""A rollout's timed replies against the timed texts of the annotation: timing and captions, two flavours.

``reference`` is FlowNar's protocol (arXiv 2606.00620): times cut the video into segments that end at them, IoU >= 0.5 decides,
many to many, and every reference is paired with the reply of the largest GIoU, however far away. ``strict`` pairs replies and
references one to one within a tolerance; captions are compared where a pair was found. Functions of plain lists only.

What is not FlowNar's: a sample has the references of one annotator, theirs those of all who narrated the video; its rollouts
always speak on the first and the last frame and have two thresholds (0.5 for 8 frames after a reply, then 0.8), ours have one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from vtskip.errors import ConfigError

Segment = tuple[float, float]
Pair = tuple[int, int]
_TIMED = re.compile(r"^\W*(\d+(?:\.\d+)?)\s*s?(?:ec(?:onds?)?)?\W*[:\-]\s*(.+)$")


def segments(times: Sequence[float], start: float = 0.0) -> list[Segment]:
    """(end of the one before, own time) of every time, the first from ``start``; turned round where times run backwards."""
    return [(min(a, b), max(a, b)) for a, b in zip([start, *times], times)]


def iou(a: Segment, b: Segment) -> float:
    """Intersection over union of two segments; 0 where both have no length."""
    union = (a[1] - a[0]) + (b[1] - b[0]) - _overlap(a, b)
    return _overlap(a, b) / union if union > 0 else 0.0


def giou(a: Segment, b: Segment) -> float:
    """IoU less the share of the hull that neither covers: falls on below 0 with distance."""
    hull = max(a[1], b[1]) - min(a[0], b[0])
    union = (a[1] - a[0]) + (b[1] - b[0]) - _overlap(a, b)
    return iou(a, b) - (hull - union) / hull if hull > 0 else 0.0


def _overlap(a: Segment, b: Segment) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


def segment_scores(said: Sequence[float], due: Sequence[float], at: float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of segments that match any of the other side at IoU >= ``at``; 0 without any."""
    ours, theirs = segments(said), segments(due)
    hit = [any(iou(a, b) >= at for b in theirs) for a in ours]
    found = [any(iou(a, b) >= at for a in ours) for b in theirs]
    precision = sum(hit) / len(hit) if hit else 0.0
    recall = sum(found) / len(found) if found else 0.0
    both = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0}


def forced_pairs(said: Sequence[float], due: Sequence[float]) -> list[Pair]:
    """(reply, reference) for every reference: the reply of the largest GIoU, the first of equals. None without replies."""
    ours = segments(said)
    if not ours:
        return []
    return [(max(range(len(ours)), key=lambda i: giou(ours[i], b)), j) for j, b in enumerate(segments(due))]


def matched_pairs(said: Sequence[float], due: Sequence[float], tolerance: float) -> list[Pair]:
    """As many (reply, reference) pairs as possible within ``tolerance`` seconds, each used once; both lists in order.

    On a line with one tolerance taking the earliest free partner is already the best.
    """
    pairs, i = [], 0
    for j, time in enumerate(due):
        while i < len(said) and said[i] < time - tolerance - 1e-9:
            i += 1
        if i < len(said) and said[i] <= time + tolerance + 1e-9:
            pairs.append((i, j))
            i += 1
    return pairs


def timed_lines(text: str, fps: float, frames: int) -> list[list[Any]]:
    """[frame, text] of every line "seconds: text", in order of time; other lines say nothing, late times the last frame."""
    found = [match for line in text.splitlines() if (match := _TIMED.match(line.strip()))]
    said = [[min(round(float(m[1]) * fps), max(frames - 1, 0)), m[2].strip()] for m in found]
    return sorted(said, key=lambda item: item[0])


def caption_scores(said: Sequence[str], due: Sequence[str], more: Sequence[str] = ()) -> list[dict[str, float]]:
    """Per pair: sentence BLEU (effective order), chrF and equality of the words, from 0 to 100; ``more``: ``rouge_l``."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    from vtskip.eval.answers import plain

    bleu, chrf = BLEU(effective_order=True), CHRF()
    rouge = rouge_l() if "rouge_l" in more else None
    return [
        {
            "bleu": bleu.sentence_score(a, [b]).score,
            "chrf": chrf.sentence_score(a, [b]).score,
            "exact": 100.0 * (plain(a) == plain(b)),
            **({} if rouge is None else {"rouge_l": rouge(a, b)}),
        }
        for a, b in zip(said, due, strict=True)
    ]


def rouge_l() -> Callable[[str, str], float]:
    """ROUGE-L's F1 of (reply, reference) by rouge-score, without stemming, from 0 to 100. Raises ConfigError without it.

    Published tables of the COCO tools weigh recall 1.2 times, so theirs differ a little.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ConfigError(
            "captions: 'rouge_l' needs rouge-score; install it by: pip install 'vtskip[captions]'"
        ) from None
    scorer = RougeScorer(["rougeL"])
    return lambda said, due: 100.0 * scorer.score(due, said)["rougeL"].fmeasure


def corpus_scores(said: Sequence[str], due: Sequence[str]) -> dict[str, Any]:
    """BLEU and chrF over all pairs at once, with sacrebleu's signatures; None without pairs."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    out: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        out[f"corpus_{name}"] = metric.corpus_score(list(said), [list(due)]).score if said else None
        if said:
            out[f"{name}_signature"] = str(metric.get_signature())
    return out
