"""Skip-Vision against the authors' code: the merge, the summary rows, and the whole method on a stock model."""

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.golden.stacks import close, decode, layer_outputs, stock_model
from vtskip.methods.skip_vision import Summary, merge_redundant
from vtskip.runtime.cache import stored_slots


def test_merge(golden):
    item = golden("skip_vision_merge")
    t, c = item.tensors, item.json["config"]
    merged, rows = merge_redundant(t["rows"], c["rows"] - c["r"], raster=False)
    assert torch.equal(rows, t["destination_rows"])
    close(merged, t["merged"], 1e-5)
    merged, rows = merge_redundant(t["rows"], c["rows"] - c["r"])
    order = t["destination_rows"].argsort(1)
    assert torch.equal(rows, t["destination_rows"].gather(1, order))
    close(merged, t["merged"].gather(1, order[..., None].expand(-1, -1, c["dim"])), 1e-5)


def load_summary(summary: Summary, item) -> Summary:
    names = {"norm": "layernorm", "score": "linear"}
    weights = {f"{ours}.{p}": f"weights.ada.{theirs}.{p}" for ours, theirs in names.items() for p in ("weight", "bias")}
    summary.load_state_dict({ours: item.tensors[theirs] for ours, theirs in weights.items()})
    return summary


def test_summary_rows(golden):
    item = golden("skip_ffn_stack")
    summary = load_summary(Summary(item.json["config"]["hidden_size"]), item)
    groups = ("retained", "skipped")
    for group, row in zip(groups, summary.pooled([item.tensors[group] for group in groups]), strict=True):
        close(row[:, 0].detach(), item.tensors[f"summary_{group}"], 2e-5)


def tripled(rows: torch.Tensor) -> torch.Tensor:
    """The rows ``[1, n, h]`` with the most redundant one three times in a row: merged to n again, they are as before."""
    unit = torch.nn.functional.normalize(rows[0], dim=-1)
    most = int((unit @ unit.T).sum(1).argmax())
    return torch.cat([rows[:, :most], rows[:, most : most + 1].expand(-1, 3, -1), rows[:, most + 1 :]], 1)


@pytest.mark.parametrize("drop_kv", [True, False])
def test_stack(golden, drop_kv):
    """An image of 258 rows: 100 retained, 158 merged to 156, and both summaries, as the release's rows of the LLM."""
    item = golden("skip_ffn_stack")
    t, c = item.tensors, item.json["config"]
    prefix, retained, skipped, suffix = (t[name] for name in ("prefix", "retained", "skipped", "suffix"))
    hidden = torch.cat([prefix, retained, tripled(skipped), suffix], 1)
    start, k, m = prefix.shape[1], c["retained"], c["skipped"]
    places = torch.arange(hidden.shape[1])
    vision = (places >= start) & (places < start + k + m + 2)
    dropped = (places > start + k) & (places <= start + k + m)
    model, cache = stock_model(item, c["num_layers"]), DynamicCache()
    outputs = layer_outputs(model)
    method = {"name": "skip_vision", "retain": "first", "keep": k, "merged": m, "drop_kv": drop_kv}
    handle = vtskip.attach(model, method)
    load_summary(model.layers[0].vtskip.summary, item)
    with torch.no_grad(), handle.rows(vision[None]):
        out = model(inputs_embeds=hidden, past_key_values=cache).last_hidden_state
        close(out[:, ~dropped], t["hidden_out"])
        close(outputs[-1][:, dropped], t["skipped_out"])
        held = len(places) - (m if drop_kv else 0)
        assert [stored_slots(layer) for layer in cache.layers] == [held] * c["num_layers"]
        decoded = decode(model, t["decode_in"], cache)
    if drop_kv:
        close(decoded, t["decode_out"])
    else:
        assert (decoded - t["decode_out"]).abs().max() > 1e-3
