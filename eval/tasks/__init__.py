"""Tasks: a small YAML file each, and the registry of the functions that score their samples.

A task file says which data section makes its samples, how the model is asked (``evaluator``), and how one sample's raw
outcome becomes numbers (``scores``: a registered name, or ``package.module:function`` of one's own).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from vtskip.config import StrictModel, load_config, parse
from vtskip.data import DataConfig
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, nearest

Count = tuple[float, float]
Scores = dict[str, dict[str, Count]]  # flavour -> metric -> (value, weight) of one sample
Caption = Literal["rouge_l"]
Evaluator = Literal["stream", "rollout", "generate"]
ClosedSet = Literal["split", "all", "taxonomy"]


class Scorer(Protocol):
    """Scores one sample from its raw outcome, a JSON-ready mapping."""

    def __call__(self, sample: Sample, raw: Mapping[str, Any]) -> Scores: ...


class Generation(StrictModel):
    """How answers are generated: greedily or by beam search, never sampled."""

    max_new_tokens: int = Field(default=128, ge=1)
    num_beams: int = Field(default=1, ge=1)
    num_return_sequences: int = Field(default=1, ge=1)


class Task(StrictModel):
    """One task.

    Attributes:
        task: its name, that of the file.
        version: changed whenever results stop being comparable.
        about: one line for lists and reports.
        kinds: of data that it can read.
        data: keys set in the data section.
        evaluator: ``stream``: teacher-forced turn records; ``rollout``: the model's own replies in the cache;
            ``generate``: an answer to a question.
        scores: function that makes a scorer from (task, data section, samples, tolerances).
        generation: of answers and of replies in a rollout.
        primary: flavour/metric that reports and pictures show first, and whether more of it is better.
        shown: further flavour/metric columns of reports.
        captions: further scores of free texts.
        closed_set: which labels answers are matched with: those of the ``split``'s videos (the reference), of ``all`` videos
            in the file, or of the ``taxonomy`` that the data section names (of synthetic clips their own).
        cluster_by: key of a sample's ``meta`` that says which samples are alike; the video file where it is missing.
    """

    task: str
    version: int = Field(default=1, ge=1)
    about: str
    kinds: list[str]
    data: dict[str, Any] = {}
    evaluator: Evaluator
    scores: str
    generation: Generation = Generation()
    primary: str
    higher_is_better: bool = True
    shown: list[str] = []
    captions: list[Caption] = []
    closed_set: ClosedSet = "split"
    cluster_by: str = "video_uid"


MakeScorer = Callable[[Task, DataConfig, Sequence[Sample], Sequence[float]], Scorer]
SCORERS: dict[str, MakeScorer] = {}


def register_scores(name: str) -> Callable[[MakeScorer], MakeScorer]:
    """Decorator: make a scorer factory available to task files as ``scores: name``."""

    def add(make: MakeScorer) -> MakeScorer:
        SCORERS[name] = make
        return make

    return add


def scorer_factory(name: str, folders: Sequence[str | Path] = ()) -> MakeScorer:
    """A registered factory, or ``package.module:function``, also from modules in ``folders``."""
    import_module("vtskip.eval.scores")  # registers ours
    if name in SCORERS:
        return SCORERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        hint = f"{nearest(name, SCORERS)}; accepted: {', '.join(sorted(SCORERS))}, or package.module:function"
        raise ConfigError(f"scores {name!r}: not registered{hint}")
    before = list(sys.path)
    sys.path[:0] = [str(f) for f in folders]
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"scores {name!r}: {e}") from None
    finally:
        sys.path[:] = before


def task_files(include_path: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Name -> file of all tasks. Later folders win. Raises ConfigError for a folder that is not there."""
    found = {Path(str(f)).stem: Path(str(f)) for f in files("vtskip.eval.tasks").iterdir() if f.name.endswith(".yaml")}
    for folder in map(Path, include_path):
        if not folder.is_dir():
            raise ConfigError(f"include_path: {folder} is no folder")
        found |= {p.stem: p for p in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def load_task(name: str, include_path: Sequence[str | Path] = ()) -> Task:
    """A task by name. Raises ConfigError that names the nearest one that exists."""
    known = task_files(include_path)
    if name not in known:
        raise ConfigError(f"unknown task {name!r}{nearest(name, known)}; accepted: {', '.join(known)}")
    task = load_config(Task, known[name])
    if task.task != name:
        raise ConfigError(f"{known[name]}: 'task' is {task.task!r}; accepted: the name of the file, {name!r}")
    return task


def task_data(task: Task, base: DataConfig | None, own: Mapping[str, Any]) -> DataConfig:
    """The data section of a task: the run's keys, then the task's, then those the run gives for it."""
    values = {} if base is None else base.model_dump(exclude_unset=True)
    if "kind" in own:
        values = {k: v for k, v in values.items() if k == "root"}
    values |= {**task.data, **own}
    config = parse(DataConfig, values, f"data of task {task.task!r}")
    if config.kind not in task.kinds:
        raise ConfigError(
            f"task {task.task!r} cannot read data of kind {config.kind!r}; accepted: {', '.join(task.kinds)}"
        )
    return config
