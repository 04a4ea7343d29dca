"""What a run tells beside its loss. Numbers are added up on the host or the device and read every ``log_every`` steps only."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.cost import linear_flops
from vtskip.heatmap import routed_layers
from vtskip.models.sharding import full_shape
from vtskip.runtime.attach import attached
from vtskip.runtime.stats import LayerCount
from vtskip.saving import method_parameters

Reduce = Callable[[Tensor, str], Tensor]  # a tensor's "sum" or "mean" over all processes
SUMS = ("wait", "tokens", "padded")


class RouterGradients:
    """The gradient norm of the routers, whatever distributes the model: gradients are noted where they arise.

    DeepSpeed has used and forgotten them before a callback could look. Noted only in steps that will be logged.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in method_parameters(model).values() if p.requires_grad]
        self.sums: list[Tensor | None] = [None] * len(self.parameters)
        self.wanted = False
        self.hooks = [p.register_hook(partial(self._add, i)) for i, p in enumerate(self.parameters)]

    def _add(self, place: int, gradient: Tensor) -> None:
        if self.wanted:
            before, seen = self.sums[place], gradient.detach().float()
            self.sums[place] = seen.clone() if before is None else before + seen  # clipping writes into the gradient

    def begin(self, wanted: bool) -> None:
        self.wanted, self.sums = wanted, [None] * len(self.parameters)

    def norm(self, reduce: Reduce, device: torch.device) -> float | None:
        """Before clipping; None where no router learns."""
        if not self.parameters:
            return None
        shapes = [full_shape(p) for p in self.parameters]
        flat = [torch.zeros(s.numel(), device=device) if g is None else g.flatten() for s, g in zip(shapes, self.sums)]
        return reduce(torch.cat(flat), "mean").norm().item()

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@dataclass
class Sums:
    """Of this process since the last log line. ``parts``: see ``vtskip.models.stream_loss``."""

    parts: Tensor | None = None
    wait: float = 0.0
    tokens: int = 0
    padded: int = 0


class Watcher:
    """The sums of a run and what they say: ``collect`` gives the values of a log line and starts anew."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.handle = device, attached(model)
        self.sums, self.since, self.paused = Sums(), time.perf_counter(), 0.0
        self.gradients = RouterGradients(model) if self.handle is not None else None

    def step_begins(self, logged: bool) -> None:
        if self.gradients is not None:
            self.gradients.begin(logged)

    def add_batch(self, origin: dict[str, Any]) -> None:
        self.sums.tokens += origin["tokens"]
        self.sums.padded += origin["padded"]

    def add_outputs(self, outputs: Any) -> None:
        parts = getattr(outputs, "loss_parts", None)
        if parts is not None:
            self.sums.parts = parts if self.sums.parts is None else self.sums.parts + parts

    def add_wait(self, seconds: float) -> None:
        self.sums.wait += seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no training step: evaluation, saving. Neither its time nor its rows count."""
        start, counts = time.perf_counter(), self._counts()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - start
            self._set_counts(counts)

    def collect(self, reduce: Reduce) -> dict[str, float]:
        """Values of all processes together (kept rows: of this one). Every process has to call it."""
        seconds = time.perf_counter() - self.since - self.paused
        values = self._sums(reduce, seconds) | self._skipped()
        norm = None if self.gradients is None else self.gradients.norm(reduce, self.device)
        if norm is not None:
            values["router_grad_norm"] = norm
        values["memory_gib"] = peak_memory(self.device)
        self.start_anew()
        return values

    def start_anew(self) -> None:
        self.sums, self.since, self.paused = Sums(), time.perf_counter(), 0.0
        if self.handle is not None:
            self.handle.reset()

    def _sums(self, reduce: Reduce, seconds: float) -> dict[str, float]:
        own = [float(getattr(self.sums, name)) for name in SUMS]
        parts = torch.zeros(4, device=self.device) if self.sums.parts is None else self.sums.parts
        total = reduce(torch.cat([torch.tensor([*own, seconds], device=self.device), parts.to(self.device)]), "sum")
        wait, tokens, padded, elapsed, stream, stream_labels, language, language_labels = total.tolist()
        values = {"tokens_per_second": tokens / seconds, "data_wait": wait / elapsed if elapsed else 0.0}
        if padded:
            values["padding"] = 1 - tokens / padded
        if stream_labels:
            values["stream_loss"] = stream / stream_labels
        if language_labels and self.sums.parts is not None:
            values["language_loss"] = language / language_labels
        return {
            name: round(value, 6) if name in ("tokens_per_second", "data_wait") else value
            for name, value in values.items()
        }

    def _skipped(self) -> dict[str, float]:
        """``kept/3``: the share of vision rows that run in layer 3, and the share of all vision FLOPs that are saved."""
        if self.handle is None:
            return {}
        counts, shape = self.handle.state.layers, self.handle.shape
        values = {f"kept/{i}": kept_share(counts[i]) for i in routed_layers(self.handle)}
        vision = sum(linear_flops(shape, LayerCount(attend=c.vision, expose=c.vision, ffn=c.vision)) for c in counts)
        if vision:
            plans = self.handle.last_plans
            keys_too = [i not in plans or plans[i].expose is plans[i].attend for i in range(shape.layers)]
            skipped = sum(linear_flops(shape, left_out(c, too)) for c, too in zip(counts, keys_too))
            values["vision_flops_skipped"] = skipped / vision
        return values

    # ------------------------------------------------------------------ what a checkpoint holds

    def _counts(self) -> dict[str, Any]:
        if self.handle is None:
            return {}
        state = self.handle.state
        whole = {name: getattr(state, name) for name in ("text_rows", "logit_rows", "forwards")}
        return {**whole, "layers": [asdict(c) for c in state.layers], "dense": asdict(state.dense)}

    def _set_counts(self, counts: dict[str, Any]) -> None:
        if self.handle is None or not counts:
            return
        state = self.handle.state
        for name in ("text_rows", "logit_rows", "forwards"):
            setattr(state, name, counts[name])
        state.layers = [LayerCount(**c) for c in counts["layers"]]
        state.dense = LayerCount(**counts["dense"])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The sums of an unfinished log interval: numbers, and tensors."""
        numbers = {name: getattr(self.sums, name) for name in SUMS} | {"counts": self._counts()}
        return numbers, {} if self.sums.parts is None else {"parts": self.sums.parts.detach().cpu()}

    def restore(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.start_anew()
        for name in SUMS:
            setattr(self.sums, name, numbers[name])
        if "parts" in tensors:
            self.sums.parts = tensors["parts"].to(self.device)
        self._set_counts(numbers["counts"])


def kept_share(count: LayerCount) -> float:
    """Of the vision rows: those with attention and FFN."""
    return min(count.kept, count.kept_ffn) / count.vision if count.vision else 1.0


def left_out(count: LayerCount, keys_too: bool) -> LayerCount:
    """Vision rows that the method left out of each part of a layer, not counting what is never read anyway.

    keys_too: rows without a query give no K and V either.
    """
    skipped = count.vision - count.kept
    return LayerCount(attend=skipped, expose=skipped if keys_too else 0, ffn=count.vision - count.kept_ffn)


def peak_memory(device: torch.device) -> float:
    """Most memory this process has held so far, in GiB: of the device, or on a CPU of the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)
