"""Skip-Vision: what is retained, merged and written where, the tower's scores, and what leaves the cache."""

import copy
import inspect

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import vtskip
from tests.tiny import FAMILIES, TEXT
from tests.tiny_stream import tiny as tiny_stream
from tests.tiny_stream import video
from vtskip.errors import ConfigError, ModelError
from vtskip.loading import load_pretrained
from vtskip.methods import get_method
from vtskip.methods.skip_vision import SkipVision, Split
from vtskip.plan import VIT_CLS, DecoderShape, RowMap
from vtskip.saving import save_pretrained

CLS = {"name": "skip_vision", "keep": 4, "merged": 5}
EVEN = {**CLS, "retain": "even"}
KINDS = ["long", "short", "text"]


@pytest.fixture(params=["llava-llama", "vipllava"])
def family(request):
    return FAMILIES[request.param]


def logits(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs).logits


def eager_scores(model, pixels, layer):
    """Full attention maps of the tower, of which the CLS row is summed over heads."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        return tower(pixels, output_attentions=True).attentions[layer][:, :, 0, 1:].sum(1)


# ---------------------------------------------------------------- scores of the tower


@pytest.mark.parametrize(("chosen", "layer"), [(-2, -2), (-1, -1), (1, 0), (2, 1), ([1, -1], 1)])
def test_scores_are_the_cls_row_of_eager_attention(chosen, layer):
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(KINDS)
    model.config.vision_feature_layer = chosen
    if isinstance(chosen, list):  # two layers joined: the projector is wider
        model.model.multi_modal_projector.linear_1 = torch.nn.Linear(32, 32).double()
    with vtskip.attach(model, CLS) as handle:
        logits(model, batch)
        rows = handle.last_rows
    scores = eager_scores(model, batch["pixel_values"], layer)
    found = rows.memo[VIT_CLS]
    assert (found[rows.vision].view_as(scores) - scores).abs().max() < 1e-6  # the eager softmax is in float32
    assert (found[~rows.vision] == 0).all()
    assert scores.std() > 1e-4


def test_retained_rows_are_those_the_cls_token_looks_at(family):
    """They enter the first layer at the head of their image, in the order of the image."""
    model, batch = family.model(), family.batch(["long"])
    features = torch.stack(list(model.get_image_features(batch["pixel_values"]).pooler_output))
    scores = eager_scores(model, batch["pixel_values"], -2 if family.name == "llava-llama" else -1)
    with vtskip.attach(model, CLS) as handle:
        planner, edits = model.get_decoder().layers[0].vtskip, []
        planner.register_forward_hook(lambda module, args, plan: edits.append(plan.edit))
        logits(model, batch)
    places = handle.last_rows.vision[0].nonzero().view(2, 16)
    for image, best in enumerate(scores.topk(4).indices.sort(1).values):
        assert (edits[0][0, places[image, :4]] - features[image, best]).abs().max() < 1e-12


def test_batch_equals_singles_and_generate_equals_forward(family):
    model, batch = family.model(), family.batch(KINDS)
    settings = dict(do_sample=False, max_new_tokens=3, min_new_tokens=3)

    def generate(batch, **more):
        inputs = {k: v for k, v in batch.items() if k != "position_ids"}
        return model.generate(**inputs, **settings, **more)[:, -3:]

    with vtskip.attach(model, {**CLS, "drop_kv": False}) as handle:
        together = logits(model, batch)
        scores = handle.last_rows.memo[VIT_CLS]
        greedy = generate(batch)
        assert torch.equal(handle.last_rows.memo[VIT_CLS], scores)
        assert torch.equal(together[:, -1].index_fill(1, torch.tensor([2]), -torch.inf).argmax(-1), greedy[:, 0])
        beams = generate(batch, num_beams=3, num_return_sequences=2)
        for i, kind in enumerate(KINDS):
            single, mask = family.batch([kind]), batch["attention_mask"][i].bool()
            assert (together[i][mask] - logits(model, single)[0]).abs().max() < 1e-12
            assert torch.equal(generate(single, num_beams=3, num_return_sequences=2), beams[2 * i : 2 * i + 2])


def test_images_encoded_ahead_keep_their_own_scores():
    """Two requests, both encoded before either is read."""
    family = FAMILIES["llava-llama"]
    model, batches = family.model(), [family.batch(["long"]), family.batch(["short"])]
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers encodes images in the forward that reads them")
    with vtskip.attach(model, CLS):
        expected = [logits(model, batch) for batch in batches]
        encoded = [model.get_image_features(batch.pop("pixel_values"), return_dict=True) for batch in batches]
        for batch, output, right in zip(batches, encoded, expected):
            assert torch.equal(logits(model, batch, mm_encoder_outputs={"image": output}), right)


def test_missing_scores_are_named():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long"])
    vision = batch["input_ids"] == 100
    embeds = model.get_input_embeddings()(batch["input_ids"])
    message = r"attention for 32 vision rows, but none came .*retain: even"
    with vtskip.attach(model, CLS) as handle, handle.rows(vision), pytest.raises(ModelError, match=message):
        model(inputs_embeds=embeds)


def test_a_cls_row_among_the_features_is_always_retained():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["short"])
    model.config.vision_feature_select_strategy = "full"
    image = batch["input_ids"][0].tolist().index(100)
    for name, value in (("input_ids", 100), ("attention_mask", 1)):
        row = batch[name][0].tolist()
        batch[name] = torch.tensor([[*row[:image], value, *row[image:]]])
    batch.pop("position_ids")
    with vtskip.attach(model, CLS) as handle:
        logits(model, batch)
        scores = handle.last_rows.memo[VIT_CLS][0, image : image + 17]
    assert torch.isinf(scores[0]) and torch.isfinite(scores[1:]).all()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration: .*not the patches of one CLIP tower"),
        ("llava_onevision", "LlavaOnevisionForConditionalGeneration: .*no CLS token"),
        ("llava_next", "LlavaNextForConditionalGeneration: .*tiled"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration adds features .* use skip_ffn"),
    ],
)
def test_models_without_cls_attention_are_refused_by_name(name, reason):
    model = FAMILIES[name].model()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(ModelError, match=reason):
        vtskip.attach(model, CLS)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert not any(hasattr(layer, "vtskip") for layer in model.get_decoder().layers)


def test_other_towers_text_models_and_streams_are_refused():
    text = LlamaForCausalLM(LlamaConfig(**TEXT))
    with pytest.raises(ModelError, match=r"Llama.*no vision tower; use retain: even"):
        vtskip.attach(text, CLS)
    with pytest.raises(ModelError, match=r"StreamingLlava: its frames may be encoded.*use retain: even"):
        vtskip.attach(tiny_stream()[0], CLS)
    vision = SiglipVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=100)
    with pytest.raises(ModelError, match="its tower is a SiglipVisionModel"):
        vtskip.attach(LlavaForConditionalGeneration(config), CLS)


def test_streams_with_even_rows():
    """Frame by frame equals one shot: a frame's decision is its own."""
    model, template = tiny_stream(pool=(3, 3))
    ids = torch.tensor([[template.bos_id] + ([template.frame_id] * 10 + [template.interval_id]) * 3])
    frames = video(3)
    with vtskip.attach(model, {"name": "skip_vision", "retain": "even", "keep": 3, "merged": 3, "drop_kv": False}):
        whole = logits(model, dict(input_ids=ids, frames=frames))
        cache, pieces = DynamicCache(), []
        for i, piece in enumerate(ids.tensor_split([12, 23], dim=1)):
            pieces.append(logits(model, dict(input_ids=piece, frames=frames[i : i + 1]), past_key_values=cache))
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-12


