"""Moving rows: the plain-torch forms, which are also the reference of every faster one."""

from torch import Tensor


def gather_rows(x: Tensor, flat_index: Tensor, batch: int) -> Tensor:
    """Rows ``flat_index`` ``[batch * m]`` of ``x`` ``[batch, S, ...]``, flattened over the batch -> ``[batch, m, ...]``."""
    return x.reshape(-1, *x.shape[2:]).index_select(0, flat_index).view(batch, len(flat_index) // batch, *x.shape[2:])


def scatter_rows(base: Tensor, flat_index: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``base`` ``[B, S, D]`` with ``rows`` ``[B, m, D]`` written at ``flat_index`` (distinct)."""
    flat = base.reshape(-1, base.shape[-1]).index_copy(0, flat_index, rows.reshape(-1, rows.shape[-1]).to(base.dtype))
    return flat.view(base.shape)
