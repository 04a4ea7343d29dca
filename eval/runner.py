"""Run an evaluation: ask the model every sample of every task under every row, take the metrics, write one record."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vtskip._files import write_atomic
from vtskip.data.collate import FrameCache
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, VideoError
from vtskip.eval.areas import has_areas, kinds_of, router_counts
from vtskip.eval.config import EvalConfig
from vtskip.eval.cost import peak_memory, peak_of, reset_peak
from vtskip.eval.journal import Journal, fingerprint
from vtskip.eval.lta import submission
from vtskip.eval.prior import answer_of, has_prior, prior
from vtskip.eval.record import build_record
from vtskip.eval.records import SampleRecord
from vtskip.eval.rows import ORACLES, PRIORS, RowPlan, applied, plan_rows
from vtskip.eval.scores import lta_actions
from vtskip.eval.sets import TaskSet, due_replies, question, read_samples, task_sets
from vtskip.eval.shard import Shard
from vtskip.eval.subject import Prompt, StreamSubject
from vtskip.methods import get_method
from vtskip.streaming.loading import StreamCheckpoint, load_stream

Progress = Callable[[str, int, int], None]
Line = dict[str, Any]
FRAME_BYTES = 256 << 20  # decoded frames kept from row to row


def run(config: EvalConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate and return the record; with ``config.out`` also write ``record.json`` and ``samples.jsonl``.

    progress(row, done, total) is called after every sample. A run that was killed goes on behind the samples it has
    finished. Of several processes the first one returns the record and writes; the others return an empty one. Raises
    VtskipError for bad data, model or settings; of the files only those of finished samples are there then.
    """
    shard = Shard.of_environment()
    if shard.world > 1 and config.out is None:
        raise ConfigError("several processes exchange their results through files: 'out' has to be a folder")
    torch.manual_seed(config.seed)
    method = None if config.method is None else get_method(config.method)
    checkpoint = load_stream(config.model, shard.device(config.device), config.dtype)
    if method is not None and not checkpoint.use(method):
        raise ConfigError(
            f"method {config.method!r}: its parameters are not in {config.model}; train it, or leave it out"
        )
    sets = task_sets(config)
    evaluation = Evaluation(config, checkpoint, sets, shard, progress)
    try:
        evaluation.run()
    finally:
        evaluation.journal.close()
    shard.wait()
    if shard.rank:
        return {}
    lines = evaluation.lines()
    record = build_record(config, sets, evaluation.described, lines) | peak_of(lines, checkpoint.model.device)
    if config.out is not None:
        for part in sets:
            _submit(part, lines, Path(config.out))
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_atomic(Path(config.out) / "samples.jsonl", text.encode())
        write_atomic(Path(config.out) / "record.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        evaluation.journal.close(remove=True)
    return record


def _submit(part: TaskSet, lines: Sequence[Line], folder: Path) -> None:
    """The file for the challenge's server, where anticipation is asked of clips whose actions are not published."""
    if part.task.scores == "lta" and any("verb_labels" not in s.meta for s in part.samples):
        own = (line for line in lines if (line["row"], line["task"]) == ("model", part.task.task))
        answers = submission(own, lta_actions(part.data), part.data.ahead)
        write_atomic(folder / f"submission_{part.task.task}.json", json.dumps(answers).encode())


@dataclass(frozen=True)
class Answer:
    """How a row answers: raw outcomes of ``batch`` samples at a time, in order, None for what could not be read."""

    ask: Callable[[list[Sample]], list[Line | None]]
    batch: int = 1


class Evaluation:
    """One run: what is done, and how the rest is asked for."""

    def __init__(
        self,
        config: EvalConfig,
        checkpoint: StreamCheckpoint,
        sets: Sequence[TaskSet],
        shard: Shard,
        progress: Progress | None,
    ):
        self.config, self.checkpoint, self.sets, self.shard = config, checkpoint, sets, shard
        self.progress = progress or (lambda row, done, total: None)
        side = checkpoint.model.config.image_size
        self.frames = FrameCache(FRAME_BYTES // (3 * side * side))
        self.skip = config.on_error == "skip"
        example = self._example() if "downsample" in config.rows else None
        asked = [name for name in config.rows if name not in PRIORS]
        self.plan: Mapping[str, RowPlan] = plan_rows(
            asked, checkpoint, config.seed, example, config.random_checkpoint, config.checkpoints
        )
        self.priors = [name for name in config.rows if name in PRIORS]
        self.guesses: dict[tuple[str, str], Callable[[Sample], str] | None] = {
            (name, s.task.task): _guesses(name, s) for name in self.priors for s in sets
        }
        for name in self.priors:
            if not any(self.guesses[name, s.task.task] for s in sets):
                raise ConfigError(f"rows: {name!r} has no answer to any of the tasks {[s.task.task for s in sets]}")
        settings = config.model_dump(mode="json", exclude={"out", "name"}) | {
            "tasks": [s.task.model_dump() for s in sets]
        }
        for name in sorted({*config.rows} & {*ORACLES}):
            if not any(has_areas(s.data) for s in sets):
                raise ConfigError(f"rows: {name!r} needs clips whose areas are known; accepted: data of kind synthetic")
        models = [config.model, *filter(None, [config.random_checkpoint]), *config.checkpoints.values()]
        run = fingerprint(settings, models, (s for part in sets for s in part.samples))
        self.journal = Journal(None if config.out is None else Path(config.out), run, shard.rank)
        self._take_over()

    def _take_over(self) -> None:
        """What other processes or an earlier start have finished, and what they could not read."""
        self.journal.load()
        parts = {part.task.task: part for part in self.sets}
        for line in self.journal.done.values():
            if "skipped" in line:
                parts[line["task"]].skipped[line["uid"]] = line["skipped"]

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Row -> its method."""
        return {name: row.as_dict() for name, row in self.plan.items()} | {n: {"name": n} for n in self.priors}

    def _example(self) -> Prompt:
        """The first conversation that can be read."""
        for part in self.sets:
            for sample in part.samples:
                frames = self._read(part, sample)
                if frames is not None and len(frames):
                    return Prompt(sample.conversation, frames)
        raise ConfigError("rows: 'downsample' needs a conversation with frames")

    def _read(self, part: TaskSet, sample: Sample) -> Any:
        """The frames of a sample; None for a damaged video that is skipped."""
        try:
            return self.frames.read(sample, self.checkpoint.model.config.image_size) if sample.frames else _no_frames()
        except VideoError as e:
            if not (self.skip or part.data.on_error == "skip"):
                raise
            part.skipped[sample.uid] = str(e)
            return None

    def run(self) -> None:
        """Everything that is not done yet, row by row."""
        for name, row in self.plan.items():
            with applied(row, self._of(row)) as subject:
                reset_peak(self.checkpoint.model.device)
                self.ask(name, subject)
        for name in self.priors:
            self._row(name, partial(self._guessed, name))

    def ask(self, row: str, subject: StreamSubject) -> None:
        """Every sample of this process, of the model as it is now; finished ones are in ``journal.done``."""
        self._row(row, partial(self._asked, row, subject))

    def _of(self, row: RowPlan) -> StreamCheckpoint:
        """The checkpoint a row runs on. Raises ConfigError for one that sees other frames."""
        if row.model is None:
            return self.checkpoint
        config, own = self.config, self.checkpoint.model.config
        other = load_stream(row.model, self.shard.device(config.device), config.dtype)
        named = row.name in config.checkpoints
        for key in ("image_size",) if named else ("image_size", "pool", "cls_token"):
            if getattr(other.model.config, key) != getattr(own, key):
                facts = f"{getattr(other.model.config, key)}; accepted: that of the model, {getattr(own, key)}"
                where = f"checkpoints.{row.name}" if named else "random_checkpoint"
                raise ConfigError(f"{where} {row.model}: {key} {facts}")
        return other

    def _row(self, row: str, answers: Callable[[TaskSet], Answer | None]) -> None:
        work = [(part, self.shard.own(part.samples)) for part in self.sets]
        total, done = sum(len(samples) for _, samples in work), 0
        for part, samples in work:
            answer = answers(part)
            if answer is None:  # a row that has no meaning for this task
                done += len(samples)
                continue
            fresh = [s for s in samples if (row, part.task.task, s.uid) not in self.journal.done]
            done += len(samples) - len(fresh)
            for start in range(0, len(fresh), answer.batch):
                batch = fresh[start : start + answer.batch]
                outcomes = zip(batch, answer.ask(batch), strict=True)
                self.journal.add([self._line(row, part, sample, raw) for sample, raw in outcomes])
                done += len(batch)
                self.progress(row, done, total)

    def _line(self, row: str, part: TaskSet, sample: Sample, raw: Line | None) -> Line:
        head = {"row": row, "task": part.task.task, "uid": sample.uid}
        if raw is None:
            return head | {"skipped": part.skipped[sample.uid]}
        scores = part.scorer(sample, raw)
        if raw.get("cost"):
            raw["cost"]["peak_memory_bytes"] = peak_memory(self.checkpoint.model.device)["peak_memory_bytes"]
        if raw.get("areas") is not None:
            scores["router"] = router_counts(raw["areas"])
        return head | {"cluster": part.cluster(sample)} | raw | {"scores": scores}

    def _asked(self, row: str, subject: StreamSubject, part: TaskSet) -> Answer | None:
        if row in ORACLES and not has_areas(part.data):
            return None
        one = {"stream": self._stream, "rollout": self._rollout}.get(part.task.evaluator)
        if one is None:
            return Answer(partial(self._answers, part, subject), self.config.batch_size)

        def ask(samples: list[Sample]) -> list[Line | None]:
            read = [(sample, self._read(part, sample)) for sample in samples]
            return [
                None if f is None else one(part, subject, s, self._prompt(part, s, s.conversation, f)) for s, f in read
            ]

        return Answer(ask)

    def _prompt(self, part: TaskSet, sample: Sample, conversation: Any, frames: Any) -> Prompt:
        return Prompt(conversation, frames, kinds_of(sample) if has_areas(part.data) else None)

    def _stream(self, part: TaskSet, subject: StreamSubject, sample: Sample, prompt: Prompt) -> Line:
        config = self.config
        turns, cost = subject.stream_score(prompt, config.threshold, config.continuation)
        areas = subject.areas[0]
        meta = {"video": str(sample.video), "source": sample.source}
        record = SampleRecord(sample.uid, sample.fps, turns, config.threshold, meta)
        if cost is not None and sample.uid in {s.uid for s in part.samples[: config.live_clips]}:
            cost |= subject.live(prompt, sample.fps, config.live_threshold)
        return record.as_dict() | {"cost": cost, "areas": areas}

    def _rollout(self, part: TaskSet, subject: StreamSubject, sample: Sample, prompt: Prompt) -> Line:
        most, at = part.task.generation.max_new_tokens, self.config.live_threshold
        said, cost = subject.rollout(prompt, sample.fps, at, most)
        due, areas = due_replies(sample), subject.areas[0]
        return {"fps": sample.fps, "said": [list(s) for s in said], "due": due, "cost": cost, "areas": areas}

    def _answers(self, part: TaskSet, subject: StreamSubject, samples: list[Sample]) -> list[Line | None]:
        read = [(sample, self._read(part, sample)) for sample in samples]
        prompts = [
            self._prompt(part, sample, question(sample), frames) for sample, frames in read if frames is not None
        ]
        answers, costs = subject.generate(prompts, part.task.generation) if prompts else ([], [])
        found = zip(answers, costs, subject.areas)
        lines: list[Line | None] = []
        for sample, frames in read:
            texts, cost, areas = (None, None, None) if frames is None else next(found)
            lines.append(texts and {"answers": texts, "target": answer_of(sample), "cost": cost, "areas": areas})
        return lines

    def _guessed(self, row: str, part: TaskSet) -> Answer | None:
        guess = self.guesses[row, part.task.task]
        if guess is None:
            return None

        def ask(samples: list[Sample]) -> list[Line | None]:
            times = part.task.generation.num_return_sequences
            return [
                None if s.uid in part.skipped else {"answers": [guess(s)] * times, "target": answer_of(s), "cost": None}
                for s in samples
            ]

        return Answer(ask)

    def lines(self) -> list[Line]:
        """All finished samples, by row, task and sample."""
        self._take_over()
        keys = [(row, s.task.task, x.uid) for row in self.described for s in self.sets for x in s.samples]
        found = (self.journal.done.get(key) for key in keys)
        return [line for line in found if line is not None and "skipped" not in line]


def _guesses(row: str, part: TaskSet) -> Callable[[Sample], str] | None:
    """What answers a task without a model; None where it has no prior, or nothing says where it could be counted."""
    if part.prior is None or not has_prior(row, part.task.evaluator, part.data.task):
        return None
    known, _ = read_samples(part.prior, skip=True)
    return prior(row, part.task.scores, known)


def _no_frames() -> Any:
    import numpy as np

    return np.zeros((0, 1, 1, 3), np.uint8)
