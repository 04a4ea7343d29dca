"""What the log tells, sent to TensorBoard or wandb as well: the same names, numbers and steps as in ``train_log.jsonl``."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vtskip._files import write_atomic
from vtskip.errors import ConfigError
from vtskip.train.config import TrainConfig
from vtskip.train.start import as_yaml


def reports(config: TrainConfig) -> list[TrainerCallback]:
    """The callbacks of ``report_to``. Raises ConfigError for one that is not installed."""
    for name in config.report_to:
        if find_spec(name) is None:
            raise ConfigError(
                f"report_to {name!r}: not installed; pip install {name} (both: 'vtskip[report]'), or leave it out"
            )
    kinds = {"tensorboard": TensorBoard, "wandb": Wandb}
    return [kinds[name](config) for name in dict.fromkeys(config.report_to)]


class Report(TrainerCallback):
    """Only the first process reports."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.open: Any = None

    def start(self, step: int) -> Any:
        """What ``send`` and ``finish`` need; ``step``: how many were taken before."""
        raise NotImplementedError

    def send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.open = self.start(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.open is not None:
            numbers = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
            self.send(numbers, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.open is not None:
            self.finish()
            self.open = None


class TensorBoard(Report):
    """Into ``tensorboard/`` of the run's folder. A resumed run hides what an interrupted one wrote behind its checkpoint."""

    def start(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out / "tensorboard"), purge_step=step + 1 if step else None)

    def send(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.open.add_scalar(name, value, step)
        self.open.flush()

    def finish(self) -> None:
        self.open.close()


class Wandb(Report):
    """Into wandb, with the run's configuration, by way of ``wandb/`` in the run's folder; a resumed run goes on in the same one.

    wandb's own variables hold: ``WANDB_PROJECT`` (by default vtskip), ``WANDB_MODE=offline``, ``WANDB_API_KEY``.
    """

    def start(self, step: int) -> Any:
        import wandb

        path = self.out / "wandb" / "id"
        held = path.read_text(encoding="utf-8").strip() if step and path.is_file() else None
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vtskip"),
            name=self.config.name,
            dir=str(self.out),
            config=as_yaml(self.config),
            id=held,
            resume="allow" if held else None,
        )
        write_atomic(path, f"{run.id}\n".encode())
        return run

    def send(self, values: dict[str, float], step: int) -> None:
        self.open.log(values, step=step)

    def finish(self) -> None:
        self.open.finish()
