"""Accuracy of answers in words: a label, a numbered list of labels, or a free answer. Two flavours, from the same texts.

``reference`` is VideoLLM-online's COIN evaluation (arXiv 2406.11816): an answer counts as the closest category of a closed
set, so an empty one counts as the shortest, and steps missing from a list are neither wrong nor counted. ``strict`` takes
an answer as it was given and counts every label. Each function returns ``(right, counted)`` of one answer.
"""

import re
import string
from collections.abc import Sequence

from vtskip.eval.distance import Closest

Count = tuple[float, float]
_ITEM = re.compile(r"^\s*(?:step\s+)?\d+\s*[.):]\s*")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def single_reference(answer: str, label: str, closest: Closest) -> Count:
    """Lower-cased without trailing full stops: equal to the label, or closest to it of all categories."""
    answer = answer.lower().rstrip(".")
    return float(answer == label or closest(answer) == label), 1.0


def steps_reference(answer: str, labels: Sequence[str], closest: Closest) -> Count:
    """Line by line behind the last ". ", as it is written; lines or labels that the other side lacks are not counted."""
    lines = [line.split(". ")[-1] for line in answer.split("\n")]
    right = [line == label or closest(line) == label for line, label in zip(lines, labels)]
    return float(sum(right)), float(len(right))


def single_strict(answer: str, label: str) -> Count:
    """Equal words; case, spaces and a final full stop aside."""
    return float(plain(answer) == plain(label)), 1.0


def steps_strict(answer: str, labels: Sequence[str]) -> Count:
    """Equal words in the same place of the list; a missing step is wrong."""
    lines = numbered(answer)
    return float(sum(plain(x) == plain(y) for x, y in zip(lines, labels))), float(len(labels))


def numbered(text: str) -> list[str]:
    """The entries of a list, one a line, without their numbers ("1. a", "1.a", "2) b", "Step 3: c")."""
    return [_ITEM.sub("", line, count=1) for line in text.lower().splitlines() if line.strip()]


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").strip()


def free_reference(answer: str, truth: str) -> Count:
    """Free answers: the same words in the same order, case and punctuation aside."""
    return float(_words(answer) == _words(truth)), 1.0


def _words(text: str) -> list[str]:
    return text.lower().translate(_PUNCTUATION).split()
