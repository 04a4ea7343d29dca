"""What a bench runs: one setting, or several cases that each change some of its keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator
from pydantic.fields import FieldInfo

from vtskip.config import StrictModel
from vtskip.errors import nearest
from vtskip.eval.bench.shapes import SHAPES
from vtskip.methods import MethodSpec

Dtype = Literal["float32", "bfloat16", "float16"]
Family = Literal["llama", "mistral", "qwen2"]
Control = Literal["lossless", "attached", "keep_1", "downsample", "flash", "mixture_of_depth"]

METHODS: list[MethodSpec] = [
    {"name": "mod", "keep": 0.2},
    {"name": "pmod"},
    {"name": "skip_ffn", "keep": 0.2},
    {"name": "fastv", "layer": 2, "keep": 0.5},
]


class Decoder(StrictModel):
    """Sizes of a stock Hugging Face decoder with random weights."""

    family: Family = "llama"
    hidden: int = Field(512, ge=8)
    ffn: int = Field(1376, ge=8)
    layers: int = Field(12, ge=1)
    heads: int = Field(8, ge=1)
    kv_heads: int = Field(8, ge=1)
    vocab: int = Field(1000, ge=8)

    @model_validator(mode="after")
    def _divides(self) -> Decoder:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must divide hidden {self.hidden} and kv_heads {self.kv_heads} heads")
        return self


class Setting(Decoder):
    """One decoder, one batch, and the rows of the table.

    ``vision_rows`` in ``frames`` equal frames come between two halves of ``text_rows``. ``decode_rows`` single text rows are
    decoded after the prefill; ``rounds`` interleaved rounds of prefill and decode, ``train_rounds`` of the training step.

    Attributes:
        shape: a model of ``SHAPES`` whose sizes stand where no other is given; ``layers`` below the model's own gives the
            record a part that extrapolates to the full depth.
        shortest: length of the shortest sample over the longest; the others lie evenly between. Below 1 the batch is padded
            on the left, as for ``generate``.
        checkpointing: training steps with gradient checkpointing off, on, or both.
        trained: ``full``: every weight has a gradient; ``inputs``: weights are frozen and the gradient goes through to the
            inputs and the routers, which is what LoRA costs but for its own small products.
        masked: methods to run a second time as the research codes do: every row computed, masks say who counts.
        controls: ``lossless``: dense through vtskip with its lossless savings; ``attached``: without them; ``keep_1``: routers
            that keep every row, savings off; ``downsample``: stock on fewer rows at the FLOPs of the first method; ``flash``:
            stock on flash attention; ``mixture_of_depth``: the pip package of that name. What cannot run here is left out,
            with the reason in the record.
    """

    shape: str | None = None
    frames: int = Field(4, ge=1)
    vision_rows: int = Field(576, ge=1)
    text_rows: int = Field(64, ge=2)
    batch: int = Field(2, ge=1)
    shortest: float = Field(1.0, gt=0, le=1)
    decode_rows: int = Field(16, ge=0)
    rounds: int = Field(11, ge=1)
    train_rounds: int = Field(5, ge=0)
    checkpointing: Literal["off", "on", "both"] = "off"
    trained: Literal["full", "inputs"] = "full"
    methods: list[MethodSpec] = METHODS
    masked: list[MethodSpec] = []
    controls: list[Control] = []

    @model_validator(mode="before")
    @classmethod
    def _shape(cls, values: Any) -> Any:
        name = values.get("shape") if isinstance(values, dict) else None
        if name is None:
            return values
        if name not in SHAPES:
            raise ValueError(f"unknown shape {name!r}{nearest(str(name), SHAPES)}; known: {', '.join(SHAPES)}")
        return {**SHAPES[name], **values}

    @property
    def full_layers(self) -> int:
        """Layers of the model that ``shape`` names; the setting's own where there is none."""
        return SHAPES[self.shape]["layers"] if self.shape else self.layers


def _may_be_left_out(field: FieldInfo) -> Any:
    bounded: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return (bounded | None, None)


_PARTS: dict[str, Any] = {name: _may_be_left_out(field) for name, field in Setting.model_fields.items()}
Case: type[StrictModel] = create_model("Case", __base__=StrictModel, name=(str, ...), **_PARTS)


class KernelCase(StrictModel):
    """Attention to compare kernels on: ``batch`` samples of ``rows`` keys, of which ``queries`` evenly spaced runs' rows ask.

    Attributes:
        queries: query rows per sample, in ``runs`` runs of consecutive rows; None: every row asks (equal row sets).
    """

    name: str
    heads: int = Field(32, ge=1)
    kv_heads: int = Field(32, ge=1)
    head_dim: int = Field(128, ge=8)
    batch: int = Field(1, ge=1)
    rows: int = Field(634, ge=2)
    queries: int | None = Field(None, ge=1)
    runs: int = Field(1, ge=1)
    backward: bool = True
    rounds: int = Field(20, ge=1)


class BenchConfig(Setting):
    """A setting and how it is run; with ``cases``, one setting per case: the keys here, changed by those of the case.

    Attributes:
        threads: of the processor. device: ``cpu`` or ``cuda``.
        kernels: attention kernels to compare, see ``vtskip.eval.bench.kernels``.
    """

    kind: Literal["bench"] = "bench"
    threads: int = Field(1, ge=1)
    dtype: Dtype = "float32"
    device: str = "cpu"
    kernels: list[KernelCase] = []
    cases: list[Case] = []
    seed: int = 0

    @model_validator(mode="after")
    def _checked(self) -> BenchConfig:
        names = [name for name, _ in self.settings()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"cases: two are called {twice!r}")
        return self

    def settings(self) -> list[tuple[str, Setting]]:
        """Name and setting of every case; one without a name where there are no cases."""
        base = {name: getattr(self, name) for name in self.model_fields_set if name in Setting.model_fields}
        if not self.cases:
            return [("", Setting.model_validate(base))]
        found = []
        for case in self.cases:
            own = case.model_dump(exclude_unset=True)
            shape = SHAPES.get(own.get("shape") or "", {})
            found.append((own.pop("name"), Setting.model_validate({**base, **shape, **own})))
        return found

    def quick(self) -> BenchConfig:
        """The same with few rounds: a look, not a measurement."""

        def less(values: dict[str, Any]) -> dict[str, Any]:
            few = {"rounds": 2, "train_rounds": 1, "decode_rows": 4}
            return values | {k: min(n, values[k]) for k, n in few.items() if values.get(k) is not None}

        values = self.model_dump(exclude_unset=True)
        values = {k: getattr(self, k) for k in ("rounds", "train_rounds", "decode_rows")} | values
        return type(self).model_validate(less(values) | {"cases": [less(c) for c in values.get("cases", [])]})
