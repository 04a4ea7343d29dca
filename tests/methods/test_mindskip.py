"""MindSkip: when a gate is decided, how long it holds, and what a closed one saves."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtskip
from tests import flash_standin
from tests.tiny import FAMILIES, TEXT
from vtskip.errors import ConfigError
from vtskip.methods import get_method
from vtskip.plan import DecoderShape
from vtskip.runtime.cache import SkipCacheLayer, kv_bytes

LAYER = 1
ONE = {"name": "mindskip", "layers": [LAYER]}
OPEN, CLOSED = 5, 6  # tokens whose embedding opens or closes the gate


@pytest.fixture
def model():
    """A text model in which the gate of layer 1 is a vote: each OPEN token speaks for it, each CLOSED one against it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[OPEN, 0], model.model.embed_tokens.weight[CLOSED, 0] = 50, -50
    return model


def attach(model, **options):
    handle = vtskip.attach(model, {**ONE, **options})
    router = model.model.layers[LAYER].vtskip.router
    with torch.no_grad():
        router.weight[0, 0] = 1
    return handle


def ids(*tokens):
    return torch.tensor([[*tokens]])


YES, NO = ids(OPEN, 7, 8, OPEN, 9), ids(CLOSED, 7, 8, 9, 10)


def run(model, tokens, cache=None, mask=None):
    with torch.no_grad():
        return model(input_ids=tokens, past_key_values=cache, attention_mask=mask).logits


def decided(cache):
    return cache.layers[LAYER].carry.tolist()


# ---------------------------------------------------------------- what is gated


def test_the_sixteen_layers_before_the_last():
    def gated(layers, **options):
        planners = get_method({"name": "mindskip", **options}).planners(DecoderShape(layers, 8, 8, 1, 1, 8, 8))
        return [i for i, p in enumerate(planners) if p]

    assert gated(32) == list(range(15, 31))
    assert gated(32, count=4) == list(range(27, 31))
    assert gated(4) == [0, 1, 2]


def test_protected_text_needs_gates_per_row():
    with pytest.raises(ConfigError, match="text 'dense' needs granularity 'row'"):
        get_method({"name": "mindskip", "text": "dense"})


def test_padding_has_no_vote(model):
    attach(model)
    cache = DynamicCache()
    tokens, mask = torch.cat([ids(CLOSED, CLOSED, 9), ids(OPEN, OPEN, 9)]), torch.tensor([[0, 0, 1], [0, 0, 1]])
    run(model, tokens, cache, mask)
    assert decided(cache)[0] == decided(cache)[1]


# ---------------------------------------------------------------- how long a decision holds


def test_the_first_chunk_decides_for_the_rest(model):
    attach(model)
    for first, then, gate in ((YES, NO, True), (NO, ids(OPEN, OPEN, OPEN, OPEN), False)):
        cache = DynamicCache()
        run(model, first, cache)
        run(model, then, cache)
        run(model, ids(OPEN), cache)
        assert decided(cache) == [gate]
        assert cache.layers[LAYER].keys.shape[2] == gate * (first.shape[1] + then.shape[1] + 1)
        assert cache.get_seq_length() == cache.layers[LAYER].get_seq_length() == first.shape[1] + then.shape[1] + 1
    together = DynamicCache()
    run(model, torch.cat([NO, ids(OPEN, OPEN, OPEN, OPEN)], 1), together)
    assert decided(together) == [True]  # in one chunk it is another decision


def test_a_cache_cropped_to_nothing_decides_anew(model):
    attach(model)
    cache = DynamicCache()
    run(model, NO, cache)
    cache.crop(-2)
    assert decided(cache) == [False]
    cache.crop(-3)
    run(model, YES, cache)
    assert decided(cache) == [True]


def test_two_interleaved_requests_equal_two_separate_ones(model):
    attach(model)
    separate = []
    for prompt in (YES, NO):
        cache = DynamicCache()
        separate += [[run(model, prompt, cache), run(model, ids(11), cache), run(model, ids(CLOSED), cache)]]
    caches, mixed = (DynamicCache(), DynamicCache()), ([], [])
    for step in (None, ids(11), ids(CLOSED)):
        for prompt, cache, out in zip((YES, NO), caches, mixed):
            out.append(run(model, prompt if step is None else step, cache))
    for ours, theirs in zip(mixed, separate):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_beams_take_the_decision_along(model):
    """A batch of both kinds, reordered and repeated as beam search does, goes on as each request alone."""
    attach(model)
    cache, alone = DynamicCache(), {}
    run(model, torch.cat([YES, NO]), cache)
    for name, prompt in (("yes", YES), ("no", NO)):
        single = DynamicCache()
        run(model, prompt, single)
        alone[name] = run(model, ids(11), single)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([2, 0, 3, 3]))
    assert decided(cache) == [False, True, False, False]
    out = run(model, ids(11).repeat(4, 1), cache)
    for row, name in zip(out, ("no", "yes", "no", "no")):
        assert (row - alone[name][0]).abs().max() < 1e-12


# ---------------------------------------------------------------- what a closed gate saves


