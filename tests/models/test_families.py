"""Every supported class: its groups, padded batches, text models with rows by hand, and the classes that are refused."""

import functools
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

import vtskip
from tests import tiny_families as t
from tests.tiny import FAMILIES as TINY
from tests.tiny import TEXT
from vtskip.errors import ModelError
from vtskip.models.families import FAMILIES, TEXT_CLASSES, shape_of
from vtskip.models.groups import anyres_images, merged_grids
from vtskip.models.refused import REFUSED

MOD, SHORTV = {"name": "mod", "keep": 0.3}, {"name": "shortv", "layers": [0, 1, 3]}
METHODS = pytest.mark.parametrize("spec", [MOD, SHORTV], ids=["mod", "shortv"])
EVERY = pytest.mark.parametrize("name", list(TINY))
KINDS = ["long", "short", "text"]
# Sizes of the groups of a long and a short sample, from the shapes of its images and videos in tests/tiny_families.py.
VIDEO_3x6, IMAGE_4x4 = [6, 6, 6], [4]
GROUPS = {
    "llava-llama": ([16, 16], [16]),
    "llava-mistral": ([16, 16], [16]),
    "llava-qwen2": ([16, 16], [16]),
    "vipllava": ([16, 16], [16]),
    "llava_next": ([52, 56], [52]),
    "llava_next_video": ([4, 4, 4, 56], [4, 4, 4]),
    "llava_onevision": ([9, 9, 10, 102], [9, 9, 10]),
    "video_llava": ([17, 17, 16], [17, 17]),
    "qwen2_vl": ([*VIDEO_3x6, *IMAGE_4x4], [6, 6, 6, 6]),
    "qwen2_5_vl": ([*VIDEO_3x6, *IMAGE_4x4], [6, 6, 6, 6]),
    "qwen3_vl": ([*VIDEO_3x6, *IMAGE_4x4], [6, 6, 6, 6]),
    "qwen3_vl_moe": ([*VIDEO_3x6, *IMAGE_4x4], [6, 6, 6, 6]),
    "internvl": ([4, 4, 4, 12], [4, 4, 4]),
    "smolvlm": ([4, 4, 4, 4], [4, 4]),
    "idefics3": ([4, 4, 4, 4], [4, 4]),
    "glm4v": ([4, 6], [8]),
    "glm4v-video": ([6, 6, 6, 6, 6, 6, 6], [6, 6, 6, 6]),
    "glm46v": ([4, 6], [8]),
    "mistral3": ([6, 2], [4]),
    "video_llama_3": ([4, 3, 1, 24], [4, 3, 1]),
    "paligemma": ([16, 16], [16]),
    "paligemma-gemma2": ([16, 16], [16]),
    "gemma3": ([16, 16], [16]),
}


@functools.cache
def model_of(name):
    return TINY[name].model()


