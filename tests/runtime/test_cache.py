"""SkipCache: logical lengths over ragged slots."""

import pytest
import torch
from transformers import DynamicCache

from vtskip.runtime.cache import SkipCache, SkipCacheLayer, kv_bytes, skip_layer


def rows(n: int, value: float = 1.0, batch: int = 2) -> torch.Tensor:
    return torch.full((batch, 1, n, 4), value) + torch.arange(n)[:, None]


def ragged() -> SkipCacheLayer:
    """Eight logical rows; sample 0 kept positions 1, 4, 6, sample 1 kept 5 (two fillers)."""
    layer = SkipCacheLayer()
    pos = torch.tensor([[1, 4, 6], [0, 2, 5]])
    ok = torch.tensor([[True] * 3, [False, False, True]])
    layer.append(rows(3), rows(3), pos, ok, steps=8)
    return layer


def test_lengths_are_logical():
    layer = ragged()
    assert layer.get_seq_length() == 8 and layer.slots == 3 and layer.ragged
    assert layer.get_mask_sizes(2) == (10, 0)
    layer.update(rows(2), rows(2))
    assert layer.get_seq_length() == 10 and layer.pos[:, -2:].tolist() == [[8, 9]] * 2
    assert layer.ok[1].tolist() == [False, False, True, True, True]


def test_crop_by_logical_position():
    layer = ragged()
    layer.crop(-3)  # rows 5, 6 and 7 go: one slot of each sample
    assert layer.get_seq_length() == 5
    assert layer.pos[0][layer.ok[0]].tolist() == [1, 4]
    assert not layer.ok[1].any()
    layer.crop(-99)
    assert layer.get_seq_length() == 0 and layer.slots == 0


def test_crop_refuses_an_absolute_length():
    with pytest.raises(ValueError, match="negative"):
        ragged().crop(3)


def test_only_some_rows_stay():
    layer = SkipCacheLayer()
    stored = (torch.tensor([[0, 3]] * 2), None)
    keys, _ = layer.append(rows(4), rows(4), torch.arange(4).expand(2, -1), None, steps=4, stored=stored)
    assert keys.shape[2] == 4 and layer.slots == 2 and layer.pos[0].tolist() == [0, 3]
    assert torch.equal(layer.keys, keys[:, :, [0, 3]])


def test_samples_are_reordered_with_their_slots():
    layer = ragged()
    before = layer.pos.clone()
    layer.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(layer.pos, before[[1, 1]]) and layer.ok[0].tolist() == [False, False, True]
    layer.batch_repeat_interleave(2)
    assert layer.pos.shape[0] == layer.keys.shape[0] == 4
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.keys.shape[0] == 1
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.pos is None


def test_adopts_a_filled_dynamic_layer():
    cache = DynamicCache()
    cache.update(rows(5), rows(5), 0)
    layer = skip_layer(cache, 0)
    assert cache.layers[0] is layer and layer.pos.tolist() == [list(range(5))] * 2 and not layer.ragged
    assert skip_layer(cache, 2) is cache.layers[2] and len(cache.layers) == 3


def test_bytes():
    cache = SkipCache()
    cache.update(rows(5), rows(5), 0)
    assert cache.kv_bytes() == kv_bytes(cache) == 2 * 2 * 5 * 4 * 4


def test_window_forgets_by_position():
    layer = SkipCacheLayer(window=4)
    layer.append(rows(3), rows(3), torch.tensor([[0, 2, 5]] * 2), None, steps=6)
    assert layer.pos[0].tolist() == [5]  # positions 3 to 5 are still visible to the next row
    assert layer.get_mask_sizes(1) == (4, 3)
    assert layer.run() == 3


def test_samples_without_rows_take_no_room():
    layer = SkipCacheLayer()
    assert layer.hold((0, 2), 3)
    pos = torch.tensor([[0, 1], [0, 1]])
    layer.append(torch.stack([rows(2)[0], 5 + rows(2)[0]]), rows(2), pos, None, steps=2)
    assert layer.keys.shape[0] == 2 and layer.ragged
    layer.carry = torch.tensor([True, False, True])
    layer.reorder_cache(torch.tensor([1, 0, 2, 2]))
    assert layer.samples == (1, 2, 3) and layer.keys[:, 0, 0, 0].tolist() == [1, 6, 6]
    assert layer.carry.tolist() == [False, True, True, True]
    assert not layer.hold((0, 1), 4)  # others hold rows: these stay, and all samples are held from now on
    assert layer.keys.shape[0] == 4 and layer.ok[:, 0].tolist() == [False, True, True, True]
    layer.append(rows(1, batch=4), rows(1, batch=4), torch.full((4, 1), 2), None, steps=1)
    assert layer.run().tolist() == [1, 3, 3, 3]
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.hold(None, 1) and layer.keys.shape[0] == 1


def test_a_batch_of_samples_without_rows():
    layer = SkipCacheLayer()
    layer.hold((1,), 2)
    layer.append(rows(2, batch=1), rows(2, batch=1), torch.tensor([[0, 1]]), None, steps=2)
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.samples == () and layer.slots == 0 and layer.get_seq_length() == 2
    assert layer.hold(None, 1)
    layer.update(rows(1, batch=1), rows(1, batch=1))
    assert layer.keys.shape[:3] == (1, 1, 1) and layer.pos.tolist() == [[2]]
