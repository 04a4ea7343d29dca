"""One new row per sample over a cache whose slots are not the same for all: read in place, by a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtskip.kernels import dispatch
from vtskip.kernels.choice import Call, choose, requested
from vtskip.runtime.attention import project_kv, query_heads, rotate, soft_cap
from vtskip.runtime.packed import watched


def by_kernel(layer: nn.Module, x: Tensor, kind: str) -> bool:
    """Whether a kernel decodes where the stock layer would be given a mask: on CUDA, and where one is asked for.

    With a mask the stock attention first copies K and V for every query head that shares them.
    """
    attn = layer.self_attn
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or kind != "sdpa" or soft_cap(attn) is not None:
        return False
    if layer.vtskip.runtime.inner is not None or watched(attn):
        return False
    if "decode" in requested():
        return True
    return x.is_cuda and choose("decode", Call(x.device, x.dtype, attn.head_dim)) == "triton"


def step(layer: nn.Module, x: Tensor, kwargs: dict[str, Any], mask: Tensor) -> Tensor:
    """The layer on ``x`` ``[B, 1, hidden]``; ``mask`` ``[B, 1, 1, slots + 1]``, True on the keys that a row sees."""
    attn, parts, embeddings = layer.self_attn, layer.vtskip.runtime.parts, kwargs["position_embeddings"]

    def norm(place: str, t: Tensor) -> Tensor:
        name = getattr(parts, place)
        return t if name is None else getattr(layer, name)(t)

    normed = norm("attn_in", x)
    q = rotate(attn, query_heads(attn, normed), embeddings)
    k, v = project_kv(attn, normed, embeddings)
    k, v = kwargs["past_key_values"].update(k, v, layer.vtskip.runtime.index)
    out = dispatch.decode_attention(q[:, :, 0], k, v, scale=attn.scaling, key_ok=mask[:, 0, 0])
    y = x + norm("attn_out", attn.o_proj(out.reshape(len(x), 1, -1)))
    return y + norm("ffn_out", layer.mlp(norm("ffn_in", y)))
