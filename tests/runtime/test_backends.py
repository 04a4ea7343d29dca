"""Attention back ends: sdpa, eager, flash (stand-in kernels), flex and registered ones give the same logits."""

import functools

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

import vtskip
from tests import flash_standin
from tests.tiny import FAMILIES, TEXT, Tiny
from tests.tiny_families import image, llava
from vtskip.errors import ModelError
from vtskip.runtime import masks

WIDE = Tiny("llava-mistral-wide", lambda: llava(MistralConfig(**TEXT, sliding_window=200)), image)
SEAMS = [
    pytest.param({"name": "mod", "keep": 0.3}, id="block"),
    pytest.param({"name": "mod", "keep": 0.3, "combine": "delta", "schedule": {"kind": "constant"}}, id="block-all"),
    pytest.param({"name": "skip_ffn", "keep": 0.3, "drop_kv": True}, id="branch"),
    pytest.param({"name": "shortv", "layers": [0, 1, 3]}, id="query"),
    pytest.param({"name": "fastv", "keep": 0.3, "layer": 1}, id="scores"),
]
EXACT = 1e-12
# torch 2.13's code generator for CPUs names a variable of this mask that it does not declare.
NO_CPP = pytest.mark.xfail(
    raises=RuntimeError, strict=True, reason="the C++ that torch makes of this mask does not compile"
)


@functools.cache
def model_of(name, dtype=torch.float64):
    return ({**FAMILIES, WIDE.name: WIDE}[name]).model(dtype)


@pytest.fixture
def on(monkeypatch):
    """``on(model, implementation)`` for one test: flash by its stand-in, flex uncompiled (compiling takes minutes)."""

    def switch(model, implementation):
        config = model.get_decoder().config
        monkeypatch.setattr(config, "_attn_implementation_internal", implementation)
        if implementation == flash_standin.NAME:
            flash_standin.install(monkeypatch)
        if implementation == "flex_attention":
            flash_standin.uncompiled_flex(monkeypatch)
        return model

    return switch


def conversation(model, family, spec, side="left", masked=True, **options):
    """Logits of real rows: a prompt of two samples, a word, an image with two words, a word; all on one cache."""
    dtype, kinds = next(model.parameters()).dtype, ["long", "short"] if masked else ["long"]
    batch = family.batch(kinds, side, dtype)
    mask, out, cache = batch["attention_mask"], [], DynamicCache(config=model.config)
    part = family.part(2)
    one = [*part.ids, 11]
    steps = [({}, [[7], [8]]), (part.inputs, [one, one]), ({}, [[9], [6]])]
    position = batch.get("position_ids", (mask.cumsum(1) - 1).clamp(min=0))
    with torch.no_grad(), vtskip.attach(model, spec, **options) as handle:
        out.append(step_logits(model, family, batch, mask, position, cache, masked))
        for inputs, ids in steps:
            ids = torch.tensor(ids[: len(kinds)])
            inputs = {k: torch.cat([v] * len(kinds)) for k, v in inputs.items()}
            inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            inputs.update(family.types(ids) if part.inputs.keys() & inputs.keys() else {})
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            position = mask.cumsum(1)[:, -ids.shape[1] :] - 1
            out.append(step_logits(model, family, {**inputs, "input_ids": ids}, mask, position, cache, masked))
        assert min(layer.kept_ffn for layer in handle.report().layers) < 0.6
    return torch.cat(out)


def step_logits(model, family, inputs, mask, position, cache, masked):
    inputs = {k: v for k, v in inputs.items() if k not in ("attention_mask", "position_ids")}
    if masked:
        inputs["attention_mask"] = mask
    if family.mrope:  # plain numbers: what is tested here is the mask, not the model's own numbering of images
        position = position.expand(3, -1, -1)
    logits = model(**inputs, position_ids=position, past_key_values=cache).logits
    return logits[mask[:, -logits.shape[1] :].bool()]


@pytest.mark.parametrize("form", ["left", "right", "no mask"])
@pytest.mark.parametrize("spec", SEAMS)
@pytest.mark.parametrize("name", ["llava-llama", "llava-mistral-wide", "qwen2_5_vl"])
def test_flash_equals_sdpa(on, name, spec, form):
    family, model = {**FAMILIES, WIDE.name: WIDE}[name], model_of(name)
    arguments = (family, spec, "right" if form == "right" else "left", form != "no mask")
    expected = conversation(on(model, "sdpa"), *arguments)
    ours = conversation(on(model, flash_standin.NAME), *arguments)
    assert (ours - expected).abs().max() <= EXACT


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@pytest.mark.parametrize("spec", SEAMS)
@pytest.mark.parametrize("name", ["llava-llama", "llava-mistral", "qwen2_5_vl"])
def test_eager_and_flex_equal_sdpa(on, name, spec, implementation):
    """In float32: off from the float64 result by no more than four times what sdpa is off."""
    family, wide, model = FAMILIES[name], model_of(name), model_of(name, torch.float32)
    sides = ["left"] if implementation == "flex_attention" else ["left", "right"]
    for side in sides:
        truth = conversation(wide, family, spec, side)
        usual = (conversation(on(model, "sdpa"), family, spec, side) - truth).abs().max()
        ours = (conversation(on(model, implementation), family, spec, side) - truth).abs().max()
        assert usual < 1e-4 and ours <= 4 * usual


