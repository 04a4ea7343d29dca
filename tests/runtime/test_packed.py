"""Samples of different lengths run packed, without padding, and give what the padded rows of the batch give."""

import copy
import functools

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES, TEXT
from vtskip.runtime import execution
from vtskip.runtime.slots import or_true

KINDS = ["long", "short", "text"]
DENSE = {"name": "dense"}
SPECS = {row.name: row.spec for row in MATRIX if row.name in ("mod", "mod-all-delta", "pmod", "shortv", "skip_ffn")}
SPECS = {"dense": DENSE, **SPECS}
# One per kind of attention: by order alone, a window shorter than the rows, two-way images, soft caps, M-RoPE, experts.
NAMES = ["llava-llama", "llava-mistral", "gemma3", "paligemma-gemma2", "qwen3_vl", "qwen3_vl_moe", "glm4v"]
MASKED = {"llava-mistral", "gemma3", "paligemma-gemma2"}  # positions alone do not say who sees whom
GRADIENT = 2**-20  # RMSNorm computes in float32 whatever the model's type


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.model()


@pytest.fixture
def ran(monkeypatch):
    """How many layers ran packed, and in how many of them attention did, too."""
    counts = {"packed": 0, "attention": 0}
    decide, attend = execution.runs_packed, execution.packed_attention

    def runs_packed(ex):
        packed = decide(ex)
        counts["packed"] += packed
        return packed

    def packed_attention(*args):
        counts["attention"] += 1
        return attend(*args)

    monkeypatch.setattr(execution, "runs_packed", runs_packed)
    monkeypatch.setattr(execution, "packed_attention", packed_attention)
    return counts


def content(layer, real):
    """Slots of a cache layer that hold rows and not padding."""
    if getattr(layer, "pos", None) is None:
        return real[:, -layer.keys.shape[2] :]
    return or_true(layer.ok, layer.pos) & real[list(layer.samples or range(len(real)))].gather(1, layer.pos)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_cache_and_gradients_are_those_of_padded_rows(model, family, ran, spec, side):
    batch, outputs = family.batch(KINDS, side), {}
    real = batch["attention_mask"].bool()
    weight = torch.randn(int(real.sum()), 1, generator=torch.Generator().manual_seed(0)).to(family.dtype)
    parameters = list(model.get_decoder().parameters())
    for lossless in (True, False):
        with vtskip.attach(model, spec, lossless=lossless):
            cache = DynamicCache(config=model.config)
            logits = model(**batch, past_key_values=cache).logits[real]
            gradients = torch.autograd.grad((logits * weight).sum(), parameters, allow_unused=True)
            outputs[lossless] = logits.detach(), cache, gradients
    layers = len(model.get_decoder().layers)
    assert ran == {"packed": layers, "attention": 0 if family.name in MASKED else layers}
    (ours, cache, grads), (theirs, padded, expected) = outputs[True], outputs[False]
    assert (ours - theirs).abs().max() <= family.tolerance
    for layer, other in zip(cache.layers, padded.layers):
        assert layer.keys.shape == other.keys.shape and layer.get_seq_length() == other.get_seq_length()
        held = content(layer, real)
        for mine, its in ((layer.keys, other.keys), (layer.values, other.values)):
            assert ((mine - its).transpose(1, 2)[held].abs() <= family.tolerance).all()
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    for mine, its in zip(grads, expected):
        assert (mine is None) == (its is None)
        assert mine is None or (mine - its).abs().max() <= max(family.tolerance, GRADIENT) * scale


def test_nothing_is_computed_of_padding():
    """The linear layers see the rows of the samples and no others; the report counts them."""
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(KINDS)
    rows, seen = int(batch["attention_mask"].sum()), []
    with torch.no_grad(), vtskip.attach(model, "dense") as handle:
        for layer in model.get_decoder().layers:
            for module in (layer.self_attn.k_proj, layer.self_attn.o_proj, layer.mlp, layer.post_attention_layernorm):
                module.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
        model(**batch)
        report = handle.report()
    assert seen == [(1, rows, 32)] * (4 * 4)
    assert all(layer.attend == layer.expose == layer.ffn == rows < layer.rows for layer in report.layers)
    lengths = batch["attention_mask"].sum(1)
    per_layer = 2 * 32 * (2 * 32 + 2 * 16) * rows + 6 * 32 * 48 * rows + 4 * 32 * int(lengths.square().sum())
    assert report.flops_full == 4 * per_layer + 2 * 32 * 120 * batch["input_ids"].numel()


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_alone_is_packed_too(ran, side):
    family = FAMILIES["llava-llama"]
    model = family.model()
    batch = family.batch(["text", "short"], side)
    batch.pop("pixel_values")
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 100, 9)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        stock = model(**batch).logits[real]
        with vtskip.attach(model, {"name": "mod", "keep": 0.3}) as handle:
            ours = model(**batch).logits[real]
            assert ran == {"packed": 4, "attention": 4}
            assert [layer.attend for layer in handle.report().layers] == [int(real.sum())] * 4
            model(**family.batch(["text", "text"]))  # no padding: the layers' own forward
            assert ran["packed"] == 4
    assert (ours - stock).abs().max() <= family.tolerance


