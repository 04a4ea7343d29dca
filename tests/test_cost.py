"""The cost model against the papers' figures (reference sizes: LLaVA-1.5-7B, 576 vision and 64 text rows)."""

import numpy as np
import pytest
import torch

from vtskip.cost import full_flops, head_flops, linear_flops
from vtskip.methods import get_method
from vtskip.plan import SCORES, DecoderShape, LayerPlan, RowMap
from vtskip.runtime.stats import StepState

LLAVA_7B = DecoderShape(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000)


def prefill(spec: dict, shape: DecoderShape = LLAVA_7B, vision: int = 576, text: int = 64) -> StepState:
    """Counts of one prefill, from the method's own plans (its scores are noise: only numbers of rows matter)."""
    mask = np.zeros((1, vision + text), bool)
    mask[0, 35 : 35 + vision] = True
    rows, state, hidden = RowMap.build(mask), StepState(), torch.zeros(1, vision + text, shape.hidden)
    rows.memo |= {(SCORES, i): torch.rand(1, vision + text) for i in range(shape.layers)}
    state.reset(shape.layers)
    state.begin(rows)
    for i in range(shape.layers):
        planner = get_method(spec).planner(i, shape)
        if planner is not None:
            state.record(i, planner(rows, hidden), 0)
    state.finish(1, vision + text, None)
    return state


def counted(spec: dict, shape: DecoderShape = LLAVA_7B, vision: int = 576, text: int = 64) -> tuple[float, float]:
    """TFLOPs (full counting) and ratio to dense of one prefill."""
    state = prefill(spec, shape, vision, text)
    total = sum(full_flops(shape, c) for c in state.layers)
    return total / 1e12, total / (shape.layers * full_flops(shape, state.dense))


def test_dense():
    assert counted({"name": "dense"})[0] == pytest.approx(8.504, abs=1e-3)


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "heads", "vision", "frozen", "dense", "ratio"),
    [
        (32, 4096, 11008, 32, 576, 19, 8.50, 0.552),
        (40, 5120, 13824, 40, 576, 24, 16.58, 0.547),
        (32, 4096, 11008, 32, 2880, 19, 42.68, 0.505),
        (40, 5120, 13824, 40, 2880, 24, 81.81, 0.502),
    ],
)
def test_shortv_published_ratios(layers, hidden, ffn, heads, vision, frozen, dense, ratio):
    shape = DecoderShape(layers, hidden, ffn, heads, heads, hidden // heads, 32000)
    spec = {"name": "shortv", "layers": list(range(layers - frozen, layers))}
    assert counted({"name": "dense"}, shape, vision)[0] == pytest.approx(dense, rel=2e-3)
    assert counted(spec, shape, vision)[1] == pytest.approx(ratio, abs=6e-4)


def test_skip_ffn_on_all_vision_rows():
    spec = {"name": "skip_ffn", "retained": []}
    assert counted(spec)[0] == pytest.approx(3.518, abs=2e-3)


def test_linear_and_head():
    state = StepState()
    state.reset(1)
    state.dense.add(634, 634 * 634, 576)
    per_layer = linear_flops(LLAVA_7B, state.dense)
    assert (32 * per_layer + head_flops(LLAVA_7B, 634)) / 1e12 == pytest.approx(8.378, abs=1e-3)  # p-MoD's counting


def test_videollm_mod_keeps_60_percent_of_the_vision_work():
    """Ten rows a frame, two kept in every other layer: 0.60 of the vision rows, 1.67 times the context."""
    shape = DecoderShape(32, 4096, 14336, 32, 8, 128, 128256)
    rows = RowMap.build(np.ones((1, 600 * 10), bool), sizes=[[10] * 600])
    kept = 0
    for i in range(shape.layers):
        planner = get_method({"name": "uniform", "keep": 0.2}).planner(i, shape)
        plan = LayerPlan.of(rows.everything) if planner is None else planner(rows, None)
        kept += len(plan.cache)
    share = kept / (shape.layers * 6000)
    assert share == pytest.approx(0.60)
    assert 1 / share == pytest.approx(1.67, abs=0.01)


@pytest.mark.parametrize(
    ("layer", "keep", "tflops", "ratio"), [(2, 0.5, 4.867, 0.572), (3, 0.5, 4.988, 0.587), (3, 0.25, 3.259, 0.383)]
)
def test_fastv_published_ratios(layer, keep, tflops, ratio):
    ours = counted({"name": "fastv", "layer": layer, "keep": keep})
    assert ours == (pytest.approx(tflops, abs=1e-3), pytest.approx(ratio, abs=1e-3))


@pytest.mark.parametrize(
    ("vision", "dense", "pmod", "cached"), [(576, 8.378, 4.923, 9896), (2928, 39.457, 21.914, 50352)]
)
def test_pmod_published_flops_and_cache(vision, dense, pmod, cached):
    """Linear layers and LM head on 58 text rows, as p-MoD counts; vision rows in the cache are 53.75 percent."""
    state = prefill({"name": "pmod"}, vision=vision, text=58)
    head = head_flops(LLAVA_7B, vision + 58)
    ours = head + sum(linear_flops(LLAVA_7B, c) for c in state.layers)
    full = head + LLAVA_7B.layers * linear_flops(LLAVA_7B, state.dense)
    assert (full / 1e12, ours / 1e12) == (pytest.approx(dense, abs=1e-3), pytest.approx(pmod, abs=2e-3))
    rows = sum(c.cache for c in state.layers) - 32 * 58
    assert rows == cached and rows / (32 * vision) == pytest.approx(0.5375, abs=1e-3)
