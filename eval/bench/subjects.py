"""The rows of the table: who runs the same batch, and how each is put on the model and taken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from vtskip.cost import full_flops
from vtskip.eval.bench.config import Setting
from vtskip.eval.bench.peers import mixture_of_depth
from vtskip.plan import DecoderShape
from vtskip.runtime.stats import LayerCount

DENSE, CONTROL = "dense", "dense (control)"
KEEP_ALL = {"name": "mod", "keep": 1.0}
Run = Literal["stock", "attached", "masked", "flash", "mixture_of_depth"]


@dataclass(frozen=True, eq=False)
class Subject:
    """One way to run the model.

    Attributes:
        spec: the method, None for the stock model. run: how. savings: vtskip's lossless savings, where it is attached.
        frame_rows: vision rows per frame, where they are fewer than the setting's.
    """

    name: str
    spec: str | dict[str, Any] | list[Any] | None = None
    run: Run = "stock"
    savings: bool = True
    frame_rows: int | None = None

    @property
    def decodes(self) -> bool:
        """Whether rows after the prefill are a part of what is compared."""
        return self.run not in ("masked", "mixture_of_depth")


def subjects_of(setting: Setting) -> list[Subject]:
    """All rows of a setting, in the order of the record."""
    found = [Subject(DENSE), Subject(CONTROL)]
    controls = {
        "lossless": Subject("dense, lossless savings", "dense", "attached"),
        "attached": Subject("dense, attached without savings", "dense", "attached", savings=False),
        "keep_1": Subject("keep 1 without savings", KEEP_ALL, "attached", savings=False),
        "downsample": Subject("downsample", None, "stock", frame_rows=0),  # how many: once the methods' FLOPs are known
        "flash": Subject("dense, flash", None, "flash"),
        "mixture_of_depth": Subject("mixture-of-depth (package)", None, "mixture_of_depth"),
    }
    found += [controls[name] for name in setting.controls]
    found += [Subject(label(spec), spec, "attached") for spec in setting.methods]
    return found + [Subject(f"masked {label(spec)}", spec, "masked") for spec in setting.masked]


def fitted(setting: Setting, spec: Any) -> Any:
    """``spec`` of the full depth for the decoder of the setting: numbers of layers shrink in proportion."""
    full, layers = setting.full_layers, setting.layers
    if isinstance(spec, list):
        return [fitted(setting, part) for part in spec]
    if not isinstance(spec, dict) or full == layers:
        return spec
    out = dict(spec)
    if spec["name"] == "compose":
        out["methods"] = fitted(setting, spec["methods"])
    if isinstance(spec.get("layers"), list):
        out["layers"] = sorted({i * layers // full for i in spec["layers"]})
    if isinstance(spec.get("layer"), int):
        out["layer"] = max(1, round(spec["layer"] * layers / full))
    return out


def downsampled(setting: Setting, shape: DecoderShape, flops_ratio: float) -> int:
    """Vision rows per frame at which the stock model costs nearest to ``flops_ratio`` of what it costs on all."""
    full = -(-setting.vision_rows // setting.frames)

    def cost(rows: int) -> int:
        count, n = LayerCount(), setting.text_rows + rows * setting.frames
        count.add(n, n * n, 0)
        return full_flops(shape, count)

    return min(range(1, full + 1), key=lambda rows: abs(cost(rows) - flops_ratio * cost(full)))


@contextmanager
def worn(subject: Subject, model: Any, batch: Any) -> Iterator[Any]:
    """``model`` as the subject runs it; yields the handle of what is attached, or None."""
    if subject.run == "attached":
        with put_on(model, subject) as handle, handle.rows(batch.vision, batch.group):
            yield handle
        return
    with _other(subject, model, batch):
        yield None


def put_on(model: Any, subject: Subject) -> Any:
    from vtskip.runtime.attach import attach

    assert subject.spec is not None
    return attach(model, subject.spec, lossless=subject.savings)


def _other(subject: Subject, model: Any, batch: Any) -> Any:
    if subject.run == "masked":
        from vtskip.eval.bench.masked import masked

        assert subject.spec is not None
        return masked(model, subject.spec, batch.row_map())
    if subject.run == "flash":
        return _flash(model)
    return mixture_of_depth(model) if subject.run == "mixture_of_depth" else nullcontext()


@contextmanager
def _flash(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("flash_attention_2")  # raises ImportError where it cannot run
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def label(spec: str | dict[str, Any] | list[Any]) -> str:
    """``mod(keep=0.2)``: the name and what was set; ``mod(keep=0.2) + fastv`` of several methods."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, list):
        return " + ".join(label(part) for part in spec)
    if spec["name"] == "compose":
        return label(spec["methods"])
    options = ", ".join(f"{k}={_short(v)}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({options})" if options else spec["name"]


def _short(value: Any) -> str:
    text = "/".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value)
    return text.replace(" ", "")
