"""What a training run tells while it runs: a line of JSON per log step, and a progress bar."""

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from vtskip._files import write_atomic
from vtskip.errors import CheckpointError
from vtskip.train.scoring import is_score

LOG_NAME = "train_log.jsonl"


class JsonLog(TrainerCallback):
    """Appends ``{"step", "epoch", "seconds", "loss", "learning_rate", ...}`` to the run's log file.

    A resumed run first drops the lines behind its checkpoint, so that the file reads as one uninterrupted run.
    """

    def __init__(self, path: Path):
        self.path, self.start = path, time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic()
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if step_of(line) <= state.global_step]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        seconds = round(time.monotonic() - self.start, 2)
        line = {"step": state.global_step, "epoch": state.epoch, "seconds": seconds} | (logs or {})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as e:
            raise CheckpointError(
                f"{self.path}: cannot be written ({e.strerror or e}); --resume auto goes on from the last checkpoint"
            ) from None


def step_of(line: str) -> float:
    """The step of a log line; infinite for one that an interruption has cut short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class Bar(TrainerCallback):
    """A progress bar on stderr; where that is no terminal, a plain line every tenth of the way."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.scoring = self.progress.add_task("evaluation", visible=False, loss="")
        self.task: Any = None
        self.loss, self.told = "-", 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.progress.start()
            self.task = self.progress.add_task(
                "training", total=state.max_steps, completed=state.global_step, loss="loss -"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"{float(logs['loss']):.3f}"
        scores = [f"{key.removeprefix('eval_')} {value:.4g}" for key, value in logs.items() if is_score(key)]
        if scores and state.is_world_process_zero:
            self.progress.update(self.scoring, visible=False)
            self.console.print(f"evaluation after step {state.global_step}: {', '.join(scores)}", soft_wrap=True)

    def scored(self, done: int, total: int) -> None:
        """``done`` of ``total`` samples of an evaluation."""
        self.progress.update(self.scoring, completed=done, total=total, visible=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.task is None:
            return
        self.progress.update(self.task, completed=state.global_step, loss=f"loss {self.loss}")
        part = 10 * state.global_step // state.max_steps
        if not self.console.is_terminal and part > self.told:
            self.told = part
            self.console.print(f"training: step {state.global_step}/{state.max_steps}, loss {self.loss}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back; called once more when training ends with an error."""
        self.progress.stop()