def logits(model, **inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state


def sizes(model, method=MOD, **inputs):
    with vtskip.attach(model, method) as handle:
        logits(model, **inputs)
        return [list(row) for row in handle.last_rows.sizes]


def test_every_family_is_tested_with_the_text_layers_it_names():
    tested: dict = {}
    for name in TINY:
        model = model_of(name)
        tested.setdefault(type(model).__name__, set()).add(model.get_decoder().config.model_type)
    assert tested == {name: set(family.text) for name, family in FAMILIES.items() if name != "StreamingLlava"}


@EVERY
def test_groups_are_the_same_in_a_forward_and_inside_generate(name):
    model, batch = model_of(name), TINY[name].batch(KINDS)
    expected = [*GROUPS[name], []]
    assert sizes(model, **batch) == expected
    batch.pop("position_ids", None)
    with vtskip.attach(model, MOD) as handle:
        model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert [list(row) for row in handle.last_rows.sizes] == expected


@METHODS
@pytest.mark.parametrize("side", ["left", "right"])
@EVERY
def test_samples_with_many_images_and_with_none_share_a_batch(name, side, spec):
    family, model, kinds = TINY[name], model_of(name), ["text", "long"]
    batch = family.batch(kinds, side)
    with vtskip.attach(model, spec) as handle:
        together = logits(model, **batch)
        assert min(layer.kept_ffn for layer in handle.report().layers) < 0.6
        for i, kind in enumerate(kinds):
            alone = logits(model, **family.batch([kind]))[0]
            assert (together[i][batch["attention_mask"][i].bool()] - alone).abs().max() <= family.tolerance


@EVERY
def test_bare_models_are_of_the_same_family(name):
    model = model_of(name)
    assert sizes(model.model, **TINY[name].batch(["short"])) == [GROUPS[name][1]]


def test_images_side_by_side_are_two_groups():
    model, ids = model_of("llava-llama"), torch.tensor([[1, *[t.IMAGE_ID] * 32, 5]])
    inputs = {"input_ids": ids, "pixel_values": t.pixels(0, 2, 3, 32, 32).double()}
    assert sizes(model, **inputs) == [[16, 16]]
    with vtskip.attach(model, MOD) as handle:
        model.generate(**inputs, max_new_tokens=2)
        assert handle.last_rows.sizes == ((16, 16),)


def test_input_ids_may_be_positional():
    model, batch = model_of("llava_next"), TINY["llava_next"].batch(["long"])
    with torch.no_grad(), vtskip.attach(model, MOD) as handle:
        model(batch.pop("input_ids"), **batch)
        assert handle.last_rows.sizes == ((52, 56),)


def test_onevision_cuts_only_lone_images_into_tiles():
    """Two images in one sample: 36 rows and a newline each; above the limit a grid shrinks."""
    model = model_of("llava_onevision")
    pictures, shapes = t.pixels(0, 2, 1, 3, 48, 48).double(), torch.tensor([[48, 96], [40, 30]])
    inputs = {"pixel_values": pictures, "image_sizes": shapes, "batch_num_images": torch.tensor([2])}
    ids = torch.tensor([[1, *[t.IMAGE_ID] * 37, 5, *[t.IMAGE_ID] * 37, 6]])
    assert sizes(model, input_ids=ids, **inputs) == [[37, 37]]
    limit, model.config.vision_aspect_ratio = model.config.vision_aspect_ratio, "anyres_max_1"
    try:  # 6 x 12 patches on one tile of 36: both sides by 1 / sqrt(2)
        wide = {"pixel_values": t.pixels(0, 1, 3, 3, 48, 48).double(), "image_sizes": torch.tensor([[48, 96]])}
        rows = 36 + 4 * 8 + 4
        assert sizes(model, input_ids=torch.tensor([[1, *[t.IMAGE_ID] * rows, 5]]), **wide) == [[rows]]
    finally:
        model.config.vision_aspect_ratio = limit


@pytest.mark.parametrize(
    ("config", "model"), [("LlavaNextConfig", "llava_next"), ("LlavaOnevisionConfig", "llava_onevision")]
)
def test_rows_of_tiles_are_those_that_transformers_packs(config, model):
    """Real tower sizes and any image shape; the packed features say how many rows each image has."""
    stub = SimpleNamespace(config=getattr(hf, config)())
    side = stub.config.vision_config.image_size // stub.config.vision_config.patch_size
    shapes = torch.randint(20, 2500, (60, 2), generator=torch.Generator().manual_seed(0))
    tower, pinpoints = stub.config.vision_config.image_size, stub.config.image_grid_pinpoints
    module = sys.modules[type(model_of(model)).__module__]
    counts = [module.image_size_to_num_patches(shape, pinpoints, tower) for shape in shapes]
    features = [torch.zeros(n, side**2, 1) for n in counts]
    extra = {"vision_feature_select_strategy": "default"} if model == "llava_next" else {}
    pack = type(model_of(model).model).pack_image_features
    _, rows = pack(stub, features, shapes, image_newline=torch.zeros(1), **extra)
    assert anyres_images("image", None, {"image_sizes": shapes}, stub.config) == rows.tolist()
    assert len(set(rows.tolist())) > 20


def test_llava_with_images_of_their_own_size():
    tower = hf.PixtralVisionConfig(**t.TOWER, image_size=32, head_dim=8)
    config = hf.LlavaConfig(
        vision_config=tower,
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=t.IMAGE_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    inputs = {"pixel_values": t.pixels(0, 2, 3, 32, 32), "image_sizes": torch.tensor([[16, 32], [24, 16]])}
    lines = [*[*[t.IMAGE_ID] * 4, 7] * 2, *[*[t.IMAGE_ID] * 2, 7] * 3]
    assert sizes(model, input_ids=torch.tensor([[1, *lines, 5]]), **inputs) == [[8, 6]]


def test_frames_that_compression_leaves_empty_are_no_groups():
    model, part = model_of("video_llama_3"), t.video_llama_3_part(0)
    kept = torch.tensor([True] * 4 + [False] * 4 + [True] * 4)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in part.inputs.items()}
    ids = torch.tensor([[1, t.TIME_ID, *[t.VIDEO_ID] * 4, t.TIME_ID, *[t.VIDEO_ID] * 4, 5]])
    assert sizes(model, input_ids=ids, **{**inputs, "video_compression_mask": kept}) == [[4, 4]]
    given = {**part.inputs, "video_compression_mask": kept}
    assert merged_grids("video", (ids == t.VIDEO_ID).numpy(), given, model.config) == [4, 4]
    inputs.pop("video_compression_mask")
    ids = torch.tensor([[1, *[t.VIDEO_ID] * 12, 5]])
    assert sizes(model, input_ids=ids, **inputs) == [[4, 4, 4]]


def test_placeholders_that_do_not_fit_are_an_error():
    model, pictures = model_of("llava-llama"), t.pixels(0, 2, 3, 32, 32).double()
    with vtskip.attach(model, MOD), pytest.raises(ModelError, match=r"31 placeholder tokens .* 2 images"):
        model(input_ids=torch.tensor([[1, *[t.IMAGE_ID] * 31, 5]]), pixel_values=pictures)


def test_deepstack_is_read_from_the_configuration():
    assert FAMILIES["Qwen3VLForConditionalGeneration"].deepstack_layers(model_of("qwen3_vl").config) == 2
    assert FAMILIES["Qwen2VLForConditionalGeneration"].deepstack_layers(model_of("qwen2_vl").config) == 0


def test_the_ffn_of_experts_is_what_one_row_runs():
    assert shape_of(model_of("qwen3_vl_moe").get_decoder()).ffn == 2 * 16


# ---------------------------------------------------------------- text models

SAMPLES = [[1, 5, *range(20, 32), 7, *range(40, 46), 8], [1, 6, 9, *range(50, 56), 4]]
FRAMES = [[-1, -1, *[0] * 6, *[1] * 6, -1, *[2] * 6, -1], [-1, -1, -1, *[0] * 6, -1]]


def text_model(name):
    stem = re.sub("ForCausalLM|TextModel|Model", "", name)
    config = getattr(hf, "Gemma3TextConfig" if stem == "Gemma3" else f"{stem}Config")(
        **(t.SOFTCAP if stem == "Gemma2" else {**t.GEMMA, "sliding_window": 16})
    )
    torch.manual_seed(0)
    model = getattr(hf, name)(config).to(torch.float32 if stem == "Gemma2" else torch.float64).eval()
    model.set_attn_implementation("eager" if stem == "Gemma2" else "sdpa")
    return model


@METHODS
@pytest.mark.parametrize("name", TEXT_CLASSES)
def test_text_models_take_rows_by_hand(name, spec):
    model, width = text_model(name), len(SAMPLES[0])
    pad = width - len(SAMPLES[1])
    ids, group = torch.tensor([SAMPLES[0], [0] * pad + SAMPLES[1]]), torch.tensor([FRAMES[0], [-1] * pad + FRAMES[1]])
    mask = torch.tensor([[1] * width, [0] * pad + [1] * len(SAMPLES[1])])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with vtskip.attach(model, spec) as handle:
        with handle.rows(group >= 0, group):
            together = logits(model, input_ids=ids, attention_mask=mask, position_ids=positions)
            assert handle.last_rows.sizes == ((6, 6, 6), (6,))
            assert min(layer.kept_ffn for layer in handle.report().layers) < 0.6
        for row, sample, frames in zip(together, SAMPLES, FRAMES):
            group = torch.tensor([frames])
            with handle.rows(group >= 0, group):
                alone = logits(model, input_ids=torch.tensor([sample]))[0]
            assert (row[-len(sample) :] - alone).abs().max() <= (1e-5 if alone.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("name", ["llava-llama", "LlamaForCausalLM"])
def test_merged_embeddings_without_rows_warn_once(name):
    model = model_of(name) if name in TINY else text_model(name)
    ids = torch.tensor([[1, 5, 7, 9, 11]])
    embeds, cache = model.get_input_embeddings()(ids), hf.DynamicCache(config=model.config)
    with vtskip.attach(model, MOD) as handle:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(model, input_ids=ids, past_key_values=cache)
            logits(model, inputs_embeds=embeds[:, :1], past_key_values=cache)  # a decode step
            with handle.rows(ids > 5):
                logits(model, inputs_embeds=embeds)
        with pytest.warns(UserWarning, match=r"Handle\.rows"):
            logits(model, inputs_embeds=embeds)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(model, inputs_embeds=embeds)


def test_generate_from_merged_embeddings():
    """``generate`` passes an empty set of encoded images along: that is no image."""
    model, ids = model_of("llava-llama"), torch.tensor([[1, 5, 7, 9, 11, 6]])
    embeds = model.get_input_embeddings()(ids)
    dense = model.generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False)
    with vtskip.attach(model, MOD) as handle:
        with pytest.warns(UserWarning, match=r"Handle\.rows"):
            assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False), dense)
        with handle.rows(ids > 6):
            model.generate(inputs_embeds=embeds, max_new_tokens=3)
            assert handle.last_rows.sizes == ((3,),)


