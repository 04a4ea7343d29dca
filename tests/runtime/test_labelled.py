"""Where a loss is all that is asked for, rows without a label are left out of the last layer and the LM head."""

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES, IMAGE_ID, TEXT, VIDEO_ID
from tests.tiny_stream import tiny, video
from vtskip.eval.bench import cpu_peak_bytes
from vtskip.runtime import asked

METHODS = pytest.mark.parametrize("row", MATRIX, ids=str)
KINDS = ["long", "short", "text"]


def wide_loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
    """The stock loss without its cast to float32."""
    logits, targets = logits.reshape(-1, vocab_size), F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    if num_items_in_batch is None:
        return F.cross_entropy(logits, targets)
    return F.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


@pytest.fixture(autouse=True)
def stock(monkeypatch):
    monkeypatch.setattr(asked, "stock_loss", lambda model: model.loss_function is wide_loss)


@pytest.fixture(scope="module", params=["llava-llama", "llava-mistral", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return trained(family)


def trained(family):
    model = family.model().train()
    model.loss_function = wide_loss
    return model


def labelled(batch, kinds=("answer", "answer", "answer")):
    """Per sample: the last 3 rows (``answer``), every second row with content (``half``: vision rows predict some), ``none``."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.where((labels != IMAGE_ID) & (labels != VIDEO_ID), 7)
    for row, mask, kind in zip(labels, batch["attention_mask"], kinds):
        content = mask.nonzero()[1:, 0]  # the row before a sample's first one is padding, whose output is nothing's
        learned = {"answer": content[-3:], "half": content[::2], "none": content[:0]}[kind]
        row[[i for i in range(len(row)) if i not in learned.tolist()]] = -100
    return {**batch, "labels": labels}


def step(model, batch, **more):
    """(output, gradients) of one training step."""
    model.zero_grad()
    out = model(**batch, use_cache=False, **more)
    out.loss.backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(ours, theirs, family):
    assert ours.keys() == theirs.keys()
    limit = max(1e-7, family.tolerance)  # norms round to float32 in the middle
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).abs().max() <= limit * max(1.0, float(theirs[name].abs().max())), name


@METHODS
@pytest.mark.parametrize("kinds", [("answer", "answer", "none"), ("half", "none", "half")], ids=["answers", "half"])
def test_loss_and_gradients_are_the_same(model, family, row, kinds):
    if (row.compact and (family.mrope or family.name == "gemma3")) or (row.moves and family.name == "qwen3_vl"):
        pytest.skip("refused")
    batch, found = labelled(family.batch(KINDS, "right"), kinds), []
    labels = int((batch["labels"][:, 1:] != -100).sum())
    for on in (True, False):
        with vtskip.attach(model, row.spec, lossless=on) as handle:
            out, gradients = step(model, batch, num_items_in_batch=torch.tensor(labels + 3))
            found.append((out, gradients, handle.report()))
    (ours, gradients, report), (full, expected, all_rows) = found
    assert (ours.loss - full.loss).abs() <= max(1e-12, family.tolerance)
    same(gradients, expected, family)
    assert ours.logits is None and full.logits is not None
    assert report.kept_vision == all_rows.kept_vision
    last = report.layers[-1]
    if not row.compact:
        assert (
            last.ffn <= labels + 3 * max(batch["labels"].ne(-100).sum(1).tolist())
            and last.expose <= all_rows.layers[-1].expose
        )
        assert report.flops_full < report.flops_full_dense


@pytest.mark.parametrize("side", ["left", "right"])
def test_dense_is_the_stock_model(model, family, side):
    batch = labelled(family.batch(KINDS, side))
    full, expected = step(model, batch)
    with vtskip.attach(model, "dense") as handle:
        ours, gradients = step(model, batch)
        report = handle.report()
        rows = batch["input_ids"].numel()
        assert handle.state.logit_rows == 9 + 1 and handle.state.logit_rows_saved == rows - 10
    assert (ours.loss - full.loss).abs() <= 1e-12 and ours.logits is None
    same(gradients, expected, family)
    assert 9 <= report.layers[-1].attend == report.layers[-1].ffn <= rows // 2
    assert report.flops_full < report.flops_full_dense


def test_no_label_at_all(model, family):
    """A process whose batch has none still has a gradient, zero, for every parameter."""
    batch = labelled(family.batch(KINDS, "right"), ["none"] * 3)
    _, expected = step(model, batch, num_items_in_batch=torch.tensor(5))
    with vtskip.attach(model, "dense"):
        out, gradients = step(model, batch, num_items_in_batch=torch.tensor(5))
        assert out.loss == 0
        assert gradients.keys() == expected.keys() and not any(g.any() for g in gradients.values())
        assert step(model, batch)[0].loss.isnan()  # as the stock loss is


@pytest.mark.parametrize("name", ["dense", {"name": "shortv", "layers": [1, 3]}, {"name": "pmod"}], ids=str)
def test_text_alone(model, family, name):
    batch = labelled(family.batch(["text", "text"]), ["answer", "none"])
    full, expected = step(model, batch)
    with vtskip.attach(model, name) as handle:
        ours, gradients = step(model, batch)
        assert handle.report().layers[-1].ffn < batch["input_ids"].numel()
    assert (ours.loss - full.loss).abs() <= 1e-12
    same({n: g for n, g in gradients.items() if "vtskip" not in n}, expected, family)


# ---------------------------------------------------------------- one family is enough

LLAVA = FAMILIES["llava-llama"]


@pytest.fixture
def llava():
    return trained(LLAVA)


@pytest.mark.parametrize(
    "more",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"return_dict": False},
        {"logits_to_keep": torch.arange(24)},
        {"inputs_embeds": None, "labels": None},
    ],
    ids=lambda more: next(iter(more)),
)
def test_every_row_runs_where_something_may_read_it(llava, more):
    batch = labelled(LLAVA.batch(["long", "short"], "right"), ["answer", "answer"])
    if "logits_to_keep" in more:
        more = {"logits_to_keep": torch.arange(batch["input_ids"].shape[1])}
    if more.get("output_attentions"):
        llava.set_attn_implementation("eager")
    with vtskip.attach(llava.float(), "dense") as handle:
        batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()} | more
        out = llava(**batch)
        logits = next(t for t in out if t.dim() == 3) if isinstance(out, tuple) else out.logits
        assert logits.shape[:2] == batch["input_ids"].shape
        assert handle.report().layers[-1].ffn >= int(batch["attention_mask"].sum())


def test_other_losses_and_evaluation_keep_the_logits(llava):
    batch = labelled(LLAVA.batch(["long", "short"], "right"), ["answer", "answer"])
    with vtskip.attach(llava, "dense") as handle:
        llava.loss_function = lambda logits, labels, **_: logits.square().mean()
        assert llava(**batch).logits is not None
        llava.loss_function = wide_loss
        full = llava.eval()(**batch)
        assert full.logits.shape[:2] == batch["input_ids"].shape
        with torch.no_grad(), handle.loss_only():
            alone = llava(**batch)
        assert alone.logits is None and (alone.loss - full.loss).abs() <= 1e-12
        assert llava(**batch).logits is not None


def test_labels_by_position_and_an_error_on_the_way(llava):
    batch = labelled(LLAVA.batch(["long", "short"], "right"), ["answer", "answer"])
    names = list(inspect.signature(llava.forward).parameters)
    names = names[: names.index("labels") + 1]
    expected = llava(**batch).loss
    with vtskip.attach(llava, "dense") as handle:
        with pytest.raises(Exception, match="image"):
            llava(**{**batch, "pixel_values": batch["pixel_values"][:1]})
        assert not handle.state.asked
        out = llava(*[batch.get(name) for name in names])
    assert out.logits is None and (out.loss - expected).abs() <= 1e-12


@pytest.mark.parametrize("spec", ["dense", {"name": "mod", "keep": 0.3}, {"name": "shortv", "layers": [2, 3]}], ids=str)
def test_checkpointing_and_adapters(llava, spec):
    batch, found = labelled(LLAVA.batch(KINDS, "right"), ["answer", "half", "none"]), []
    for on in (True, False):
        twin = copy.deepcopy(llava)
        twin.loss_function = wide_loss
        torch.manual_seed(5)
        adapted = get_peft_model(
            twin, LoraConfig(r=2, target_modules=r".*layers\..*(q|k|o|down)_proj", init_lora_weights=False)
        )
        vtskip.attach(adapted, spec, lossless=on)
        enable = getattr(twin, "activation_checkpointing_enable", None) or twin.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        found.append(step(adapted.train(), batch))
        assert any("lora" in name for name in found[-1][1])
    assert found[0][0].logits is None and (found[0][0].loss - found[1][0].loss).abs() <= 1e-12
    same(found[0][1], found[1][1], LLAVA)


def test_auxiliary_losses_are_weighed_the_same(llava):
    batch, losses = labelled(LLAVA.batch(KINDS, "right")), []
    for on in (True, False):
        with vtskip.attach(
            llava, {"name": "gamma_mod", "keep": 0.4, "schedule": {"kind": "constant"}}, lossless=on
        ) as handle:
            losses.append(llava(**batch, num_items_in_batch=torch.tensor(20)).loss)
            assert handle.aux_loss() is not None
    assert (losses[0] - losses[1]).abs() <= 1e-12


@pytest.mark.parametrize("spec", ["dense", {"name": "mod", "keep": 0.4}, {"name": "early_exit", "layer": 2}], ids=str)
def test_streaming_llava(spec):
    model, template = tiny()
    model.train()
    frames = torch.tensor([[template.frame_id] * model.config.frame_tokens])
    ids = torch.cat([frames, frames, torch.tensor([[5, 6, 7, 8]])], 1).repeat(2, 1)
    labels = torch.full_like(ids, -100)
    labels[0, 4], labels[0, -3:], labels[1, 9] = 3, torch.tensor([6, 7, 8]), 2
    batch = dict(input_ids=ids, frames=video(4), labels=labels)
    found = []
    for on in (True, False):
        with vtskip.attach(model, spec, lossless=on) as handle:
            found.append((*step(model, batch), handle.report()))
            assert handle.state.logit_rows == 5
    (ours, gradients, report), (full, expected, _) = found
    assert (ours.loss - full.loss).abs() <= 1e-6 and ours.logits is None  # the stream loss is computed in float32
    same(gradients, expected, LLAVA)
    assert report.layers[-1].ffn <= 2 * 4
    if spec == "dense":
        assert (ours.loss - step(model, batch)[0].loss).abs() <= 1e-6
    with torch.no_grad(), vtskip.attach(model.eval(), spec) as handle:
        evaluated = model(**batch)
        with handle.loss_only():
            alone = model(**batch)
    assert evaluated.logits.shape[:2] == ids.shape and alone.logits is None
    assert (alone.loss - evaluated.loss).abs() <= 1e-6


def test_a_large_vocabulary_costs_no_memory_where_nothing_is_learned():
    """Bytes held at once in one training step, of which the logits of all rows would be the most."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TEXT, "vocab_size": 20000})).train()
    ids, vision = torch.randint(3, 90, (2, 96)), torch.zeros(2, 96, dtype=torch.bool)
    vision[:, 4:80] = True
    labels = ids.masked_fill(torch.arange(96) < 88, -100)
    model.loss_function = wide_loss
    peaks, logits = [], 2 * 96 * 20000 * 4

    def one_step():
        model(ids, labels=labels, use_cache=False).loss.backward()

    one_step()  # the gradients themselves
    for on in (True, False):
        with vtskip.attach(model, "dense", lossless=on) as handle, handle.rows(vision):
            peaks.append(cpu_peak_bytes(one_step))
    assert peaks[1] > 2 * logits and peaks[0] < 0.5 * logits


@pytest.mark.slow
def test_compiled_models_keep_their_logits():
    """Another number of labels in each step would mean another graph."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 2})).double().train()
    model.loss_function = wide_loss
    ids, vision = torch.randint(3, 90, (2, 24)), torch.zeros(2, 24, dtype=torch.bool)
    vision[:, 3:15] = True
    labels = ids.masked_fill(torch.arange(24) < 18, -100)
    expected = model(ids, labels=labels).loss
    torch._dynamo.reset()
    with vtskip.attach(model, "dense") as handle, handle.rows(vision):
        model.get_decoder().compile(backend="eager", fullgraph=True)
        out = model(ids, labels=labels, use_cache=False)
    torch._dynamo.reset()
    assert out.logits is not None and (out.loss - expected).abs() <= 1e-12
