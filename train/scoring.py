"""Task scores while a model trains: what a scorer is shown of it, and how the parts of several processes become one number.

A scorer is handed in (``vtskip.eval.training`` makes one from an evaluation file): training knows no task.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from vtskip._files import write_atomic
from vtskip.data.types import Sample
from vtskip.errors import ConfigError, nearest
from vtskip.train.chat import ChatTemplate
from vtskip.train.options import Best

Counts = dict[str, tuple[float, float]]  # name -> sum of values, sum of weights
Tell = Callable[[int, int], None]  # samples done, all samples
PREFIX = "eval_"  # of scores in a log line, as transformers has it
LOSS = "loss"


@dataclass(frozen=True)
class Learner:
    """A model in the middle of its training.

    Attributes:
        model: in eval mode, with its method attached if it has one, without the wrappers of a distributed run.
        template: a StreamTemplate, or the template of a stock model's chats.
        rank, world: which share of the samples this process scores; 0 of 1 where every process has to do all of them.
    """

    model: Any
    template: Any
    rank: int = 0
    world: int = 1

    def answer(self, sample: Sample, generation: Mapping[str, int]) -> list[str]:
        """What a stock model says next in a conversation, best first. ``generation``: arguments of ``generate``."""
        template: ChatTemplate = self.template
        inputs = {key: value.to(self.model.device) for key, value in template.question(sample).items()}
        pad = template.tokenizer.pad_token_id
        with torch.no_grad():
            out = self.model.generate(**inputs, **generation, do_sample=False, pad_token_id=pad)
        texts = template.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]


class Scorer(Protocol):
    """Scores a model on tasks. ``primary``: the first metric of every task, and whether more of it is better; ``shown``: what
    the log tells."""

    primary: Mapping[str, bool]
    shown: Sequence[str]

    def read(self) -> None:
        """Read the samples; before training, so that a fault in them is known then. Raises VtskipError."""

    def fits(self, template: Any) -> None:
        """Raises ConfigError for a task that a model with this template cannot do."""

    def __call__(self, learner: Learner, tell: Tell) -> Counts:
        """Sums over this process's share of the samples, by ``task/flavour/metric``."""


@contextmanager
def unchanged_random() -> Iterator[None]:
    """What happens inside draws other random numbers than what comes after it: evaluation changes no run."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def added_up(counts: Counts, group: Any = None) -> Counts:
    """The counts of all processes together; every one has to call it. ``group``: of processes that talk without devices."""
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, counts, group=group)
    names = dict.fromkeys(name for part in parts for name in part)
    return {n: (sum(p[n][0] for p in parts if n in p), sum(p[n][1] for p in parts if n in p)) for n in names}


def means(counts: Counts) -> dict[str, float]:
    """As log lines have them: without what had nothing to be measured on."""
    return {PREFIX + name: total / weight for name, (total, weight) in counts.items() if weight}


def is_score(key: str) -> bool:
    """Of a log line's keys: the held-out loss, and ``eval_task/flavour/metric``."""
    return key == PREFIX + LOSS or (key.startswith(PREFIX) and "/" in key)


class BestScore:
    """The best score so far and its step, kept as ``best.json`` in every checkpoint and in the run's folder."""

    FILE = "best.json"

    def __init__(self, options: Best, primary: Mapping[str, bool]) -> None:
        """Raises ConfigError for a metric that nobody takes, or one of which it is not known which way is better."""
        self.metric, known = options.metric, {LOSS: False} | dict(primary)
        tasks = sorted({name.partition("/")[0] for name in primary})
        if self.metric != LOSS and self.metric.partition("/")[0] not in tasks:
            raise ConfigError(f"best.metric {self.metric!r}{nearest(self.metric, known)}; accepted: {', '.join(known)}")
        higher = known.get(self.metric) if options.higher_is_better is None else options.higher_is_better
        if higher is None:
            raise ConfigError(f"best.metric {self.metric!r}: say 'higher_is_better', it is no task's first metric")
        self.higher, self.load, self.patience = bool(higher), options.load, options.patience
        self.value, self.step, self.missed = 0.0, 0, 0

    @property
    def exhausted(self) -> bool:
        """As many scores in a row were no better as the run has patience for."""
        return self.patience is not None and self.missed >= self.patience

    @property
    def checkpoint(self) -> str | None:
        return f"checkpoint-{self.step}" if self.step else None

    def beaten_by(self, scores: Mapping[str, float], step: int) -> bool:
        """Remember ``scores`` if they are better; what could not be measured is nan. Raises ConfigError if ours is not there."""
        value = scores.get(PREFIX + self.metric)
        if value is None:
            names = [name.removeprefix(PREFIX) for name in scores if "/" in name]
            raise ConfigError(
                f"best.metric {self.metric!r}: no such score{nearest(self.metric, names)}; accepted: {', '.join(names)}"
            )
        if math.isnan(value) or (self.step and not (value > self.value if self.higher else value < self.value)):
            self.missed += self.step > 0
            return False
        self.value, self.step, self.missed = value, step, 0
        return True

    def write(self, folder: Path) -> None:
        if self.step:
            facts = {"checkpoint": self.checkpoint, "step": self.step, "metric": self.metric, "value": self.value}
            facts |= {"missed": self.missed} if self.patience else {}
            write_atomic(folder / self.FILE, (json.dumps(facts, indent=2) + "\n").encode())
        else:
            (folder / self.FILE).unlink(missing_ok=True)

    def read(self, folder: Path) -> None:
        """As it was when the checkpoint ``folder`` was written."""
        path = folder / self.FILE
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.value, self.step, self.missed = found.get("value", 0.0), found.get("step", 0), found.get("missed", 0)
