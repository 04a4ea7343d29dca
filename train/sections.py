"""The groups of keys in a training file: what the model is, what of it learns, how its data are varied."""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vtskip.config import StrictModel
from vtskip.train.renamed import NAMES

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

STOCK = {"pretrained", "revision", "attention", "processor", "chat_template", "lm", "connector"}


class ModelRecipe(StrictModel):
    """What is trained: a stock multimodal model, a ``StreamingLlava`` to go on from, or the parts of a new one.

    Attributes:
        pretrained: id or folder of a Hugging Face model of a supported family; its processor and chat template make the
            token ids of ``llava`` and ``messages`` data and of questions about clips.
        revision, attention: of ``pretrained``: a branch or commit; ``sdpa``, ``flash_attention_2``, ``eager``.
        processor: options of its processor, for example ``max_pixels``. chat_template: a file in place of its own.
        connector: ``new``, or a file (safetensors, or a published ``mm_projector.bin``) with the connector's weights: of a first
            stage, for a new StreamingLlava too. With ``lm`` and this a second stage of a stock model starts from a plain
            language model, as LLaVA's does.
        checkpoint: folder of a StreamingLlava (``vtskip train`` or ``save_pretrained``); the other keys are then its own.
        vision: name of an open_clip model, or a dict of its ``vision_cfg`` keys.
        vision_pretrained: published tag or local file; None starts from random weights.
        image_size: side of a frame in pixels; None is the tower's own.
        cls_token: the tower's summary token opens every frame.
        pool: [h, w] of the pooled patch grid that follows it; None leaves it out.
        lm: id or folder of a Hugging Face causal language model, or a dict with ``model_type`` for one with random weights.
            With ``pretrained``: where the weights of its language model come from instead.
        tokenizer: ``words`` (a word-level vocabulary made from the training texts) or a folder; None is ``lm``'s own.
    """

    renamed: ClassVar[dict[str, str]] = NAMES

    pretrained: str | None = None
    revision: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    processor: dict[str, Any] = {}
    chat_template: Path | None = None
    connector: str | None = None
    checkpoint: Path | None = None
    vision: str | dict[str, Any] = "ViT-B-32"
    vision_pretrained: str | None = None
    image_size: Count | None = None
    cls_token: bool = True
    pool: tuple[Count, Count] | None = None
    lm: str | dict[str, Any] | None = None
    tokenizer: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ModelRecipe":
        given = self.model_fields_set
        if self.pretrained is not None:
            if others := sorted(given - STOCK):
                raise ValueError(f"'pretrained' is a whole model, without {', '.join(others)}: leave them out")
            if isinstance(self.lm, dict):
                raise ValueError(
                    "with 'pretrained', 'lm' is the id or folder that its language model's weights come from"
                )
        elif stock := sorted(given & (STOCK - {"lm", "connector", "pretrained"})):
            raise ValueError(f"{', '.join(stock)} belong to 'pretrained', which is not given")
        elif self.checkpoint is not None:
            if others := sorted(given - {"checkpoint"}):
                raise ValueError(f"'checkpoint' brings its own {', '.join(others)}: leave them out")
        elif self.lm is None:
            raise ValueError(
                "needs 'pretrained' (a stock model), 'checkpoint', or 'lm' (a folder, or a dict with 'model_type')"
            )
        elif isinstance(self.lm, dict) and "model_type" not in self.lm:
            raise ValueError("'lm' as a dict needs 'model_type', for example llama")
        elif isinstance(self.lm, dict) and self.tokenizer is None:
            raise ValueError("'lm' as a dict has no tokenizer of its own: give 'tokenizer' (words, or a folder)")
        return self


class Trains(StrictModel):
    """Which parameters get gradients. The routers' are saved whether they learn or not.

    Attributes:
        vision, connector, lm, router: whole parts; ``lm`` is by default true, and false beside ``lora``.
        names: patterns of further parameters that learn, as in ``*.embed_tokens.weight``. frozen: of those that do not.
    """

    vision: bool = True
    connector: bool = True
    lm: bool | None = None
    router: bool = True
    names: list[str] = []
    frozen: list[str] = []


class Lora(StrictModel):
    """Low-rank adapters (PEFT) on linear layers, whose own weights then stay as they are.

    Attributes:
        targets: patterns of module names, and an error where one matches no linear layer.
        parts: where they are looked for: ``lm``, ``vision``, ``connector``.
        rank_stabilised: scale by ``alpha / sqrt(r)``.
    """

    renamed: ClassVar[dict[str, str]] = NAMES | {"rank": "lora.r"}

    r: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] = [f"*.{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    parts: list[Literal["lm", "vision", "connector"]] = ["lm"]
    rank_stabilised: bool = False


class Loss(StrictModel):
    """Weights in the loss. Those of a method's own losses are keys of ``method`` (``aux_weight``, ``gradient_scale``).

    Attributes:
        stream_weight: of the speak-or-stay-silent positions of a StreamingLlava; None is 1, or what its checkpoint has.
    """

    stream_weight: Weight | None = None


class Augment(StrictModel):
    """Replies gone wrong in streams (VideoLLM-online, arXiv 2406.11816), so that a model learns to go on after its own faults.

    One reply of a conversation that is not the last one is replaced by another conversation's (``wrong``), or left out
    (``silent``); in half of the cases the right one follows one frame later. What was wrong is not learned, nor is the
    stream behind a fault that stays. A function of ``seed`` and the sample alone.

    Attributes:
        wrong, silent: shares of the conversations.
        apology: text in front of a corrected reply. The published model learned to say it unasked, so there is none by default.
    """

    wrong: Share = 0.0
    silent: Share = 0.0
    apology: str = ""

    @model_validator(mode="after")
    def _at_most_all(self) -> "Augment":
        if self.wrong + self.silent > 1:
            raise ValueError(f"wrong {self.wrong:g} and silent {self.silent:g} are more than all conversations")
        return self


class Optim(StrictModel):
    """AdamW. ``steps`` wins over ``epochs``; ``batch_size`` is per process, ``accumulate`` batches make one step.

    Attributes:
        lrs: learning rates that differ from ``lr``, by part (vision, connector, lm, router) or by a pattern of parameter
            names; of several patterns the first that matches counts, and any of them before a part.
        warmup: share of the steps below 1, else their number. clip: largest gradient norm, 0 for none.
    """

    renamed: ClassVar[dict[str, str]] = NAMES

    steps: Count | None = None
    epochs: Positive = 1.0
    batch_size: Count = 1
    accumulate: Count = 1
    lr: Positive = 2e-4
    lrs: dict[str, Positive] = {}
    weight_decay: Weight = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Weight = 0.05
    clip: Weight = 1.0

    @model_validator(mode="after")
    def _warms_up_within(self) -> "Optim":
        if self.warmup >= 1 and (self.warmup % 1 or self.warmup >= (self.steps or math.inf)):
            few = "" if self.steps is None else f" below the run's {self.steps}"
            raise ValueError(f"warmup {self.warmup:g}: accepted: a share of the steps below 1, or a whole number{few}")
        return self
