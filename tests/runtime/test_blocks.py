"""Causal attention block by block, on a CPU: what the model's own attention gives, with fewer products."""

import pytest
import torch
from transformers import DynamicCache

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES
from vtskip.kernels import sdpa
from vtskip.runtime import execution

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
    monkeypatch.setattr(sdpa, "BLOCK", 4)
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
    monkeypatch.setattr(sdpa, "LONGEST", 0)
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
    with torch.no_grad(), vtskip.attach(model, PLAIN, lossless=False):
        blocks.clear()
        model(**batch)
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
        for longest in (sdpa.LONGEST, 0):
            monkeypatch.setattr(sdpa, "LONGEST", longest)
            blocks.clear()
            model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
            assert len(set(blocks)) == (longest and 3), "of the last layer only the rows with a label ask"
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
    assert len(found[0]) == len(found[1]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=2**-18, atol=2**-20, msg=name)
