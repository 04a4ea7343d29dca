"""Answers without a model: what an annotation of other videos makes likely. Every claim to see has to beat them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

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


class PlaceMajority:
    """The most frequent entry of every place of a list, whatever was asked (LTA)."""

    def __init__(self, samples: Sequence[Sample]):
        lists = [answer_of(sample).splitlines() for sample in samples]
        if not lists:
            raise DataError("rows: 'majority' found no answers to count in the prior split")
        self.text = "\n".join(most_frequent(Counter(place)) for place in zip(*lists))

    def __call__(self, sample: Sample) -> str:
        return self.text


class Bigram:
    """The steps that most often follow the one in view, which is taken from the annotation (COIN next and procedures)."""

    def __init__(self, samples: Sequence[Sample]):
        self.after: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            self.after[sample.meta["seen"]][sample.meta["labels"][0]] += 1
        self.all = sum(self.after.values(), Counter())
        if not self.all:
            raise DataError("rows: 'bigram' found no two steps in a row in the prior split")

    def __call__(self, sample: Sample) -> str:
        step, said = sample.meta["seen"], []
        for _ in sample.meta["labels"]:
            step = most_frequent(self.after.get(step) or self.all)
            said.append(clean_text(step))
        return said[0] if len(said) == 1 else "\n".join(f"{n}. {text}" for n, text in enumerate(said, 1))


def most_frequent(counts: Counter[str]) -> str:
    """Of equally frequent ones the first in the alphabet."""
    return min(counts, key=lambda text: (-counts[text], text))


FOLLOWS = ("next", "procedure", "procedure_goal")  # COIN's tasks that ask what comes after the step in view


def has_prior(row: str, evaluator: str, coin_task: str | None) -> bool:
    """Whether a row without a model has answers for a task."""
    return evaluator == "generate" and (row == "majority" or coin_task in FOLLOWS)


def prior(row: str, scores: str, known: Sequence[Sample]) -> Callable[[Sample], str]:
    """The answers of row ``row``, counted in ``known``: samples of the same task (scored by ``scores``) of other videos."""
    if row == "bigram":
        return Bigram(known)
    return PlaceMajority(known) if scores == "lta" else Majority(known)
