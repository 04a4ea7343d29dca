"""The samples of a run's tasks, and what of them is asked and due."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtskip.config import parse
from vtskip.data import DataConfig
from vtskip.data.config import iterate
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, DataError
from vtskip.eval.config import EvalConfig
from vtskip.eval.events import rouge_l
from vtskip.eval.tasks import Scorer, Task, load_task, scorer_factory, task_data

STREAMS = Task(
    task="streams",
    about="the conversations of the data section, teacher-forced",
    kinds=[],
    evaluator="stream",
    scores="stream",
    primary="strict/time_diff",
    higher_is_better=False,
    shown=["strict/fluency", "strict/correctness", "reference/time_diff", "reference/lm_ppl"],
)


@dataclass
class TaskSet:
    """A task with its samples. ``skipped``: what could not be read (name, fault), with ``on_error: skip``.

    ``prior``: the data in which answers are counted for rows without a model; None where nothing says which they are.
    """

    task: Task
    data: DataConfig
    samples: list[Sample]
    scorer: Scorer
    skipped: dict[str, str] = field(default_factory=dict)
    prior: DataConfig | None = None

    def cluster(self, sample: Sample) -> str:
        return str(sample.meta.get(self.task.cluster_by, sample.video))


def task_sets(config: EvalConfig) -> list[TaskSet]:
    """The samples of all tasks. Raises DataError where a task has none."""
    if "rouge_l" in config.captions:
        rouge_l()  # that it is not installed is better known now
    if not config.runs:
        assert config.data is not None
        return [_task_set(STREAMS, config.data, config, config.max_samples)]
    names = [run.task for run in config.runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"tasks: {twice!r} is there twice")
    sets = []
    for run in config.runs:
        task = load_task(run.task, config.include_path)
        update = {"captions": [*dict.fromkeys([*task.captions, *config.captions])]}
        task = task.model_copy(update=update | ({"closed_set": run.closed_set} if run.closed_set else {}))
        data = task_data(task, config.data, run.data)
        part = _task_set(task, data, config, run.max_samples or config.max_samples)
        part.prior = prior_data(task, data, run.prior, config.prior_split)
        sets.append(part)
    return sets


def prior_data(task: Task, data: DataConfig, own: Mapping[str, Any], split: str) -> DataConfig | None:
    """The data in which answers are counted: by keys of their own, else another split, where there are lists of splits."""
    if own:
        values = data.model_dump(exclude_unset=True) | dict(own)
        return parse(DataConfig, values, f"prior of task {task.task!r}")
    has_lists = data.kind in ("coin", "synthetic") or data.splits is not None
    return data.model_copy(update={"split": split}) if has_lists else None


def _task_set(task: Task, data: DataConfig, config: EvalConfig, most: int | None) -> TaskSet:
    skip = config.on_error == "skip" or data.on_error == "skip"
    samples, skipped = read_samples(data, skip)
    if not samples:
        fault = f"; the first fault: {next(iter(skipped.values()))}" if skipped else ""
        raise DataError(
            f"no conversations to evaluate in {data.annotations or data.root} (split {data.split!r}){fault}"
        )
    uids = Counter(sample.uid for sample in samples)
    if (most_common := uids.most_common(1)[0])[1] > 1:
        raise DataError(
            f"task {task.task!r}: {most_common[1]} samples are called {most_common[0]!r}; accepted: one each"
        )
    make = scorer_factory(task.scores, config.include_path)
    return TaskSet(task, data, samples[:most], make(task, data, samples, config.tolerances), skipped)


def read_samples(data: DataConfig, skip: bool) -> tuple[list[Sample], dict[str, str]]:
    """Samples, and the units (videos or rows) that were left out with their faults."""
    skipped: dict[str, str] = {}

    def watch(name: str, fault: DataError | None) -> None:
        if fault is not None:
            skipped[name] = str(fault)

    samples = list(iterate(data, on_error=watch if skip else "stop"))
    return samples, skipped


def question(sample: Sample) -> list[dict[str, Any]]:
    """The conversation up to where its last reply is due."""
    turns = list(sample.conversation)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return turns[:-1] if turns else list(sample.conversation)


def due_replies(sample: Sample) -> list[list[Any]]:
    """[frame, text] of every reply that was to be learned; the frame is the last one before it."""
    due, frames = [], 0
    for turn in sample.conversation:
        frames += turn.get("num_frames", 0)
        if turn["role"] == "assistant" and turn.get("learn", False):
            due.append([max(frames - 1, 0), turn["content"]])
    return due
