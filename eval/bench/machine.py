"""What this machine can do at best, measured in the same run: the roof that the roofline columns are shares of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vtskip.cost import full_flops, head_flops, kv_row_bytes
from vtskip.eval.bench.clock import now
from vtskip.plan import DecoderShape
from vtskip.runtime.stats import LayerCount


@dataclass(frozen=True)
class Machine:
    """``matrix``: FLOP/s of a large matrix product in the bench's dtype; ``bandwidth``: bytes/s of reading memory."""

    matrix: float
    bandwidth: float

    def best(self, other: Machine) -> Machine:
        return Machine(max(self.matrix, other.matrix), max(self.bandwidth, other.bandwidth))

    def share(self, flops: float, moved: float, seconds: float) -> dict[str, float]:
        """Shares of both roofs that ``flops`` and ``moved`` bytes in ``seconds`` are."""
        return {
            "matrix": round(flops / seconds / self.matrix, 4),
            "bandwidth": round(moved / seconds / self.bandwidth, 4),
        }

    def floor_ms(self, flops: float, moved: float) -> dict[str, float]:
        """Milliseconds that the products and the bytes take at least."""
        return {"flops": 1000 * flops / self.matrix, "bytes": 1000 * moved / self.bandwidth}

    def as_dict(self) -> dict[str, float]:
        return {
            "matrix_gflops_per_second": round(self.matrix / 1e9, 1),
            "bandwidth_gb_per_second": round(self.bandwidth / 1e9, 2),
        }


def measure(device: str, dtype: torch.dtype, size: int | None = None, repeats: int = 4) -> Machine:
    """Best of some repeats: a product of two ``[size, size]`` matrices, and one with a vector, of a matrix that is far larger
    than the caches (decoding is a chain of those)."""
    cuda = device.startswith("cuda")
    size = size or (8192 if cuda else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wide = torch.zeros(16 * size, (2 if cuda else 3) * size, device=device, dtype=dtype)
    vector = torch.zeros(wide.shape[1], device=device, dtype=dtype)
    matrix = min(_seconds(lambda: a @ b, device) for _ in range(repeats))
    read = min(_seconds(lambda: wide @ vector, device) for _ in range(repeats))
    return Machine(2 * size**3 / matrix, wide.numel() * wide.element_size() / read)


def _seconds(work: Callable[[], object], device: str) -> float:
    start = now(device)
    work()
    return max(now(device) - start, 1e-9)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that a forward reads: all but the table of embeddings, of which it takes single rows."""
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not table or p is head)


def decode_flops(shape: DecoderShape, batch: int, kv_rows: float) -> float:
    """FLOPs of one row per sample, each reading its share of ``kv_rows`` cached rows (sum over layers and samples)."""
    rows = LayerCount(attend=batch, expose=batch, ffn=batch)
    attention = 4 * shape.heads * shape.head_dim * kv_rows
    return shape.layers * full_flops(shape, rows) + attention + head_flops(shape, batch)


def kv_rows(shape: DecoderShape, held: int, element_size: int) -> float:
    """Cached rows, summed over layers and samples, in ``held`` bytes."""
    return held / kv_row_bytes(shape, element_size)