def test_detaching_takes_the_tower_hooks_off():
    model = FAMILIES["llava-llama"].model()
    vtskip.attach(model, CLS).detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------- decision


def naive_image(x, keep, left, summary):
    """One image ``[n, h]``, row by row: retained at equal distances, the rest merged, and what the sequence becomes."""
    n = len(x)
    retained = [i for i in range(n) if i * keep % n < keep]
    others = [i for i in range(n) if i not in retained]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    redundancy = {i: sum(unit[i] @ unit[j] for j in others if j != i) for i in others}
    order = sorted(others, key=lambda i: -redundancy[i])
    sources, stay = order[: len(others) - left], sorted(order[len(others) - left :])
    members = {j: [j] for j in stay}
    for i in sources:
        members[max(stay, key=lambda j: unit[i] @ unit[j])].append(i)
    merged = [np.mean([x[i] for i in members[j]], 0) for j in stay]
    kept = [x[i] for i in retained]
    return np.stack([*kept, summary(np.stack(kept)), *merged, summary(np.stack(merged))])


def test_edit_equals_row_by_row_computation():
    """A batch of two samples, images of two sizes, left padding."""
    method = SkipVision(retain="even", keep=4, merged=5)
    planner = method.planner(0, DecoderShape(2, 8, 16, 2, 2, 4, 10)).double()
    planner.summary.norm.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    vision, valid = np.zeros((2, 40), bool), np.ones((2, 40), bool)
    vision[0, 3:33], vision[1, 12:28], valid[1, :10] = True, True, False
    rows = RowMap.build(vision, valid, [[16, 14], [16]])
    hidden = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = planner(rows, hidden)

    def summary(group):
        x = torch.from_numpy(group)
        norm = torch.nn.functional.layer_norm(x, (8,), planner.summary.norm.weight, planner.summary.norm.bias)
        weight = (norm @ planner.summary.score.weight[0] + planner.summary.score.bias).softmax(0)
        return (weight @ x).detach().numpy()

    expected, live, full = (
        hidden.clone(),
        ~torch.from_numpy(vision) & rows.valid,
        ~torch.from_numpy(vision) & rows.valid,
    )
    for b, start, size in ((0, 3, 16), (0, 19, 14), (1, 12, 16)):
        new = naive_image(hidden[b, start : start + size].numpy(), 4, 5, summary)
        expected[b, start : start + 11] = torch.from_numpy(new)
        live[b, start : start + 11] = True
        full[b, [*range(start, start + 5), start + 10]] = True
    assert (plan.edit - expected).abs().max() < 1e-12
    assert torch.equal(plan.attend.mask, live) and torch.equal(plan.ffn.mask, full)
    assert plan.attend.counts == (32, 25) and plan.ffn.counts == (22, 20)
    assert plan.cache is plan.ffn and plan.expose is plan.attend


