"""Masks of gathered rows, in the form that each attention back end takes.

==========  =====================================================  ==========================================================
kind        implementations                                        form of a layer's mask
==========  =====================================================  ==========================================================
``sdpa``    ``sdpa``                                               None or bool ``[B, 1, Q, K]``, True where visible
``eager``   ``eager``                                              float ``[B, 1, Q, K]``, added to the scores
``flash``   ``flash_attention_2`` to ``_4``, flash kernels          None or 2-D ``[B, K]``, True on real keys
``flex``    ``flex_attention``                                     ``BlockMask``
==========  =====================================================  ==========================================================

An implementation that a user registered is of the kind whose mask function it was registered with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vtskip.errors import ModelError
from vtskip.plan import RowSet

KINDS = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "flash_attention_4": "flash",
    "flex_attention": "flex",
}


def backend(attn: nn.Module) -> str:
    """The kind of an attention's implementation, read at each call as Hugging Face does.

    Raises:
        ModelError: a registered implementation without a mask function, or with one of its own: padding would be
            invisible, or the form of its masks is not known.
    """
    name = attn.config._attn_implementation or "sdpa"
    if name in KINDS:
        return KINDS[name]
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS  # slow to import without a model

    maker = MASKS.get(name)
    for known, kind in KINDS.items():
        if maker is not None and maker is MASKS.get(known):
            return kind
    found = "no mask function" if maker is None else f"its own mask function {getattr(maker, '__name__', maker)}"
    raise ModelError(
        f"attention implementation {name!r} has {found}, so vtskip cannot tell what masks it takes; register it with "
        f"AttentionMaskInterface.register({name!r}, f), f being the function of one of {', '.join(KINDS)}"
    )


def window_of(attn: nn.Module) -> int | None:
    """Sliding window of an attention, in positions. Mistral's keeps it in the configuration alone."""
    return attn.sliding_window if hasattr(attn, "sliding_window") else getattr(attn.config, "sliding_window", None)


@dataclass(frozen=True)
class StepMask:
    """What one layer call was given to tell which keys are visible, and the place of its rows in the sequence.

    Attributes:
        received: the mask the model built, of the form that ``kind`` takes.
        kind: of the attention. window: its sliding window or None.
        past: logical rows before this forward, length: rows of it.
        starts: ``[n + 1]`` borders of packed documents among the rows, None for one document. Only flash: elsewhere they are
            part of ``received``.
        dtype: of float masks.
    """

    received: Any
    kind: str
    window: int | None
    past: int
    length: int
    starts: Tensor | None
    dtype: torch.dtype

    def offset(self, mask: Any) -> int:
        """Logical position of the first column of a mask: above 0 for sliding windows."""
        return max(self.past + self.length - mask.shape[-1], 0)

    def subset(
        self,
        query_index: Tensor,
        query_ok: Tensor | None,
        key_pos: Tensor,
        key_ok: Tensor | None,
        kind: str,
        samples: tuple[int, ...] | None = None,
    ) -> Any:
        """The mask of gathered queries against any set of keys, of the form that ``kind`` takes.

        Args:
            query_index: ``[B, m]`` rows of this forward; their logical position is ``past + query_index``.
            key_pos: ``[B, n]`` logical positions of the keys; ``query_ok``/``key_ok`` are False on fillers, None if there
                are none.
            samples: the places in the batch of the ``B`` samples above, None for all.

        The received mask is gathered at its rows and columns, so whatever it expresses (padding, sliding windows,
        bidirectional images) holds. Otherwise a key is visible to queries at or after its position. Filler queries see
        everything: no NaN rows.
        """
        if kind == "flash":
            return self._flash(key_pos, key_ok, samples)
        if kind == "flex":
            return self._flex(query_index, query_ok, key_pos, key_ok, samples)
        full = of_samples(self._unfolded() if self.kind == "flash" else self.received, samples)
        if full is None:
            allowed = key_pos[:, None, None, :] <= (self.past + query_index)[:, None, :, None]
        else:
            offset = self.offset(full)
            allowed = full.expand(len(query_index), *full.shape[1:])
            allowed = allowed.gather(
                2, query_index[:, None, :, None].expand(-1, allowed.shape[1], -1, allowed.shape[3])
            )
            columns = (key_pos - offset).clamp(min=0)[:, None, None, :].expand(-1, *allowed.shape[1:3], -1)
            allowed = allowed.gather(3, columns)
            key_ok = both(key_ok, key_pos >= offset if offset else None)
        return finish(allowed, query_ok, key_ok, kind, self.dtype)

    def without(self, real: Tensor) -> Any:
        """The received mask with the keys hidden that are not ``real`` ``[B, K]``, over the same queries and keys."""
        received = self.received
        if received is None:
            raise ModelError(
                "a static cache with rows left out needs the attention mask in each step: pass attention_mask to the model"
            )
        if self.kind == "flash":
            self._check_window()
            return (received.bool() & real[:, : received.shape[1]]).to(torch.int32)
        refuse_static_flex(self.kind)
        return finish(received, None, real, self.kind, self.dtype)

    def _check_window(self) -> None:
        if self.window is not None and self.past + self.length > self.window:
            raise ModelError(
                f"flash attention cannot keep a sliding window of {self.window} positions over gathered rows: it counts key "
                f"slots (this sequence has {self.past + self.length} rows); call model.set_attn_implementation('sdpa')"
            )

    def _flash(self, key_pos: Tensor, key_ok: Tensor | None, samples: tuple[int, ...] | None) -> Tensor | None:
        """Real keys. The order of the rows does the rest: the last query stands at the last key.

        Raises:
            ModelError: a sliding window that the sequence is longer than.
        """
        self._check_window()
        received = of_samples(self.received, samples)
        if received is not None:
            offset = self.offset(received)
            real = received.bool().gather(1, (key_pos - offset).clamp(min=0))
            key_ok = both(key_ok, real & (key_pos >= offset))
        return None if key_ok is None else key_ok.to(torch.int32)

    def _unfolded(self) -> Tensor | None:
        """A flash mask as bool ``[B or 1, 1, length, past + length]``, for rows that run on another back end."""
        received, starts, total = self.received, self.starts, self.past + self.length
        sliding = self.window is not None and total > self.window
        if received is None and starts is None and not sliding:
            return None
        device = next((t.device for t in (received, starts) if t is not None), None)
        key = torch.arange(total, device=device)
        query = key[self.past :, None]
        allowed = key <= query
        if self.window is not None and sliding:
            allowed = allowed & (key > query - self.window)
        if starts is not None:
            document = torch.searchsorted(starts[1:].long(), key, right=True)
            allowed = allowed & (document[query] == document)
        if received is None:
            return allowed[None, None]
        return allowed & pad(received.bool(), (self.offset(received), 0))[:, None, None, :]

    def _flex(
        self,
        query_index: Tensor,
        query_ok: Tensor | None,
        key_pos: Tensor,
        key_ok: Tensor | None,
        samples: tuple[int, ...] | None,
    ) -> Any:
        received, past = self.received, self.past
        offset = 0 if received is None else self.offset(received)
        sample = torch.arange(len(key_pos), device=key_pos.device)
        if samples is not None:
            sample = torch.tensor(samples, device=key_pos.device)

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row, position = query_index[b, q], key_pos[b, k]
            if received is None:
                allowed = position <= row + past
            else:  # it adds the offset of its first column itself
                allowed = received.mask_mod(sample[b], h, row, position - offset)
            if key_ok is not None:
                allowed = allowed & key_ok[b, k]
            return allowed if query_ok is None else allowed | ~query_ok[b, q]

        return block_mask(mask_mod, len(key_pos), query_index.shape[1], key_pos.shape[1], key_pos.device)


