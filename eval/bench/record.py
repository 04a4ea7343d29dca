"""The record of a bench: one block per case, one row per subject, beside what the machine can do and where it all comes from."""

from __future__ import annotations

import gc
import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vtskip
from vtskip.eval.bench import machine as roof
from vtskip.eval.bench.clock import ratio_stats, spread
from vtskip.eval.bench.config import BenchConfig, Setting
from vtskip.eval.bench.full_depth import full_depth
from vtskip.eval.bench.measure import Bench, Times
from vtskip.eval.bench.subjects import CONTROL, DENSE, Subject, subjects_of
from vtskip.eval.journal import Journal
from vtskip.eval.provenance import provenance

PHASES = ("prefill", "decode", "train", "checkpointed")


def run(
    config: BenchConfig, progress: Callable[[str], None] | None = None, journal: Path | None = None
) -> dict[str, Any]:
    """Measure and return the record.

    With ``cases`` it holds them as a list of blocks under that key; else the one block's keys stand at the top. ``journal``:
    a folder in which finished rounds are kept, so that a bench that was killed goes on; the caller removes it.
    """
    tell = progress or (lambda text: None)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    notes = Journal(journal, fingerprint(config))
    notes.load()
    try:
        tell("what the machine can do")
        dtype = getattr(torch, config.dtype)
        machine = roof.measure(config.device, dtype)
        blocks = [
            {"name": name} | run_case(config, name, setting, machine, notes, tell)
            for name, setting in config.settings()
        ]
        machine = machine.best(roof.measure(config.device, dtype))
        kernels = compare_kernels(config, tell)
    finally:
        notes.close()
        torch.set_num_threads(before)
    body = {"cases": blocks} if config.cases else {k: v for k, v in blocks[0].items() if k != "name"}
    return {
        "kind": "bench",
        "config": config.model_dump(mode="json", exclude={"cases"} if not config.cases else None),
        **body,
        **kernels,
        "roof": machine.as_dict(),
        **provenance(config.seed),
    }


def compare_kernels(config: BenchConfig, tell: Callable[[str], None]) -> dict[str, Any]:
    if not config.kernels:
        return {}
    from vtskip.eval.bench.kernels import compare

    tell("attention kernels")
    return {"kernels": [compare(case, config.device, getattr(torch, config.dtype)) for case in config.kernels]}


