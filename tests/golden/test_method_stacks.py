"""Whole decoder stacks computed with the authors' own code, run through a stock LlamaModel with a method attached."""

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.golden.stacks import close, decode, layer_outputs, load_routers, stock_model
from vtskip.runtime.cache import stored_slots


def attach_mod(item):
    c = item.json["config"]
    routed = [i for i, kind in enumerate(c["layer_types"]) if kind == "mod"]
    model = stock_model(item, c["num_layers"])
    combine = "output" if c.get("is_mod_weighted", True) else "none"
    method = {"name": "mod", "keep": c["r"], "schedule": {"kind": "list", "layers": routed}, "combine": combine}
    handle = vtskip.attach(model, method)
    load_routers(model, item)
    return model, handle, routed


def test_videollm_mod(golden):
    item = golden("videollm_mod_stack")
    t = item.tensors
    model, handle, routed = attach_mod(item)
    vision, outputs, cache = t["vision"].bool(), layer_outputs(model), DynamicCache()
    scores = {}
    for i in routed:
        model.layers[i].vtskip.router.register_forward_hook(lambda m, a, out, i=i: scores.__setitem__(i, out.sigmoid()))
    with torch.no_grad(), handle.rows(vision, frame_ids(item)):
        out = model(inputs_embeds=t["hidden_in"], past_key_values=cache).last_hidden_state
        for i, after in enumerate(outputs):
            close(after, t[f"hidden_after.{i}"])
        for i in routed:
            assert torch.equal(handle.last_plans[i].attend.mask, t[f"kept.{i}"].bool())
            close(scores[i][vision].view(t[f"vision_scores.{i}"].shape), t[f"vision_scores.{i}"], 1e-5)
        close(out, t["hidden_out"])
        assert [stored_slots(layer) for layer in cache.layers] == t["kv_lengths"].tolist()
        close(decode(model, t["decode_in"], cache), t["decode_out"])


def frame_ids(item) -> torch.Tensor:
    """Every run of ``rows_per_frame`` vision rows is one frame."""
    vision = item.tensors["vision"].bool()
    ids = torch.zeros_like(vision, dtype=torch.long)
    ids[vision] = torch.arange(int(vision.sum())) // item.json["config"]["rows_per_frame"]
    return ids


def test_videollm_mod_gradients(golden):
    item = golden("videollm_mod_stack")
    model, handle, _ = attach_mod(item)
    with handle.rows(item.tensors["vision"].bool(), frame_ids(item)):
        hidden = item.tensors["hidden_in"].requires_grad_()
        (model(inputs_embeds=hidden).last_hidden_state * item.tensors["cotangent"]).sum().backward()
    found = {"hidden_in": hidden.grad}
    found |= {k.replace(".vtskip.router.", ".router."): p.grad for k, p in model.named_parameters()}
    names = [k for k in item.tensors if k.startswith("grad.")]
    assert names
    same_parameter: dict[
        str, list
    ] = {}  # over the layers: before a final norm a row's scale has no gradient but rounding
    for name in names:
        kind = name.rpartition(".layers.")[2].partition(".")[2] or name
        same_parameter.setdefault(kind, []).append((name, item.tensors[name]))
    for tensors in same_parameter.values():
        limit = 1e-4 * max(t.abs().max() for _, t in tensors)
        for name, expected in tensors:
            ours = found[name.removeprefix("grad.").removeprefix("weights.")]
            assert (ours - expected).abs().max() <= limit, name


def test_videollm_mod_frame_by_frame(golden):
    """The selection is per frame, so feeding the rows in pieces gives the same outputs."""
    item = golden("videollm_mod_stack")
    t = item.tensors
    model, handle, _ = attach_mod(item)
    ids, cache, pieces = frame_ids(item), DynamicCache(), []
    cuts = torch.cat([t["vision"].long(), ids], 0).diff(dim=1).ne(0).any(0).nonzero().flatten() + 1
    with torch.no_grad(), handle.rows(t["vision"].bool(), ids):
        for piece in t["hidden_in"].tensor_split(cuts.tolist(), dim=1):
            pieces.append(model(inputs_embeds=piece, past_key_values=cache).last_hidden_state)
    assert len(pieces) > 3
    close(torch.cat(pieces, 1), t["hidden_out"])
    assert [stored_slots(layer) for layer in cache.layers] == t["kv_lengths"].tolist()


def test_shortv(golden):
    item = golden("shortv_stack")
    t, c = item.tensors, item.json["config"]
    model = stock_model(item, c["num_layers"])
    outputs, cache = layer_outputs(model), DynamicCache()
    handle = vtskip.attach(model, {"name": "shortv", "layers": c["frozen_layers"]})
    with torch.no_grad(), handle.rows(t["vision"].bool()):
        out = model(inputs_embeds=t["hidden_in"], past_key_values=cache).last_hidden_state
        for i in range(c["num_layers"]):
            if f"hidden_after.{i}" in t:
                close(outputs[i], t[f"hidden_after.{i}"])
        close(out, t["hidden_out"])
        assert [stored_slots(layer) for layer in cache.layers] == item.json["cache_rows_per_layer_after_prefill"]
        close(decode(model, t["decode_in"], cache), t["decode_out"])


@pytest.mark.parametrize("rule", ["retained", "text"])
def test_skip_ffn(golden, rule):
    """The image is one group; retained rows are named by offset, or the skipped rows alone are called vision."""
    item = golden("skip_ffn_stack")
    t, c = item.tensors, item.json["config"]
    parts = ["prefix", "retained", "summary_retained", "skipped", "summary_skipped", "suffix"]
    rows = [t[p].reshape(1, -1, c["hidden_size"]) for p in parts]
    kind = torch.cat([torch.full((r.shape[1],), i) for i, r in enumerate(rows)])[None]
    if rule == "retained":
        vision = (kind > 0) & (kind < 5)
        offsets = (kind[vision] != 3).nonzero().flatten().tolist()
    else:
        vision, offsets = kind == 3, []
    model = stock_model(item, c["num_layers"])
    outputs, cache = layer_outputs(model), DynamicCache()
    handle = vtskip.attach(model, {"name": "skip_ffn", "retained": offsets, "drop_kv": True})
    with torch.no_grad(), handle.rows(vision):
        out = model(inputs_embeds=torch.cat(rows, 1), past_key_values=cache).last_hidden_state
        close(out[kind != 3][None], t["hidden_out"])
        close(outputs[c["num_layers"] - 1][kind == 3][None], t["skipped_out"])
        kept = kind.numel() - int((kind == 3).sum())
        assert [stored_slots(layer) for layer in cache.layers] == [kept] * c["num_layers"]
        close(decode(model, t["decode_in"], cache), t["decode_out"])
