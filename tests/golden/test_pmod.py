"""p-MoD against the authors' code: one layer, a stack, the schedule and the weights."""

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.golden.stacks import close, decode, layer_outputs, load_routers, stock_model
from vtskip.methods.pmod import WeightNorm
from vtskip.plan import rows_to_keep
from vtskip.runtime.cache import stored_slots
from vtskip.schedules import ShiftedCosine


def norm(text: str) -> dict:
    """``tanh_0.2_1`` in our keys; a bare name means scale 1 and bias 1."""
    kind, _, numbers = text.partition("_")
    scale, bias = map(float, numbers.split("_")) if numbers else (1.0, 1.0)
    return {"kind": kind, "scale": scale, "bias": bias}


def attach_pmod(item, layers: int, keep: dict[int, float]):
    model = stock_model(item, layers)
    schedule = {"kind": "list", "layers": list(keep), "keep": list(keep.values())}
    spec = {"name": "pmod", "schedule": schedule, "weight": norm(item.json["config"]["weight_norm"])}
    handle = vtskip.attach(model, spec)
    load_routers(model, item)
    return model, handle


@pytest.mark.parametrize("case", ["b1", "b2"])
def test_layer(golden, case):
    item = golden("pmod_layer")
    t = item.tensors
    model, handle = attach_pmod(item, 1, {0: item.json["config"]["ratio"]})
    outputs, valid = layer_outputs(model), t[f"{case}.valid"].bool()
    with torch.no_grad(), handle.rows(t[f"{case}.vision"].bool()):
        model(inputs_embeds=t[f"{case}.hidden_in"], attention_mask=valid.long())
    assert torch.equal(handle.last_plans[0].attend.mask, t[f"{case}.kept"].bool())
    close(outputs[0][valid], t[f"{case}.hidden_out"][valid], 2e-5)


def test_layer_gradients(golden):
    item = golden("pmod_layer")
    t = item.tensors
    model, handle = attach_pmod(item, 1, {0: item.json["config"]["ratio"]})
    outputs = layer_outputs(model)
    hidden = t["b1.hidden_in"].requires_grad_()
    with handle.rows(t["b1.vision"].bool()):
        model(inputs_embeds=hidden)
    (outputs[0] * t["cotangent"]).sum().backward()
    found = {k.replace(".vtskip.", "."): p.grad for k, p in model.named_parameters()} | {"hidden_in": hidden.grad}
    names = [k for k in t if k.startswith("grad.")]
    assert names
    for name in names:  # some items name the parameter alone, without the layers it lies in
        ours = [g for k, g in found.items() if k.endswith(name.removeprefix("grad."))]
        assert len(ours) == 1, name
        assert (ours[0] - t[name]).abs().max() <= 1e-4 * t[name].abs().max(), name


@pytest.mark.parametrize("case", ["b1", "b2"])
def test_stack(golden, case):
    item = golden("pmod_stack")
    t, c = item.tensors, item.json["config"]
    keep = {i: r for i, r in enumerate(c["layer_ratios"]) if i not in c["dense_layers"]}
    assert ShiftedCosine().resolve(c["num_layers"], 1.0) == pytest.approx(
        [keep.get(i) for i in range(c["num_layers"])], abs=1e-9
    )
    model, handle = attach_pmod(item, c["num_layers"], keep)
    outputs, cache, valid = layer_outputs(model), DynamicCache(), t[f"{case}.valid"].bool()
    with torch.no_grad(), handle.rows(t[f"{case}.vision"].bool()):
        inputs = {"inputs_embeds": t[f"{case}.hidden_in"], "past_key_values": cache}
        out = model(**inputs, attention_mask=None if valid.all() else valid.long()).last_hidden_state
        for i, after in enumerate(outputs):
            if f"{case}.hidden_after.{i}" in t:
                close(after[valid], t[f"{case}.hidden_after.{i}"][valid])
        for i in keep:
            assert torch.equal(handle.last_plans[i].attend.mask, t[f"{case}.kept.{i}"].bool())
        close(out[valid], t[f"{case}.hidden_out"][valid])
        if f"{case}.kv_lengths_after_prefill" in t:
            assert [stored_slots(layer) for layer in cache.layers] == t[f"{case}.kv_lengths_after_prefill"].tolist()
            decoded = decode(model, t[f"{case}.decode_in"], cache)
            close(decoded, t[f"{case}.decode_out"])


def test_schedule(golden):
    item = golden("pmod_prd_schedule")
    layers = item.json["config"]["num_layers"]
    for case in item.json["schedules"]:
        schedule = ShiftedCosine(
            decay=case["decay"].removeprefix("shifted").replace("cos", "cosine"),
            shift=case["beta"],
            max_keep=case["max_ratio"],
            min_keep=case["min_ratio"],
            last=31,
        )
        assert [schedule.raw(i, layers) for i in range(layers)] == pytest.approx(case["raw_R"], abs=1e-9)
        ratios = schedule.resolve(layers, 1.0)
        assert [i for i, r in enumerate(ratios) if r is not None] == case["mod_layers"]
        assert [1.0 if r is None else r for r in ratios] == pytest.approx(case["ratio"], abs=1e-9)
        for rows, counts in case["k"].items():
            assert [rows_to_keep(r or 1.0, int(rows), "trunc") for r in ratios] == counts


def test_weights(golden):
    item = golden("pmod_weight_norm")
    t = item.tensors
    vision = t["vision"].bool()
    for i, entry in item.json["norms"].items():
        ours = WeightNorm(**norm(entry["string"])).weights(t["logits"], vision)
        close(ours[vision], t[f"weights.{i}"][vision], 1e-6)
