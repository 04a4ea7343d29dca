"""Caches: static ones in dense-slot mode, offloaded ones, and those that are refused."""

from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache, StaticCache, cache_utils
from transformers.cache_utils import DynamicLayer, StaticLayer

import vtskip
from tests import flash_standin
from tests.tiny import FAMILIES
from vtskip.errors import ModelError
from vtskip.runtime.cache import skip_layer
from vtskip.runtime.static_slots import StaticSkipLayer

EXACT = 1e-12
SPECS = [
    pytest.param({"name": "mod", "keep": 0.3}, id="mod"),
    pytest.param({"name": "mod", "keep": 0.3, "schedule": {"kind": "constant"}}, id="mod-all"),
    pytest.param({"name": "shortv", "layers": [0, 1, 3]}, id="shortv"),
    pytest.param({"name": "skip_ffn", "keep": 0.3}, id="skip_ffn"),
    pytest.param({"name": "skip_ffn", "keep": 0.3, "drop_kv": True}, id="drop_kv"),
    pytest.param({"name": "fastv", "keep": 0.3, "layer": 1}, id="fastv"),
]
METHODS = pytest.mark.parametrize("spec", SPECS)


@pytest.fixture(scope="module", params=["llava-llama", "llava-mistral", "qwen2_5_vl"])
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llava-llama"].model()


def static(model, length=120):
    return StaticCache(config=model.config, max_cache_len=length)


def three_steps(model, family, cache):
    """Logits of real rows of a prompt of two samples, a chunk of three words and one of an image, then a word."""
    batch, part = family.batch(["long", "short"]), family.part(2)
    mask, out = batch["attention_mask"], []
    steps = [([7, 8, 9], {}), ([*part.ids, 6], part.inputs), ([5], {})]
    position = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {k: v for k, v in batch.items() if k not in ("attention_mask", "position_ids")}
    for ids, more in [(None, None), *steps]:
        if ids is not None:
            tokens = torch.tensor([ids, ids])
            inputs = {"input_ids": tokens, **{k: torch.cat([v, v]) for k, v in more.items()}}
            inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
            inputs.update(family.types(tokens) if more else {})
            mask = torch.cat([mask, torch.ones_like(tokens)], 1)
            position = mask.cumsum(1)[:, -len(ids) :] - 1
        place = position.expand(3, -1, -1) if family.mrope else position
        logits = model(**inputs, attention_mask=mask, position_ids=place, past_key_values=cache).logits
        out.append(logits[mask[:, -logits.shape[1] :].bool()])
    return torch.cat(out)


@METHODS
def test_static_equals_dynamic(model, family, spec):
    """Mistral's static layers slide: the sequence is longer than their window of 24."""
    with torch.no_grad(), vtskip.attach(model, spec):
        expected = three_steps(model, family, DynamicCache(config=model.config))
        cache = static(model)
        tensors = [id(layer) for layer in cache.layers]
        ours = three_steps(model, family, cache)
    assert (ours - expected).abs().max() <= EXACT
    assert len(tensors) == len(cache.layers) and cache.is_compileable


@METHODS
def test_generate_with_a_static_cache(model, family, spec):
    batch = family.batch(["long", "short", "text"])
    batch.pop("position_ids", None)
    settings = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with vtskip.attach(model, spec):
        for more in ({}, {"num_beams": 2}):
            expected = model.generate(**batch, **settings, **more)
            assert torch.equal(model.generate(**batch, **settings, **more, cache_implementation="static"), expected)


