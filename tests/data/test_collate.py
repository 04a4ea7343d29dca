"""Batches: padding on both sides, frames in row order, both sources in one batch, the cache."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vtskip.data.coin import read_coin
from vtskip.data.collate import StreamCollator
from vtskip.data.ego4d import read_narrations
from vtskip.data.tokenizer import build_word_tokenizer, conversation_texts
from vtskip.data.types import Sample
from vtskip.data.video import read_frames
from vtskip.errors import VideoError
from vtskip.template import StreamTemplate

PAD, FRAME = 0, 9


@dataclass
class _Encoded:
    input_ids: list
    labels: list
    num_frames: int


class _Template:
    """Two placeholders per frame, one token per word."""

    def encode(self, conversation, generation_prompt=False):
        ids = []
        for turn in conversation:
            ids += [FRAME] * 2 * turn["num_frames"] if turn["role"] == "stream" else [5] * len(turn["content"].split())
        frames = sum(t.get("num_frames", 0) for t in conversation)
        return _Encoded(ids + [7] * generation_prompt, [i if i == 5 else -100 for i in ids], frames)


@pytest.fixture(scope="module")
def samples(smoke):
    """Conversations of different length over different numbers of frames, from both annotations of one set."""
    ego = list(read_narrations(smoke / "ego4d/narration.json", smoke / "videos", 2, passes=[1]))
    coin = list(read_coin(smoke / "coin/COIN.json", smoke / "videos", 2, task="step"))
    text = Sample("text", smoke, 2, [], [{"role": "user", "content": "Hello there."}])
    return [ego[0], coin[3], text, ego[5]]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_rows_are_padded_on_one_side_and_frames_keep_their_order(samples, padding):
    batch = StreamCollator(_Template(), 32, PAD, padding=padding)(samples)
    encoded = [_Template().encode(s.conversation) for s in samples]
    length = max(len(e.input_ids) for e in encoded)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (4, length)
    for row, one in enumerate(encoded):
        n = len(one.input_ids)
        inside = slice(0, n) if padding == "right" else slice(length - n, length)
        outside = slice(n, length) if padding == "right" else slice(0, length - n)
        assert batch["input_ids"][row, inside].tolist() == one.input_ids
        assert batch["labels"][row, inside].tolist() == one.labels
        assert batch["attention_mask"][row].sum() == n and batch["attention_mask"][row, inside].all()
        assert (batch["input_ids"][row, outside] == PAD).all() and (batch["labels"][row, outside] == -100).all()
    expected = np.concatenate([read_frames(s.video, s.frames, 32) for s in samples if s.frames])
    assert batch["frames"].dtype == torch.uint8 and np.array_equal(batch["frames"].numpy(), expected)
    assert (batch["input_ids"] == FRAME).sum() == 2 * len(batch["frames"])
    assert len({len(s.frames) for s in samples}) == 4


def test_with_the_streaming_template_and_the_word_tokenizer(samples):
    """At a frame's last placeholder the target is silence, or the closing token where a text follows."""
    tokenizer = build_word_tokenizer(conversation_texts(samples))
    frame, comma, close = tokenizer.convert_tokens_to_ids(["<v>", ",", "]\n"])
    template = StreamTemplate(tokenizer, 3, frame, comma, close, tokenizer.bos_token_id, tokenizer.eos_token_id)
    batch = StreamCollator(template, 32, tokenizer.pad_token_id)(samples)
    assert (batch["input_ids"] == frame).sum() == 3 * len(batch["frames"])
    told = batch["labels"][0][batch["input_ids"][0] == frame].tolist()
    replies = [t["content"] for t in samples[0].conversation if t["role"] == "assistant"]
    assert (told.count(close), told.count(comma)) == (len(replies) - 1, len(samples[0].frames) - len(replies))
    learned = batch["labels"][0][(batch["input_ids"][0] != frame) & (batch["labels"][0] >= 0)]
    words = " ".join(f"Assistant: {text}" for text in replies)
    assert tokenizer.decode(learned, skip_special_tokens=True).replace(" :", ":") == words


def test_a_batch_without_frames_and_a_generation_prompt(samples):
    batch = StreamCollator(_Template(), 32, PAD, generation_prompt=True)([samples[2]])
    assert batch["frames"].shape == (0, 32, 32, 3) and batch["input_ids"].tolist() == [[5, 5, 7]]


def test_the_cache_gives_the_same_frames_and_stays_within_its_limit(samples, monkeypatch):
    import vtskip.data.collate as module

    decoded = []
    monkeypatch.setattr(module, "read_frames", lambda *a: decoded.append(a[0]) or read_frames(*a))
    limit = len(samples[0].frames) + len(samples[1].frames)
    collate = StreamCollator(_Template(), 32, PAD, cache_frames=limit)
    first = collate([samples[0], samples[1]])["frames"].clone()
    first_again = collate([samples[0], samples[1]])["frames"]
    assert torch.equal(first, first_again) and len(decoded) == 2
    collate([samples[3]])
    assert collate.cache.held <= limit
    collate([samples[0]])  # was pushed out
    assert len(decoded) == 4


def test_a_cached_clip_is_not_changed_through_a_batch(samples):
    collate = StreamCollator(_Template(), 32, PAD, cache_frames=1000)
    first = collate([samples[1]])["frames"]
    expected = first.clone()
    first.zero_()
    assert torch.equal(collate([samples[1]])["frames"], expected)


def test_a_missing_video_is_named(tmp_path):
    sample = Sample("a", tmp_path / "gone.mp4", 2, [0], [{"role": "stream", "num_frames": 1, "learn": True}])
    with pytest.raises(VideoError, match=r"gone.mp4: video cannot be read \(No such file"):
        StreamCollator(_Template(), 32, PAD)([sample])


def test_a_sample_s_frames_match_its_turns(tmp_path):
    with pytest.raises(ValueError, match="shows 2 frames, 1 are given"):
        Sample("a", tmp_path, 2, [0], [{"role": "stream", "num_frames": 2, "learn": True}])
