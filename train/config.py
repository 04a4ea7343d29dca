"""The training section of a YAML file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vtskip.config import StrictModel
from vtskip.data.config import DataConfig
from vtskip.methods import MethodSpec

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ModelRecipe(StrictModel):
    """What is trained: a checkpoint to go on from, or the parts of a new ``StreamingLlava``.

    Attributes:
        checkpoint: folder of a StreamingLlava (``vtskip train`` or ``save_pretrained``); the other keys are then its own.
        vision: name of an open_clip model, or a dict of its ``vision_cfg`` keys.
        vision_pretrained: published tag or local file; None starts from random weights.
        image_size: side of a frame in pixels; None is the tower's own.
        cls_token: the tower's summary token opens every frame.
        pool: [h, w] of the pooled patch grid that follows it; None leaves it out.
        lm: folder of a Hugging Face causal language model, or a dict with ``model_type`` for one with random weights.
        tokenizer: ``words`` (a word-level vocabulary made from the training texts) or a folder; None is ``lm``'s own.
        stream_loss_weight: weight of the speak-or-stay-silent positions in the loss.
    """

    checkpoint: Path | None = None
    vision: str | dict[str, Any] = "ViT-B-32"
    vision_pretrained: str | None = None
    image_size: Count | None = None
    cls_token: bool = True
    pool: tuple[Count, Count] | None = None
    lm: str | dict[str, Any] | None = None
    tokenizer: str | None = None
    stream_loss_weight: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _complete(self) -> "ModelRecipe":
        if self.checkpoint is not None:
            given = sorted(self.model_fields_set - {"checkpoint"})
            if given:
                raise ValueError(f"'checkpoint' brings its own {', '.join(given)}: leave them out")
        elif self.lm is None:
            raise ValueError("needs 'lm' (a folder, or a dict with 'model_type') or 'checkpoint'")
        elif isinstance(self.lm, dict) and "model_type" not in self.lm:
            raise ValueError("'lm' as a dict needs 'model_type', for example llama")
        elif isinstance(self.lm, dict) and self.tokenizer is None:
            raise ValueError("'lm' as a dict has no tokenizer of its own: give 'tokenizer' (words, or a folder)")
        return self


class Trains(StrictModel):
    """Which parts get gradients."""

    vision: bool = True
    connector: bool = True
    lm: bool = True
    router: bool = True


class Rates(StrictModel):
    """Learning rates that differ from ``optim.lr``."""

    vision: Positive | None = None
    connector: Positive | None = None
    lm: Positive | None = None
    router: Positive | None = None


class Optim(StrictModel):
    """AdamW. ``steps`` wins over ``epochs``; ``batch_size`` is per process, ``accumulate`` batches make one step."""

    steps: Count | None = None
    epochs: Positive = 1.0
    batch_size: Count = 1
    accumulate: Count = 1
    lr: Positive = 2e-4
    lrs: Rates = Rates()
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: Annotated[float, Field(ge=0)] = 1.0


class TrainConfig(StrictModel):
    """One training run.

    Attributes:
        out: folder of the run: model, tokenizer, method, ``train_log.jsonl``, ``train_config.yaml``, checkpoints.
        method: attached before training (name, dict with ``name``, YAML file); None trains dense, or with the method saved
            in ``model.checkpoint``.
        data: what is learned. validation: scored every ``eval_every`` steps and at the end.
        deepspeed: JSON file; run it under ``torchrun`` or ``deepspeed``.
        precision: bf16 is autocast on a GPU; on a CPU it is emulated and slow.
        cache_frames: decoded frames kept in memory per process.
        log_every, eval_every, save_every: in steps; ``save_every`` None saves only the end. keep: newest checkpoints kept.
        workers: data loader processes.
    """

    name: str = "train"
    out: Path
    model: ModelRecipe
    method: MethodSpec | None = None
    data: DataConfig
    validation: DataConfig | None = None
    trains: Trains = Trains()
    optim: Optim = Optim()
    seed: Annotated[int, Field(ge=0)] = 0
    deepspeed: Path | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    cache_frames: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 10
    eval_every: Count | None = None
    save_every: Count | None = None
    keep: Count = 2