@pytest.mark.parametrize(
    ("spec", "size", "split"),
    [
        ({}, 576, Split(100, 156, True)),
        ({"keep": 272, "merged": 256}, 1296, Split(272, 256, True)),
        ({"keep": 576, "merged": None}, 1152, Split(576, 574, True)),
        ({"keep": 576, "merged": None, "summaries": False}, 1152, Split(576, 576, False)),
        ({"keep": 100, "merged": 156}, 144, Split(100, 42, True)),
        ({"keep": 100, "merged": 156}, 102, Split(100, 2, False)),
        ({"keep": 100}, 90, Split(90, 0, False)),
        ({"keep": 1.0}, 16, Split(16, 0, False)),
        ({"keep": 1}, 16, Split(16, 0, False)),
    ],
)
def test_how_an_image_is_divided(spec, size, split):
    ours = get_method({"name": "skip_vision", **spec}).split(size)
    assert ours == split and ours.used <= size


@pytest.mark.parametrize(
    ("spec", "message"),
    [({"keep": 0}, "keep"), ({"merged": 1.5}, "merged"), ({"retain": "best"}, "retain"), ({"keeps": 3}, "keeps")],
)
def test_wrong_settings_are_named(spec, message):
    with pytest.raises(ConfigError, match=message):
        get_method({"name": "skip_vision", **spec})


