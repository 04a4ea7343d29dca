"""A step as one captured CUDA graph: no time between its kernels, none on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3


def captured(
    model: Any, inputs: dict[str, Any], capture: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None
) -> Callable[[], Any]:
    """A function that runs the kernels of ``model(**inputs)`` again, on the same memory.

    What an attached method reads on the host (where the rows are) is read before the capture, in the model's pre-hooks: every
    replay is the same step at the same place of the stream.

    Args:
        inputs: with ``past_key_values``, which holds the same rows afterwards.
        capture: makes the replay from the step; ``cuda_graph`` by default, a plain call in tests.

    Raises:
        RuntimeError: what torch raises when a step cannot be captured, for one because it waits for the host.
    """
    cache = inputs["past_key_values"]
    length = cache.get_seq_length()

    def undo() -> None:
        rows = cache.get_seq_length() - length
        if rows:
            cache.crop(-rows)

    for _ in range(WARM_UP):
        model(**inputs)
        undo()
    before = [*model._forward_pre_hooks.items()]
    for key, hook in before:
        hook(model, (), inputs) if key in model._forward_pre_hooks_with_kwargs else hook(model, ())
    try:
        replay = (capture or cuda_graph)(lambda: model.forward(**inputs))
    finally:
        undo()
        model(**inputs)  # its hooks close what those above have opened
        undo()
    return replay


def cuda_graph(step: Callable[[], Any]) -> Callable[[], None]:
    """Capture on a stream of its own, as CUDA asks."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
