"""Measured time beside modelled work: every method against dense, interleaved, on one stock decoder with random weights.

All runs of one round come right after one another, so that a machine that slows down slows all of them; ratios are taken
round by round and their median is reported. A second dense run per round is the control: the spread of its ratio to the
first is the noise of the measurement. CPU time of the process is measured where there is no accelerator, which a
neighbour's load distorts least.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from vtskip.config import StrictModel
from vtskip.eval.provenance import provenance
from vtskip.methods import MethodSpec
from vtskip.runtime.attach import attach
from vtskip.runtime.cache import kv_bytes

CONTROL = "dense (control)"
WARM_UP = 4  # decoded rows before the clock starts


class BenchConfig(StrictModel):
    """Sizes of the decoder and of the batch, and the methods to compare.

    ``vision_rows`` in ``frames`` equal frames come between two halves of ``text_rows``; ``decode_rows`` single text rows are
    decoded after the prefill; ``rounds`` interleaved rounds of prefill and decode, ``train_rounds`` of the training step.
    """

    hidden: int = Field(512, ge=8)
    ffn: int = Field(1376, ge=8)
    layers: int = Field(12, ge=1)
    heads: int = Field(8, ge=1)
    kv_heads: int = Field(8, ge=1)
    vocab: int = Field(1000, ge=8)
    frames: int = Field(4, ge=1)
    vision_rows: int = Field(576, ge=1)
    text_rows: int = Field(64, ge=2)
    batch: int = Field(2, ge=1)
    decode_rows: int = Field(16, ge=1)
    rounds: int = Field(11, ge=1)
    train_rounds: int = Field(5, ge=1)
    threads: int = Field(1, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    methods: list[MethodSpec]
    seed: int = 0


@dataclass
class Subject:
    """One way to run the model: a method's name and settings, and how to put it on."""

    name: str
    spec: str | dict[str, Any] | None


