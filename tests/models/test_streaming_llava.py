"""StreamingLlava as a PreTrainedModel: frames, batches, losses, generation, checkpoints."""

import json

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from transformers import LlamaConfig, Qwen2Config

import vtskip
from vtskip.errors import CheckpointError, ModelError
from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig
from vtskip.models.vision_tower import load_pretrained

FRAME, VOCAB, F = 59, 60, 5
TOWER = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def build(text=LlamaConfig, tie=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    text_config = text(**TEXT, tie_word_embeddings=tie)
    options = {"vision": TOWER, "pool": [2, 2], "frame_id": FRAME, **options}
    return StreamingLlava(StreamingLlavaConfig(text_config=text_config, **options)).to(dtype).eval()


def frames(count, seed=0, side=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def sample(count):
    """Ids of a conversation with ``count`` frames, and labels at the frame ends and two text rows."""
    ids = [3, 7]
    for _ in range(count):
        ids += [FRAME] * F + [1]
    ids += [11, 8, 9]
    labels = [-100] * len(ids)
    for n in range(count):
        labels[2 + n * (F + 1) + F - 1] = 1
    labels[-3:-1] = ids[-2:]
    return ids, labels


def batch(counts, side="right"):
    rows = [sample(c) for c in counts]
    length = max(len(ids) for ids, _ in rows)

    def pad(values, fill):
        empty = [fill] * (length - len(values))
        return empty + values if side == "left" else values + empty

    return {
        "input_ids": torch.tensor([pad(ids, 0) for ids, _ in rows]),
        "attention_mask": torch.tensor([pad([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([pad(labels, -100) for _, labels in rows]),
        "frames": torch.cat([frames(c, seed=c) for c in counts]),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_runs(side):
    model = build()
    inputs = batch([4, 1, 0], side)
    together = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    for row, count in enumerate([4, 1, 0]):
        one = batch([count])
        alone = model(one["input_ids"], frames=one["frames"]).logits[0]
        torch.testing.assert_close(together[row][inputs["attention_mask"][row].bool()], alone, atol=1e-12, rtol=0)


def test_every_frame_reaches_its_own_place():
    model = build()
    inputs = batch([3, 2])
    features = model.encode_frames(inputs["frames"])
    embeds = model.embed(inputs["input_ids"], features)
    rows = embeds[inputs["input_ids"] == FRAME].view(5, F, -1)
    for n in range(5):
        torch.testing.assert_close(rows[n], model.connector(model.encode_frames(inputs["frames"][n : n + 1]))[0])


def test_frames_in_chunks_with_a_cache_equal_one_pass():
    model = build()
    ids, _ = sample(3)
    pixels = frames(3)
    whole = model(torch.tensor([ids]), frames=pixels).logits[0]
    cut = 2 + F + 1
    first = model(torch.tensor([ids[:cut]]), frames=pixels[:1], use_cache=True)
    rest = model(
        torch.tensor([ids[cut:]]), frame_features=model.encode_frames(pixels[1:]), past_key_values=first.past_key_values
    )
    torch.testing.assert_close(torch.cat([first.logits[0], rest.logits[0]]), whole, atol=1e-12, rtol=0)


def test_frames_may_be_channels_first_and_of_any_size():
    model = build()
    pixels = frames(2)
    torch.testing.assert_close(model.encode_frames(pixels.permute(0, 3, 1, 2)), model.encode_frames(pixels))
    large = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert model.encode_frames(large).shape == (2, F, 32)
    with pytest.raises(ModelError, match=r"frames \[2, 32, 32\]"):
        model.encode_frames(pixels[..., 0])


def test_normalisation_is_inside():
    plain, shifted = build(image_mean=[0.0] * 3, image_std=[1.0] * 3), build(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    pixels = frames(1)
    _, grid = shifted.vision_tower((pixels.permute(0, 3, 1, 2) / 255.0 - 0.5).double() / 0.25)
    assert not torch.allclose(plain.encode_frames(pixels), shifted.encode_frames(pixels))
    pooled = torch.nn.functional.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(shifted.encode_frames(pixels)[:, 1:], pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("cls", "pool", "count"), [(True, None, 1), (False, [2, 3], 6), (True, [3, 3], 10)])
def test_tokens_per_frame(cls, pool, count):
    model = build(cls_token=cls, pool=pool)
    assert model.config.frame_tokens == count
    assert model.encode_frames(frames(2)).shape == (2, count, 32)


def test_summary_and_grid_are_those_of_the_open_clip_tower():
    model = build()
    visual: VisionTransformer = model.vision_tower.visual
    visual.output_tokens = True
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pooled, tokens = visual(images)
    summary, grid = model.vision_tower(images)
    torch.testing.assert_close(summary, pooled)
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens)


def test_mismatch_names_both_numbers():
    model = build()
    ids, _ = sample(3)
    with pytest.raises(ModelError, match="15 frame placeholders, but 2 frames of 5 tokens give 10"):
        model(torch.tensor([ids]), frames=frames(2))
    with pytest.raises(ModelError, match="15 frame placeholders, but no frames"):
        model(torch.tensor([ids]))


# -- loss and gradients ---------------------------------------------------------------------------------------------


def gradients(model, inputs, **options):
    model.zero_grad()
    loss = model(**inputs, **options).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_training_loss_of_labelled_rows_equals_the_full_loss():
    model = build(stream_loss_weight=2.0)
    inputs = batch([3, 1, 0])
    full, by_hand = model(**inputs), None
    kept = inputs["labels"] != -100
    losses = nn.functional.cross_entropy(full.logits[kept], inputs["labels"][kept], reduction="none")
    by_hand = (losses * torch.where(inputs["input_ids"][kept] == FRAME, 2.0, 1.0)).sum() / kept.sum()
    torch.testing.assert_close(full.loss, by_hand)
    model.train()
    torch.testing.assert_close(model(**inputs).loss, full.loss)
    torch.testing.assert_close(model(**inputs, num_items_in_batch=5).loss, full.loss * kept.sum() / 5)


def test_a_batch_without_frames_touches_every_module():
    model = build().train()
    inputs = batch([0, 0])
    assert len(inputs["frames"]) == 0
    for given in (inputs, {k: v for k, v in inputs.items() if k != "frames"}):
        _, grads = gradients(model, given)
        missing = [n for n, p in model.named_parameters() if p.requires_grad and n not in grads]
        assert not missing
        assert all(not g.any() for n, g in grads.items() if n.startswith(("vision_tower", "connector")))


def test_a_batch_without_any_label_has_a_differentiable_zero_loss():
    model = build().train()
    inputs = batch([2])
    loss, _ = gradients(model, {**inputs, "labels": torch.full_like(inputs["labels"], -100)})
    assert loss == 0


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients():
    model = build().train()
    inputs = batch([3, 1, 0])
    calls = []
    hooks = [
        m.register_forward_pre_hook(lambda *_: calls.append(1))
        for m in [
            *(layer.mlp for layer in model.get_decoder().layers),
            *(b.mlp for b in model.vision_tower.visual.transformer.resblocks),
        ]
    ]
    loss, grads = gradients(model, inputs)
    native = len(calls)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    again, same = gradients(model, inputs)
    assert len(calls) == 3 * native
    assert grads.keys() == same.keys()
    torch.testing.assert_close(again, loss, atol=1e-12, rtol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(same[name], grad, atol=1e-12, rtol=0)
    getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    gradients(model, inputs)
    assert len(calls) == 4 * native
    for hook in hooks:
        hook.remove()


def test_a_frozen_tower_keeps_no_graph():
    model = build().train()
    model.vision_tower.requires_grad_(False)
    assert not model.encode_frames(frames(1)).requires_grad
    _, grads = gradients(model, batch([2]))
    assert "connector.0.weight" in grads
    assert not any(n.startswith("vision_tower") for n in grads)


# -- generation -----------------------------------------------------------------------------------------------------


def prompt(counts):
    inputs = batch(counts, "left")
    return {k: v for k, v in inputs.items() if k != "labels"}


def continued(model, inputs, steps):
    """Greedy decoding by full recomputation, without a cache."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(steps):
        logits = model(ids, attention_mask=mask, frames=inputs["frames"]).logits[:, -1]
        logits[:, FRAME] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


def test_greedy_generation_equals_recomputation():
    model = build()
    inputs = prompt([3, 1, 0])
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, suppress_tokens=[FRAME])
    assert out.tolist() == continued(model, inputs, 5).tolist()
    slow = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, suppress_tokens=[FRAME], use_cache=False
    )
    assert slow.tolist() == out.tolist()


def test_beams_and_return_sequences_share_a_samples_frames():
    model = build()
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(**prompt([3, 1]), **options)
    for row, count in enumerate([3, 1]):
        alone = model.generate(**prompt([count]), **options)
        assert together[2 * row : 2 * row + 2, -4:].tolist() == alone[:, -4:].tolist()
    torch.manual_seed(0)
    assert model.generate(**prompt([2]), max_new_tokens=3, do_sample=True, num_return_sequences=3).shape[0] == 3


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("text", [LlamaConfig, Qwen2Config])
def test_save_and_load(tmp_path, text, tie):
    model = build(text, tie, dtype=torch.float32, fps=4.0, bos_id=2, system_prompt="Be short.")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    loaded, info = StreamingLlava.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    saved, read = model.config.to_dict(), loaded.config.to_dict()
    assert {k for k in saved if saved[k] != read[k]} <= {"_name_or_path", "text_config"}
    assert read["text_config"] == saved["text_config"] | {"dtype": read["text_config"]["dtype"]}
    assert loaded.config.frame_tokens == F
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied is tie
    inputs = batch([2, 0])
    torch.testing.assert_close(loaded.eval()(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


def test_loading_never_asks_for_pretrained_vision_weights(tmp_path):
    model = build(dtype=torch.float32, vision_pretrained=str(tmp_path / "gone.pt"))
    model.save_pretrained(tmp_path / "m")
    assert StreamingLlava.from_pretrained(tmp_path / "m").config.vision_pretrained
    with pytest.raises(ModelError, match="a local file"):
        model.load_vision()


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_vision_weights_from_a_local_file(tmp_path, prefix):
    source, model = build(dtype=torch.float32), build(dtype=torch.float32, image_size=48)
    with torch.no_grad():
        for parameter in source.vision_tower.parameters():
            parameter.add_(1)
    path = tmp_path / "tower.pt"
    torch.save({prefix + k: v for k, v in source.vision_tower.visual.state_dict().items()}, path)
    load_pretrained(model.vision_tower, TOWER, str(path))
    ours, theirs = (m.vision_tower.visual for m in (model, source))
    torch.testing.assert_close(ours.conv1.weight, theirs.conv1.weight)
    assert ours.positional_embedding.shape[0] == 37  # resized from 17
    torch.testing.assert_close(ours.positional_embedding[0], theirs.positional_embedding[0])
    other = build(vision={**TOWER, "width": 16}, dtype=torch.float32)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_pretrained(other.vision_tower, "custom", str(path))


def test_parameters_of_a_method_stay_out_of_the_model_file(tmp_path):
    model = build(dtype=torch.float32)
    with vtskip.attach(model, {"name": "mod", "keep": 0.4}):
        assert any(".vtskip." in key for key in model.state_dict())
        model.save_pretrained(tmp_path)
        inside = model(**batch([2])).logits
    _, info = StreamingLlava.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not torch.equal(inside, model(**batch([2])).logits)


# -- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision": "ViT-B-23"}, "did you mean 'ViT-B-32'"),
        ({"vision": {**TOWER, "head_with": 4}}, "did you mean 'head_width'"),
        ({"vision": {**TOWER, "image_size": [32, 48]}}, "square"),
        ({"pool": [2]}, r"pool \[2\]"),
        ({"pool": None, "cls_token": False}, "at least one token"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ModelError, match=message):
        build(**options)


def test_published_normalisation_follows_the_named_tower():
    siglip = StreamingLlavaConfig(vision="ViT-B-16-SigLIP")
    assert siglip.image_mean == [0.5, 0.5, 0.5] and siglip.image_size == 224
    assert StreamingLlavaConfig(vision="ViT-B-32").image_mean[0] == pytest.approx(0.48145466)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32", "RN50", "convnext_base"])
def test_named_towers(tmp_path, name):
    model = build(vision=name, dtype=torch.float32, image_size=64)
    features = model.encode_frames(frames(1, side=64))
    assert features.shape == (1, F, model.vision_tower.width)
    model.save_pretrained(tmp_path)
    loaded = StreamingLlava.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.encode_frames(frames(1, side=64)), features, atol=1e-5, rtol=1e-5)
    model.train().encode_frames(frames(2, side=64)).sum().backward()
    missing = [n for n, p in model.vision_tower.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert json.loads((tmp_path / "config.json").read_text())["vision"] == name


def test_a_tower_without_blocks_keeps_what_a_patch_shows_in_its_row():
    model = build(vision={**TOWER, "layers": 0}, cls_token=False, pool=[4, 4])
    plain = frames(1)
    changed = plain.clone()
    changed[0, 8:16, 16:24] = 255 - changed[0, 8:16, 16:24]  # the patch in row 1, column 2 of a 4 x 4 grid
    moved = (model.encode_frames(plain) != model.encode_frames(changed)).any(-1)
    assert moved[0].nonzero()[:, 0].tolist() == [6]
    assert build(vision={**TOWER, "layers": 0}, pool=[2, 2]).encode_frames(plain).shape == (1, 5, 32)
