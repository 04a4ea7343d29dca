"""The rows a loss reads, taken out of a decoder's output before the LM head sees it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

IGNORED = -100  # the label of a row that has none


def rows_of(output: Any, flat: Tensor) -> Any:
    """A decoder's output with ``last_hidden_state`` ``[B, S, hidden]`` cut to ``[1, n, hidden]``: the rows ``flat`` ``[n]``
    of the flattened batch."""
    hidden = output.last_hidden_state
    output.last_hidden_state = hidden.flatten(0, 1).index_select(0, flat.to(hidden.device))[None]
    return output


def _hook(flat: Tensor, module: nn.Module, args: Any, output: Any) -> Any:
    return rows_of(output, flat)


@contextmanager
def only_rows(decoder: nn.Module, flat: Tensor) -> Iterator[None]:
    """Inside, ``decoder`` returns these rows of its last hidden state alone, and a language model around it their logits."""
    hook = decoder.register_forward_hook(functools.partial(_hook, flat))
    try:
        yield
    finally:
        hook.remove()