class Bench:
    def __init__(self, config: BenchConfig):
        from transformers import LlamaConfig, LlamaForCausalLM

        self.config = c = config
        torch.manual_seed(c.seed)
        llama = LlamaConfig(
            hidden_size=c.hidden,
            intermediate_size=c.ffn,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            vocab_size=c.vocab,
            max_position_embeddings=c.vision_rows + c.text_rows + WARM_UP + c.decode_rows,
        )
        self.model = LlamaForCausalLM(llama).to(c.device, getattr(torch, c.dtype))
        rows = c.vision_rows + c.text_rows
        self.vision = torch.zeros(c.batch, rows, dtype=torch.bool)
        self.vision[:, c.text_rows // 2 : c.text_rows // 2 + c.vision_rows] = True
        self.group = torch.zeros(c.batch, rows, dtype=torch.long)
        self.group[self.vision] = (torch.arange(c.vision_rows) * c.frames // c.vision_rows).repeat(c.batch)
        self.inputs = torch.randn(c.batch, rows, c.hidden).to(c.device, getattr(torch, c.dtype))
        self.tokens = torch.randint(0, c.vocab, (c.batch, WARM_UP + c.decode_rows), device=c.device)
        self.labels = torch.randint(0, c.vocab, (c.batch, rows), device=c.device).masked_fill(
            self.vision.to(c.device), -100
        )

    def clock(self) -> float:
        if self.config.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def under(self, subject: Subject, work: Callable[[], Any]) -> Any:
        """Run ``work`` with the subject's method attached (or on the stock model)."""
        if subject.spec is None:
            return work()
        with attach(self.model, subject.spec) as handle, handle.rows(self.vision, self.group):
            return work()

    @torch.no_grad()
    def prefill_and_decode(self) -> tuple[float, float, int]:
        self.model.eval()
        start = self.clock()
        cache = self.model(inputs_embeds=self.inputs, logits_to_keep=1).past_key_values
        prefill, held = self.clock() - start, kv_bytes(cache)
        # Rows of text after the prefill, as a model that has left its vision inputs behind sees them. The first ones pay
        # for the memory that the prefill has left in disorder and are not counted.
        for i in range(WARM_UP + self.config.decode_rows):
            if i == WARM_UP:
                start = self.clock()
            self.model(input_ids=self.tokens[:, i : i + 1], past_key_values=cache)
        return prefill, self.clock() - start, held

    def train_step(self) -> float:
        self.model.train()
        start = self.clock()
        self.model(inputs_embeds=self.inputs, labels=self.labels, use_cache=False).loss.backward()
        seconds = self.clock() - start
        self.model.zero_grad()
        return seconds

    def peak_bytes(self) -> int:
        """Peak memory of one training step beyond what was held before."""
        gc.collect()
        if self.config.device == "cpu":
            return cpu_peak_bytes(self.train_step)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.train_step()
        return torch.cuda.max_memory_allocated() - before

    def flops(self, subject: Subject) -> tuple[float, float]:
        """FLOPs of the prefill over dense: (full, linear only)."""
        if subject.spec is None:
            return 1.0, 1.0
        with attach(self.model, subject.spec) as handle, handle.rows(self.vision, self.group), torch.no_grad():
            self.model.eval()(inputs_embeds=self.inputs, logits_to_keep=1)
            report = handle.report()
        return report.flops_ratio, report.flops_linear / report.flops_linear_dense


def cpu_peak_bytes(work: Callable[[], Any]) -> int:
    """Highest sum of bytes that ``work`` held at once beyond what was held before, from the allocator's own events."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its start and stop on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


def ratio_stats(times: list[float], dense: list[float]) -> dict[str, float]:
    """Median and spread of the round-by-round ratios."""
    ratios = sorted(a / b for a, b in zip(times, dense))
    n = len(ratios)
    return {"median": statistics.median(ratios), "p20": ratios[n // 5], "p80": ratios[-1 - n // 5]}


def run(config: BenchConfig, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure and return the record: provenance, configuration, and one row per method."""
    tell = progress or (lambda text: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        bench = Bench(config)
        subjects = [Subject("dense", None), Subject(CONTROL, None)]
        subjects += [Subject(label(spec), spec) for spec in config.methods]
        times = _measure(bench, subjects, tell)
        rows = [_row(bench, s, times) for s in subjects]
    finally:
        torch.set_num_threads(before)
    control = next(r for r in rows if r["name"] == CONTROL)
    noise = {k: round(control[k]["p80"] - control[k]["p20"], 4) for k in ("prefill", "decode", "train")}
    return {
        "kind": "bench",
        "config": config.model_dump(mode="json"),
        "noise": noise,
        "methods": rows,
        **provenance(config.seed),
    }


def _measure(bench: Bench, subjects: list[Subject], tell: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    c = bench.config
    times: dict[str, dict[str, list[float]]] = {
        s.name: {"prefill": [], "decode": [], "train": [], "kv": []} for s in subjects
    }
    for i in range(c.rounds + 1):  # the first round warms up
        tell(f"prefill and decode, round {i} of {c.rounds}")
        for s in _rotated(subjects, i):
            prefill, decode, held = bench.under(s, bench.prefill_and_decode)
            if i:
                for key, value in (("prefill", prefill), ("decode", decode), ("kv", held)):
                    times[s.name][key].append(value)
    for i in range(c.train_rounds + 1):
        tell(f"training step, round {i} of {c.train_rounds}")
        for s in _rotated(subjects, i):
            seconds = bench.under(s, bench.train_step)
            if i:
                times[s.name]["train"].append(seconds)
    return times


def _rotated(subjects: list[Subject], by: int) -> list[Subject]:
    """Another first one each round: nobody always runs after the same neighbour."""
    by %= len(subjects)
    return subjects[by:] + subjects[:by]


def _row(bench: Bench, subject: Subject, times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    own, dense = times[subject.name], times["dense"]
    full, linear = bench.flops(subject)
    stats = {k: ratio_stats(own[k], dense[k]) for k in ("prefill", "decode", "train")}
    peak = bench.under(subject, bench.peak_bytes)
    peak_dense = bench.under(Subject("dense", None), bench.peak_bytes)
    return {
        "name": subject.name,
        "method": subject.spec,
        "flops_ratio": round(full, 4),
        "flops_ratio_linear": round(linear, 4),
        "prefill_time_ratio": round(stats["prefill"]["median"], 4),
        "prefill_over_flops": round(stats["prefill"]["median"] / full, 4),
        "decode_time_ratio": round(stats["decode"]["median"], 4),
        "train_time_ratio": round(stats["train"]["median"], 4),
        "kv_ratio": round(own["kv"][0] / dense["kv"][0], 4),
        "peak_memory_ratio": round(peak / peak_dense, 4),
        "prefill_ms": round(1000 * statistics.median(own["prefill"]), 2),
        "decode_ms_per_row": round(1000 * statistics.median(own["decode"]) / bench.config.decode_rows, 3),
        "train_ms": round(1000 * statistics.median(own["train"]), 2),
        **stats,
    }


def label(spec: str | dict[str, Any]) -> str:
    """``mod(keep=0.2)``: the name and what was set."""
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{k}={_short(v)}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({options})" if options else spec["name"]


def _short(value: Any) -> str:
    text = "/".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value)
    return text.replace(" ", "")


def markdown(record: dict[str, Any]) -> str:
    """The record's ratios to dense as a Markdown table, with the control's spread as the noise."""
    columns = ("flops", "prefill_time", "train_time", "decode_time", "kv", "peak_memory")
    lines = ["| method | " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|---|" + "---|" * len(columns)]
    for row in record["methods"]:
        if row["method"] is not None:
            lines.append(f"| `{row['name']}` | " + " | ".join(f"{row[f'{c}_ratio']:.3f}" for c in columns) + " |")
    noise = record["noise"]
    control = next(row for row in record["methods"] if row["name"] == CONTROL)
    values = ["1.000", *(f"{control[f'{c}_ratio']:.3f} ± {noise[c.partition('_')[0]] / 2:.3f}" for c in columns[1:4])]
    lines.insert(2, "| dense again (noise) | " + " | ".join([*values, "1.000", "1.000"]) + " |")
    return "\n".join(lines)
