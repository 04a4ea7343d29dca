"""AIM against the authors' code: merging, importance, and the schedule on a stock model of 28 layers."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

import vtskip
from tests.golden.stacks import close, load_weights
from vtskip.methods.aim import merge_alternate, merge_to
from vtskip.plan import SCORES, Propagation
from vtskip.runtime import importance, layer


def test_merge(golden):
    item = golden("aim_merge")
    t, c = item.tensors, item.json["config"]
    rows, n = t["rows"], c["rows"]
    for r, expected in zip(c["r_rounds"], (t["after_round1"], t["after_round2"])):
        rows, _ = merge_alternate(rows, rows.shape[1] - r, raster=False)
        close(rows, expected, 1e-5)
    merged, places = merge_to(t["rows"], n - sum(c["r_rounds"]))
    close(merged, t["after_round2"], 1e-5)
    assert (places.diff(dim=1) > 0).all()
    merged, at = merge_alternate(t["rows"], n - c["small_r"], raster=False)
    close(merged, t["small_r"], 1e-5)
    ours, places = merge_alternate(t["rows"], n - c["small_r"])
    order = at.argsort(1)
    close(ours, t["small_r"].gather(1, order[..., None].expand_as(ours)), 1e-5)
    assert torch.equal(places, at.gather(1, order)) and (places.diff(dim=1) > 0).all()


@pytest.mark.parametrize("block", [2**26, 2 * 3 * 24 * 5])
def test_importance(golden, monkeypatch, block):
    """The map in one block and in blocks of five rows; the given logits are those of q = logits and k = identity."""
    monkeypatch.setattr(importance, "BLOCK", block)
    item = golden("aim_importance")
    c, logits = item.json["config"], item.tensors["logits"]
    batch, heads, n, _ = logits.shape
    keys = torch.eye(n).expand(batch, heads, n, n)
    logits = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), 0.0)  # hidden ones must not matter
    how = Propagation(c["iterations"], c["temperature"])
    close(
        importance.spread(logits, keys, torch.ones(batch, n, dtype=torch.bool), how, 1.0),
        item.tensors["importance"],
        1e-6,
    )


@pytest.fixture
def stack(golden):
    item = golden("aim_schedule_stack")
    c = item.json["config"]
    config = Qwen2Config(
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_hidden_layers=c["num_layers"],
        num_attention_heads=c["heads"],
        num_key_value_heads=c["kv_heads"],
        rms_norm_eps=c["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
        vocab_size=8,
    )
    model = Qwen2Model(config).eval()
    load_weights(model, item, {"embed_tokens.weight", "norm.weight"})
    first = c["start_layer"]
    spec = {"name": "aim", "keep": 1.0, "first": first, "stop": first + round(1 / c["slope"])}
    return item, model, vtskip.attach(model, spec)


def run(item, model, handle):
    """The output, and for each layer the rows that go on behind it."""
    t, c = item.tensors, item.json["config"]
    place = torch.arange(t["hidden_in"].shape[1])
    vision = (place >= c["prefix_rows"]) & (place < c["prefix_rows"] + c["vision_rows"])
    with torch.no_grad(), handle.rows(vision[None]):
        out = model(inputs_embeds=t["hidden_in"]).last_hidden_state
    everything = handle.last_rows.everything.mask
    plans = [handle.last_plans.get(i) for i in range(c["num_layers"])]
    after = [everything if plan is None else plan.attend.mask for plan in plans[1:]]
    return out[:, ~vision], torch.cat([*after, plans[-1].attend.mask])


def test_schedule(stack):
    """Rows that leave do not ask any more, as the file says of an implementation that removes them: that exchanges rows."""
    item, model, handle = stack
    _, visible = run(item, model, handle)
    assert visible.sum(1).tolist() == item.json["visible_counts"]
    differ = (visible != item.tensors["visible_after"]).sum(1)
    assert {str(i): int(n) for i, n in enumerate(differ) if n} == item.json["rows_that_differ_if_removed_physically"]
    first = item.json["config"]["start_layer"]
    found, expected = handle.last_rows.memo[SCORES, first], item.tensors[f"importance.{first}"]
    assert ((found - expected).abs() <= 1e-3 * expected).all()


def test_schedule_by_the_releases_importance(stack, monkeypatch):
    """With the order of rows that the release leaves behind each layer, all rows and the text's output are its own."""
    item, model, handle = stack
    left = item.tensors["visible_after"].float()
    monkeypatch.setattr(layer, "propagated", lambda module, *args: left[module.vtskip.runtime.index][None])
    text, visible = run(item, model, handle)
    assert torch.equal(visible, item.tensors["visible_after"])
    close(text, item.tensors["text_hidden_out"], 1e-4)
