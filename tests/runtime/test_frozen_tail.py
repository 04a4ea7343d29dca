"""ShortV's frozen layers in one product: the numbers of the separate form."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

import vtskip
from tests.tiny import FAMILIES

LAYERS = [0, 1, 2, 3]
SEPARATE = {"name": "shortv", "layers": LAYERS}
JOINED = {**SEPARATE, "joined": True}
# Gemma's norm multiplies by its gain in float32, which a folded gain does in the model's own float64.
TOLERANCE = {"gemma3": 2e-6, "paligemma": 2e-6}


@pytest.fixture(
    scope="module", params=["llava-llama", "llava-qwen2", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma3", "paligemma"]
)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


def close(family, ours, theirs):
    limit = TOLERANCE.get(family.name, 1e-12) * max(1.0, float(theirs.abs().max()))
    assert (ours - theirs).abs().max() <= limit


def runs(model):
    found = [getattr(layer.vtskip.runtime, "frozen", None) for layer in model.get_decoder().layers]
    return [None if run is None else (run.first, len(run.layers)) for run in found]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_cache_are_those_of_the_separate_form(model, family, side):
    batch = family.batch(["long", "short", "text"], side)
    real = batch["attention_mask"].bool()
    outputs = []
    for spec in (SEPARATE, JOINED):
        with torch.no_grad(), vtskip.attach(model, spec, lossless=False) as handle:
            cache = DynamicCache(config=model.config)
            logits = model(**batch, past_key_values=cache).logits[real]
            outputs.append((logits, cache, handle.report().as_dict()))
            if spec is JOINED:
                run = (2, 2) if family.name == "qwen3_vl" else (0, 4)
                assert [r for r in runs(model) if r] == [run] * run[1]
                assert model.get_decoder().layers[-1].vtskip.runtime.frozen.joined is not None
                assert not any("frozen" in str(key) for key in handle.last_rows.memo)
    (separate, theirs, counted), (joined, ours, recounted) = outputs
    close(family, joined, separate)
    assert counted == recounted
    for layer, other in zip(ours.layers, theirs.layers):
        close(family, layer.keys, other.keys)
        close(family, layer.values, other.values)


def test_gradients(model, family):
    batch, found = family.batch(["long", "short", "text"]), []
    for spec in (SEPARATE, JOINED):
        trained = copy.deepcopy(model).train()
        with vtskip.attach(trained, spec, lossless=False):
            trained(**batch, use_cache=False).logits.square().mean().backward()
        found.append({n: p.grad for n, p in trained.named_parameters() if p.grad is not None})
    separate, joined = found
    assert separate.keys() == joined.keys()
    for name, gradient in joined.items():
        assert (gradient - separate[name]).abs().max() <= 1e-6 * max(1.0, float(separate[name].abs().max())), name


def test_generate_with_the_last_row_alone(model, family):
    batch = family.batch(["long", "short"])
    batch.pop("position_ids", None)
    tokens = []
    for spec in (SEPARATE, JOINED):
        with vtskip.attach(model, spec):
            tokens.append(model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False))
    assert torch.equal(*tokens)


# ---------------------------------------------------------------- one family is enough


@pytest.fixture
def llava():
    return FAMILIES["llava-qwen2"].model()


BATCH = FAMILIES["llava-qwen2"].batch(["long", "short"])


def logits(model):
    with torch.no_grad():
        return model(**BATCH).logits


def joined_now(model):
    return model.get_decoder().layers[0].vtskip.runtime.frozen.joined is not None


def test_new_weights_are_noticed(llava):
    with vtskip.attach(llava, JOINED):
        before = logits(llava)
        with torch.no_grad():
            for layer in llava.get_decoder().layers:
                layer.self_attn.v_proj.weight.mul_(1.5)
                layer.input_layernorm.weight.add_(0.2)
        after = logits(llava)
    with vtskip.attach(llava, SEPARATE):
        expected = logits(llava)
    assert (after - before).abs().max() > 1e-3 and (after - expected).abs().max() <= 1e-12


def test_other_projections_run_layer_by_layer(llava):
    expected = []
    for spec in (SEPARATE, JOINED):
        model = copy.deepcopy(llava)
        vtskip.attach(model, spec)
        torch.manual_seed(3)
        lora = LoraConfig(r=2, target_modules=r".*layers\.1\.self_attn\.k_proj", init_lora_weights=False)
        expected.append(logits(get_peft_model(model, lora).eval()))
        assert spec is SEPARATE or not joined_now(model)
    assert torch.equal(*expected)


def test_checkpointing_runs_layer_by_layer(llava):
    gradients = []
    for spec in (SEPARATE, JOINED):
        model = copy.deepcopy(llava).train()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        with vtskip.attach(model, spec):
            model(**BATCH, use_cache=False).logits.square().mean().backward()
        gradients.append(model.get_decoder().layers[2].self_attn.k_proj.weight.grad)
    assert torch.equal(*gradients)


def test_training_joins_anew_and_inference_mode_leaves_nothing_behind(llava):
    with vtskip.attach(llava, JOINED):
        expected = logits(llava)
        assert joined_now(llava)
        llava.train()(**BATCH, use_cache=False).logits.sum().backward()
        assert not joined_now(llava)
        llava.eval()
        with torch.inference_mode():
            llava(**BATCH)
        for layer in llava.get_decoder().layers:
            layer.requires_grad_(False)
        llava(**BATCH).logits.sum().backward()  # the weights are fixed, the rows are not
        assert torch.equal(logits(llava), expected)


def test_detach_copy_and_pickle(llava):
    stock = logits(llava)
    with vtskip.attach(llava, JOINED):
        expected = logits(llava)
        twin = copy.deepcopy(llava)
        assert twin.get_decoder().layers[1].vtskip.runtime.frozen.layers[1] is twin.get_decoder().layers[1]
        assert not joined_now(twin) and torch.equal(logits(twin), expected)
        state = pickle.loads(pickle.dumps(llava.get_decoder().layers[1].vtskip.runtime.frozen))
        assert state.joined is None and len(state.layers) == 4
    assert torch.equal(logits(llava), stock) and (stock - expected).abs().max() > 1e-3


def test_runs_of_consecutive_layers(llava):
    for layers, expected in (([0, 1, 3], [(0, 2), (0, 2), None]), ([0, 2], [None, None]), ([1, 2, 3], [(1, 3)] * 3)):
        with vtskip.attach(llava, {"name": "shortv", "layers": layers, "joined": True}):
            planned = [layer for layer in llava.get_decoder().layers if hasattr(layer, "vtskip")]
            found = [layer.vtskip.runtime.frozen for layer in planned if type(layer.vtskip).__name__ == "ShortVPlanner"]
            assert [None if run is None else (run.first, len(run.layers)) for run in found] == expected


def test_text_alone_in_training(llava):
    """A process whose batch has no image makes K and V in one go all the same: of rows that change nothing."""
    batch, found = FAMILIES["llava-qwen2"].batch(["text", "text"]), []
    for spec in (SEPARATE, JOINED):
        model = copy.deepcopy(llava).train()
        with vtskip.attach(model, spec, lossless=False):
            model(**batch, use_cache=False).logits.square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        assert (gradient - found[0][name]).abs().max() <= 2**-20, name  # norms round to float32 in the middle
