"""Edit distances between sequences, and the closest string of a large closed set."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from vtskip.errors import DataError

Edit = Literal["levenshtein", "damerau"]


def prefix_distances(a: Sequence[Any], b: Sequence[Any], edit: Edit = "levenshtein") -> np.ndarray:
    """``[len(a) + 1, len(b) + 1]``: the distance of every prefix of ``a`` to every prefix of ``b``.

    Insertions, deletions and substitutions cost 1; with ``damerau`` a swap of neighbours costs 1 as well (no part is edited
    twice: optimal string alignment).
    """
    table = np.zeros((len(a) + 1, len(b) + 1), np.int64)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            best = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
            if edit == "damerau" and i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, table[i - 2, j - 2] + 1)
            table[i, j] = best
    return table


class Closest:
    """The string of a closed set with the smallest (Levenshtein distance, text), as VideoLLM-online matches answers.

    One query is compared with all strings of a length at once: LTA has 117 x 521 of them. Answers are remembered.
    """

    def __init__(self, texts: Iterable[str]):
        by_length: dict[int, list[str]] = defaultdict(list)
        for text in sorted(set(texts)):  # the first of the nearest is then the smallest text
            by_length[len(text)].append(text)
        if not by_length:
            raise DataError("no categories to match an answer with")
        self.groups = {n: (group, np.array([[ord(c) for c in t] for t in group])) for n, group in by_length.items()}
        self.known = {text: text for group in by_length.values() for text in group}

    def __call__(self, text: str) -> str:
        if text not in self.known:
            best: tuple[int, str] | None = None
            for length in sorted(self.groups, key=lambda n: abs(n - len(text))):
                if best is not None and abs(length - len(text)) > best[0]:
                    break  # so many insertions or deletions at least
                group, codes = self.groups[length]
                found = distances(text, codes)
                place = int(found.argmin())
                best = min((int(found[place]), group[place]), best or (int(found[place]), group[place]))
            assert best is not None
            self.known[text] = best[1]
        return self.known[text]


def distances(text: str, codes: np.ndarray) -> np.ndarray:
    """Levenshtein distance of ``text`` to every row of ``codes`` ``[strings, length]``, their characters."""
    steps = np.arange(codes.shape[1] + 1, dtype=np.int16)
    last = np.broadcast_to(steps, (len(codes), len(steps)))
    for i, character in enumerate(text, 1):
        row = np.empty_like(last)
        row[:, 0] = i
        np.minimum(last[:, 1:] + 1, last[:, :-1] + (codes != ord(character)), out=row[:, 1:])
        # Insertions run along the row: value j is the least of value k + (j - k) over all k <= j.
        last = np.minimum.accumulate(row - steps, axis=1) + steps
    return last[:, -1]
