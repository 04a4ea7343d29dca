"""An estimate of a run's memory and time, from sizes and from what one step of it has run. Not a measurement.

Time: FLOPs of the decoder in a forward (``vtskip.cost``, counted from the plans) times three, times four with gradient
checkpointing, at the speed of the dry run's own step on the same device. Memory: weights, gradients and AdamW's two moments,
shared out as the ZeRO stage does; activations as the tensors that a decoder layer keeps for its backward pass, without those
of the vision tower.
"""

from typing import Any

from torch import nn

from vtskip.plan import DecoderShape
from vtskip.runtime.report import Report
from vtskip.train.config import TrainConfig

GIB = 2**30


def memory(config: TrainConfig, settings: dict[str, Any] | None, model: nn.Module, processes: int) -> dict[str, float]:
    """GiB per process of weights, gradients and optimizer states."""
    stage = int(((settings or {}).get("zero_optimization") or {}).get("stage", 0))
    offload = bool(((settings or {}).get("zero_optimization") or {}).get("offload_optimizer"))
    sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(n for n, _, learns in sizes if learns)
    half = (
        settings is not None and config.precision == "bf16"
    )  # DeepSpeed's engine runs bf16 weights, with fp32 ones beside
    weights = sum(2 * n if half else n * size for n, size, _ in sizes)
    states = trained * (12 if half else 8)
    parts = {
        "weights": weights / (processes if stage == 3 else 1),
        "gradients": trained * (2 if half else 4) / (processes if stage >= 2 else 1),
        "optimizer": 0.0 if offload else states / (processes if stage >= 1 else 1),
    }
    return {name: size / GIB for name, size in parts.items()}


def activations(config: TrainConfig, shape: DecoderShape, report: Report, labelled: int) -> float:
    """GiB that one batch keeps for the backward pass. ``report``: of its forward; ``labelled``: rows through the LM head."""
    size = 2 if config.precision == "bf16" else 4
    attention = 4 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim  # norm, residuals; q, out; k, v
    layers = [
        size * (layer.attend * attention + layer.ffn * (2 * shape.hidden + 3 * shape.ffn)) for layer in report.layers
    ]
    kept = sum(layers)
    if config.gradient_checkpointing:
        kept = sum(size * shape.hidden * layer.rows for layer in report.layers) + max(layers, default=0)
    return (kept + labelled * shape.vocab * (size + 4)) / GIB


def time(config: TrainConfig, report: Report, seconds: float, steps: int) -> dict[str, float]:
    """FLOPs and hours of a run of ``steps``, from one batch of it that took ``seconds`` forward and backward."""
    passes = 4 if config.gradient_checkpointing else 3
    return {
        "steps": steps,
        "flops_per_step_and_process": passes * report.flops_full * config.optim.accumulate,
        "flops_ratio": report.flops_ratio,
        "hours": steps * config.optim.accumulate * seconds / 3600,
    }
