"""Attaching: what is refused, what is reported, what must not be disturbed."""

import functools
import pickle

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.tiny import FAMILIES, TEXT
from vtskip.errors import ConfigError, ModelError
from vtskip.routers import Router
from vtskip.runtime.attach import attached


@pytest.fixture
def model():
    return FAMILIES["llava-llama"].model(torch.float32)


@pytest.fixture
def batch():
    return FAMILIES["llava-llama"].batch(["long", "short"], dtype=torch.float32)


def test_unknown_model_is_refused_with_the_supported_families():
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    with pytest.raises(ModelError, match=r"GraniteForCausalLM.*LlavaForConditionalGeneration, .*Qwen2_5_VL"):
        vtskip.attach(GraniteForCausalLM(GraniteConfig(**sizes, num_key_value_heads=2)), "mod")


def test_a_wrapper_is_refused_with_the_place_of_the_model(model):
    for wrapper, place in ((torch.nn.Sequential(model), "0"), (torch.nn.ModuleDict({"llm": model}), "llm")):
        with pytest.raises(ModelError, match=rf"holds a LlavaForConditionalGeneration: .* its \.{place}, before"):
            vtskip.attach(wrapper, "mod")
    with pytest.raises(ModelError, match=r"got 'llava-hf/llava-1\.5-7b-hf' \(str\); load it first"):
        vtskip.attach("llava-hf/llava-1.5-7b-hf", "mod")


def test_a_layer_with_one_more_child_is_refused(model):
    model.get_decoder().layers[2].extra_norm = torch.nn.LayerNorm(4)
    with pytest.raises(ModelError, match=r"layer 2.*extra_norm"):
        vtskip.attach(model, "mod")


def test_a_layer_that_computes_something_else_is_refused(model):
    attn = model.get_decoder().layers[1].self_attn
    native = type(attn).forward

    def other(self, hidden_states, **kwargs):
        out, weights = native(self, hidden_states, **kwargs)
        return out * 1.5, weights

    attn.forward = functools.partial(other, attn)
    with pytest.raises(ModelError, match=r"layer 1 .*differs from its own forward"):
        vtskip.attach(model, {"name": "shortv", "layers": [1]})
    assert not hasattr(model.get_decoder().layers[1], "vtskip")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, ModelError])
def test_what_ends_an_attach_half_way_leaves_the_model_as_it_was(model, batch, monkeypatch, fault):
    def fail(layer, index):
        if index == 2:
            raise fault

    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    expected, before = model(**batch).logits, hooks()  # transformers adds its own on the first call
    with monkeypatch.context() as patch, pytest.raises(fault):
        patch.setattr("vtskip.runtime.attach.self_check", fail)
        vtskip.attach(model, "skip_vision")
    assert not any("forward" in m.__dict__ or hasattr(m, "vtskip") for m in model.modules())
    assert hooks() == before and torch.equal(model(**batch).logits, expected)
    vtskip.attach(model, "mod").detach()


def test_attaching_twice_is_refused(model):
    with vtskip.attach(model, "mod"), pytest.raises(ModelError, match="already has method 'mod'"):
        vtskip.attach(model, "dense")
    vtskip.attach(model, "random").detach()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("modd", "did you mean 'mod'"),
        ({"name": "mod", "kep": 0.2}, "did you mean 'keep'"),
        ({"name": "mod", "keep": 2}, r"keep: got 2, accepted: a number in \(0, 1\]"),
        ({"name": "shortv", "layers": [7]}, r"layers \[7\] do not exist"),
        ({"keep": 0.2}, "unknown method None"),
    ],
)
def test_bad_methods_are_named(model, spec, message):
    with pytest.raises(ConfigError, match=message):
        vtskip.attach(model, spec)
    assert attached(model) is None


def test_method_from_yaml(model, tmp_path):
    path = tmp_path / "method.yaml"
    path.write_text("name: mod\nkeep: 0.5\n")
    with vtskip.attach(model, path) as handle:
        assert handle.method.keep == 0.5


def test_overwritten_forward_is_noticed(model, batch):
    with vtskip.attach(model, "mod"):
        layer = model.get_decoder().layers[1]
        ours, layer.forward = layer.forward, functools.partial(type(layer).forward, layer)
        with pytest.raises(ModelError, match="layer 1 was replaced"):
            model(**batch)
        layer.forward = ours


def test_an_earlier_patch_is_kept_and_restored(model, batch):
    layer, calls = model.get_decoder().layers[1], []

    def patched(self, *args, **kwargs):
        calls.append(1)
        return type(self).forward(self, *args, **kwargs)

    layer.forward = mine = functools.partial(patched, layer)
    with vtskip.attach(model, "mod"):
        model(**batch)
    assert calls and layer.forward is mine


