"""What ends a run early: a loss that is no number, and signals. Nothing is lost, and the message says how to go on."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback

from vtskip._files import write_atomic
from vtskip.errors import ModelError, VtskipError
from vtskip.train.options import BAD_BATCHES

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Interrupted(VtskipError):
    """A signal ended the run after its state was saved; the program's exit code says which, as a shell would."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class LossGuard:
    """Stops a run whose loss is nan or infinite, with the batch in ``bad_batches/`` of the run's folder.

    On a CPU at once, before the optimizer's step. On other devices each loss is looked at when the next one has been
    started, and before anything is saved: to ask for it at once would make the device wait for the program at every step.
    """

    def __init__(self, out: Path, rank: int) -> None:
        self.out, self.rank = out, rank
        self.last: tuple[Tensor, dict[str, Any], dict[str, Any], int] | None = None

    def watch(self, loss: Tensor, batch: dict[str, Any], origin: dict[str, Any], step: int) -> None:
        """``batch``: as it came from the loader; ``step``: the one that is being taken. Raises ModelError."""
        if loss.device.type != "cpu":
            self.check()
        self.last = (loss.detach(), batch, origin, step)
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Judge the last loss that was handed in. Raises ModelError."""
        if self.last is None:
            return
        (loss, batch, origin, step), self.last = self.last, None
        if bool(torch.isfinite(loss)):
            return
        path = self.out / BAD_BATCHES / f"step_{step}_process_{self.rank}.safetensors"
        tensors = {k: v.detach().cpu().contiguous() for k, v in batch.items() if torch.is_tensor(v)}
        facts = {"step": step, "process": self.rank, "loss": str(loss.item()), **origin}
        write_atomic(path, save(tensors))
        write_atomic(path.with_suffix(".json"), (json.dumps(facts, indent=2) + "\n").encode())
        names = ", ".join(repr(sample["uid"]) for sample in origin.get("samples", ()))
        raise ModelError(
            f"the loss of step {step} is {loss.item()} (samples {names}); the batch is in {path}. Look at these samples, or "
            "go on from the last checkpoint with a smaller optim.lr or optim.clip"
        )


class StopSignals(TrainerCallback):
    """Ctrl-C and SIGTERM: the step is finished, a checkpoint is saved, and the run ends. The same signal again ends it at once.

    All processes agree after each step, by one number over the network between hosts, never by a device.
    """

    def __init__(self) -> None:
        self.number, self.stopped = 0, False
        self.group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are caught inside; handlers can only be set by a program's main thread."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._note) for number in CAUGHT} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.group is not None:
            flag = torch.tensor([self.number])
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
            self.number = int(flag)
        if self.number and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True
            control.should_evaluate = False  # whoever stops a run may not wait that long for the save

    def raise_if_stopped(self, out: Path, step: int) -> None:
        """Raises Interrupted, which says how to go on."""
        if self.stopped:
            raise Interrupted(
                f"{out}: stopped by {signal.Signals(self.number).name} after step {step}, which is saved; start it again "
                "with --resume auto to go on from there",
                self.number,
            )
