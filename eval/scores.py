"""How one sample of each kind of task is scored: pure functions of its raw outcome and its annotation.

Every factory takes (task, data section, samples, tolerances) and returns a scorer; see ``vtskip.eval.tasks``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtskip.data import DataConfig, taxonomy
from vtskip.data.files import read_json
from vtskip.data.labels import class_words, step_words, task_words
from vtskip.data.lta import read_taxonomy
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, DataError
from vtskip.eval import answers, events
from vtskip.eval.distance import Closest
from vtskip.eval.items import stream_counts
from vtskip.eval.lta import Actions, aued, edit_curve
from vtskip.eval.records import SampleRecord
from vtskip.eval.tasks import Count, Scorer, Scores, Task, register_scores
from vtskip.eval.words import learned, word_counts

Raw = Mapping[str, Any]


@register_scores("label")
def label(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """One label of a closed set (COIN step, next, task)."""
    closest = Closest(closed_set(task, data, samples))

    def score(sample: Sample, raw: Raw) -> Scores:
        answer, truth = raw["answers"][0], sample.meta["labels"][0]
        return {
            "reference": {"accuracy": answers.single_reference(answer, truth, closest)},
            "strict": {"accuracy": answers.single_strict(answer, truth)},
        }

    return score


@register_scores("labels")
def labels(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """A numbered list of labels (COIN procedures); one label alone is asked and answered without a number."""
    closest = Closest(closed_set(task, data, samples))

    def score(sample: Sample, raw: Raw) -> Scores:
        answer, truth = raw["answers"][0], sample.meta["labels"]
        return {
            "reference": {"accuracy": answers.steps_reference(answer, truth, closest)},
            "strict": {"accuracy": answers.steps_strict(answer, truth)},
        }

    return score


def closed_set(task: Task, data: DataConfig, samples: Sequence[Sample]) -> list[str]:
    """The labels that answers about COIN are matched with: of the videos at hand, of all of the file, or of the taxonomy
    (``closed_set``). Raises ConfigError where no taxonomy is named, DataError for a bad one."""
    if task.closed_set == "taxonomy":
        table = Path("coin/taxonomy.csv") if data.kind == "synthetic" else data.taxonomy
        if table is None:
            raise ConfigError(
                f"task {task.task!r}: closed_set 'taxonomy' needs 'taxonomy' in its data, COIN's taxonomy.xlsx"
            )
        tasks, steps = taxonomy.read_taxonomy((data.root or Path()) / table).categories()
        return tasks if data.task == "task" else steps
    name = "coin/COIN.json" if data.kind == "synthetic" else data.annotations
    database = read_json((data.root or Path()) / (name or ""))["database"]
    chosen = list(database) if task.closed_set == "all" else sorted({s.meta["video_uid"] for s in samples})
    if data.task == "task":
        return [task_words(database[uid]["class"]) for uid in chosen]
    return [step_words(step["label"]) for uid in chosen for step in database[uid]["annotation"]]


@register_scores("free")
def free(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """A free answer: equal words, and caption scores for longer ones."""

    def score(sample: Sample, raw: Raw) -> Scores:
        answer, truth = raw["answers"][0], raw["target"]
        caption = events.caption_scores([answer], [truth], task.captions)[0]
        return {
            "reference": {"accuracy": answers.free_reference(answer, truth)},
            "strict": {"accuracy": answers.single_strict(answer, truth)}
            | {name: (caption[name], 1.0) for name in ("bleu", "chrf", *task.captions)},
        }

    return score


@register_scores("lta")
def lta(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """Edit distance of verbs, nouns and actions at the last step, and its area, with both distances.

    ``*_accuracy``: the first answer, place by place, which is what the synthetic set's ceilings are of.
    Samples without labels (the unannotated file) are not scored: their answers are in the records, for a submission.
    """
    actions = lta_actions(data)

    def score(sample: Sample, raw: Raw) -> Scores:
        if "verb_labels" not in sample.meta:
            return {"reference": {}, "strict": {}}
        truth = list(zip(sample.meta["verb_labels"], sample.meta["noun_labels"], strict=True))
        out: Scores = {}
        for flavour, parse in (("reference", actions.parse), ("strict", actions.parse_strict)):
            candidates = [parse(text, len(truth)) for text in raw["answers"]]
            out[flavour] = _edits(candidates, truth, actions)
        return out

    return score


def lta_actions(data: DataConfig) -> Actions:
    """All verb-noun pairs of the taxonomy of a data section."""
    known = read_taxonomy((data.root or Path()) / (data.taxonomy or ""))
    return Actions([class_words(v) for v in known.verbs], [class_words(n) for n in known.nouns])


def _edits(candidates: list[list[tuple[int, int]]], truth: list[tuple[int, int]], actions: Actions) -> dict[str, Count]:
    views = {"verb": lambda pair: pair[0], "noun": lambda pair: pair[1], "action": actions.action}
    out: dict[str, Count] = {}
    for name, view in views.items():
        ours, theirs = [[view(pair) for pair in c] for c in candidates], [view(pair) for pair in truth]
        curve = edit_curve(ours, theirs)
        out |= {f"{name}_ed": (float(curve[-1]), 1.0), f"{name}_aued": (aued(curve), 1.0)}
        right = sum(a == b for a, b in zip(ours[0], theirs))  # places that were not answered are wrong
        out[f"{name}_accuracy"] = (float(right), float(len(theirs)))
        out[f"{name}_ed_damerau"] = (float(edit_curve(ours, theirs, "damerau")[-1]), 1.0)
    return out


@register_scores("stream")
def stream(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """Turn records, by the metrics of ``vtskip.eval.metrics``; on synthetic clips also which words of a reply are right."""

    def score(sample: Sample, raw: Raw) -> Scores:
        record = SampleRecord.from_dict(dict(raw))
        scores = stream_counts(record, tolerances)
        if data.kind == "synthetic":
            scores["strict"] |= word_counts([turn for turn in record.turns if turn.L], learned(sample.conversation))
        return scores

    return score


@register_scores("events")
def timed(task: Task, data: DataConfig, samples: Sequence[Sample], tolerances: Sequence[float]) -> Scorer:
    """Timed replies of a rollout against the timed texts. Captions are compared at the widest tolerance."""
    if not tolerances:
        raise DataError("tolerances []: a rollout needs at least one, in seconds")

    def score(sample: Sample, raw: Raw) -> Scores:
        fps, said, due = raw["fps"], raw["said"], raw["due"]
        # FlowNar dates a reply at the end of its frame.
        ends, starts = [(f + 1) / fps for f, _ in said], [f / fps for f, _ in said]
        times = [f / fps for f, _ in due]
        reference = {name: (value, 1.0) for name, value in events.segment_scores(ends, times).items()}
        reference |= _captions(task, said, due, events.forced_pairs(ends, times))
        strict: dict[str, Count] = {}
        for tolerance in tolerances:
            hits = len(events.matched_pairs(starts, times, tolerance))
            tag = f"@{tolerance:g}"
            strict |= {
                f"timing_precision{tag}": (hits, len(said)),
                f"timing_recall{tag}": (hits, len(due)),
                f"timing_f1{tag}": (2 * hits, len(said) + len(due)),
            }
        pairs = events.matched_pairs(starts, times, max(tolerances))
        strict["miss_rate"] = (len(due) - len(pairs), len(due))
        strict["false_triggers_per_minute"] = (len(said) - len(pairs), len(sample.frames) / fps / 60)
        strict |= _captions(task, said, due, pairs)
        return {"reference": reference, "strict": strict}

    return score


def caption_pairs(task: Task, raw: Raw, tolerances: Sequence[float]) -> dict[str, list[tuple[str, str]]]:
    """flavour -> (said, due) texts of one sample that are compared as captions; empty for tasks without captions."""
    if task.scores == "free":
        return {"strict": [(raw["answers"][0], raw["target"])]}
    if task.scores != "events":
        return {}
    said, due, fps = raw["said"], raw["due"], raw["fps"]
    times = [f / fps for f, _ in due]
    forced = events.forced_pairs([(f + 1) / fps for f, _ in said], times)
    matched = events.matched_pairs([f / fps for f, _ in said], times, max(tolerances))
    pairs = {"reference": forced, "strict": matched}
    return {flavour: [(said[i][1], due[j][1]) for i, j in found] for flavour, found in pairs.items()}


def _captions(
    task: Task, said: Sequence[Any], due: Sequence[Any], pairs: Sequence[tuple[int, int]]
) -> dict[str, Count]:
    found = events.caption_scores([said[i][1] for i, _ in pairs], [due[j][1] for _, j in pairs], task.captions)
    names = ("bleu", "chrf", "exact", *task.captions)
    return {name: (sum(f[name] for f in found), float(len(found))) for name in names}