def test_report_counts_what_ran(model, batch):
    with vtskip.attach(model, {"name": "mod", "keep": 0.25}) as handle:
        out = model(**batch)
        report = handle.report()
        assert [layer.kept for layer in report.layers] == [1, 0.25, 1, 0.25]
        assert report.layers[1].groups == [[4, 4], [4]]
        assert report.layers[0].groups == [[16, 16], [16]]
        length, widest = batch["input_ids"].shape[1], int(batch["attention_mask"][0].sum()) - 24
        assert [layer.cache for layer in report.layers] == [2 * length, 2 * widest] * 2
        keys = out.past_key_values.layers[1].keys
        assert keys.shape[2] == widest
        assert report.kv_bytes == sum(2 * x.keys.numel() * 4 for x in out.past_key_values.layers)
        assert report.kv_bytes_dense == 2 * 4 * 2 * 2 * 8 * length * 4
        model(input_ids=torch.tensor([[5], [6]]), past_key_values=out.past_key_values)
        after = handle.report()
        assert after.forwards == 2 and after.layers[1].rows == 2 * (length + 1)
        assert after.layers[1].attend == report.layers[1].attend + 2
        assert after.flops_linear > report.flops_linear
        handle.reset()
        assert handle.report().flops_full == 0
        assert pickle.loads(pickle.dumps(after.as_dict())) == after.as_dict()


def test_rows_given_by_hand_equal_rows_read_from_the_inputs():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long"])
    vision = batch["input_ids"] == 100
    with torch.no_grad(), vtskip.attach(model, {"name": "mod", "keep": 0.3}) as handle:
        expected = model(**batch).logits
        embeds = model.get_input_embeddings()(batch["input_ids"])
        features = torch.cat(model.get_image_features(batch["pixel_values"]).pooler_output)
        merged = embeds.masked_scatter(vision[..., None], features)
        with handle.rows(vision):
            assert (model(inputs_embeds=merged).logits - expected).abs().max() < 1e-12


def test_pixels_with_embeddings_alone_are_refused(model, batch):
    with vtskip.attach(model, "mod"), pytest.raises(ModelError, match=r"Handle\.rows"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]), pixel_values=batch["pixel_values"])


def test_attach_leaves_the_random_state_alone(model):
    before = torch.get_rng_state()
    vtskip.attach(model, "mod").detach()
    assert torch.equal(torch.get_rng_state(), before)


def test_router_learns_and_text_only_batches_reach_it(model, batch):
    model.train()
    with vtskip.attach(model, "mod"):
        routers = [p for n, p in model.named_parameters() if "vtskip" in n]
        assert len(routers) == 4
        model(**batch).logits.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)
        model.zero_grad()
        model(**FAMILIES["llava-llama"].batch(["text"], dtype=torch.float32)).logits.sum().backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in routers)


def test_two_models_do_not_see_each_other(batch):
    one, two = (FAMILIES["llava-llama"].model(torch.float32) for _ in range(2))
    with torch.no_grad(), vtskip.attach(one, "mod"):
        expected = one(**batch).logits
        with vtskip.attach(two, {"name": "shortv", "layers": [0, 2]}):
            two(**batch)
            assert torch.equal(one(**batch).logits, expected)


def test_eager_equals_sdpa(batch):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = FAMILIES["llava-llama"].model(torch.float32)
        model.set_attn_implementation(implementation)
        outputs.append([])
        for spec in ({"name": "mod", "keep": 0.3}, {"name": "shortv", "layers": [0, 2]}, "skip_ffn"):
            with torch.no_grad(), vtskip.attach(model, spec):
                outputs[-1].append(model(**batch).logits)
    mask = batch["attention_mask"].bool()
    for eager, sdpa in zip(*outputs):
        assert (eager - sdpa)[mask].abs().max() < 1e-4


def test_bfloat16_runs_and_keeps_its_dtype(batch):
    model = FAMILIES["llava-llama"].model(torch.bfloat16)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    for spec in ("mod", {"name": "shortv", "layers": [1, 3]}, "skip_ffn"):
        with torch.no_grad(), vtskip.attach(model, spec):
            assert model(**batch).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("spec", ["mod", {"name": "skip_vision", "retain": "even", "keep": 4, "merged": 5}])
def test_decisions_stay_in_float32_under_autocast(model, batch, spec):
    seen = []
    with torch.no_grad(), vtskip.attach(model, spec), torch.autocast("cpu", torch.bfloat16):
        for module in model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        assert model(**batch).logits.dtype == torch.bfloat16
    assert seen and set(seen) == {torch.float32}


def test_plain_text_model_needs_rows_by_hand():
    model = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        dense = model(ids).logits
        with vtskip.attach(model, {"name": "shortv", "layers": [0, 1]}) as handle:
            assert torch.equal(model(ids).logits, dense)
            with handle.rows((ids > 5) & (ids < 15)):
                assert (model(ids).logits - dense).abs().max() > 1e-4
            assert torch.equal(model(ids).logits, dense)
