"""FastV against the authors' code."""

import torch
from transformers import DynamicCache

import vtskip
from tests.golden.stacks import close, layer_outputs, stock_model
from vtskip.plan import SCORES
from vtskip.runtime.cache import stored_slots


def test_stack(golden):
    item = golden("fastv_stack")
    t, c = item.tensors, item.json["config"]
    rows = torch.arange(t["hidden_in"].shape[1])
    vision = (rows >= c["prefix_rows"]) & (rows < c["prefix_rows"] + c["vision_rows"])
    model, cache = stock_model(item, c["num_layers"]), DynamicCache()
    outputs = layer_outputs(model)
    handle = vtskip.attach(model, {"name": "fastv", "layer": c["K"], "keep": c["keep"] / c["vision_rows"]})
    with torch.no_grad(), handle.rows(vision[None]):
        out = model(inputs_embeds=t["hidden_in"], past_key_values=cache).last_hidden_state
    close(handle.last_rows.memo[SCORES, c["K"] - 1][0, vision], t["scores"], 1e-6)
    close(outputs[c["K"] - 1], t["hidden_before_drop"])
    kept = t["kept_rows"].long()
    assert torch.equal(handle.last_plans[c["K"]].attend.mask[0].nonzero().flatten(), kept)
    close(out[:, kept], t["hidden_out"])
    lengths = [len(rows)] * c["K"] + [len(kept)] * (c["num_layers"] - c["K"])
    assert [stored_slots(layer) for layer in cache.layers] == lengths