def test_pass_last_runs_the_last_skipped_row():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["short"])
    plans = []
    for spec in (EVEN, {**EVEN, "pass_last": True}):
        with vtskip.attach(model, spec) as handle:
            logits(model, batch)
            plans.append(handle.last_plans[3])
    more = (plans[1].ffn.mask & ~plans[0].ffn.mask)[0].nonzero().flatten().tolist()
    first = batch["input_ids"][0].tolist().index(100)
    assert more == [first + 4 + 1 + 4]  # behind the retained rows and their summary, the last of five


# ---------------------------------------------------------------- cache, gradients, saving


def test_dropped_rows_free_their_memory():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long"])
    length, held = batch["input_ids"].shape[1], {}
    for drop in (False, True):
        with vtskip.attach(model, {**EVEN, "drop_kv": drop}) as handle:
            cache = DynamicCache()
            logits(model, batch, past_key_values=cache)
            report = handle.report()
            assert report.kv_bytes == sum(2 * layer.keys.numel() * 8 for layer in cache.layers)
            for layer in cache.layers:
                for t in (layer.keys, layer.values):
                    assert t.untyped_storage().nbytes() == t.numel() * t.element_size()
            held[drop] = report.kv_bytes
            logits(model, dict(input_ids=torch.tensor([[7]])), past_key_values=cache)
            assert [layer.keys.shape[2] for layer in cache.layers] == [length + 1 - (20 if drop else 10)] * 4
            assert cache.get_seq_length() == length + 1
    row = 2 * 4 * 2 * 8 * 8  # K and V, layers, heads, head_dim, bytes
    assert held == {False: row * (length - 10), True: row * (length - 20)}


def test_merged_rows_and_summaries_get_gradients():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(torch.float32), family.batch(["short"], dtype=torch.float32)
    model.train()
    vision = batch["input_ids"] == 100
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    embeds[vision] = torch.randn(int(vision.sum()), 32, generator=torch.Generator().manual_seed(3))
    embeds.requires_grad_()
    with vtskip.attach(model, EVEN) as handle:
        with handle.rows(vision):
            model(inputs_embeds=embeds).logits[:, -1].square().sum().backward()
        assert (embeds.grad[vision].abs().sum(-1) > 0).all()
        summary = {n: p for n, p in model.named_parameters() if ".vtskip." in n}
        assert len(summary) == 4 and all(".layers.0.vtskip.summary." in n for n in summary)
        assert all(p.grad.abs().sum() > 0 for n, p in summary.items() if not n.endswith("score.bias"))


@pytest.mark.parametrize("kinds", [["text"], ["short"]])
def test_unused_summaries_take_part_in_training(kinds):
    """Text only, and images too small to have anything to sum up."""
    family = FAMILIES["llava-llama"]
    model = family.model(torch.float32).train()
    with vtskip.attach(model, {**EVEN, "keep": 14}):
        model(**family.batch(kinds, dtype=torch.float32)).logits.sum().backward()
        assert all((p.grad == 0).all() for n, p in model.named_parameters() if ".vtskip." in n)


def test_copies_have_scores_of_their_own(family):
    model, batch = family.model(), family.batch(["long", "short"])
    with vtskip.attach(model, CLS):
        twin = copy.deepcopy(model)
        expected = logits(model, batch)
        for parameter in model.model.vision_tower.parameters():
            parameter.data.zero_()
        assert torch.equal(logits(twin, batch), expected)


def test_summaries_are_saved_and_loaded(tmp_path):
    family = FAMILIES["llava-llama"]
    model, other, batch = family.model(), family.model(), family.batch(["long"])
    with vtskip.attach(model, EVEN):
        for name, parameter in model.named_parameters():
            if ".vtskip." in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
        expected = logits(model, batch)
        save_pretrained(model, tmp_path)
    saved = load_file(tmp_path / "vtskip_model.safetensors")
    names = {f"summary.{m}.{p}" for m in ("norm", "score") for p in ("weight", "bias")}
    assert {k.removeprefix("layers.0.") for k in saved} == names
    with vtskip.attach(other, EVEN):
        assert not torch.equal(logits(other, batch), expected)
    with load_pretrained(other, tmp_path):
        assert torch.equal(logits(other, batch), expected)