@pytest.mark.parametrize("training", [False, True])
def test_only_open_samples_pay_for_attention(model, training):
    handle, attended = attach(model), []
    model.model.layers[LAYER].self_attn.register_forward_hook(
        lambda module, args, kwargs, out: attended.append(tuple(kwargs["hidden_states"].shape[:2])), with_kwargs=True
    )
    batch = torch.cat([NO, YES, NO, YES])
    model.train(training)
    cache = DynamicCache()
    out = model(input_ids=batch, past_key_values=cache)
    assert attended == [(2, 5)]
    report = handle.report()
    assert (report.layers[LAYER].attend, report.layers[LAYER].ffn) == (10, 20)
    assert cache.layers[LAYER].keys.shape[0] == 2
    assert report.kv_bytes == kv_bytes(cache) == report.kv_bytes_dense * 7 // 8
    model.eval()
    for i, row in enumerate(batch):
        assert (run(model, row[None])[0] - out.logits[i]).abs().max() < 1e-12


def test_a_request_without_attention_stores_nothing(model):
    attach(model)
    cache = DynamicCache()
    run(model, NO, cache)
    layer = cache.layers[LAYER]
    assert isinstance(layer, SkipCacheLayer) and layer.slots == 0 and layer.get_seq_length() == 5


def test_rows_that_ask_nothing_are_still_read(model):
    handle, cache = attach(model, granularity="row"), DynamicCache()
    run(model, ids(OPEN, CLOSED, OPEN, OPEN, CLOSED), cache)
    layer = handle.report().layers[LAYER]
    assert (layer.attend, layer.expose, layer.ffn, layer.cache) == (3, 5, 5, 5)
    assert cache.layers[LAYER].keys.shape[2] == 5


def test_text_may_be_protected(model):
    family = FAMILIES["llava-llama"]
    stock, batch = family.model(), family.batch(["long", "short"])
    spec = {"name": "mindskip", "granularity": "row", "text": "dense", "layers": [0], "std": 1.0}
    with torch.no_grad(), vtskip.attach(stock, spec) as handle:
        stock.get_decoder().layers[0].vtskip.router.weight.neg_()
        stock(**batch)
        attend, rows = handle.last_plans[0].attend.mask, handle.last_rows
    assert attend[rows.text.mask].all() and 0 < attend[rows.vision].float().mean() < 1


@pytest.mark.parametrize("granularity", ["sequence", "row"])
def test_flash_equals_sdpa(monkeypatch, model, granularity):
    """A mixed batch with padding on the left, then two steps, on the stand-in of flash attention."""
    attach(model, granularity=granularity)
    flash_standin.install(monkeypatch)
    tokens, mask, outputs = torch.cat([NO, YES, NO]), torch.ones(3, 5, dtype=torch.long), []
    tokens, mask = torch.nn.functional.pad(tokens, (2, 0)), torch.nn.functional.pad(mask, (2, 0))
    mask[0, 2] = tokens[0, 2] = 0  # its CLOSED token is padding: a gate of its own
    for implementation in ("sdpa", flash_standin.NAME):
        monkeypatch.setattr(model.config, "_attn_implementation_internal", implementation)
        cache = DynamicCache()
        out = [run(model, tokens, cache, mask)[mask.bool()]]
        for step in range(2):
            seen = torch.nn.functional.pad(mask, (0, step + 1), value=1)
            out.append(run(model, ids(11 + step).repeat(3, 1), cache, seen)[:, 0])
        outputs.append(torch.cat(out))
        if granularity == "sequence":
            assert {True, False} == set(decided(cache))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12


@pytest.mark.parametrize("granularity", ["sequence", "row"])
def test_counts_rounded_up_for_compiling_change_nothing(granularity):
    family = FAMILIES["llava-llama"]
    model, batch, outputs = family.model(), family.batch(["long", "short", "text"]), []
    spec = {"name": "mindskip", "granularity": granularity, "layers": [0, 1, 2], "std": 1.0, "seed": 3}
    for bucket in (None, 7):
        with vtskip.attach(model, spec, bucket=bucket) as handle, torch.no_grad():
            outputs.append(model(**batch).logits[batch["attention_mask"].bool()])
            attend = [layer.attend for layer in handle.report().layers]
    assert min(attend) < max(attend)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gradient_scale": 0.3}, 0.3 * 0.5),
        ({"gradient_scale": 0.3, "target": 0.25}, 0.3 * 0.25),
        ({"gradient_scale": 0.3, "target": 0.75}, 0.0),
        ({}, 0.0),
    ],
)
def test_auxiliary_loss_is_the_mean_of_the_gates(model, options, expected):
    handle = attach(model.train(), **options)
    batch = torch.cat([YES, NO])
    with_aux = model(input_ids=batch, labels=batch).loss
    assert handle.aux_loss().item() == pytest.approx(expected)
    with_aux.backward()
    assert model.model.layers[LAYER].vtskip.router.weight.grad.abs().max() > 0
    vtskip.runtime.attach.attached(model).detach()
    attach(model)
    assert (with_aux - model(input_ids=batch, labels=batch).loss).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("granularity", ["sequence", "row"])
def test_routers_have_a_gradient_where_every_gate_is_closed(model, granularity):
    attach(model.train(), granularity=granularity)
    batch = ids(CLOSED, CLOSED)
    model(input_ids=batch, labels=batch).loss.backward()
    assert model.model.layers[LAYER].vtskip.router.weight.grad is not None
    assert (model.model.layers[LAYER].vtskip.router.weight.grad == 0).all()


def test_gates_start_open_and_the_boundary_is_open(model):
    with vtskip.attach(model, ONE):
        cache = DynamicCache()
        run(model, NO, cache)
        assert decided(cache) == [True]