def fingerprint(config: BenchConfig) -> str:
    """What makes two starts the same bench."""
    facts = [vtskip.__version__, torch.__version__, config.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def run_case(
    config: BenchConfig, name: str, setting: Setting, machine: roof.Machine, journal: Journal, tell: Any
) -> dict[str, Any]:
    tell(f"{name}: building the model" if name else "building the model")
    gc.collect()  # the model of the case before, which takes much of a GPU
    if config.device.startswith("cuda"):
        torch.cuda.empty_cache()
    bench = Bench(config, setting)
    times = bench.measure(name, journal, tell)
    tell(f"{name}: memory" if name else "memory")
    ran = [s for s in bench.subjects if s.name not in bench.left_out]
    rows = [_row(bench, s, times, machine) for s in ran]
    peaks: dict[str, int] = {
        phase: bench.peak(Subject(DENSE), phase) for phase in ("prefill", "train", "checkpointed") if phase in times
    }
    for row, subject in zip(rows, ran):
        row |= _memory(bench, subject, peaks)
    control = next(r for r in rows if r["name"] == CONTROL)
    noise = {p: round(control[p]["p80"] - control[p]["p20"], 4) for p in PHASES if p in times}
    out: dict[str, Any] = {"noise": noise, "padding_share": round(bench.batch(bench.subjects[0]).padding, 4)}
    if config.cases:
        out |= {"setting": setting.model_dump(mode="json", exclude={"methods", "masked", "controls"})}
    out |= {"weight_bytes": roof.weight_bytes(bench.model), "methods": rows}
    if bench.left_out:
        out["left_out"] = [{"name": name, "reason": reason} for name, reason in bench.left_out.items()]
    if setting.full_layers != setting.layers:
        asked = dict(zip(bench.subjects, subjects_of(setting)))
        pairs = [(asked[s], row) for s, row in zip(ran, rows)]
        out["full_depth"] = full_depth(setting, bench.dtype, config.seed, pairs)
    return out


def _row(bench: Bench, subject: Subject, times: Times, machine: roof.Machine) -> dict[str, Any]:
    flops = bench.flops(subject)
    full, linear = flops["prefill"]
    own = {phase: found[subject.name] for phase, found in times.items() if subject.name in found}
    stats = {p: ratio_stats(own[p], times[p][DENSE]) for p in PHASES if p in own}
    ratios = {p: stats[p]["median"] if p in stats else None for p in PHASES}
    train = None if bench.setting.train_rounds == 0 else flops["train"][0]
    return {
        "name": subject.name,
        "method": subject.spec,
        "run": subject.run,
        "flops_ratio": round(full, 4),
        "flops_ratio_linear": round(linear, 4),
        "flops_train_ratio": _rounded(train),
        "prefill_time_ratio": _rounded(ratios["prefill"]),
        "prefill_over_flops": _rounded(ratios["prefill"], full),
        "decode_time_ratio": _rounded(ratios["decode"]),
        "train_time_ratio": _rounded(ratios["train"]),
        "train_over_flops": _rounded(ratios["train"], train),
        "checkpointed_time_ratio": _rounded(ratios["checkpointed"]),
        "checkpointed_over_flops": _rounded(ratios["checkpointed"], train),
        "kv_ratio": round(own["kv"][0] / times["kv"][DENSE][0], 4) if "kv" in own else None,
        "prefill_ms": _ms(own, "prefill", 2),
        "decode_ms_per_row": _ms(own, "decode", 3),
        "train_ms": _ms(own, "train", 2),
        "checkpointed_ms": _ms(own, "checkpointed", 2),
        **stats,
        "times_ms": {p: {k: round(1000 * v, 3) for k, v in spread(own[p]).items()} for p in PHASES if p in own},
        "roofline": _roofline(bench, full, train, own, machine),
    }


def _roofline(
    bench: Bench, prefill: float, train: float | None, own: dict[str, list[float]], machine: roof.Machine
) -> dict[str, Any]:
    """Shares of the machine's matrix rate and bandwidth. Bytes: the weights once, and the K/V written or read.

    A training step counts as three forwards, recomputation under checkpointing as a fourth.
    """
    dense, weights = bench.dense_flops()[0], roof.weight_bytes(bench.model)
    kv = own["kv"][0] if "kv" in own else 0
    out = {"prefill": machine.share(prefill * dense, weights + kv, statistics.median(own["prefill"]))}
    if "decode" in own:
        rows = roof.kv_rows(bench.shape, int(kv), bench.dtype.itemsize)
        flops = roof.decode_flops(bench.shape, bench.setting.batch, rows)
        out["decode"] = machine.share(flops, weights + kv, statistics.median(own["decode"]))
    for phase, forwards in (("train", 3), ("checkpointed", 4)):
        if phase in own and train is not None:
            work = forwards * train * dense
            out[phase] = machine.share(work, forwards * weights, statistics.median(own[phase]))
    return out


def _memory(bench: Bench, subject: Subject, dense: dict[str, int]) -> dict[str, Any]:
    """Peaks over those of the stock model, beyond what is held before; ``peak_memory_ratio`` is the training step's.
    ``with_weights_ratio``: of all that is held, as papers report it; optimizer states come on top.
    """
    weights = roof.weight_bytes(bench.model)
    own = {phase: bench.peak(subject, phase) for phase in dense}
    ratios = {phase: round(own[phase] / dense[phase], 4) for phase in dense}
    return {
        "peak_memory_ratio": ratios.get("train"),
        "prefill_peak_ratio": ratios.get("prefill"),
        "checkpointed_peak_ratio": ratios.get("checkpointed"),
        "with_weights_ratio": {p: round((weights + own[p]) / (weights + dense[p]), 4) for p in dense},
        "peak_bytes": own,
    }


def _rounded(value: float | None, over: float | None = 1.0) -> float | None:
    return None if value is None or over is None else round(value / over, 4)


def _ms(own: dict[str, list[float]], phase: str, digits: int) -> float | None:
    return round(1000 * statistics.median(own[phase]), digits) if phase in own else None
