"""A run's first step without the run: what learns, what the model sees and is taught, whether it can be saved, what it will cost.

Nothing is left behind. The folder of the run is not touched.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.data.guarded import Guarded
from vtskip.data.types import Sample
from vtskip.errors import CheckpointError, DataError
from vtskip.models.families import unwrap
from vtskip.runtime.attach import Handle, attach, attached
from vtskip.saving import save_pretrained
from vtskip.train import estimate
from vtskip.train.config import TrainConfig
from vtskip.train.loading import batches_of
from vtskip.train.parts import PARTS, learning_rates, part_of
from vtskip.train.scoring import Scorer
from vtskip.train.start import as_yaml
from vtskip.train.weights import count, read_weights, write_weights

SHOWN = 2  # samples


def dry_run(
    config: TrainConfig, processes: int = 1, progress: bool = True, scorer: Scorer | None = None
) -> dict[str, Any]:
    """Check a configuration by doing its first step; returns what :mod:`vtskip.cli.tables_dry_run` shows.

    Keys: ``config``, ``parameters`` (per part), ``samples`` (their columns), ``broken`` (what of them could not be read, where
    that is allowed), ``step`` (loss, gradient norm, what got no gradient), ``checkpoint`` (bytes, seconds), ``estimate``.
    Raises VtskipError for bad input, DataError for a loss that is not a number.
    """
    from vtskip.data import build
    from vtskip.train.build import build_model
    from vtskip.train.mixture import training_samples
    from vtskip.train.recipe import read_deepspeed
    from vtskip.train.reports import reports
    from vtskip.train.setup import broken_rule, make_collator, quiet

    settings = read_deepspeed(config)
    reports(config)
    with quiet():
        left_out: dict[str, str] = {}
        samples = training_samples(config, progress, left_out)
        held_out = build(config.validation, progress=progress) if config.validation else []
        model, processing, template = build_model(config, samples)
        if scorer is not None:
            scorer.read()
            scorer.fits(template)
        model.to(torch.accelerator.current_accelerator() or "cpu")
        handle, own = attached(unwrap(model)), True
        if handle is None:
            handle, own = attach(model, "dense"), False
        collate = make_collator(config, model, template)
        readable = Guarded(samples, collate.look, broken_rule(config))
        parameters = table(model, config)
        tokenizer = getattr(template, "tokenizer", processing)
        shown = [readable[i] for i in range(min(SHOWN, len(samples)))]
        columns = [look(model, handle, collate([s]), tokenizer, s.sample.uid) for s in shown]
        handle.reset()
        places, steps = plan_of(config, samples, collate, processes)
        batch = collate([readable[i] for i in places])
        step = first_step(model, batch, config) | {"samples": len(places)}
        costs = costs_of(config, settings, model, handle, batch, step["seconds"], steps, processes)
        if not own:
            handle.detach()
        checkpoint = save_and_reload(model, processing, config.out, own)
    return {
        "config": as_yaml(config),
        "parameters": parameters,
        "samples": columns,
        "conversations": {"train": len(samples), "validation": len(held_out)},
        "broken": left_out | readable.faults(),
        "step": step,
        "checkpoint": checkpoint,
        "estimate": costs,
    }


def plan_of(config: TrainConfig, samples: list[Sample], collate: Any, processes: int) -> tuple[list[int], int]:
    """Which samples the step is done with, and how many steps the run has.

    Where batches are made by length these are the run's first ones, which have the most tokens; else as many as a batch has.
    """
    optim = config.optim
    batches = batches_of(samples, collate, optim.batch_size, config.sampling, config.seed, 0, processes)
    places = next(iter(batches)) if batches.by_length else [*range(min(optim.batch_size, len(samples)))]
    return places, optim.steps or math.ceil(optim.epochs * math.ceil(len(batches) / optim.accumulate))


def table(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Per part: parameters that learn, all of them, and the learning rates."""
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    rates = learning_rates(learns, config.optim)
    rows = []
    for part in PARTS:
        sizes = [(name, p.numel()) for name, p in model.named_parameters() if part_of(name) == part]
        if sizes:
            trained = [(name, n) for name, n in sizes if name in rates]
            rows.append(
                {
                    "part": part,
                    "trained": sum(n for _, n in trained),
                    "adapters": sum(n for name, n in trained if ".lora_" in name),
                    "all": sum(n for _, n in sizes),
                    "lr": sorted({rates[name] for name, _ in trained}),
                    "tensors": len(trained),
                }
            )
    return rows


