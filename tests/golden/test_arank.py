"""gamma-MoD's attention rank against the authors' code, and on real families."""

import copy

import pytest
import torch

from tests.tiny import FAMILIES
from vtskip.calibrate import AttentionRanks, arank, attention_rank
from vtskip.errors import ConfigError, ModelError
from vtskip.runtime.attach import attach, attached


def test_ranks_of_given_maps(golden):
    t = golden("arank").tensors
    ours = attention_rank(t["attention"])
    assert ours.dtype == t["rank_per_head"].dtype and torch.equal(ours, t["rank_per_head"])
    assert torch.allclose(ours.float().mean(-1), t["arank"], rtol=0, atol=1e-6)


def test_the_diagonal_and_what_is_above_it_do_not_count():
    below = torch.rand(2, 9, 9).tril(-1)
    assert torch.equal(attention_rank(below + torch.rand(2, 9, 9).triu()), attention_rank(below))
    assert attention_rank(torch.eye(9)).item() == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_gives_the_ranks_of_the_maps_the_model_itself_returns(name):
    """Against ``output_attentions``, which keeps all maps; the model comes back on its own back end."""
    family = FAMILIES[name]
    model, samples, seen = family.model(torch.float32), [], []
    samples = [family.batch([kind], dtype=torch.float32) for kind in ("long", "short")]
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    before = model.get_decoder().config._attn_implementation
    model.train()
    ours = arank(model, samples, progress=seen.append)
    assert model.training and model.get_decoder().config._attn_implementation == before and len(seen) == 8
    assert not any(layer.self_attn._forward_hooks for layer in model.get_decoder().layers)
    with torch.no_grad():
        maps = [reference(**sample, output_attentions=True).attentions for sample in samples]
    theirs = torch.stack([torch.stack([attention_rank(m[0]).float().mean() for m in layers]) for layers in maps])
    assert torch.allclose(ours.ranks, theirs, rtol=0, atol=1e-4)
    assert ours.lengths.tolist() == [sample["input_ids"].shape[1] for sample in samples]
    assert (ours.ranks <= ours.lengths[:, None] - 1 + 1e-4).all()


def test_layers_by_count_quantile_share_and_rank():
    scores = AttentionRanks(torch.tensor([[0.2, 0.05, 0.2, 0.4], [0.2, 0.05, 0.3, 0.4]]), torch.tensor([100, 200]))
    assert scores.order == [1, 0, 2, 3]
    assert scores.layers(2) == scores.layers(quantile=0.4) == scores.layers(threshold=0.2 + 1e-6) == [0, 1]
    assert scores.layers(rank=39) == [0, 1] and scores.layers(rank=41) == [0, 1, 2]  # 30, 7.5, 40 and 60 rows
    for total, count in ((32, 19), (40, 24)):  # ShortV's published numbers of layers
        assert len(AttentionRanks(torch.rand(3, total), torch.ones(3)).layers(quantile=0.6)) == count
    assert scores.layers(quantile=0.0) == [1] and scores.layers(quantile=1.0) == [0, 1, 2, 3]
    for rules in ({}, {"count": 1, "rank": 3}, {"quantile": 1.5}, {"count": 5}):
        with pytest.raises(ConfigError):
            scores.layers(**rules)


def test_an_attached_method_is_refused_and_left_on():
    family = FAMILIES["llava-llama"]
    model = family.model()
    attach(model, "uniform")
    with pytest.raises(ModelError, match="'uniform' is attached"):
        arank(model, [family.batch(["long"])])
    assert attached(model) is not None


def test_batches_padding_and_nothing_are_refused():
    family = FAMILIES["llava-llama"]
    with pytest.raises(ModelError, match="batch of 2"):
        arank(family.model(), [family.batch(["short", "short"])])
    padded = {k: v[1:] for k, v in family.batch(["long", "short"]).items() if k != "pixel_values"}
    with pytest.raises(ModelError, match="padding"):
        arank(family.model(), [padded])
    with pytest.raises(ModelError, match="at least one sample"):
        arank(family.model(), [])