def refuse_static_flex(kind: str) -> None:
    """Raises ModelError: transformers' flex masks over a static cache read its length after the first layer moved it on, and are
    wrong in the stock model already."""
    if kind == "flex":
        raise ModelError("flex attention cannot run over a StaticCache; use a DynamicCache or sdpa")


def block_mask(mask_mod: Callable[..., Tensor], batch: int, queries: int, keys: int, device: torch.device) -> Any:
    """A flex mask. Compiled where there is a GPU: uncompiled, every element of the mask is made."""
    from torch.nn.attention.flex_attention import create_block_mask

    make = create_block_mask if device.type == "cpu" else torch.compile(create_block_mask)
    return make(mask_mod, batch, None, queries, keys, device=device)


def of_samples(mask: Tensor | None, samples: tuple[int, ...] | None) -> Tensor | None:
    return mask if mask is None or samples is None or len(mask) == 1 else mask[list(samples)]


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one & other


def finish(allowed: Tensor, query_ok: Tensor | None, key_ok: Tensor | None, kind: str, dtype: torch.dtype) -> Tensor:
    """A 4-D bool or float mask without the keys that are not ``key_ok``; filler queries see everything."""
    lowest = torch.finfo(dtype).min
    hidden = None if key_ok is None else ~key_ok[:, None, None, :]
    filler = None if query_ok is None else ~query_ok[:, None, :, None]
    if allowed.dtype == torch.bool:
        if hidden is not None:
            allowed = allowed & ~hidden
        if filler is not None:
            allowed = allowed | filler
        if kind != "eager":
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, lowest)
    if hidden is not None:
        allowed = allowed.masked_fill(hidden, lowest)
    return allowed if filler is None else allowed.masked_fill(filler, 0.0)


def document_starts(kwargs: dict[str, Any], batch: int, length: int, past: int) -> Tensor | None:
    """Borders ``[n + 1]`` of documents that the caller packed into one row, as flash sees them; None for one document.

    They are told by ``cu_seq_lens_q`` or, where there is no mask, by positions that begin anew. Reads the device once.

    Raises:
        ModelError: borders given for more than one sample, or on top of a cache.
    """
    given = kwargs.get("cu_seq_lens_q")
    if given is not None and (batch != 1 or past):
        raise ModelError("cu_seq_lens_q is for documents packed into one row without a cache")
    if batch != 1 or past or kwargs.get("attention_mask") is not None:
        return None
    if given is not None:
        return given
    positions = kwargs.get("position_ids")
    if positions is None or positions.dim() != 2 or length == 1:
        return None
    begins = (positions[0] == positions.min()).nonzero().flatten()
    return None if len(begins) == 1 else pad(begins, (0, 1), value=length)


def packed(starts: Tensor, rows: RowSet) -> dict[str, Any]:
    """Flash's keyword arguments for some rows of packed documents: the borders among these rows.

    Raises:
        ModelError: fillers, which belong to no document.
    """
    if rows.ok is not None:
        raise ModelError("documents packed into one row cannot run with a bucket; attach without it")
    borders = pad(rows.mask[0].cumsum(0), (1, 0))[starts.long()].to(torch.int32)
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": rows.width, "max_length_k": rows.width}
