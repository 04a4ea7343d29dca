"""Room for cached rows to grow in: what is copied and held, and who may write where."""

import copy

import pytest
import torch

from vtskip.runtime.cache import SkipCacheLayer
from vtskip.runtime.room import growth, range_of

HEADS, DIM = 2, 4
STEPS = 400


def new(layer: SkipCacheLayer, count: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V that say which logical row they are of."""
    place = torch.arange(layer.seen, layer.seen + count, dtype=torch.float32)[:, None]
    keys = place.expand(batch, HEADS, count, DIM)
    return keys, -keys


def feed(layer: SkipCacheLayer, count: int, batch: int = 2) -> torch.Tensor:
    return layer.update(*new(layer, count, batch))[0]


def filled(count: int = 5, window: int | None = None, steps: int = 0) -> SkipCacheLayer:
    layer = SkipCacheLayer(window)
    for n in (count, *[1] * steps):
        feed(layer, n)
    return layer


def with_fillers(steps: int = 3) -> SkipCacheLayer:
    """Sample 0 holds rows 0, 2 and 3 of the first four, sample 1 only row 3; then both hold ``steps`` more."""
    layer = SkipCacheLayer()
    pos = torch.tensor([[0, 2, 3], [0, 1, 3]])
    ok = torch.tensor([[True] * 3, [False, False, True]])
    keys = pos[:, None, :, None].float().expand(-1, HEADS, -1, DIM)
    layer.append(keys, -keys, pos, ok, steps=4)
    for _ in range(steps):
        feed(layer, 1)
    return layer


def held(layer: SkipCacheLayer) -> int:
    """Columns of the storage behind the keys."""
    return layer.keys.untyped_storage().nbytes() // (layer.keys.shape[0] * HEADS * DIM * 4)


def check(layer: SkipCacheLayer) -> None:
    """Each slot holds the row its position says."""
    real = torch.ones_like(layer.pos, dtype=torch.bool) if layer.ok is None else layer.ok
    assert torch.equal(layer.keys[:, 0, :, 0][real], layer.pos[real].float())
    assert torch.equal(layer.values[:, 1, :, 3][real], -layer.pos[real].float())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("window", [None, 20, 200])
def test_steps_write_in_place(window):
    """Few tensors are made, and what they hold beyond the rows is one growth step at most."""
    layer, storages = filled(5, window), {}
    assert held(layer) == 5
    for _ in range(STEPS):
        seen = feed(layer, 1)
        assert torch.equal(seen[0, 0, :, 0].long(), torch.arange(layer.seen - seen.shape[2], layer.seen))
        storages[id(layer.room)] = layer.room  # held, so that no address comes again
        assert held(layer) <= layer.slots + 1 + growth(layer.slots + 1)
        check(layer)
    assert layer.slots == (layer.seen if window is None else window - 1) and not layer.ragged
    assert len(storages) <= STEPS // 64 + 1


def test_a_step_allocates_nothing_of_the_history(monkeypatch):
    layer = filled(500, steps=1)
    joined = []
    monkeypatch.setattr(torch, "cat", lambda tensors, dim: joined.append(tensors))
    before = layer.keys.data_ptr()
    feed(layer, 1)
    assert layer.keys.data_ptr() == before and not joined


def test_rows_leave_in_place_or_are_freed():
    layer = filled(5, steps=200)
    place = layer.keys.data_ptr()
    layer.crop(-3)
    feed(layer, 2)
    assert layer.keys.data_ptr() == place and layer.slots == 204
    check(layer)
    layer.crop(-190)
    assert held(layer) == layer.slots == 14
    feed(layer, 1)
    check(layer)


def test_a_window_forgets_the_first_rows_and_their_memory():
    layer = filled(100, window=8)
    assert held(layer) == layer.slots == 7
    layer.record_past = True
    for _ in range(5):
        feed(layer, 1)
    layer.crop(-2)
    assert layer.pos[0].tolist() == list(range(96, 103))
    check(layer)


@pytest.mark.parametrize("tokens", [-1, -2, -4])
def test_fillers_stay_fillers_after_crop(tokens):
    """Rows cropped in one sample alone keep their column, which other code must not see again."""
    layer = with_fillers()
    layer.append(*new(layer, 1), torch.tensor([[7], [5]]), torch.tensor([[True], [False]]), steps=1)
    layer.crop(tokens)
    rows = [layer.pos[b][layer.ok[b]].tolist() for b in (0, 1)]
    assert rows[0] == [p for p in (0, 2, 3, 4, 5, 6, 7) if p < 8 + tokens]
    assert rows[1] == [p for p in (3, 4, 5, 6) if p < 8 + tokens]
    feed(layer, 2)
    for b in (0, 1):
        assert layer.pos[b][layer.ok[b]].tolist() == rows[b] + [layer.seen - 2, layer.seen - 1]
    check(layer)


def test_a_column_that_stays_for_one_sample_is_closed_for_the_other():
    layer = SkipCacheLayer()
    keys = torch.tensor([[[[0.0]], [[0.0]]], [[[0.0]], [[0.0]]]]).expand(2, HEADS, 1, DIM)
    layer.append(keys, -keys, torch.zeros(2, 1, dtype=torch.long), None, steps=1)
    place = torch.tensor([[1], [4]])
    more = place[:, None, :, None].float().expand(-1, HEADS, -1, DIM)
    layer.append(more, -more, place, None, steps=4)
    layer.crop(-1)  # row 4, which only sample 1 has, in a column that sample 0 needs
    feed(layer, 1)
    assert layer.ok.tolist() == [[True, True, True], [True, False, True]]
    check(layer)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_do_not_write_into_each_other(copied):
    layer = with_fillers()
    other = copied(layer)
    before = other.keys.clone()
    layer.crop(-1)
    layer.update(*(torch.full((2, HEADS, 1, DIM), 99.0),) * 2)
    assert torch.equal(other.keys, before)
    feed(other, 2)
    check(other)
    assert (layer.keys[:, :, -1] == 99).all()


def test_other_code_may_put_its_own_tensors_in_place():
    layer = filled(5, steps=3)
    theirs = layer.keys + 1
    layer.keys = theirs
    feed(layer, 1)
    assert torch.equal(layer.keys[:, :, :-1], theirs)
    layer.keys[:] = 0
    assert torch.equal(theirs, filled(8).keys + 1)


def test_samples_change():
    layer = filled(5, steps=3)
    layer.keys[1] += 0.5
    layer.reorder_cache(torch.tensor([1, 1, 0]))
    feed(layer, 1, batch=3)
    assert layer.keys[:, 0, 0, 0].tolist() == [0.5, 0.5, 0] and layer.keys.shape == (3, HEADS, 9, DIM)
    with pytest.raises(RuntimeError):
        feed(layer, 1, batch=1)


def test_offloaded_rows_leave_no_room_behind(monkeypatch):
    layer = filled(5, steps=3)
    layer.offload()
    assert layer.room is not None  # already there
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self.clone())
    layer.offload()
    assert layer.room is None


def test_a_graph_keeps_its_rows():
    layer, query = filled(5, steps=3), torch.ones(2, HEADS, 1, DIM, requires_grad=True)
    with torch.enable_grad():
        keys = layer.update(*new(layer, 1))[0]
        scores = (query * keys).square().sum()
    for _ in range(2):
        feed(layer, 1)
    layer.crop(-2)
    feed(layer, 1)
    scores.backward()
    assert torch.equal(query.grad[0, 0, 0], torch.full((DIM,), 2.0 * sum(i * i for i in range(9))))
    check(layer)


def test_rows_of_inference_mode_are_continued_outside():
    with torch.inference_mode():
        layer = filled(5, steps=3)
    feed(layer, 1)
    with torch.inference_mode():
        feed(layer, 1)
    feed(layer, 1)
    check(layer)


def test_rows_dropped_after_they_were_read_take_no_room():
    layer, stored = filled(5, steps=1), (torch.tensor([[1, 2]] * 2), None)
    keys, values = new(layer, 200)
    pos = torch.arange(6, 206).expand(2, -1)
    assert layer.append(keys, values, pos, None, 200, stored)[0].shape[2] == 206
    assert layer.pos[0].tolist() == [0, 1, 2, 3, 4, 5, 7, 8] and held(layer) <= 8 + growth(8)
    check(layer)


def test_range_of():
    assert range_of([False, True, True]) == (1, 3) and range_of([False]) == (0, 0) and range_of([]) == (0, 0)
    assert range_of([True, False, True]) is None
