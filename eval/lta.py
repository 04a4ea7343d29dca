"""Long-term anticipation: edit distance of action sequences, and actions from a numbered list.

``reference`` is VideoLLM-online's evaluation (arXiv 2406.11816): unknown actions become the closest "verb noun" of the
taxonomy, short lists repeat their last action. ``strict`` reads only actions of the taxonomy and adds none. The distance is
Levenshtein's, as in the benchmark's own code; its text says Damerau-Levenshtein, which is the other variant.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from vtskip.errors import DataError
from vtskip.eval.answers import numbered, plain
from vtskip.eval.distance import Closest, Edit, prefix_distances

UNKNOWN = -1  # an id that equals no label
_LINE = re.compile(r"(?:\d+\.|\S+\s\d+\.)\s*(.*)")
Pair = tuple[int, int]


class Actions:
    """All verb-noun pairs of a taxonomy by their words. ``verbs`` and ``nouns`` are readable names, by label id."""

    def __init__(self, verbs: Sequence[str], nouns: Sequence[str]):
        names = [(f"{v} {n}", (i, j)) for (i, v), (j, n) in product(enumerate(verbs), enumerate(nouns))]
        if not names:
            raise DataError("a taxonomy needs at least one verb and one noun")
        self.ids: dict[str, Pair] = dict(names)
        self.nouns = len(nouns)
        self.default = Counter(name for name, _ in names).most_common(1)[0][0]
        self._closest: Closest | None = None

    def closest(self, words: str) -> Pair:
        if words not in self.ids:
            self._closest = self._closest or Closest(self.ids)
            words = self._closest(words)
        return self.ids[words]

    def parse(self, text: str, count: int) -> list[Pair]:
        """``count`` (verb, noun) ids from a numbered list, the reference's way."""
        found = [m.group(1) for line in text.strip(" \n").split("\n") if (m := _LINE.search(line))]
        pairs = [self.closest(words.lower().rstrip(".")) for words in found[:count]] or [self.ids[self.default]]
        return pairs + [pairs[-1]] * (count - len(pairs))

    def parse_strict(self, text: str, count: int) -> list[Pair]:
        """At most ``count`` pairs; what the taxonomy does not hold is ``UNKNOWN``."""
        names = {plain(name): pair for name, pair in self.ids.items()}
        return [names.get(plain(line), (UNKNOWN, UNKNOWN)) for line in numbered(text)[:count]]

    def action(self, pair: Pair) -> int:
        """One id per verb-noun pair."""
        return UNKNOWN if UNKNOWN in pair else pair[0] * self.nouns + pair[1]


def submission(
    lines: Iterable[Mapping[str, Any]], actions: Actions, ahead: int
) -> dict[str, dict[str, list[list[int]]]]:
    """What the challenge's server takes: ``{clip}_{last visible action}`` -> label ids of every candidate's actions."""
    out = {}
    for line in lines:
        parsed = [actions.parse(text, ahead) for text in line["answers"]]
        out[line["uid"]] = {
            name: [[pair[k] for pair in pairs] for pairs in parsed] for k, name in enumerate(("verb", "noun"))
        }
    return out


def edit_curve(candidates: Sequence[Sequence[int]], labels: Sequence[int], edit: Edit = "levenshtein") -> np.ndarray:
    """ED@1 .. ED@Z of one sample: at every z the best candidate's distance between the first z ids, over z."""
    if not candidates or not len(labels):
        raise DataError(f"{len(candidates)} candidates for {len(labels)} labels; accepted: at least one of each")
    z = np.arange(1, len(labels) + 1)
    tables = [prefix_distances(list(c), list(labels), edit) for c in candidates]
    # A candidate with fewer than z ids is compared as far as it goes.
    return np.min([t[np.minimum(z, len(t) - 1), z] for t in tables], axis=0) / z


def aued(curve: np.ndarray) -> float:
    """Area under ED@1 .. ED@Z by trapezoids, over Z - 1; the one value for Z = 1."""
    return float(curve[0]) if len(curve) == 1 else float(np.trapezoid(curve) / (len(curve) - 1))
