"""A cache from whose middle rows leave: against a masked one, against a fresh one, and over a long stream."""

import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from tests.tiny import TEXT
from tests.tiny_stream import METHODS, Biased, tiny, video
from vtskip import attach
from vtskip.errors import ConfigError, ModelError
from vtskip.runtime.cache import SkipCache
from vtskip.runtime.forget import forget
from vtskip.streaming.session import StreamSession

TURNED = 1e-5  # rotary tables are float32 whatever the model is


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()


def fed(model, template, frames, cache, masked=0):
    """Feed ``, frame`` turns frame by frame; the logits of their last rows. The first ``masked`` rows are not seen."""
    logits = []
    for frame in frames:
        ids = torch.tensor([[template.interval_id, *template.frame_ids()]])
        past, inputs = cache.get_seq_length(), {}
        if masked:
            inputs["attention_mask"] = (torch.arange(past + ids.shape[1]) >= masked).long()[None]
            inputs["position_ids"] = torch.arange(past, past + ids.shape[1])[None]
        features = model.encode_frames(frame[None])
        out = model(input_ids=ids, frame_features=features, past_key_values=cache, use_cache=True, **inputs)
        logits.append(out.logits[:, -1])
    return torch.cat(logits)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_forgetting_the_oldest_rows_equals_masking_them(method):
    model, template = tiny()
    clip, gone = video(10), 12
    with attach(model, method):
        ours, masked = SkipCache(), SkipCache()
        for cache in (ours, masked):
            fed(model, template, clip[:5], cache)
        forget(model, ours, 0, gone)
        assert ours.get_seq_length() == masked.get_seq_length() - gone
        theirs = fed(model, template, clip[5:], masked, masked=gone)
        seen = fed(model, template, clip, SkipCache())[5:]
        assert (theirs - seen).abs().max() > 100 * TURNED, "the rows that left must matter"
        torch.testing.assert_close(fed(model, template, clip[5:], ours), theirs, rtol=0, atol=TURNED)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_keys_of_the_first_layer_are_those_of_a_shorter_text(batch):
    model = llama()
    ids = torch.randint(0, 50, (batch, 40), generator=torch.Generator().manual_seed(0))
    cache, fresh = SkipCache(), SkipCache()
    model(input_ids=ids[:, :30], past_key_values=cache)
    model(input_ids=ids[:, 30:], past_key_values=cache)
    forget(model, cache, 7, 21)
    model(input_ids=torch.cat([ids[:, :7], ids[:, 21:]], 1), past_key_values=fresh)
    torch.testing.assert_close(cache.layers[0].keys, fresh.layers[0].keys, rtol=0, atol=TURNED)
    torch.testing.assert_close(cache.layers[0].values, fresh.layers[0].values, rtol=0, atol=1e-12)
    assert cache.layers[0].pos.tolist() == [list(range(26))] * batch


@torch.no_grad()
def test_samples_that_hold_different_rows():
    """Each sample of a batch forgets what it would forget alone."""
    model = llama()
    generator = torch.Generator().manual_seed(0)
    ids, new = torch.randint(0, 50, (3, 40), generator=generator), torch.randint(0, 50, (3, 1), generator=generator)
    vision = torch.zeros(3, 40, dtype=torch.bool)
    vision[0, 2:30], vision[1, 10:38] = True, True

    def step(of):
        cache = SkipCache()
        with attach(model, {"name": "uniform", "keep": 0.3}) as handle, handle.rows(vision[of], vision[of].long()):
            model(input_ids=ids[of], past_key_values=cache)
            forget(model, cache, 5, 25)
            return model(input_ids=new[of], past_key_values=cache).logits

    alone = torch.cat([step(slice(b, b + 1)) for b in range(3)])
    torch.testing.assert_close(step(slice(0, 3)), alone, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_long_stream_stays_bounded(method):
    model, template = tiny(torch.float32)
    window = 120
    with attach(model, method):
        settings = {"threshold": 0.5, "max_new_tokens": 4, "instruction": "opens"}
        live = StreamSession(Biased(model), template, window=window, **settings)
        free = StreamSession(Biased(model), template, **settings)
        places, opening = set(), len(live._pending) + template.frame_tokens + len(live._after_first)
        for k, frame in enumerate(video(150)):
            live.push(frame, k / 2)
            assert live.cost()["rows_held"] <= opening + window
            if not live.forgotten:
                free.push(frame, k / 2)
                assert live.decisions == free.decisions
            if k > 100:
                places |= {layer.room.buffers[0].data_ptr() for layer in live.cache.layers}
        assert live.forgotten > 2 * window and free.decisions
        assert len(places) == len(live.cache.layers), "rows leave and come in place"
        assert {d.speak for d in live.decisions[100:]} == {True, False}


def test_default_window_is_what_the_model_has_positions_for():
    model, template = tiny(torch.float32)
    live = StreamSession(model, template, max_new_tokens=4)
    assert live.window == 2048 - len(template.start_ids(None)) - template.frame_tokens
    model.config.get_text_config().max_position_embeddings = 90
    live = StreamSession(model, template, max_new_tokens=4)
    for k, frame in enumerate(video(40)):
        live.push(frame, k / 2)
        assert live.cache.get_seq_length() <= 90
    assert live.forgotten


@pytest.mark.parametrize("window", [10, 5000])
def test_window_that_is_not_accepted(window):
    model, template = tiny(torch.float32)
    with pytest.raises(ConfigError, match=f"window {window}: accepted is .* up to {2048 - 8}"):
        StreamSession(model, template, window=window, max_new_tokens=4)


def test_the_limits_that_are_named_are_accepted_and_nothing_beyond():
    model, template = tiny()
    with pytest.raises(ConfigError) as refused:
        StreamSession(model, template, window=1, max_new_tokens=4)
    least, most = map(int, re.findall(r"accepted is (\d+) .* up to (\d+)", str(refused.value))[0])
    for window in (least, most):
        assert StreamSession(model, template, window=window, max_new_tokens=4).window == window
    for window in (least - 1, most + 1):
        with pytest.raises(ConfigError, match=f"window {window}: accepted is {least} "):
            StreamSession(model, template, window=window, max_new_tokens=4)


def test_question_longer_than_the_window():
    model, template = tiny(torch.float32)
    live = StreamSession(model, template, window=60, max_new_tokens=4)
    live.push(video(1)[0], 0.0)
    live.ask("What is this? " * 10, 0.1)
    with pytest.raises(ConfigError, match="window of 60"):
        live.push(video(1)[0], 0.5)


def test_what_cannot_forget_is_named():
    model, template = tiny(torch.float32)
    cache = SkipCache()
    with torch.no_grad():
        fed(model, template, video(2), cache)
    with pytest.raises(ModelError, match="cannot forget positions 3 to 99 of 12"):
        forget(model, cache, 3, 99)
    counts_for_itself = {"name": "gamma_mod", "positions": "compact", "schedule": {"kind": "constant"}}
    with attach(model, counts_for_itself), pytest.raises(ModelError, match="compact positions"):
        forget(model, cache, 3, 5)
    static = StaticCache(model.config.get_text_config(), max_cache_len=20)
    with torch.no_grad():
        fed(model, template, video(2), static)
    with pytest.raises(ModelError, match="StaticSkipLayer"):
        forget(model, static, 3, 5)
    model.get_decoder().rotary_emb.rope_type = "dynamic"
    with pytest.raises(ModelError, match="'dynamic' cannot forget"):
        forget(model, cache, 3, 5)
