"""ShortV's calibration against the authors' code, and on a real family."""

import pytest
import torch

from tests.golden.stacks import stock_causal_lm
from tests.tiny import FAMILIES
from vtskip.calibrate import layer_contribution
from vtskip.errors import ModelError
from vtskip.runtime.attach import attached


def test_scores_and_order(golden):
    item = golden("shortv_layer_contribution")
    t, c = item.tensors, item.json["config"]
    model = stock_causal_lm(item, c["num_layers"])
    rows = torch.arange(t["hidden_in"].shape[1])[None]
    vision = (rows >= c["prefix_rows"]) & (rows < c["prefix_rows"] + c["vision_rows"])
    samples = [{"inputs_embeds": x[None]} for x in t["hidden_in"]]
    with torch.no_grad():
        logits = torch.cat([model(**s).logits[:, -1] for s in samples])
    assert (logits - t["original_logits"]).abs().max() <= 5e-5
    ours = layer_contribution(model, samples, vision=lambda _: vision)
    assert torch.allclose(ours.scores, t["layer_contribution"], rtol=1e-3, atol=1e-6)
    assert torch.allclose(ours.mean, t["layer_contribution_mean"], rtol=1e-3, atol=1e-6)
    assert ours.order == t["replacement_order"].tolist()
    assert ours.layers(2) == sorted(ours.order[:2])
    other = layer_contribution(model, samples, "original", vision=lambda _: vision)
    assert torch.allclose(other.scores, t["kl_other_direction"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_multimodal_model_the_last_layer_contributes_nothing(name):
    family = FAMILIES[name]
    model = family.model()
    sample = family.batch(["long"])
    seen = []
    scores = layer_contribution(model, [sample], progress=seen.append).scores
    assert scores.shape == (1, 4) and scores[0, -1].abs() < 1e-12 and (scores[0, :-1] > 0).all() and len(seen) == 4
    assert attached(model) is None


def test_modes_come_back_even_after_a_fault():
    family = FAMILIES["llava-llama"]
    model = family.model().train()
    model.model.vision_tower.eval()
    modes = [m.training for m in model.modules()]
    layer_contribution(model, [family.batch(["long"])])
    with pytest.raises(ModelError, match="no vision rows"):
        layer_contribution(model, [family.batch(["text"])])
    assert [m.training for m in model.modules()] == modes and attached(model) is None


def test_batches_padding_and_nothing_are_refused():
    family = FAMILIES["llava-llama"]
    padded = family.batch(["long"]) | {"attention_mask": torch.tensor([[0] * 4 + [1] * 36])}
    with pytest.raises(ModelError, match="4 rows"):
        layer_contribution(family.model(), [padded])
    with pytest.raises(ModelError, match="batch of 2"):
        layer_contribution(family.model(), [family.batch(["short", "short"])])
    with pytest.raises(ModelError, match="at least one sample"):
        layer_contribution(family.model(), [])
