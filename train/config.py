"""The training section of a YAML file."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vtskip.config import StrictModel
from vtskip.data.config import DataConfig
from vtskip.methods import MethodSpec
from vtskip.train.options import Best, KeepWarmup, Sampling, Watch
from vtskip.train.renamed import NAMES
from vtskip.train.sections import Augment, Count, Lora, Loss, ModelRecipe, Optim, Positive, Trains

__all__ = ["Augment", "Lora", "Loss", "ModelRecipe", "Optim", "TrainConfig", "Trains"]


class DataPart(DataConfig):
    """One of several data sets.

    Attributes:
        weight: how often an epoch shows each of its conversations: 2 twice, 0.5 every other one.
    """

    weight: Positive = 1.0


def _how_many(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


Several = Annotated[list[DataPart], Field(min_length=1)]
# Told apart by their form, so that a fault is reported once and not for both of them.
Sources = Annotated[Annotated[DataConfig, Tag("one")] | Annotated[Several, Tag("several")], Discriminator(_how_many)]


class TrainConfig(StrictModel):
    """One training run.

    Attributes:
        out: folder of the run: model, tokenizer, method, ``train_log.jsonl``, ``train_config.yaml``, checkpoints.
        method: attached before training (name, dict with ``name``, YAML file); None trains dense, or with the method saved
            in ``model.checkpoint``.
        data: what is learned: one data set, or a list of them with a ``weight`` each.
        validation: scored every ``eval_every`` steps and at the end.
        max_tokens: longer conversations are cut behind it; None is no limit.
        deepspeed: JSON file, or the name of a shipped one (``zero2``); needs ``--nproc``, ``torchrun``, ``deepspeed`` or
            ``accelerate launch``.
        precision: bf16 is autocast on a GPU, with frozen weights held in bf16 beside ``lora``; on a CPU it is emulated and slow.
            There is no fp16, whose losses would have to be scaled.
        cache_frames: decoded frames kept in memory per process.
        sampling, keep_warmup, watch: which samples share a batch, ``keep`` over the first steps, what is measured.
        validation: held-out conversations, of which the loss is taken.
        evaluation: held-out tasks, as ``vtskip eval`` takes them: its file (or a shipped one's name), or the keys of one. Of
            those ``rows``, ``method``, ``live_clips`` and ``out`` have no meaning here.
        best: which checkpoint is the best one.
        report_to: besides ``train_log.jsonl``.
        log_every, eval_every, save_every: in steps; ``eval_every`` None evaluates and ``save_every`` None saves only the end.
        keep: newest checkpoints kept.
        workers: data loader processes.
    """

    renamed: ClassVar[dict[str, str]] = NAMES

    name: str = "train"
    out: Path
    model: ModelRecipe
    method: MethodSpec | None = None
    data: Sources
    validation: DataConfig | None = None
    evaluation: Path | dict[str, Any] | None = None
    best: Best | None = None
    augment: Augment | None = None
    max_tokens: Count | None = None
    trains: Trains = Trains()
    lora: Lora | None = None
    loss: Loss = Loss()
    optim: Optim = Optim()
    sampling: Sampling = Sampling()
    keep_warmup: KeepWarmup | None = None
    watch: Watch = Watch()
    seed: Annotated[int, Field(ge=0)] = 0
    deepspeed: Path | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    cache_frames: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    report_to: list[Literal["tensorboard", "wandb"]] = []
    log_every: Count = 10
    eval_every: Count | None = None
    save_every: Count | None = None
    keep: Count = 2

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.lora is not None and self.trains.lm and "lm" in self.lora.parts:
            raise ValueError(
                "'lora' adapts the language model, 'trains.lm' trains its own weights: leave one of them out"
            )
        if self.model.pretrained is not None and (self.augment or self.loss.stream_weight is not None):
            raise ValueError(
                "'augment' and 'loss.stream_weight' are about streams, which a StreamingLlava reads, not 'pretrained'"
            )
        return self

    @model_validator(mode="after")
    def _broken_alike(self) -> "TrainConfig":
        rules = [source.on_error for source in self.sources]
        if "skip" in rules and len(set(rules)) > 1:
            other = next(rule for rule in rules if rule != "skip")
            raise ValueError(f"'data.{rules.index(other)}.on_error' is {other!r}, others' 'skip': say the same for all")
        return self

    @model_validator(mode="after")
    def _best_of_something(self) -> "TrainConfig":
        if self.best is None:
            return self
        wanted = "validation" if self.best.metric == "loss" else "evaluation"
        if getattr(self, wanted) is None:
            raise ValueError(f"'best.metric' {self.best.metric!r} needs {wanted!r}, which is not given")
        if self.best.load and self.deepspeed is not None:
            raise ValueError(
                "'best.load' is not for DeepSpeed; `vtskip export` writes the model of the checkpoint that best.json names"
            )
        return self

    @property
    def training(self) -> Trains:
        """What learns: beside ``lora`` the language model's own weights do not, unless they are asked for."""
        lm = self.lora is None or "lm" not in self.lora.parts if self.trains.lm is None else self.trains.lm
        return self.trains.model_copy(update={"lm": lm})

    @property
    def sources(self) -> list[DataConfig]:
        """The data sets, always as a list."""
        return list(self.data) if isinstance(self.data, list) else [self.data]
