"""FLOPs from what ran, in the two countings of the papers, and decoder sizes.

One multiply-add is two operations; causal attention is not halved; the vision tower is not counted. *linear* counts the
matrix products with weights and the LM head (p-MoD's convention), *full* adds the attention products.
"""

from typing import Protocol

from vtskip.plan import DecoderShape


class Counts(Protocol):
    """Rows a layer computed: with a query, with K/V, in the FFN, and its query-key pairs."""

    attend: int
    expose: int
    ffn: int
    pairs: int


def linear_flops(shape: DecoderShape, counts: Counts) -> int:
    """Products with weights of one layer: Wq and Wo per query, Wk and Wv per exposed row, gated FFN per FFN row."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * shape.hidden * (2 * query * counts.attend + 2 * key * counts.expose)
    return attention + 6 * shape.hidden * shape.ffn * counts.ffn


def full_flops(shape: DecoderShape, counts: Counts) -> int:
    """``linear_flops`` and the score and value products of attention."""
    return linear_flops(shape, counts) + 4 * shape.heads * shape.head_dim * counts.pairs


def head_flops(shape: DecoderShape, rows: int) -> int:
    """The LM head on ``rows`` rows."""
    return 2 * shape.hidden * shape.vocab * rows


def kv_row_bytes(shape: DecoderShape, element_size: int) -> int:
    """K and V of one row in one layer."""
    return 2 * shape.kv_heads * shape.head_dim * element_size
