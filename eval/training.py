"""Scores of a model in the middle of its training, on the tasks of an evaluation file.

The samples, prompts and metrics are those of ``vtskip eval``; only the model's own row is asked, nothing is timed, and the
numbers have no intervals. Training calls this through its ``Scorer`` protocol and knows nothing of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtskip._shipped import file_or_shipped
from vtskip.config import load_config, parse
from vtskip.data.collate import FrameCache
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, VideoError
from vtskip.eval.config import EvalConfig
from vtskip.eval.prior import answer_of
from vtskip.eval.runner import FRAME_BYTES, Evaluation
from vtskip.eval.sets import STREAMS, TaskSet, question, task_sets
from vtskip.eval.shard import Shard
from vtskip.eval.subject import StreamSubject
from vtskip.eval.tasks import Scores, load_task
from vtskip.runtime.attach import attach, attached
from vtskip.streaming.loading import StreamCheckpoint
from vtskip.template import StreamTemplate

Counts = dict[str, tuple[float, float]]
Tell = Callable[[int, int], None]
MODEL = "model"  # the row


def scorer_of(evaluation: Path | dict[str, Any], out: Path) -> "TaskScores":
    """From an evaluation file (or the name of a shipped one), or from its keys; ``model`` may be left out of those.

    Raises ConfigError.
    """
    if isinstance(evaluation, dict):
        config = parse(EvalConfig, {"model": str(out)} | evaluation, "evaluation")
    else:
        config = load_config(EvalConfig, file_or_shipped(evaluation, "eval"))
    return TaskScores(config)


class TaskScores:
    """A scorer: ``read`` once, then call it with a learner (``vtskip.train.scoring``) as often as wanted."""

    def __init__(self, config: EvalConfig) -> None:
        own = {"rows": (), "live_clips": 0, "out": None, "method": None}
        self.config = config.model_copy(update=own)
        self.tasks = [load_task(run.task, config.include_path) for run in config.runs] or [STREAMS]
        self.primary: Mapping[str, bool] = {f"{task.task}/{task.primary}": task.higher_is_better for task in self.tasks}
        self.shown: Sequence[str] = [
            f"{task.task}/{name}" for task in self.tasks for name in (task.primary, *task.shown)
        ]
        self.sets: list[TaskSet] = []
        self.frames: FrameCache | None = None

    def read(self) -> None:
        self.sets = task_sets(self.config)

    def fits(self, template: Any) -> None:
        streams = [task.task for task in self.tasks if task.evaluator != "generate"]
        if streams and not isinstance(template, StreamTemplate):
            raise ConfigError(
                f"evaluation: task {streams[0]!r} is about a stream, which a stock model ('model.pretrained') does not "
                "narrate; accepted: tasks with questions, as visual_qa"
            )

    def __call__(self, learner: Any, tell: Tell) -> Counts:
        shard = Shard(learner.rank, learner.world)
        streams = isinstance(learner.template, StreamTemplate)
        scored = self._streamed(learner, shard, tell) if streams else self._chatted(learner, shard, tell)
        return sums(scored)

    def _streamed(self, learner: Any, shard: Shard, tell: Tell) -> list[tuple[str, Scores]]:
        with as_checkpoint(learner) as checkpoint:
            evaluation = Evaluation(
                self.config, checkpoint, self.sets, shard, lambda row, done, total: tell(done, total)
            )
            if self.frames is None:
                side = checkpoint.model.config.image_size
                self.frames = FrameCache(FRAME_BYTES // (3 * side * side))
            evaluation.frames = self.frames
            evaluation.ask(MODEL, StreamSubject(checkpoint))
        lines = evaluation.journal.done.values()
        return [(line["task"], line["scores"]) for line in lines if "scores" in line]

    def _chatted(self, learner: Any, shard: Shard, tell: Tell) -> list[tuple[str, Scores]]:
        work = [(part, sample) for part in self.sets for sample in shard.own(part.samples)]
        found = []
        for done, (part, sample) in enumerate(work, 1):
            try:
                answers = learner.answer(asked(sample), part.task.generation.model_dump())
            except VideoError:
                if "skip" not in (self.config.on_error, part.data.on_error):
                    raise
                continue
            found.append((part.task.task, part.scorer(sample, {"answers": answers, "target": answer_of(sample)})))
            tell(done, len(work))
        return found


def asked(sample: Sample) -> Sample:
    """A sample up to where its last reply is due."""
    conversation = question(sample)
    shown = sum(turn.get("num_frames", 0) for turn in conversation)
    return replace(sample, conversation=conversation, frames=sample.frames[:shown])


@contextmanager
def as_checkpoint(learner: Any) -> Iterator[StreamCheckpoint]:
    """A model in training as a checkpoint that streams. A dense one has ``dense`` attached for the time being."""
    handle = attached(learner.model)
    own = handle is not None
    handle = handle or attach(learner.model, "dense")
    try:
        yield StreamCheckpoint(learner.model, learner.template, handle, {}, [handle.method.name])
    finally:
        if not own:
            handle.detach()


def sums(scored: Iterable[tuple[str, Scores]]) -> Counts:
    """``task/flavour/metric`` -> sums of values and weights over samples."""
    total: Counts = {}
    for task, scores in scored:
        for flavour, metrics in scores.items():
            for metric, (value, weight) in metrics.items():
                before = total.get(name := f"{task}/{flavour}/{metric}", (0.0, 0.0))
                total[name] = (before[0] + value, before[1] + weight)
    return total