# ---------------------------------------------------------------- refused, listed


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_classes_say_why(name):
    for head in (name, re.sub("For[A-Z].*", "Model", name)):
        with pytest.raises(ModelError, match=re.escape(f"{head} cannot be supported: {REFUSED[name]}")):
            vtskip.attach(type(head, (nn.Module,), {})(), MOD)


def test_a_refused_backbone_inside_a_supported_class():
    text = hf.Phi3Config(**TEXT)
    with pytest.raises(ModelError, match="decoder layer 0 is a Phi3DecoderLayer"):
        vtskip.attach(t.llava(text), MOD)
    with pytest.raises(ModelError, match=r"Phi3ForCausalLM cannot be supported: .* fused"):
        vtskip.attach(hf.Phi3ForCausalLM(text), MOD)


def test_unknown_classes_get_the_list():
    with pytest.raises(
        ModelError, match=r"BertModel is not a supported model; supported: .*Qwen3VLForConditionalGeneration"
    ):
        vtskip.attach(hf.BertModel(hf.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)), MOD)


@pytest.mark.parametrize("name", [*FAMILIES, *TEXT_CLASSES, *REFUSED])
def test_names_are_those_of_transformers(name):
    oldest = tuple(map(int, hf.__version__.split(".")[:2])) < (5, 23)
    assert hasattr(hf, name) or name == "StreamingLlava" or (oldest and name in REFUSED)


def test_the_readme_lists_what_is_tested(capsys):
    from vtskip.cli.models import command

    command(markdown=True)
    table = capsys.readouterr().out
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert readme.partition("<!-- models:begin -->\n")[2].partition("<!-- models:end -->")[0] == table
    assert all(f"`{name}`" in table for name in FAMILIES)


def test_the_listing_names_the_refused(capsys):
    from vtskip.cli.models import command

    command()
    text = capsys.readouterr().out
    assert "Glm4vForConditionalGeneration" in text
    assert "MllamaForConditionalGeneration" in text
    assert "Gemma3TextModel" in text
