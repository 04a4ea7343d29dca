"""Model, arguments and Trainer of a run: everything that needs transformers, behind the checks that do not."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from vtskip.data.collate import StreamCollator
from vtskip.data.guarded import Broken
from vtskip.data.types import Sample
from vtskip.errors import ConfigError
from vtskip.models.families import unwrap
from vtskip.template import StreamTemplate
from vtskip.train.callbacks import LOG_NAME, Bar, JsonLog
from vtskip.train.chat import ChatTemplate
from vtskip.train.chat_collate import ChatCollator, shown_kinds
from vtskip.train.config import TrainConfig
from vtskip.train.features import open_features
from vtskip.train.reports import reports
from vtskip.train.scoring import Scorer
from vtskip.train.trainer import StreamTrainer


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors from transformers, and none of its progress bars: the run has its own."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns whenever transformers looks for it
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class Samples(Dataset):
    """A list as a torch data set."""

    def __init__(self, samples: list[Sample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def training_arguments(config: TrainConfig, settings: dict[str, Any] | None) -> TrainingArguments:
    """Our configuration in transformers' words; opens the process group. Nothing is reported but where it is asked for."""
    cpu = not torch.accelerator.is_available()
    if settings is not None:
        prepare_deepspeed(cpu)
    if config.precision == "bf16" and not cpu and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision 'bf16': this accelerator has none; accepted here: fp32")
    optim = config.optim
    arguments = TrainingArguments(
        output_dir=str(config.out),
        run_name=config.name,
        max_steps=optim.steps or -1,
        num_train_epochs=optim.epochs,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.batch_size,
        gradient_accumulation_steps=optim.accumulate,
        learning_rate=optim.lr,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        weight_decay=optim.weight_decay,
        lr_scheduler_type="constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
        warmup_steps=optim.warmup,
        max_grad_norm=optim.clip,
        optim="adamw_torch",
        seed=config.seed,
        bf16=config.precision == "bf16",
        deepspeed=settings,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and "WORLD_SIZE" in os.environ else None,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every and (config.validation or config.evaluation) else "no",
        eval_steps=config.eval_every,
        prediction_loss_only=True,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=config.keep,
        disable_tqdm=True,
        report_to="none",  # under other names than in the log; ours: vtskip.train.reports
    )
    if settings is not None:
        join_processes(cpu)
    return arguments


def prepare_deepspeed(cpu: bool) -> None:
    """Raises ConfigError without DeepSpeed. On CPUs plain gloo replaces an op that would be compiled for minutes."""
    try:
        import deepspeed
    except ImportError:
        raise ConfigError("deepspeed: not installed; pip install 'vtskip[deepspeed]'") from None
    if cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(alone)  # without a launcher DeepSpeed would look for MPI


def join_processes(cpu: bool) -> None:
    """ZeRO-3 cuts a model up while it is built, and asks DeepSpeed for the number of processes then."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo" if cpu else None)


def make_collator(
    config: TrainConfig, model: Any, template: StreamTemplate | ChatTemplate, samples: Iterable[Sample] = ()
) -> StreamCollator | ChatCollator:
    """What makes batches for the model. Raises ConfigError for ``data.features`` with a stock model.

    samples: all of the run; several processes show the model something of each kind that they have in every batch.
    """
    model = unwrap(model)
    if isinstance(template, ChatTemplate):
        if any(source.features for source in config.sources):
            raise ConfigError(
                "data.features: made by a StreamingLlava's tower; a stock model ('model.pretrained') reads the files"
            )
        return ChatCollator(template, shown_kinds(template, samples) if torch.distributed.is_initialized() else ())
    return StreamCollator(
        template,
        model.config.image_size,
        model.config.pad_token_id,
        cache_frames=config.cache_frames,
        features=open_features(config, model),
    )


def broken_rule(config: TrainConfig) -> Broken:
    """What is done about a sample whose pictures cannot be read; all data sets of a run say the same."""
    return "skip" if config.sources[0].on_error == "skip" else "raise"


def make_trainer(
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    template: StreamTemplate | ChatTemplate,
    arguments: TrainingArguments,
    samples: list[Sample],
    held_out: list[Sample] | None,
    progress: bool,
    scorer: Scorer | None = None,
) -> tuple[StreamTrainer, Bar]:
    """The Trainer with our callbacks in place of its own, and the progress bar."""
    if config.gradient_checkpointing:
        # The name since transformers 5.2x, and the one before it.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    bar = Bar()
    callbacks: list[Any] = [JsonLog(config.out / LOG_NAME), *reports(config)]
    if progress:
        callbacks.append(bar)
    trainer = StreamTrainer(
        model=model,
        args=arguments,
        optim=config.optim,
        sampling=config.sampling,
        watch=config.watch,
        keep_warmup=config.keep_warmup,
        broken=broken_rule(config),
        train_dataset=Samples(samples),
        scorer=scorer,
        best=config.best,
        tell=bar.scored,
        eval_dataset=Samples(held_out or []),
        data_collator=make_collator(config, model, template, [*samples, *(held_out or [])]),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    return trainer, bar
