"""Answers without a model: what an annotation of other videos makes likely. Every claim to see has to beat them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtskip.data.files import read_json
from vtskip.data.labels import step_words
from vtskip.data.timeline import clean_text
from vtskip.data.types import Sample
from vtskip.errors import DataError


def answer_of(sample: Sample) -> str:
    """The last reply of a conversation: what a question task asks for."""
    replies = [turn["content"] for turn in sample.conversation if turn["role"] == "assistant"]
    return replies[-1] if replies else ""


def question_of(sample: Sample) -> str:
    return next((turn["content"] for turn in reversed(sample.conversation) if turn["role"] == "user"), "")


class Majority:
    """The most frequent answer to the same question, or of all where the question was never asked."""

    def __init__(self, samples: Sequence[Sample]):
        if not samples:
            raise DataError("rows: 'majority' found no answers to count in the prior split")
        self.by_question: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            self.by_question[question_of(sample)][answer_of(sample)] += 1
        self.all = sum(self.by_question.values(), Counter())

    def __call__(self, sample: Sample) -> str:
        return most_frequent(self.by_question.get(question_of(sample)) or self.all)


class Bigram:
    """The steps that most often follow the one in view, which is taken from the annotation (COIN next and procedures).

    ``videos``: video id -> its steps in order; ``known``: the ids that transitions are counted in.
    """

    def __init__(self, videos: Mapping[str, Sequence[str]], known: Iterable[str]):
        self.videos = videos
        self.after: dict[str, Counter[str]] = defaultdict(Counter)
        for uid in known:
            for now, then in zip(videos[uid], videos[uid][1:]):
                self.after[now][then] += 1
        self.all = sum(self.after.values(), Counter())
        if not self.all:
            raise DataError("rows: 'bigram' found no two steps in a row in the prior split")

    def __call__(self, sample: Sample) -> str:
        place = re.search(r"(\d+)$", sample.uid)
        assert place is not None  # COIN's samples end in the number of their segment
        step, said = self.videos[sample.meta["video_uid"]][int(place[1])], []
        for _ in sample.meta["labels"]:
            step = most_frequent(self.after.get(step) or self.all)
            said.append(clean_text(step))
        return said[0] if len(said) == 1 else "\n".join(f"{n}. {text}" for n, text in enumerate(said, 1))


def step_sequences(source: Path, uids: Iterable[str]) -> dict[str, list[str]]:
    """Steps of videos of a COIN file, in order of time."""
    database: Mapping[str, Any] = read_json(source)["database"]
    steps = {uid: sorted(database[uid]["annotation"], key=lambda step: step["segment"][0]) for uid in uids}
    return {uid: [step_words(step["label"]) for step in found] for uid, found in steps.items()}


def most_frequent(counts: Counter[str]) -> str:
    """Of equally frequent ones the first in the alphabet."""
    return min(counts, key=lambda text: (-counts[text], text))


FOLLOWS = ("next", "procedure", "procedure_goal")  # COIN's tasks that ask what comes after the step in view


def has_prior(row: str, evaluator: str, coin_task: str | None) -> bool:
    """Whether a row without a model has answers for a task."""
    return evaluator == "generate" and (row == "majority" or coin_task in FOLLOWS)


def prior(row: str, samples: Sequence[Sample], known: Sequence[Sample]) -> Majority | Bigram:
    """The answers of row ``row`` for ``samples``, counted in ``known``."""
    if row == "majority":
        return Majority(known)
    uids = {s.meta["video_uid"] for s in (*samples, *known)}
    return Bigram(step_sequences(Path(samples[0].source), uids), {s.meta["video_uid"] for s in known})
