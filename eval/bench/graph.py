"""A step as one captured CUDA graph: no time between its kernels, none on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vtskip.runtime.attach import attached

WARM_UP = 3
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]


def captured(model: Any, inputs: dict[str, Any], capture: Capture | None = None) -> Callable[[], Any]:
    """A function that runs the kernels of ``model(**inputs)`` again, on the same memory.

    Where the vision rows are is read on the host once, by the model's own pre-hooks, and stays: every replay is the same step
    at the same place of the stream, and what is made once per set of rows (indices, ranges) is made before the capture.

    Args:
        inputs: with ``past_key_values``, which holds the same rows afterwards.
        capture: makes the replay from the step; ``cuda_graph`` by default, a plain call in tests.

    Raises:
        RuntimeError: what torch raises when a step cannot be captured, for one because it waits for the host.
    """
    cache, handle = inputs["past_key_values"], attached(model)
    length = cache.get_seq_length()

    def undo() -> None:
        added = cache.get_seq_length() - length
        if added:
            cache.crop(-added)

    for key, hook in [*model._forward_pre_hooks.items()]:
        hook(model, (), inputs) if key in model._forward_pre_hooks_with_kwargs else hook(model, ())
    rows = None if handle is None else handle.state.rows

    def step() -> Any:
        if handle is not None:
            handle.state.begin(rows)
        return model.forward(**inputs)

    try:
        for _ in range(WARM_UP):
            step()
            undo()
        return (capture or cuda_graph)(step)
    finally:
        undo()
        model(**inputs)  # its hooks close what those above have opened
        undo()


def cuda_graph(step: Callable[[], Any]) -> Callable[[], None]:
    """Capture on a stream of its own, as CUDA asks."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
