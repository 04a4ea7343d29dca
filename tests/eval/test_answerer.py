"""Answers to chat messages: any form of media, any batch, saved and given methods, stock and streaming models."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny_hub import save
from vtskip.errors import CheckpointError, ConfigError, DataError, VideoError
from vtskip.eval.answerer import load_answerer
from vtskip.eval.chat import Decoding
from vtskip.eval.media import clip_of

SHORT = Decoding(max_new_tokens=6)


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("stock")))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), np.uint8)


def says(*parts):
    return [{"role": "user", "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}]


# -------------------------------------------------------------------------------------------------------------- media


def test_every_form_of_a_video_gives_the_same_frames(frames):
    images = [Image.fromarray(f) for f in frames]
    clips = [clip_of({"type": "video", "url": url}, 8) for url in (frames, list(frames), images)]
    assert all(np.array_equal(clip.frames, frames) for clip in clips)
    assert clips[0].indices == [0, 1, 2]
    assert clip_of({"type": "image", "url": images[0]}, 8).frames.shape == (1, 40, 40, 3)
    assert clip_of({"type": "video", "url": images}, 8, size=16).frames.shape == (3, 16, 16, 3)


def test_a_file_is_sampled_evenly_and_within_its_span(clips):
    path = str(clips / "videos/a.mp4")  # 40 frames at 10 per second
    assert clip_of({"type": "video", "url": path}, 5).indices == [0, 10, 20, 29, 39]
    part = {"url": path, "video_start": 1.0, "video_end": 2.0}
    assert clip_of({"type": "video", "url": part}, 3).indices == [10, 15, 20]
    assert clip_of({"type": "video", "url": path, "start_time": 1.0, "end_time": 2.0}, 3).indices == [10, 15, 20]
    assert clip_of({"type": "video", "url": path, "start_time": 9.0}, 3).indices == [39]


def test_what_is_no_picture_is_named(clips):
    for url, words in ((7, "int"), ([], "list"), ([np.zeros((4, 4))], "float64"), (np.zeros((2, 4, 4, 3)), "float64")):
        with pytest.raises(DataError, match=words):
            clip_of({"type": "video", "url": url}, 4)
    with pytest.raises(VideoError, match=r"empty\.mp4"):
        clip_of({"type": "video", "url": str(clips / "empty.mp4")}, 4)


# -------------------------------------------------------------------------------------------------------- stock models


def test_answers_of_a_stock_model_do_not_depend_on_the_batch(stock, frames):
    answerer = load_answerer(stock, "uniform", device="cpu")
    talks = [
        says({"type": "video", "url": frames}, "what is the action in the video ?"),
        says("narrate", {"type": "image", "url": frames[0]}),
        says("cut the bread"),
        [{"role": "system", "content": "you"}, *says("open the lid", {"type": "video", "url": frames[1:]})],
    ]
    alone = [answerer.answer([talk], SHORT)[0] for talk in talks]
    assert answerer.answer(talks, SHORT) == alone
    assert len({answer.text for answer in alone}) == 4
    assert all(0 < answer.tokens <= 6 for answer in alone)
    assert answerer.handle.report().kept_vision[0] == 1.0
    assert answerer.handle.report().kept_vision[1] < 0.3


def test_the_video_goes_in_as_a_video_where_the_model_takes_one(stock, frames):
    answerer = load_answerer(stock, device="cpu")
    talk = says({"type": "video", "url": frames}, "narrate")
    assert answerer.inputs([answerer.prepared(talk)])["pixel_values_videos"].shape[:2] == (1, 3)
    answerer.takes_videos = False
    inputs = answerer.inputs([answerer.prepared(talk)])
    assert "pixel_values_videos" not in inputs
    assert inputs["pixel_values"].shape[0] == 3


def test_dense_is_the_stock_model(stock, frames):
    import torch
    from transformers import AutoModelForImageTextToText

    answerer = load_answerer(stock, device="cpu")
    talk = says({"type": "video", "url": frames}, "what is the action ?")
    inputs = answerer.inputs([answerer.prepared(talk)])
    with torch.no_grad():
        out = AutoModelForImageTextToText.from_pretrained(stock).generate(
            **inputs, max_new_tokens=6, do_sample=False, pad_token_id=0
        )
    text = answerer.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert answerer.answer([talk], SHORT)[0].text == text.strip()
    assert answerer.handle.method.name == "dense"


def test_a_saved_method_is_found_with_its_parameters(stock, tmp_path, frames):
    from transformers import AutoModelForImageTextToText

    from vtskip import attach
    from vtskip.saving import save_pretrained

    model = AutoModelForImageTextToText.from_pretrained(stock)
    attach(model, {"name": "mod", "keep": 0.4, "seed": 5})
    save_pretrained(model, tmp_path)
    answerer = load_answerer(str(tmp_path), device="cpu")
    assert (answerer.handle.method.name, answerer.handle.method.keep) == ("mod", 0.4)
    assert answerer.answer([says({"type": "video", "url": frames})], SHORT)[0].tokens
    assert load_answerer(str(tmp_path), "uniform", device="cpu").handle.method.name == "uniform"


def test_methods_that_nobody_trained_and_folders_that_are_no_model_are_refused(stock, checkpoint, tmp_path):
    for source in (stock, str(checkpoint)):
        with pytest.raises(ConfigError, match="its parameters are not in"):
            load_answerer(source, {"name": "mod", "keep": 0.4, "schedule": {"kind": "constant"}}, device="cpu")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_answerer(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_answerer(str(tmp_path), device="cpu")
    with pytest.raises(DataError, match="'audio'"):
        load_answerer(stock, device="cpu").answer([says({"type": "audio", "url": "x.wav"})], SHORT)


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_streaming_checkpoint_answers_and_narrates(checkpoint, clips):
    answerer = load_answerer(str(checkpoint), device="cpu", max_frames=4)
    video = {"type": "video", "url": str(clips / "videos/a.mp4")}
    prompt = answerer.prompt([{"role": "system", "content": "You see it."}, *says("Cut the bread", video)])
    assert [turn["role"] for turn in prompt.conversation] == ["system", "user", "stream"]
    assert len(prompt.frames) == prompt.conversation[2]["num_frames"] == 4
    first, second = answerer.answer([says("Cut the bread", video), says("Open the lid")], SHORT)
    assert first.text != second.text
    lines = answerer.answer([says("Narrate.", video)], Decoding(4, stream_fps=2.0))[0].text.splitlines()
    assert all(float(line.split(": ")[0]) in (0.0, 0.5, 1.0, 1.5) for line in lines)
    with pytest.raises(ConfigError, match="temperature"):
        answerer.answer([says("Narrate.")], Decoding(temperature=0.7))
