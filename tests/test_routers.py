"""Selection per group, ties, evenly spaced rows, and noise by content position."""

import numpy as np
import pytest
import torch

from vtskip.kernels import reference
from vtskip.methods.baselines import Random, Uniform
from vtskip.plan import DecoderShape, RowMap, rows_to_keep
from vtskip.routers import Router, evenly_per_group, group_ranks, position_noise, topk_per_group


def ragged(seed: int = 0) -> RowMap:
    """Two samples with groups of many sizes between text, the second one padded on the left."""
    sizes = [[3, 7, 1, 10], [5, 5]]
    vision, valid = np.zeros((2, 40), bool), np.ones((2, 40), bool)
    valid[1, :9] = False
    starts = [[1, 5, 13, 20], [10, 15]]
    for b, row in enumerate(sizes):
        for start, size in zip(starts[b], row):
            vision[b, start : start + size] = True
    return RowMap.build(vision, valid, sizes)


def by_hand(score: torch.Tensor, rows: RowMap, keep: float) -> torch.Tensor:
    """Top-k of every group in plain Python."""
    kept = torch.zeros_like(rows.vision)
    for b, sizes in enumerate(rows.sizes):
        for g, size in enumerate(sizes):
            places = (rows.group[b] == g).nonzero().flatten().tolist()
            best = sorted(places, key=lambda p: (-score[b, p].item(), p))[: rows_to_keep(keep, size)]
            kept[b, best] = True
    return kept


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.34, 0.5, 1.0])
def test_topk_matches_plain_python(keep):
    rows = ragged()
    score = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    kept = topk_per_group(score, rows, keep)
    assert torch.equal(kept, by_hand(score, rows, keep))
    assert kept.sum(1).tolist() == rows.kept_counts(keep)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_ranks_are_those_of_the_kernels(by_kernel):
    """Ties, NaN and rows without a group included; the rows may bring a ranking of their device."""
    rows, score = ragged(), torch.randn(2, 40, generator=torch.Generator().manual_seed(2)).round()
    score[:, ::6] = torch.nan
    expected = reference.group_ranks(score, rows.group)
    inside = rows.group >= 0
    assert torch.equal(group_ranks(score, rows.group)[inside].int(), expected[inside])
    calls = []
    rows.ranks = (lambda *args: calls.append(args) or reference.group_ranks(*args)) if by_kernel else None
    kept = topk_per_group(score, rows, 0.5)
    assert torch.equal(kept, (expected < rows.group_keep(0.5)) & inside) and len(calls) == by_kernel
    topk_per_group(score, rows.by_sample, 0.5)
    assert len(calls) == 2 * by_kernel


def test_ties_go_to_the_earlier_row():
    rows = ragged()
    score = torch.zeros(2, 40)
    assert torch.equal(topk_per_group(score, rows, 0.4), by_hand(score, rows, 0.4))


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 1.0])
def test_even_rows_have_the_same_counts(keep):
    rows = ragged()
    kept = evenly_per_group(rows, keep)
    assert kept.sum(1).tolist() == rows.kept_counts(keep)
    assert kept[rows.vision & (rows.offset == 0)].all()
    assert not (kept & ~rows.vision).any()


def test_noise_is_a_pure_function_of_position_and_seed():
    position = torch.arange(100000)
    noise = position_noise(position, seed=7)
    assert torch.equal(noise[50:60], position_noise(position[50:60], seed=7))
    assert not torch.equal(noise, position_noise(position, seed=8))
    assert noise.min() >= 0 and noise.max() < 1
    histogram = torch.histc(noise, 10, 0, 1) / len(noise)
    assert (histogram - 0.1).abs().max() < 0.01
    neighbours = torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1]
    assert neighbours.abs() < 0.02


def test_router_never_ranks_in_low_precision():
    router = Router(16).bfloat16()
    assert router(torch.randn(2, 3, 16, dtype=torch.bfloat16)).dtype == torch.float32
    assert router.double()(torch.randn(2, 3, 16, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(Router(16, seed=3).weight, Router(16, seed=3).weight)


def test_routers_of_two_outputs_and_without_bias():
    router, hidden = Router(4, outputs=2, bias=False), torch.randn(1, 3, 4).bfloat16()
    assert [n for n, _ in router.named_parameters()] == ["weight"] and router.weight.shape == (2, 4)
    assert torch.equal(router(hidden), hidden.float() @ router.weight.T)


@pytest.mark.parametrize("method", [Random, Uniform])
@pytest.mark.parametrize("which", ["first", "last"])
def test_controls_give_the_same_row_a_place_as_the_method_does(method, which):
    rows = ragged()
    shape = DecoderShape(layers=4, hidden=8, ffn=16, heads=2, kv_heads=2, head_dim=4, vocab=9)
    hidden = torch.zeros(2, 40, 8)
    free = method(keep=0.4).planner(1, shape)(rows, hidden).attend.mask
    held = method(keep=0.4, always_keep=which).planner(1, shape)(rows, hidden).attend.mask
    place = rows.offset == (0 if which == "first" else rows.group_size - 1)
    assert held[place & rows.vision].all()
    assert torch.equal(held.sum(1), free.sum(1))
    assert not torch.equal(held, free) or (method is Uniform and which == "first")
