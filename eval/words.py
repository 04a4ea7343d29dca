"""Which words of a narration are right: on synthetic clips every reply is a verb, a colour and a shape.

A thing's colour and shape count where the reply before named another thing: else they are copied from the text. The first reply
of a conversation is left out, since what it tells may have been shown before.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vtskip.data.synthetic.grammar import COLOURS
from vtskip.eval.records import TurnRecord

Count = tuple[float, float]
KINDS = ("verb", "colour", "shape")


def parts_of(text: str) -> dict[str, int]:
    """Where the verb, colour and shape of "C fills the red cup." stand among its words and marks; empty for other texts."""
    words = _words(text)
    colours = [n for n, word in enumerate(words) if word in COLOURS]
    if not colours or not 2 < colours[0] < len(words) - 1:
        return {}
    return dict(zip(KINDS, (1, colours[0], colours[0] + 1)))


def word_counts(turns: Sequence[TurnRecord], texts: Sequence[str]) -> dict[str, Count]:
    """``{verb,colour,shape}_accuracy`` of one conversation as (right, of how many).

    ``turns``: those with a reply, ``texts``: the replies. Empty where tokens are not words, which no place tells apart.
    """
    found = {f"{kind}_accuracy": [0.0, 0.0] for kind in KINDS}
    if len(turns) != len(texts) or any(len(t.content(t.text_target)) != len(_words(x)) for t, x in zip(turns, texts)):
        return {}
    for before, (turn, text) in pairwise(zip(turns, texts)):
        right, places = turn.content(turn.text_correct), parts_of(text)
        for kind, place in places.items():
            if kind == "verb" or _thing(text) != _thing(before[1]):
                count = found[f"{kind}_accuracy"]
                count[0] += right[place]
                count[1] += 1
    return {name: (right, of) for name, (right, of) in found.items()}


def learned(conversation: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts that are learned."""
    return [turn["content"] for turn in conversation if turn["role"] == "assistant" and turn.get("learn", False)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _thing(text: str) -> list[str]:
    words = _words(text)
    return [words[place] for kind, place in parts_of(text).items() if kind != "verb"]
