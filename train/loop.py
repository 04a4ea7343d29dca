"""The Hugging Face Trainer as a run that can be left alone: own batches, whole checkpoints, a watched loss, clean ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled

from vtskip.data.guarded import Broken, Guarded
from vtskip.errors import CheckpointError, ConfigError, VtskipError, one_line
from vtskip.heatmap import grid_of
from vtskip.models.families import unwrap
from vtskip.runtime.attach import attached
from vtskip.train.checkpoints import (
    STAGE,
    checkpoints,
    cleared,
    empty_stage,
    publish,
    publish_files,
    set_aside_later,
    step_of,
)
from vtskip.train.faults import LossGuard, StopSignals
from vtskip.train.loading import ORIGIN, Waited, batches_of, make_loader
from vtskip.train.options import Best, KeepWarmup, Sampling, Watch
from vtskip.train.probe import Probe
from vtskip.train.safe_load import numbers_only
from vtskip.train.sampling import Batches
from vtskip.train.scoring import PREFIX, BestScore, Learner, Scorer, Tell, added_up, means, unchanged_random
from vtskip.train.state import load_state, save_state
from vtskip.train.warmup import KeepSchedule, Progress
from vtskip.train.watch import Watcher

BROKEN_LOG, PICTURES = "broken.jsonl", "pictures"


class RunTrainer(Trainer):
    """Where the Trainer's own ways would lose something, ours; everything else is transformers'.

    Args:
        sampling, watch, keep_warmup, best: see ``vtskip.train.options``.
        broken: what to do about a sample whose video cannot be read.
        scorer: takes task scores whenever the held-out loss is taken, and tells ``tell`` how far it is.
    """

    def __init__(
        self,
        *args: Any,
        sampling: Sampling | None = None,
        watch: Watch | None = None,
        keep_warmup: KeepWarmup | None = None,
        broken: Broken = "raise",
        scorer: Scorer | None = None,
        best: Best | None = None,
        tell: Tell = lambda done, total: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampling, self.watch, self.broken = sampling or Sampling(), watch or Watch(), broken
        self.out = Path(str(self.args.output_dir))
        model, rank = unwrap(self.model), self.args.process_index
        self.watcher = Watcher(model, self.args.device)
        self.loss_guard, self.signals = LossGuard(self.out, rank), StopSignals()
        self.schedule = None if keep_warmup is None else KeepSchedule(keep_warmup, model)
        self.scorer, self.tell = scorer, tell
        self.best = None if best is None else BestScore(best, scorer.primary if scorer else {})
        self.guarded: Guarded | None = None
        self.probe: Probe | None = None
        self.resumed: Path | None = None
        self._staged: Path | None = None
        for callback in (Turns(self), self.signals, self.schedule, Progress(model)):
            if callback is not None:
                self.add_callback(callback)

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train from the start or from ``checkpoint``, and write the model to the run's folder.

        Raises ConfigError for a DeepSpeed run that has taken all its steps: its engine comes only with a step. Interrupted
        after a signal, ModelError for a loss that is no number, CheckpointError where something could not be written.
        """
        done = step_of(checkpoint) if checkpoint else 0
        if checkpoint and self.best is not None:
            self.best.read(checkpoint)
        # Past the last step transformers would take one more.
        if checkpoint and (done >= self.planned_steps() or (self.best is not None and self.best.exhausted)):
            if self.is_deepspeed_enabled:
                raise ConfigError(f"{checkpoint}: all {done} steps are done; that folder holds the model")
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self._load_from_checkpoint(str(checkpoint))
        else:
            self.resumed = checkpoint
            with self.signals.listening(), numbers_only(checkpoint, self.is_deepspeed_enabled):
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            self.signals.raise_if_stopped(self.out, self.state.global_step)
        if self.finished_step != self.state.global_step:
            self._load_from_checkpoint(str(self.out / f"checkpoint-{self.finished_step}"))
        self.save_finished()

    @property
    def finished_step(self) -> int:
        """The step whose model is the run's result."""
        taken = self.best is not None and self.best.load and self.best.step
        return self.best.step if self.best is not None and taken else self.state.global_step

    def planned_steps(self) -> int:
        """How many steps this configuration asks for, which may be another number than at the run's start."""
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        return math.ceil(args.num_train_epochs * -(-len(self.make_batches()) // args.gradient_accumulation_steps))

    # ------------------------------------------------------------------ batches

    def make_batches(self) -> Batches:
        assert self.train_dataset is not None
        samples, args = list(self.train_dataset.samples), self.args
        size, rank, processes = self._train_batch_size, args.process_index, args.world_size
        return batches_of(samples, self.data_collator, size, self.sampling, args.seed, rank, processes)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process alone, from samples whose faults have names. Not prepared by accelerate: it would deal them
        out a second time, and move them before anyone could look.
        """
        self.batches = self.make_batches()
        samples, args, collate = list(self.train_dataset.samples), self.args, self.data_collator
        sizes = self.batches.lengths if self.batches.by_length else None
        self.guarded = Guarded(samples, collate.look, self.broken, self.out / BROKEN_LOG, sizes)
        if self.watch.probe:
            self.probe = Probe(samples, collate, self.watch.probe)
        workers, pin = args.dataloader_num_workers, args.dataloader_pin_memory
        return make_loader(self.guarded, collate, self.batches, workers, self.sampling.prefetch, pin)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> Any:
        waited = Waited(epoch_iterator, self.guarded, self.watcher.add_wait)
        return super().get_batch_samples(waited, num_batches, device)

    # ------------------------------------------------------------------ steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        origin = inputs.pop(ORIGIN, {})
        self.watcher.add_batch(origin)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.loss_guard.watch(loss, inputs, origin, self.state.global_step + 1)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self.watcher.add_outputs(outputs)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers counts a dense model; the log has what ran

    # ------------------------------------------------------------------ telling

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.loss_guard.check()
            logs |= self.watcher.collect(self._reduce)
            if self.schedule is not None:
                logs["keep"] = self.schedule.value
            if self.probe is not None:
                with self.watcher.pause():
                    logs |= self.probe.measure(unwrap(self.model), self.args.device)
            if faults := self.broken_samples():
                logs["broken"] = len(faults)
        super().log(logs, start_time)

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        return self.accelerator.reduce(values, how) if self.args.world_size > 1 else values

    def draw(self) -> None:
        """A picture of what is kept now. Every process has to call it, one writes."""
        if self.probe is None:
            return
        with self.watcher.pause():
            model = unwrap(self.model)
            look = self.probe.look(model, self.args.device)
            if look is not None and self.args.should_save:
                grid = grid_of(model.config, look.rows.sizes[0][0])
                self.probe.draw(
                    look, grid, self.watch.frames, self.out / PICTURES / f"step_{self.state.global_step:06d}.png"
                )

    def broken_samples(self) -> dict[str, str]:
        """Sample -> fault, of all processes."""
        return {} if self.guarded is None else self.guarded.faults()

    # ------------------------------------------------------------------ evaluation

    @property
    def evaluates(self) -> bool:
        return bool(self.eval_dataset) or self.scorer is not None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss on held-out data and task scores, of the model as it would be saved; the training after it is not changed."""
        metrics: dict[str, float] = {}
        whole_keep = nullcontext() if self.schedule is None else self.schedule.finished()
        with self.watcher.pause(), unchanged_random(), whole_keep:
            if self.eval_dataset:
                handle = attached(self.model)
                with nullcontext() if handle is None else handle.loss_only():  # logits are most of a forward's memory
                    metrics |= super().evaluate(*args, **kwargs)
            if self.scorer is not None:
                metrics |= self._scores(self.scorer)
        return metrics

    def _scores(self, scorer: Scorer) -> dict[str, float]:
        """Every process scores a share of the samples; under ZeRO-3, where a forward is the work of all, each all of them."""
        together = is_deepspeed_zero3_enabled()
        rank, world = (0, 1) if together else (self.args.process_index, self.args.world_size)
        learner = Learner(unwrap(self.model).eval(), self.data_collator.template, rank, world)
        with self.accelerator.autocast():
            counts = scorer(learner, self.tell)
        counts = added_up(counts, self.signals.group) if world > 1 else counts
        metrics = means(counts)
        wanted = [*scorer.shown, *([] if self.best is None else [self.best.metric])]
        self.log({name: metrics[name] for n in dict.fromkeys(wanted) if (name := PREFIX + n) in metrics})
        return metrics | {name: math.nan for n in counts if (name := PREFIX + n) not in metrics}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Asked by the Trainer after an evaluation, before it saves."""
        found = self.best is not None and self.best.beaten_by(metrics, self.state.global_step)
        if self.best is not None and self.best.exhausted:  # saved, so that --resume auto finds a run that is over
            self.control.should_training_stop = self.control.should_save = True
        self.control.should_save |= found
        return found

    # ------------------------------------------------------------------ saving

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is being written. The Trainer's own rotation then finds nothing that it could delete."""
        return str(self._staged or self.out)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.loss_guard.check()
        name = f"checkpoint-{self.state.global_step}"
        with self.watcher.pause(), self._staging(name) as stage:
            super()._save_checkpoint(model, trial)
            save_state(stage / name, self.args.process_index, self, self.watcher, self.probe)
            if self.best is not None and self.args.should_save:
                self.best.write(stage / name)
            self._together()
            if self.args.should_save:
                publish(self.out, name, self.args.save_total_limit or 1, self.best.checkpoint if self.best else None)
                if self.best is not None:
                    self.best.write(self.out)

    def save_finished(self) -> None:
        """The trained model into the run's folder, each file whole."""
        self.loss_guard.check()
        with self._staging("the model") as stage:
            self.save_model(str(stage / self.out.name))
            self._together()
            if self.args.should_save:
                publish_files(self.out, stage / self.out.name)

    @contextmanager
    def _staging(self, what: str) -> Iterator[Path]:
        """Raises CheckpointError, which names the last good checkpoint, where writing fails."""
        stage = self.out / STAGE
        try:
            with cleared(self.out):
                if self.args.should_save:
                    empty_stage(self.out)
                self._together()
                self._staged = stage
                yield stage
        except (VtskipError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as e:
            good = checkpoints(self.out)
            rest = (
                f"the last good one is {good[-1]}: --resume auto goes on from there"
                if good
                else "there is none before it"
            )
            raise CheckpointError(f"{self.out}: {what} could not be saved ({one_line(e)}); {rest}") from e
        finally:
            self._staged = None
        self._together()

    def _together(self) -> None:
        if self.args.world_size > 1 and dist.is_initialized():
            self.accelerator.wait_for_everyone()


class Turns(TrainerCallback):
    """Tells the run's parts where it is: the sampler its epoch, the watcher its steps, and a resumed run what it had seen."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.watcher.start_anew()
        if trainer.resumed is not None:
            load_state(trainer.resumed, args.process_index, trainer, trainer.watcher, trainer.probe)
            if args.should_save:
                set_aside_later(trainer.out, state.global_step)
                if trainer.best is not None:
                    trainer.best.write(trainer.out)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        per_epoch = -(-len(self.trainer.batches) // args.gradient_accumulation_steps)
        self.trainer.batches.set_epoch(state.global_step // per_epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.watcher.step_begins((state.global_step + 1) % args.logging_steps == 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.trainer.watch.pictures_every
        if every and state.global_step % every == 0:
            self.trainer.draw()
        control.should_evaluate |= self.trainer.evaluates and state.global_step >= state.max_steps

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.watcher.gradients is not None:
            self.trainer.watcher.gradients.remove()