def test_left_out_slots_stay_empty_and_nothing_is_freed(llama):
    family = FAMILIES["llava-llama"]
    batch = family.batch(["long", "short"])
    with torch.no_grad(), vtskip.attach(llama, {"name": "mod", "keep": 0.25}) as handle:
        cache = static(llama)
        llama(**batch, past_key_values=cache)
        report = handle.report()
    layer, seen = cache.layers[1], batch["input_ids"].shape[1]
    assert isinstance(layer, StaticSkipLayer) and type(cache.layers[0]) is StaticLayer
    assert layer.keys.shape[2] == 120 and int(layer.get_seq_length()) == layer.seen == seen
    kept = batch["attention_mask"].sum(1) - torch.tensor([24, 12])
    assert ((~layer.holes).sum(1) == kept).all() and (layer.run() == kept).all()
    assert not layer.keys[0, :, :seen][:, layer.holes[0]].any()  # the wider sample: no fillers either
    assert report.kv_bytes == report.kv_bytes_dense and report.kv_ratio == 1
    assert report.layers[1].attend < report.layers[0].attend and report.flops_ratio < 1


def test_static_tensors_keep_their_place(llama):
    """A compiled decode knows the addresses of the stock tensors."""
    cache = static(llama)
    cache.early_initialization(2, 2, 8, torch.float64, torch.device("cpu"))
    before = [(layer.keys.data_ptr(), layer.cumulative_length.data_ptr()) for layer in cache.layers]
    with torch.no_grad(), vtskip.attach(llama, "mod"):
        three_steps(llama, FAMILIES["llava-llama"], cache)
    assert before == [(layer.keys.data_ptr(), layer.cumulative_length.data_ptr()) for layer in cache.layers]


@METHODS
def test_static_under_flash(llama, spec, monkeypatch):
    family = FAMILIES["llava-llama"]
    with torch.no_grad(), vtskip.attach(llama, spec):
        expected = three_steps(llama, family, DynamicCache(config=llama.config))
        flash_standin.install(monkeypatch)
        monkeypatch.setattr(llama.get_decoder().config, "_attn_implementation_internal", flash_standin.NAME)
        assert (three_steps(llama, family, static(llama)) - expected).abs().max() <= EXACT


def test_static_under_flex_is_refused(llama, monkeypatch):
    """The stock model answers wrongly there."""
    flash_standin.uncompiled_flex(monkeypatch)
    monkeypatch.setattr(llama.get_decoder().config, "_attn_implementation_internal", "flex_attention")
    with vtskip.attach(llama, "mod"), refused("flex attention cannot run over a StaticCache"):
        three_steps(llama, FAMILIES["llava-llama"], static(llama))


