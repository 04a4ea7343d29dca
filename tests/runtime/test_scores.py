"""Scores of a layer's attention are made of the K that the layer computes anyway."""

import pytest
import torch

import vtskip
from tests.tiny import FAMILIES
from vtskip.plan import SCORES
from vtskip.runtime import layer as runtime

FASTV = {"name": "fastv", "keep": 0.5, "layer": 2}


@pytest.mark.parametrize("kinds", [["long", "long"], ["long", "short", "text"]], ids=["native", "packed"])
@pytest.mark.parametrize("name", ["llava-llama", "qwen3_vl", "glm4v"])
def test_k_is_computed_once(name, kinds, monkeypatch):
    family = FAMILIES[name]
    model, batch, calls = family.model(), family.batch(kinds), []
    found = []
    with torch.no_grad(), vtskip.attach(model, FASTV) as handle:
        product = model.get_decoder().layers[1].self_attn.k_proj
        product.register_forward_pre_hook(lambda *_: calls.append(1))
        for again in (False, True):
            if again:
                monkeypatch.setattr(runtime, "with_keys", lambda execution, x: (execution.run(x), None))
            model(**batch)
            found.append(handle.last_rows.memo[SCORES, 1])
    assert calls == [1, 1, 1]  # where it cannot be taken from the layer, twice
    assert (found[0] - found[1]).abs().max() <= family.tolerance and found[0].sum() > 1
    assert not product._forward_hooks