@torch.no_grad()
def look(model: Any, handle: Handle, batch: dict[str, Tensor], tokenizer: Any, uid: str) -> dict[str, Any]:
    """One sample as the model sees it: a row per token, with what is taught there and in how many layers it is kept.

    Placeholders of one frame or image are one row with their number, as is text of which nothing is taught.
    """
    model.eval()
    half = any(p.dtype == torch.bfloat16 for p in model.parameters())
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        model(**moved(batch, model))
    model.train()
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    shifted = not hasattr(model.config, "frame_id")  # a stock model's label stands on its token, not before it
    taught = [*labels[1:], -100] if shifted else labels
    rows = handle.last_rows if "frames" in batch or len(batch) > 3 else None
    group = [-1] * len(ids) if rows is None else rows.group[0].tolist()
    routed = {} if rows is None else handle.last_plans
    kept = sum(
        (plan.attend.mask[0].long() for plan in routed.values()), torch.zeros(len(ids), device=model.device).long()
    )
    lines: list[dict[str, Any]] = []
    for place, token in enumerate(ids):
        line = {
            "place": place,
            "token": tokenizer.decode([token]),
            "label": "" if taught[place] == -100 else tokenizer.decode([taught[place]]),
            "vision": "" if group[place] < 0 else str(group[place]),
            "count": 1,
            "kept": int(kept[place]) / len(routed) if routed else 1.0,
        }
        join(lines, line)
    return {"uid": uid, "tokens": len(ids), "learned": sum(label != -100 for label in labels), "rows": lines}


def join(lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
    """Add a token to the lines: to the last one, where that is of the same frame, or both are text of which nothing is taught."""
    last = lines[-1] if lines else None
    if last is None or last["label"] or last["vision"] != line["vision"] or (line["label"] and not line["vision"]):
        lines.append(line)
        return
    last["kept"] = (last["kept"] * last["count"] + line["kept"]) / (last["count"] + 1)
    token = last["token"] if line["vision"] else f"{last['token']}|{line['token']}"
    last |= {"count": last["count"] + 1, "label": line["label"], "token": token}


def first_step(model: Any, batch: dict[str, Tensor], config: TrainConfig) -> dict[str, Any]:
    """Forward and backward, twice (the first one is slower). Raises DataError for a loss that is not a number."""
    model.train()
    if config.gradient_checkpointing:
        # The name since transformers 5.2x, and the one before it.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    device = model.device.type
    half = config.precision == "bf16"
    for _ in range(2):
        model.zero_grad()
        start = time.monotonic()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(**moved(batch, model)).loss
        loss.backward()
        value = loss.detach().item()
        seconds = time.monotonic() - start
    if not math.isfinite(value):
        raise DataError(f"the first batch has loss {value}")
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = {name: p.grad.norm() for name, p in learns.items() if p.grad is not None}
    return {
        "loss": value,
        "gradient_norm": torch.stack([*norms.values()]).norm().item(),
        "without_gradient": [name for name in learns if name not in norms or not norms[name].item()],
        "seconds": seconds,
        "tokens": int(batch["attention_mask"].sum()),
    }


def costs_of(
    config: TrainConfig,
    settings: dict[str, Any] | None,
    model: nn.Module,
    handle: Handle,
    batch: dict[str, Tensor],
    seconds: float,
    steps: int,
    processes: int,
) -> dict[str, Any]:
    """Memory and time of the whole run, from the two passes of :func:`first_step`."""
    report = handle.report()
    report.flops_full //= 2
    report.flops_full_dense //= 2
    for layer in report.layers:
        layer.rows, layer.attend, layer.ffn = layer.rows // 2, layer.attend // 2, layer.ffn // 2
    labelled = (
        int(batch["labels"].ne(-100).sum()) if hasattr(unwrap(model).config, "frame_id") else batch["labels"].numel()
    )
    held = estimate.memory(config, settings, model, processes)
    held["activations"] = estimate.activations(config, handle.shape, report, labelled)
    trained, total = count(model)
    return {
        "is": "an estimate from the cost model and one step here, not a measurement of the run",
        "processes": processes,
        "trained_parameters": trained,
        "parameters": total,
        "gib_per_process": held | {"all": sum(held.values())},
        **estimate.time(config, report, seconds, steps),
    }


def save_and_reload(model: Any, processing: Any, out: Path, method: bool) -> dict[str, Any]:
    """Write a checkpoint beside the run's folder, read it back, compare, and remove it. Raises CheckpointError."""
    parent = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    folder, start = Path(tempfile.mkdtemp(prefix=".vtskip-dry-run-", dir=parent)), time.monotonic()
    try:
        write_weights(model, folder)
        processing.save_pretrained(folder)
        if method:
            save_pretrained(model, folder)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        learns = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().cpu().clone() for p in learns]
        with torch.no_grad():
            for p in learns:
                p.add_(1.0)
        read_weights(model, folder)
        lost = lost_of(model, learns, before)
        if lost:
            raise CheckpointError(f"{folder}: {lost[0]} does not come back from a checkpoint; {len(lost)} do not")
        return {"bytes": size, "seconds": round(time.monotonic() - start, 2)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lost_of(model: nn.Module, learns: Sequence[Tensor], before: Sequence[Tensor]) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for p, b in zip(learns, before) if not torch.equal(p.detach().cpu(), b)]


def moved(batch: dict[str, Tensor], model: Any) -> dict[str, Any]:
    return {key: value.to(model.device) for key, value in batch.items()}