@pytest.mark.parametrize("spec", [DENSE, SPECS["mod"], SPECS["shortv"]], ids=["dense", "mod", "shortv"])
def test_turns_with_padding_on_one_cache(model, family, spec):
    """A padded prompt, then two rows for one sample and one for the others, then a word."""
    if family.mrope or family.name == "gemma3":
        pytest.skip("numbers or types of the later rows are the model's own")
    batch, outputs = family.batch(KINDS), []
    mask = torch.cat([batch["attention_mask"], torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1]])], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    more, n = torch.tensor([[7, 8, 9], [0, 6, 5], [0, 9, 4]]), batch["input_ids"].shape[1]
    for lossless in (True, False):
        cache, steps = DynamicCache(config=model.config), []
        with torch.no_grad(), vtskip.attach(model, spec, lossless=lossless):
            model(**batch, past_key_values=cache)
            for a, b in ((0, 2), (2, 3)):
                step = dict(input_ids=more[:, a:b], position_ids=position[:, n + a : n + b])
                logits = model(**step, attention_mask=mask[:, : n + b], past_key_values=cache).logits
                steps.append(logits[mask[:, n + a : n + b].bool()])
        outputs.append(torch.cat(steps))
    assert (outputs[0] - outputs[1]).abs().max() <= family.tolerance


@pytest.mark.parametrize("spec", [DENSE, SPECS["pmod"], SPECS["shortv"]], ids=["dense", "pmod", "shortv"])
def test_checkpointing_runs_packed_rows_again(ran, spec):
    family = FAMILIES["llava-llama"]
    model, batch = family.model().train(), family.batch(KINDS)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with vtskip.attach(model, spec):
            logits = model(**batch, use_cache=False).logits[batch["attention_mask"].bool()]
            parameters = list(model.get_decoder().parameters())
            gradients.append(torch.autograd.grad(logits.square().mean(), parameters, allow_unused=True))
    assert ran["packed"] == 8
    for ours, theirs in zip(*gradients):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_generate_gives_the_same_words():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(KINDS)
    batch.pop("position_ids")
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=2, num_return_sequences=2)
    stock = model.generate(**batch, **settings)
    with vtskip.attach(model, "dense"):
        assert torch.equal(model.generate(**batch, **settings), stock)


def text_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()


def padded_text():
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    return dict(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))


def hook(attn):
    return attn.register_forward_hook(lambda *_: None)


def patch(attn):
    attn.forward = functools.partial(type(attn).forward, attn)


@pytest.mark.parametrize("watch", [hook, patch])
def test_attention_that_someone_watches_is_called(ran, watch):
    model, batch = text_model(), padded_text()
    watch(model.model.layers[1].self_attn)
    with torch.no_grad(), vtskip.attach(model, "dense"):
        model(**batch)
    assert ran["packed"] == 3


def test_attentions_that_are_asked_for_are_all_there(ran):
    model, batch = text_model(), padded_text()
    model.set_attn_implementation("eager")
    with torch.no_grad(), vtskip.attach(model, "dense"):
        maps = model(**batch, output_attentions=True).attentions
        assert [a.shape for a in maps] == [(2, 4, 12, 12)] * 4 and ran["packed"] == 0
        model(**batch)  # transformers' hooks stay, idle
    assert ran == {"packed": 4, "attention": 0}