@pytest.mark.parametrize("implementation", [flash_standin.NAME, "flex_attention", "eager"])
def test_padding_stored_before_the_first_image_stays_hidden(on, implementation):
    """A padded prompt without images fills the stock layers, padding included; the image comes later."""
    family, dtype = FAMILIES["llava-llama"], torch.float32 if implementation == "eager" else torch.float64
    model, part = model_of("llava-llama", dtype), family.part(2)
    ids, image = torch.tensor([[0, 0, 0, 5, 6], [4, 7, 8, 9, 6]]), torch.tensor([[*part.ids, 7]] * 2)
    mask = torch.cat([(ids > 0).long(), torch.ones_like(image)], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    pixels = torch.cat([part.inputs["pixel_values"]] * 2).to(dtype)
    outputs = []
    for name in ("sdpa", implementation):
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), vtskip.attach(on(model, name), {"name": "mod", "keep": 0.3}):
            model(input_ids=ids, attention_mask=mask[:, :5], position_ids=position[:, :5], past_key_values=cache)
            step = dict(input_ids=image, attention_mask=mask, position_ids=position[:, 5:], pixel_values=pixels)
            outputs.append(model(**step, past_key_values=cache).logits)
    assert (outputs[0] - outputs[1]).abs().max() <= (1e-5 if dtype == torch.float32 else EXACT)


def test_skipped_rows_show_in_the_conversation():
    """The comparisons above could fail: other rows, other logits."""
    family, model = FAMILIES["llava-llama"], model_of("llava-llama")
    one, other = (conversation(model, family, {"name": "random", "keep": 0.3, "seed": s}) for s in (1, 2))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SEAMS[:3])
def test_flash_refuses_a_sliding_window_over_gathered_rows(on, spec):
    model = on(model_of("llava-mistral"), flash_standin.NAME)
    with pytest.raises(ModelError, match=r"sliding window of 24.*set_attn_implementation\('sdpa'\)"):
        conversation(model, FAMILIES["llava-mistral"], spec)


def test_flash_keeps_the_sliding_window_of_rows_that_only_ask(on):
    """Queries of a few rows run on sdpa, with the window in their mask."""
    family, model = FAMILIES["llava-mistral"], model_of("llava-mistral")
    spec = {"name": "shortv", "layers": [0, 1, 3]}
    for masked in (True, False):
        expected = conversation(on(model, "sdpa"), family, spec, masked=masked)
        ours = conversation(on(model, flash_standin.NAME), family, spec, masked=masked)
        assert (ours - expected).abs().max() <= EXACT


# ---------------------------------------------------------------- packed documents

LENGTHS = (14, 9, 17)


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()


def packed_inputs():
    ids = torch.randint(3, 90, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(4))
    position = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    vision = (position > 2) & (position < 7)  # a run of four in each document
    return ids, position, vision


@pytest.mark.parametrize("spec", [s for s in SEAMS if s.id != "scores"])
@pytest.mark.parametrize("how", ["position_ids", "cu_seq_lens"])
def test_documents_packed_under_flash_do_not_see_each_other(on, text_model, spec, how):
    ids, position, vision = packed_inputs()
    extra = {}
    if how == "cu_seq_lens":
        borders = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
        extra = dict(cu_seq_lens_q=borders, cu_seq_lens_k=borders, max_length_q=max(LENGTHS), max_length_k=max(LENGTHS))
    with torch.no_grad(), vtskip.attach(on(text_model, "sdpa"), spec) as handle:
        expected = []
        for i, v in zip(ids.split(LENGTHS, 1), vision.split(LENGTHS, 1)):
            with handle.rows(v):
                expected.append(text_model(i, use_cache=False).logits)
    with torch.no_grad(), vtskip.attach(on(text_model, flash_standin.NAME), spec) as handle, handle.rows(vision):
        ours = text_model(ids, position_ids=position, use_cache=False, **extra).logits
    assert (ours - torch.cat(expected, 1)).abs().max() <= EXACT


