"""ARank (gamma-MoD, arXiv 2410.13859): layers whose attention maps have a low rank can do without most rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.calibrate.scores import LayerScores, evaluating, one_prompt, one_rule
from vtskip.errors import ModelError
from vtskip.models.families import decoder_of, unwrap
from vtskip.runtime.attach import attached


def attention_rank(attention: Tensor) -> Tensor:
    """Rank of every attention map ``[..., heads, N, N]`` without its diagonal: ``[..., heads]``, integers up to N - 1.

    The part below the diagonal in fp32, singular values above ``N * eps * largest`` counted, as released.
    """
    return torch.linalg.matrix_rank(attention.detach().float().tril(-1))


@dataclass(frozen=True)
class AttentionRanks(LayerScores):
    """``scores`` are ranks over ``lengths`` ``[samples]``: a rank grows with the prompt, the share of it compares."""

    lengths: Tensor

    @property
    def ranks(self) -> Tensor:
        """``[samples, layers]``, mean over the heads."""
        return self.scores * self.lengths[:, None]

    def layers(
        self,
        count: int | None = None,
        *,
        quantile: float | None = None,
        threshold: float | None = None,
        rank: float | None = None,
    ) -> list[int]:
        """Layers to route, those with the lowest ranks; as ``LayerScores.layers``, or those with a mean below ``rank``.

        The paper routes below a rank of 110, which holds for its prompts of about 1,100 rows only.
        """
        one_rule(count=count, quantile=quantile, threshold=threshold, rank=rank)
        if rank is None:
            return super().layers(count, quantile=quantile, threshold=threshold)
        return (self.ranks.mean(0) < rank).nonzero()[:, 0].tolist()


def arank(
    model: nn.Module, samples: Iterable[Mapping[str, Any]], progress: Callable[[int], None] | None = None
) -> AttentionRanks:
    """Prefill each sample and take the rank of every layer's attention, mean over heads.

    Attention maps exist one layer at a time: a hook takes the rank and lets them go. Costs heads x layers singular value
    decompositions of N x N per sample. The paper calibrates the model before its routers are trained.

    Args:
        model: a supported model without a method attached; it runs on the ``eager`` back end and is left as it was.
        samples: forward arguments of one prompt each (batch 1, no padding). Use training prompts.
        progress: called with 1 for every layer of every sample.

    Raises:
        ModelError: no samples, a batch of more than one prompt, padding, or a method that is attached.
    """
    rows = list(attention_ranks(model, samples, progress))
    if not rows:
        raise ModelError("calibration needs at least one sample")
    lengths = torch.tensor([length for _, length in rows])
    return AttentionRanks(torch.stack([ranks for ranks, _ in rows]) / lengths[:, None], lengths)


def attention_ranks(
    model: nn.Module, samples: Iterable[Mapping[str, Any]], progress: Callable[[int], None] | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Mean ranks ``[layers]`` and number of rows of one sample after the other; see ``arank``."""
    handle = attached(model)
    if handle is not None:
        raise ModelError(
            f"method {handle.method.name!r} is attached: ranks are those of the dense model; detach it first"
        )
    decoder = decoder_of(unwrap(model))[0]
    for sample in samples:
        one_prompt(sample)
        ranks: dict[int, Tensor] = {}
        lengths: list[int] = []
        note = partial(_note, ranks, lengths, progress)
        with evaluating(model), _eager(decoder), _hooked(decoder, note), torch.no_grad():
            model(**sample, use_cache=False, logits_to_keep=1)
        yield torch.stack([ranks[i] for i in range(len(decoder.layers))]), lengths[0]


def _note(
    ranks: dict[int, Tensor], lengths: list[int], progress: Callable[[int], None] | None, layer: int, maps: Tensor
) -> None:
    ranks[layer] = attention_rank(maps[0]).float().mean().cpu()
    lengths.append(maps.shape[-1])
    if progress:
        progress(1)


@contextmanager
def _hooked(decoder: nn.Module, note: Callable[[int, Tensor], None]) -> Iterator[None]:
    """``note(layer, maps)`` for the attention maps ``[B, heads, N, N]`` of every layer as it runs."""

    def hook(layer: int, module: nn.Module, args: Any, output: Any) -> None:
        maps = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if maps is None:
            raise ModelError(
                f"{type(module).__name__} of layer {layer} returns no attention maps on the eager back end"
            )
        note(layer, maps)

    hooks = [layer.self_attn.register_forward_hook(partial(hook, i)) for i, layer in enumerate(decoder.layers)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _eager(decoder: nn.Module) -> Iterator[None]:
    """The eager back end for a while: the only one that returns its maps."""
    configs = {id(m.config): m.config for m in (decoder, *(layer.self_attn for layer in decoder.layers))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