def test_maps_of_layers_that_are_taken_apart_are_there_too():
    """Of the rows that ask, with all rows they see."""
    model, rows = text_model(), torch.zeros(2, 12, dtype=torch.bool)
    model.set_attn_implementation("eager")
    rows[:, 6:9] = True
    with torch.no_grad():
        stock = model(**padded_text(), output_attentions=True).attentions
        with vtskip.attach(model, {"name": "shortv", "layers": [1, 2]}) as handle, handle.rows(rows):
            maps = model(**padded_text(), output_attentions=True).attentions
    assert [a.shape[2] for a in maps] == [12, 9, 9, 12]
    assert (maps[0][0] - stock[0][0]).abs().max() <= 1e-6
    assert (maps[1][0] - stock[1][0][:, ~rows[0]]).abs().max() <= 1e-6  # nothing is frozen before the first such layer


def test_a_mask_of_the_callers_own_is_obeyed(ran):
    """Padding is not told by a 4-D mask: nothing is packed, and what it hides stays hidden."""
    model, batch = text_model(), padded_text()
    with torch.no_grad(), vtskip.attach(model, "dense"):
        expected = model(**batch).logits[1, 5:]
        causal = torch.ones(12, 12, dtype=torch.bool).tril() & batch["attention_mask"].bool()[:, None, None]
        ran.update(packed=0)
        ours = model(**{**batch, "attention_mask": causal | torch.eye(12, dtype=torch.bool)}).logits[1, 5:]
    assert ran["packed"] == 0 and (ours - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("train", [True, False])
def test_a_loss_on_padding_is_that_of_the_stock_model(ran, train):
    """The last row of left padding predicts the first word, if that has a label."""
    model, batch = text_model().train(train), padded_text()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    first = labels.masked_fill((batch["position_ids"] == 0) & batch["attention_mask"].bool(), -100)
    for given, layers in ((labels, 0), (first, 4)):
        ran.update(packed=0)
        expected = model(**batch, labels=given).loss
        with vtskip.attach(model, "dense"):
            assert abs(model(**batch, labels=given).loss - expected) <= 1e-6 * expected and ran["packed"] == layers


def test_documents_told_by_their_positions_stay_apart(ran):
    """Two documents per row, three of them of one length, and vision rows of uneven number: packed, with the model's mask."""
    model = text_model()
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(2))
    position = torch.tensor([[0, 1, 2, 3, 4, 5] * 2, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]])
    vision = torch.zeros(2, 12, dtype=torch.bool)
    vision[0, 1:4] = vision[1, 1:6] = True
    spec = {"name": "uniform", "keep": 0.4, "schedule": {"kind": "constant"}}
    outputs = []
    for lossless in (True, False):
        with torch.no_grad(), vtskip.attach(model, spec, lossless=lossless) as handle, handle.rows(vision):
            outputs.append(model(ids, position_ids=position, use_cache=False).logits)
    assert ran == {"packed": 4, "attention": 0}
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-12
    other = ids.clone()
    other[0, 0] = 91  # of the first document: the second does not see it
    with torch.no_grad(), vtskip.attach(model, spec) as handle, handle.rows(vision):
        assert torch.equal(model(other, position_ids=position, use_cache=False).logits[0, 6:], outputs[0][0, 6:])


def test_adapters_inside_the_layers_run(ran):
    peft = pytest.importorskip("peft")
    model, batch = text_model(), padded_text()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = tuned(**batch).logits[real]
        assert (expected - model(**batch).logits[real]).abs().max() > 1e-3
        with vtskip.attach(tuned, "dense"):
            assert (tuned(**batch).logits[real] - expected).abs().max() <= 1e-12
    assert ran["packed"] == 4


@pytest.mark.parametrize("spec", [DENSE, {"name": "mod", "keep": 0.5}], ids=["dense", "mod"])
def test_an_adapter_for_each_sample(ran, spec):
    """PEFT finds the samples of a batch by its first dimension: their rows are not put behind one another."""
    peft = pytest.importorskip("peft")
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long", "short"])
    names = [f"layers.{i}.mlp.up_proj" for i in range(4)]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    with vtskip.attach(model, spec):
        tuned = peft.get_peft_model(model, config)
        tuned.add_adapter("other", config)
        tuned.double().eval()
        real, outputs = batch["attention_mask"].bool(), {}
        with torch.no_grad():
            for first, second in (("default", "other"), ("default", "default"), ("other", "other")):
                outputs[first, second] = tuned(**batch, adapter_names=[first, second]).logits
        mixed = outputs["default", "other"]
        for sample, name in enumerate(["default", "other"]):
            alone = outputs[name, name][sample][real[sample]]
            assert (mixed[sample][real[sample]] - alone).abs().max() <= 1e-12
        assert (mixed[0] - outputs["other", "other"][0])[real[0]].abs().max() > 1e-3
    assert ran["packed"] == 0