def test_document_borders_of_a_batch_are_refused(on, text_model):
    ids, _, vision = packed_inputs()
    borders = torch.tensor([0, 40, 80], dtype=torch.int32)
    extra = dict(cu_seq_lens_q=borders, cu_seq_lens_k=borders, max_length_q=40, max_length_k=40)
    with (
        vtskip.attach(on(text_model, flash_standin.NAME), "mod") as handle,
        handle.rows(vision.repeat(2, 1)),
        pytest.raises(ModelError, match="packed into one row"),
    ):
        text_model(ids.repeat(2, 1), use_cache=False, **extra)


def test_gaps_between_gathered_positions_are_no_borders(on):
    """One sample without a mask: the wrapper would take kept rows of a second image for documents of their own."""
    model, seen = on(model_of("llava-llama"), flash_standin.NAME), []
    from transformers import modeling_flash_attention_utils as utils

    watched = utils._is_packed_sequence

    def watch(position_ids, batch_size):
        seen.append(bool(watched(position_ids, batch_size)))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_is_packed_sequence", watch)
        conversation(model, FAMILIES["llava-llama"], {"name": "mod", "keep": 0.3}, masked=False)
    assert seen and not any(seen)


# ---------------------------------------------------------------- registered implementations


@pytest.fixture
def registered(monkeypatch):
    """A registered implementation that counts its calls, and its mask function."""
    calls = []

    def register(function, mask_function):
        def mine(*args, **kwargs):
            calls.append(1)
            return function(*args, **kwargs)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "mine", mine)
        if mask_function is not None:
            monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "mine", mask_function)
        return calls

    return register


@pytest.mark.parametrize("like", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", SEAMS)
def test_a_registered_implementation_gets_the_masks_it_asked_for(on, registered, spec, like):
    family = FAMILIES["llava-llama"]
    model = model_of("llava-llama", torch.float32)
    function, mask = (sdpa_attention_forward, sdpa_mask) if like == "sdpa" else (eager_attention_forward, eager_mask)
    padded = dict(lossless=False)  # packed rows need no mask from sdpa itself, and round otherwise
    expected = conversation(on(model, like), family, spec, **padded)
    calls = registered(function, mask)
    assert torch.equal(conversation(on(model, "mine"), family, spec, **padded), expected) and calls
    assert (conversation(on(model, "mine"), family, spec) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("mask", [None, lambda *args, **kwargs: None], ids=["none", "own"])
def test_masks_of_unknown_form_are_refused(on, registered, mask):
    registered(sdpa_attention_forward, mask)
    message = "'mine' has (no|its own) mask function.*AttentionMaskInterface"
    with pytest.raises(ModelError, match=message):
        vtskip.attach(on(model_of("llava-llama"), "mine"), "mod")
    model = on(model_of("llava-llama"), "sdpa")
    with vtskip.attach(model, "mod"), pytest.raises(ModelError, match=message):  # changed later
        on(model, "mine")(**FAMILIES["llava-llama"].batch(["short"]))


def test_changing_the_implementation_after_attaching(on):
    family, model = FAMILIES["llava-llama"], on(model_of("llava-llama"), "sdpa")
    batch = family.batch(["long", "short"])
    valid = batch["attention_mask"].bool()
    with torch.no_grad(), vtskip.attach(model, {"name": "mod", "keep": 0.3}):
        expected = model(**batch).logits[valid]
        ours = on(model, flash_standin.NAME)(**batch).logits[valid]
    assert (ours - expected).abs().max() <= EXACT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers and torch among themselves
@pytest.mark.parametrize("spec", [SEAMS[0], pytest.param(*SEAMS[3].values, id="query", marks=NO_CPP)])
def test_compiled_flex(spec):
    """The same with Hugging Face's compiled flex attention, which on a CPU runs forward only."""
    family, model = FAMILIES["llava-llama"], model_of("llava-llama", torch.float32)
    batch = family.batch(["long", "short"], dtype=torch.float32)
    valid, config = batch["attention_mask"].bool(), model.get_decoder().config
    with torch.no_grad(), vtskip.attach(model, spec):
        expected = model(**batch).logits[valid]
        config._attn_implementation = "flex_attention"
        try:
            ours = model(**batch).logits[valid]
        finally:
            config._attn_implementation = "sdpa"
    assert (ours - expected).abs().max() <= 1e-4


def test_kinds_cover_what_the_library_registers():
    assert set(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping) >= set(masks.KINDS)


def test_mistral_text_model_window_lives_in_its_config():
    model = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=24))
    assert masks.window_of(model.model.layers[0].self_attn) == 24
    assert masks.window_of(model_of("llava-llama").get_decoder().layers[0].self_attn) is None
