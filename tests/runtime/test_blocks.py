"""Causal attention block by block, on a CPU: what the model's own attention gives, with fewer products."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtskip
from tests import flash_standin
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.errors import ModelError
from vtskip.kernels import causal_blocks
from vtskip.runtime import execution
from vtskip.runtime.packed import class_is_patched, sdpa_is_patched

EVEN = ["long", "long"]
NAMES = ["llava-llama", "llava-mistral", "gemma3", "paligemma-gemma2", "qwen3_vl", "glm4v"]
MASKED = {"llava-mistral", "gemma3", "paligemma-gemma2"}  # positions alone do not say who sees whom
PLAIN = {"name": "dense"}


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


@pytest.fixture
def blocks(monkeypatch):
    """Blocks small enough for tiny models; how many layers ran with them."""
    ran, attend = [], execution.packed_attention
    monkeypatch.setattr(causal_blocks, "BLOCK", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(execution, "packed_attention", lambda ex, *args: (ran.append(ex.index), attend(ex, *args))[1])
    return ran


def run(model, batch, spec):
    with torch.no_grad(), vtskip.attach(model, spec) as handle:
        cache = DynamicCache()
        out = model(**batch, past_key_values=cache)
        decoded = model(input_ids=batch["input_ids"][:, :1], past_key_values=out.past_key_values)
        report = handle.report()
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return out.logits, decoded.logits, layers, report


@pytest.mark.parametrize(
    "spec", [PLAIN, *(row.spec for row in MATRIX if row.name in ("mod", "skip_ffn", "fastv", "pmod"))]
)
def test_blocks_change_nothing_but_the_products(family, model, blocks, monkeypatch, spec):
    batch = family.batch(EVEN)
    *ours, report = run(model, batch, spec)
    assert (len(blocks) > 0) == (family.name not in MASKED)
    monkeypatch.setattr(causal_blocks, "LONGEST", 0)
    blocks.clear()
    *theirs, plain = run(model, batch, spec)
    assert not blocks
    for a, b in zip(ours[:2], theirs[:2]):
        assert (a - b).abs().max() <= family.tolerance
    for pair, other in zip(ours[2], theirs[2]):
        assert all(a.shape == b.shape and (a - b).abs().max() <= family.tolerance for a, b in zip(pair, other))
    assert report.as_dict() == plain.as_dict()


def test_where_the_layers_own_attention_stays(blocks):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(EVEN)
    text = family.batch(["text", "text"])
    with torch.no_grad():
        stock = model(**text).logits
    with vtskip.attach(model, PLAIN) as handle:
        with torch.no_grad():
            assert torch.equal(model(**text).logits, stock)
        with torch.no_grad():
            model(**batch, output_attentions=True)
            hook = handle._layers[1].self_attn.register_forward_hook(lambda module, args, out: None)
            assert not blocks
            model(**batch)
        assert blocks == [0, 2, 3]  # somebody watches layer 1
        hook.remove()
        blocks.clear()
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 2)  # which wait for one another behind every block
            model(**batch)
        assert not blocks
    with torch.no_grad(), vtskip.attach(model, PLAIN, lossless=False):
        blocks.clear()
        model(**batch)
    assert not blocks


def test_a_hook_inside_a_layer_sees_the_rows_of_each_sample(blocks):
    """Adapters by sample (PEFT's ``adapter_names``) are such hooks, too."""
    family, seen = FAMILIES["llava-llama"], []
    model, batch = family.model(), family.batch(EVEN)
    layers = model.get_decoder().layers
    with torch.no_grad(), vtskip.attach(model, PLAIN):
        layers[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        layers[2].self_attn.q_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        model(**batch)
        assert [tuple(shape) for shape in seen] == [(2, 40, 32)] * 2 and blocks == [1, 3]
        blocks.clear()
        with torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: None):
            model(**batch)
    assert not blocks


def own_class(model, patch, noted):
    attention = type(model.get_decoder().layers[0].self_attn)
    forward = attention.forward
    patch.setattr(attention, "forward", lambda *args, **kwargs: (noted.append("class"), forward(*args, **kwargs))[1])


def own_function(model, patch, noted):
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    mine = lambda *args, **kwargs: (noted.append("sdpa"), stock(*args, **kwargs))[1]  # noqa: E731
    patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", mine)


@pytest.mark.parametrize("kinds", [EVEN, ["long", "short"]], ids=["even", "padded"])
@pytest.mark.parametrize("change", [own_class, own_function])
def test_an_attention_of_somebody_elses_runs(blocks, monkeypatch, change, kinds):
    """Put in the place of the class's, or of transformers' function, after a method was attached."""
    family, noted = FAMILIES["llava-llama"], []
    model, batch = family.model(), family.batch(kinds)
    with torch.no_grad(), vtskip.attach(model, PLAIN):
        change(model, monkeypatch, noted)
        model(**batch)
    assert len(noted) >= 4 and not blocks


@pytest.mark.parametrize("name", FAMILIES)
def test_no_stock_attention_is_taken_for_a_patched_one(name):
    attention = FAMILIES[name].model().get_decoder().layers[0].self_attn
    assert not class_is_patched(type(attention)) and not sdpa_is_patched()


@pytest.mark.parametrize("kinds", [EVEN, ["long", "short"]], ids=["even", "padded"])
def test_a_call_that_is_not_causal_is_not_made_so(blocks, kinds):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(kinds)
    valid = batch["attention_mask"].bool()
    with torch.no_grad():
        stock = model(**batch, is_causal=False).logits[valid]
        assert (stock - model(**batch).logits[valid]).abs().max() > 0.1 or kinds != EVEN
        with vtskip.attach(model, PLAIN):
            assert (model(**batch, is_causal=False).logits[valid] - stock).abs().max() <= family.tolerance
        if kinds == EVEN:  # the model makes no mask, and one of positions is causal
            with vtskip.attach(model, {"name": "shortv", "layers": [1]}), pytest.raises(ModelError, match="4-D"):
                model(**batch, is_causal=False)
    assert not blocks


def test_flex_over_a_static_cache_is_left_alone(blocks, monkeypatch):
    """A layer that is not taken apart in the end may not ask for more than the stock one."""
    family = FAMILIES["llava-llama"]
    model, batch = family.model().float(), family.batch(EVEN)
    batch = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}
    flash_standin.uncompiled_flex(monkeypatch)
    model.set_attn_implementation("flex_attention")
    caches = [StaticCache(config=model.config.get_text_config(), max_cache_len=64) for _ in range(2)]
    with torch.no_grad():
        stock = model(**batch, past_key_values=caches[0]).logits
        with vtskip.attach(model, PLAIN):
            assert torch.equal(model(**batch, past_key_values=caches[1]).logits, stock)
    assert not blocks


@pytest.mark.parametrize("checkpoints", [None, False, True], ids=["kept", "checkpointed", "reentrant"])
def test_gradients(blocks, monkeypatch, checkpoints):
    family = FAMILIES["llava-llama"]
    model, batch = family.model().train(), family.batch(EVEN)
    if checkpoints is not None:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": checkpoints})
        model.enable_input_require_grads()
    found = []
    with vtskip.attach(model, {"name": "mod", "keep": 0.5}):
        for longest in (causal_blocks.LONGEST, 0):
            monkeypatch.setattr(causal_blocks, "LONGEST", longest)
            blocks.clear()
            model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
            assert len(set(blocks)) == (longest and 3), "of the last layer only the rows with a label ask"
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
    assert len(found[0]) == len(found[1]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=2**-18, atol=2**-20, msg=name)


def test_only_planned_layers_have_a_plan(blocks):
    family = FAMILIES["llava-llama"]
    with torch.no_grad(), vtskip.attach(family.model(), {"name": "mod", "keep": 0.5}) as handle:
        handle.model(**family.batch(EVEN))
        assert blocks == [0, 1, 2, 3] and list(handle.last_plans) == [1, 3]
