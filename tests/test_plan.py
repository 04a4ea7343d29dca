"""Rows, groups and row sets."""

import numpy as np
import pytest
import torch

from vtskip.errors import ModelError
from vtskip.plan import RowMap, RowSet, rows_to_keep


@pytest.mark.parametrize(
    ("keep", "size", "kept"), [(0.2, 10, 2), (0.2, 26, 6), (0.2, 1, 1), (0.14, 50, 7), (1.0, 9, 9)]
)
def test_rows_to_keep_rounds_up_without_float_error(keep, size, kept):
    assert rows_to_keep(keep, size) == kept


def test_row_set_index_is_ordered_right_aligned_and_distinct():
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    rows = RowSet(mask, [3, 1])
    assert rows.width == 3 and len(rows) == 4
    assert rows.index[0].tolist() == [1, 3, 4]
    assert rows.index[1, -1] == 2 and rows.index[1].unique().numel() == 3
    assert rows.ok.tolist() == [[True] * 3, [False, False, True]]
    assert RowSet(mask[:1], [3]).ok is None
    assert RowSet(torch.zeros(2, 4, dtype=torch.bool), [0, 0]).index.shape == (2, 0)


@pytest.mark.parametrize("some", [None, (0, 3)])
def test_flat_rows_have_no_fillers_and_fit_the_padded_ones(some):
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [0] * 6, [0] * 6, [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    rows = RowSet(mask, [3, 0, 0, 1])
    rows = rows if some is None else rows.packed
    assert rows.samples == some
    assert rows.flat.tolist() == mask.flatten().nonzero().flatten().tolist()
    assert torch.equal(rows.flat_index[rows.slots], rows.flat)
    assert not rows.even and rows.ok.flatten()[rows.slots].all() and rows.ok.sum() == len(rows)


def test_nothing_is_flat_in_an_empty_set():
    rows = RowSet(torch.zeros(2, 4, dtype=torch.bool), [0, 0])
    assert rows.flat.shape == rows.slots.shape == (0,) and rows.even


def layout() -> RowMap:
    vision = np.array([[0, 1, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]], bool)
    valid = np.array([[1] * 8, [0, 1, 1, 1, 1, 1, 1, 1]], bool)
    return RowMap.build(vision, valid, [[2, 2, 2], [2]], past=[10, 3])


def test_row_map_groups_offsets_and_positions():
    rows = layout()
    assert rows.group.tolist() == [[-1, 0, 0, 1, 1, -1, 2, 2], [-1, -1, 0, 0, -1, -1, -1, -1]]
    assert rows.offset[0].tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert rows.position[0].tolist() == list(range(10, 18))
    assert rows.position[1, 1:].tolist() == list(range(3, 10))
    assert rows.text_counts == (2, 5)
    assert rows.everything.counts == (8, 7)
    assert rows.text.mask.sum(1).tolist() == [2, 5]
    assert rows.group_size[0].tolist() == [0, 2, 2, 2, 2, 0, 2, 2]


def test_runs_are_groups_when_no_sizes_are_given():
    rows = RowMap.build(np.array([[1, 1, 0, 1, 0]], bool))
    assert rows.sizes == ((2, 1),)


def test_padding_is_never_vision():
    rows = RowMap.build(np.array([[1, 1, 0]], bool), np.array([[0, 1, 1]], bool))
    assert rows.vision.tolist() == [[False, True, False]]
    assert rows.sizes == ((1,),)


def test_groups_that_do_not_add_up_are_named():
    with pytest.raises(ModelError, match=r"sample 0.*\[2\].*3 vision rows"):
        RowMap.build(np.array([[1, 1, 1]], bool), sizes=[[2]])


def two_images():
    """t v v v t v v, and one image of three behind a row of padding."""
    vision = np.array([[0, 1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1]], bool)
    return RowMap.build(vision, np.array([[1] * 7, [0] + [1] * 6], bool), [[3, 2], [3]])


def test_a_view_of_fewer_rows_counts_them_anew():
    rows = two_images()
    kept = torch.tensor([[0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    view = rows.within(live := rows.text_and(kept, [[2, 1], [1]]), {})
    assert view.everything is live and view.text is rows.text and view.is_all(live)
    assert view.sizes == ((2, 1), (1,)) and view.text_counts == rows.text_counts
    assert view.group.tolist() == [[-1, 0, -1, 0, -1, -1, 1], [-1, -1, -1, -1, -1, -1, 0]]
    assert view.offset[kept].tolist() == [0, 1, 0, 0] and view.position.equal(rows.position)
    assert view.group_size[kept].tolist() == [2, 2, 1, 1] and view.group_keep(0.5)[kept].tolist() == [1, 1, 1, 1]
    assert view.valid.equal(rows.text.mask | kept) and not (view.vision & ~kept).any()


@pytest.mark.parametrize("counts", [[3, 1], [[3], [1]]])
def test_without_sizes_of_the_images_a_sample_is_one_group(counts):
    rows = two_images()
    kept = torch.tensor([[0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    view = rows.within(rows.text_and(kept, counts), {})
    assert view.sizes == ((3,), (1,)) and view.offset[kept].tolist() == [0, 1, 2, 0]
    assert view.group[kept].tolist() == [0, 0, 0, 0] and view.group_size[kept].tolist() == [3, 3, 3, 1]


def test_what_is_one_object_stays_one_on_another_device():
    rows = two_images()
    some = rows.text_and(rows.vision & (rows.offset == 0), rows.kept_sizes(0.1))
    rows.memo |= {"a": some, "b": {"c": some, "d": rows.within(some, {"e": some})}}
    moved = rows.to(torch.device("cpu"))
    found = moved.memo["a"]
    assert found is not some and found.sizes == some.sizes == ((1, 1), (1,)) and found.mask.equal(some.mask)
    assert moved.memo["b"]["c"] is found is moved.memo["b"]["d"].memo["e"]
