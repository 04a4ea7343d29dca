"""``keep`` as a schedule over steps: set on the planners before each step, so that a forward stays a function of its inputs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from vtskip.errors import ConfigError
from vtskip.models.families import decoder_of
from vtskip.runtime.attach import attached
from vtskip.train.options import KeepWarmup


class KeepSchedule(TrainerCallback, ExportableState):
    """Takes every planner's ``keep`` from ``options.start`` to its own value. The current mean is ``value``, kept in checkpoints.

    Raises ConfigError where the method has no ``keep`` to set, or the run is over before the schedule.
    """

    def __init__(self, options: KeepWarmup, model: nn.Module) -> None:
        self.options, self.value = options, options.start
        decoder, _ = decoder_of(model)
        planners = [p for layer in decoder.layers if "vtskip" in layer._modules for p in layer.vtskip.modules()]
        self.own: list[tuple[Any, float]] = [
            (p, p.keep)
            for p in planners
            if isinstance(getattr(p, "keep", None), float) and getattr(p, "retained", None) is None
        ]
        handle = attached(model)
        if not self.own:
            name = f"method {handle.method.name!r}" if handle else "a run without a method"
            raise ConfigError(
                f"keep_warmup: {name} has no share of rows to vary; accepted: mod, pmod, gamma_mod, skip_ffn (without "
                "'retained'), fastv, pyramid_drop, random, uniform"
            )

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"value": self.value}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.options.steps > state.max_steps:
            raise ConfigError(
                f"keep_warmup.steps {self.options.steps}: the run has {state.max_steps} steps; accepted: at most those"
            )
        self.set(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.set(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.set(self.options.steps)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Inside, ``keep`` is the method's own: as in the model that is saved."""
        before, value = [planner.keep for planner, _ in self.own], self.value
        self.set(self.options.steps)
        try:
            yield
        finally:
            for (planner, _), keep in zip(self.own, before):
                planner.keep = keep
            self.value = value

    def set(self, step: int) -> None:
        """As it is to be while step number ``step`` (from 0) is taken."""
        done = min(step / self.options.steps, 1.0)
        if self.options.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        for planner, own in self.own:
            planner.keep = own if done == 1.0 else self.options.start + (own - self.options.start) * done
        self.value = sum(planner.keep for planner, _ in self.own) / len(self.own)


class Progress(TrainerCallback):
    """Tells planners that ask (an attribute ``progress``) which share of the run's steps is behind them."""

    def __init__(self, model: nn.Module) -> None:
        decoder, _ = decoder_of(model)
        planners = [p for layer in decoder.layers if "vtskip" in layer._modules for p in layer.vtskip.modules()]
        self.asking: list[Any] = [p for p in planners if isinstance(getattr(p, "progress", None), float)]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for planner in self.asking:
            planner.progress = state.global_step / max(state.max_steps, 1)
