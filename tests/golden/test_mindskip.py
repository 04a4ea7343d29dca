"""MindSkip against the authors' code: one layer, its decode step and its straight-through gradient."""

import torch
from transformers import DynamicCache

import vtskip
from tests.golden.stacks import close, layer_outputs, load_routers, stock_model


def attach_mindskip(item):
    model = stock_model(item, 1)
    scale = item.json["config"]["gradient_scale"]
    handle = vtskip.attach(model, {"name": "mindskip", "layers": [0], "gradient_scale": scale})
    load_routers(model, item)
    return model, handle, layer_outputs(model)


def test_gate_hidden_states_and_decode(golden):
    item = golden("mindskip_layer")
    t = item.tensors
    model, handle, outputs = attach_mindskip(item)
    cache = DynamicCache()
    with torch.no_grad():
        model(inputs_embeds=t["hidden_in"], past_key_values=cache)
        gate = cache.layers[0].carry
        assert gate.float().tolist() == t["gate"].tolist() == item.json["gate_pattern"]
        close(outputs.pop(), t["hidden_out"])
        assert list(cache.layers[0].keys.shape) == item.json["cached_key_shape_after_first_pass"]
        model(inputs_embeds=t["decode_in"], past_key_values=cache)
    close(outputs.pop(), t["decode_out"])
    assert handle.report().layers[0].attend == (t["hidden_in"].shape[1] + 1) * int(t["gate"].sum())


def test_straight_through_gradient(golden):
    item = golden("mindskip_layer")
    t = item.tensors
    model, handle, outputs = attach_mindskip(item)
    model.train()(inputs_embeds=t["hidden_in"][t["train.sample"]])
    close(outputs[0], t["train.hidden_out"])
    close(handle.aux_loss().reshape(1), t["train.gate_loss"])
    ((outputs[0] * t["train.cotangent"]).sum() + handle.aux_loss()).backward()
    ours, theirs = model.layers[0].vtskip.router.weight.grad, t["train.router_grad"]
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()
