"""What a mod router learns from: which layers' routers a loss on text reaches, and exploration."""

import numpy as np
import pytest
import torch

import vtskip
from tests.tiny import FAMILIES
from vtskip.methods.mod import Mod
from vtskip.plan import DecoderShape, RowMap
from vtskip.routers import gumbel_noise

TINY = FAMILIES["llava-llama"]
ALL = {"kind": "constant"}
SHAPE = DecoderShape(layers=4, hidden=8, ffn=16, heads=2, kv_heads=2, head_dim=4, vocab=9)


def router_gradients(combine: str) -> list[float]:
    """Norm of each router's gradient, of a loss at the last text row; the last two layers run every row."""
    model, batch = TINY.model(torch.float64), TINY.batch(["long"])
    vtskip.attach(model, {"name": "mod", "keep": 1.0, "combine": combine, "schedule": ALL})
    model(**batch).logits[:, -1].log_softmax(-1)[:, 5].sum().backward()
    return [float(layer.vtskip.router.weight.grad.norm()) for layer in model.get_decoder().layers]


def test_the_router_of_the_last_layer_learns_nothing_from_text():
    """Nothing reads the vision rows that leave it."""
    for combine in ("output", "delta"):
        assert router_gradients(combine)[-1] == 0


def test_the_layer_behind_reads_weighted_outputs_as_unweighted_ones():
    """A pre-norm layer divides a row's weight out again (up to the norm's epsilon); weighted contributions stay."""
    output, delta = router_gradients("output"), router_gradients("delta")
    assert output[-2] < 1e-3 * output[0]
    assert delta[-2] > 0.05 * delta[0]


def test_exploration_is_of_training_alone_and_the_same_when_recomputed():
    rows = RowMap.build(np.arange(402)[None] > 1, sizes=[[40] * 10])
    hidden = torch.randn(1, 402, 8, generator=torch.Generator().manual_seed(0))

    def kept(training: bool, **options: float) -> torch.Tensor:
        planner = Mod(keep=0.1, **options).planner(1, SHAPE).train(training)
        return planner(rows, hidden).attend.mask

    best = kept(True)
    assert torch.equal(kept(False, explore=1.0), best)
    explored = kept(True, explore=1.0)
    assert torch.equal(kept(True, explore=1.0), explored)
    assert not torch.equal(kept(True, explore=1.0, seed=1), explored)
    assert explored[:, 2:].view(10, 40).sum(1).eq(4).all()
    assert (explored & ~best).sum() > 20, "most of the 40 kept rows are others"


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_best_of_noisy_logits_are_draws_from_their_softmax(scale):
    position = torch.arange(200_000)[None]
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).double() * (scale / 3)
    first = (logits + gumbel_noise(position, seed=3).view(-1, 4)).argmax(-1)
    share = first.bincount(minlength=4) / len(first)
    torch.testing.assert_close(share.double(), logits.softmax(-1), atol=5e-3, rtol=0)