def test_a_static_step_without_mask_is_refused_where_it_would_see_empty_slots(llama, monkeypatch):
    flash_standin.install(monkeypatch)
    monkeypatch.setattr(llama.get_decoder().config, "_attn_implementation_internal", flash_standin.NAME)
    cache = static(llama)
    with torch.no_grad(), vtskip.attach(llama, "mod"):
        llama(**FAMILIES["llava-llama"].batch(["short"]), past_key_values=cache)
        with pytest.raises(ModelError, match="pass attention_mask"):
            llama(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_reset_and_reorder(llama):
    family, cache = FAMILIES["llava-llama"], static(llama)
    with torch.no_grad(), vtskip.attach(llama, "mod"):
        first = three_steps(llama, family, cache)
        holes = cache.layers[1].holes
        cache.reorder_cache(torch.tensor([1, 1]))
        assert torch.equal(cache.layers[1].holes, holes[[1, 1]])
        cache.reset()
        assert cache.layers[1].holes is None and cache.layers[1].seen == 0
        assert torch.equal(three_steps(llama, family, cache), first)


# ---------------------------------------------------------------- offloading


class Stream:
    """Stands for a device stream, which a machine without a device does not have."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def wait_stream(self, other):
        return None


@METHODS
def test_offloaded_layers_come_and_go_with_their_rows(llama, spec, monkeypatch):
    """The cache's own prefetch and offload run around each layer's update, those with rows left out included."""
    log = []

    def offloaded():
        cache = DynamicCache(config=llama.config)
        cache.offloading, cache.only_non_sliding, cache.prefetch_stream = True, False, Stream()
        return cache

    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    monkeypatch.setattr(DynamicLayer, "offload", lambda self: log.append(("offload", id(self))))
    monkeypatch.setattr(DynamicLayer, "prefetch", lambda self: log.append(("prefetch", id(self))))
    family = FAMILIES["llava-llama"]
    with torch.no_grad(), vtskip.attach(llama, spec):
        expected = three_steps(llama, family, DynamicCache(config=llama.config))
        log.clear()
        cache = offloaded()
        assert torch.equal(three_steps(llama, family, cache), expected)
    offloads = [i for what, i in log if what == "offload"]
    assert len(offloads) == 4 * 4 and set(offloads[4:]) == {id(layer) for layer in cache.layers}


# ---------------------------------------------------------------- what is refused


class QuantizedLayer(DynamicLayer):
    pass


class Paged:
    def get_seq_length(self):
        return 0


@contextmanager
def refused(match):
    with torch.no_grad(), pytest.raises(ModelError, match=match):
        yield


def test_caches_that_cannot_leave_rows_out_are_refused_by_name(llama):
    batch = FAMILIES["llava-llama"].batch(["long", "short"])
    with vtskip.attach(llama, "mod"):
        cache = DynamicCache()
        cache.layers = [QuantizedLayer() for _ in range(4)]
        with refused("QuantizedLayer cannot do .*DynamicCache"):
            llama(**batch, past_key_values=cache)
        with refused("Paged is not a cache of layers"):
            skip_layer(Paged(), 0)
        cache.layers = [cache_utils.LinearAttentionAndFullAttentionLayer() for _ in range(4)]
        with refused("LinearAttentionAndFullAttentionLayer"):
            skip_layer(cache, 0)


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache")
def test_a_quantized_cache_serves_methods_that_keep_every_row(llama):
    """ShortV leaves no row out; what differs is the quantization alone, so that all of it is stored."""
    family = FAMILIES["llava-llama"]
    cache = cache_utils.QuantizedCache("fp8", llama.config)
    with torch.no_grad(), vtskip.attach(llama, {"name": "shortv", "layers": [0, 1, 3]}):
        exact = three_steps(llama, family, DynamicCache(config=llama.config))
        ours = three_steps(llama, family, cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [cache.get_seq_length()] * 4
    prompt = int(family.batch(["long", "short"])["attention_mask"].sum())
    assert (ours - exact)[:prompt].abs().max() <= EXACT  # the first update returns what it was given
    assert 0 < (ours - exact).abs().max() < 1


# ---------------------------------------------------------------- stepping back through a window


@pytest.mark.parametrize("spec", SPECS[:2])
def test_a_window_can_be_stepped_back_through_if_it_is_recorded(spec):
    family = FAMILIES["llava-mistral"]
    model = family.model()
    batch = family.batch(["long"])
    ids, n = batch["input_ids"], batch["input_ids"].shape[1]
    assert n > 24
    with torch.no_grad(), vtskip.attach(model, spec):
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        expected = model(**batch, past_key_values=cache).logits[:, -4:]
        cache.crop(-4)
        place = torch.arange(n - 4, n)[None]
        again = model(input_ids=ids[:, -4:], position_ids=place, past_key_values=cache).logits
        assert (again - expected).abs().max() <= EXACT
        cache.crop(0)
        cache = DynamicCache(config=model.config)
        model(**batch, past_key_values=cache)
        with pytest.raises(RuntimeError, match=r"activate_past_recording|track past states"):
            cache.crop(-4)


@pytest.mark.parametrize("spec", SPECS[:3])
def test_prompt_lookup_equals_greedy(family, model, spec):
    """Speculative decoding steps back over rejected tokens, through Mistral's window too."""
    batch = family.batch(["long"])
    batch.pop("position_ids", None)
    settings = dict(max_new_tokens=10, min_new_tokens=10, do_sample=False)
    with vtskip.attach(model, spec):
        expected = model.generate(**batch, **settings)
        assert torch.equal(model.generate(**batch, **settings, prompt_lookup_num_tokens=3), expected)
