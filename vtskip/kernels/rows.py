"""Gathering rows of a padded batch in plain torch."""

from torch import Tensor


def gather_rows(x: Tensor, flat_index: Tensor, batch: int) -> Tensor:
    """Rows ``flat_index`` ``[batch * m]`` of ``x`` ``[batch, S, ...]``, flattened over the batch -> ``[batch, m, ...]``."""
    return x.reshape(-1, *x.shape[2:]).index_select(0, flat_index).view(batch, len(flat_index) // batch, *x.shape[2:])
