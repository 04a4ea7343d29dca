"""LLaVA's JSON and messages: media at their placeholders, faults by record."""

import json

import numpy as np
import pytest

from tests.data import formats
from vtskip.data.collate import FrameCache
from vtskip.data.files import read_array
from vtskip.data.llava import read_llava
from vtskip.data.messages import read_messages
from vtskip.data.video import probe, read_frames
from vtskip.errors import DataError, VideoError


@pytest.fixture
def llava(tmp_path, media):
    def read(value, **options):
        path = tmp_path / "llava.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return list(read_llava(path, media, 2, **options))

    return read


def turns(sample):
    return [turn.get("content", turn.get("num_frames")) for turn in sample.conversation]


def talk(*texts, **keys):
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]
    return {"id": "x", "conversations": turns} | keys


def test_media_stand_where_their_placeholders_are(llava, media):
    image, video, pair, text = llava(formats.LLAVA)
    assert turns(image) == [1, "What colours are there?", "Red and blue.", "Where?", "Side by side."]
    assert image.frames == [0] and image.video == media / "coco/one.png"
    assert turns(video) == [12, "What happens?", "It gets lighter."] and video.frames == list(range(0, 60, 5))
    assert turns(pair) == ["Compare", 1, "with", 1, "They differ."]
    assert pair.clips == [(media / "coco/one.png", [0]), (media / "coco/two.jpg", [0])]
    assert not text.frames and not text.clips and turns(text) == ["Say hello.", "Hello."]
    assert image.uid == "000000033471" and pair.uid == "000000033471 (record 2)"
    assert image.meta["question"] == "Where?" and image.meta["answers"] == ["Side by side."]
    assert all(
        turn["learn"] == (turn["role"] == "assistant")
        for s in (image, pair)
        for turn in s.conversation
        if "learn" in turn
    )


def test_messages_with_parts_lists_and_one_video(tmp_path, media):
    path = formats.Format("messages", "chat.jsonl", formats.MESSAGES, 3, {}).write(tmp_path)
    first, second, third = read_messages(path, media, 2)
    assert turns(first) == ["Be brief.", 1, "What is it?", "A square."]
    assert turns(second) == [6, 1, "Is it in the clip?", "No."] and second.uid == "7"
    assert second.clips == [(media / "b.mp4", list(range(0, 60, 10))), (media / "coco/one.png", [0])]
    assert turns(third) == [6, "What happens?"] and not third.meta["answers"]


def test_frames_of_images_and_clips_come_in_order(llava, media):
    pair = llava([talk("<video> and <image>", "No.", image="coco/one.png", video="b.mp4")])[0]
    frames = FrameCache(0).read(pair, 32)
    assert frames.shape == (7, 32, 32, 3)
    assert np.array_equal(frames[:6], read_frames(media / "b.mp4", range(0, 60, 10), 32))
    assert frames[6, :, :14].tolist() == [[[255, 0, 0]] * 14] * 32
    assert frames[6, :, 18:].tolist() == [[[0, 0, 255]] * 14] * 32
    info = probe(media / "coco/one.png")
    assert (info.frames, info.width, info.height) == (1, 40, 30)


def test_long_videos_are_spread_and_jsonl_is_read_line_by_line(tmp_path, media):
    from vtskip.data.dialogue import Dialogue

    path = tmp_path / "llava.jsonl"
    path.write_text(json.dumps(formats.LLAVA[1]) + "\n\n{half a record")
    samples = read_llava(path, media, 10, Dialogue(system="Look.", max_frames=4))
    assert next(samples).frames == [0, 20, 39, 59]  # before the broken line is looked at
    with pytest.raises(DataError, match=rf"{path}: line 3: not valid JSON"):
        next(samples)


FAULTS = {
    "no conversations": ({"id": "x"}, "missing key 'conversations'"),
    "unknown speaker": (talk("Hi") | {"conversations": [{"from": "gptt", "value": "x"}]}, "did you mean 'gpt'"),
    "too few files": (talk("<image><image> same?", image="coco/one.png"), "2 placeholders .* lists 1 files"),
    "too many files": (talk("<image>?", image=["coco/one.png"] * 2), "1 placeholders .* lists 2 files"),
    "wrong kinds": (talk("<image><image>?", image="coco/one.png", video="a.mp4"), "more placeholders <image>"),
    "empty answer": (talk("Hi", "  "), "message 1: the message is empty"),
    "answer with a picture": (talk("Hi", "<image>", image="coco/one.png"), "accepted: in those of the user"),
    "remote": (talk("<image>", "x", image="https://example.org/a.png"), "is no file"),
    "nothing said": (talk(), "no messages"),
    "number": (talk("<image>", image=3), "'0' should be str, got 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_and_record(llava, fault):
    record, message = FAULTS[fault]
    with pytest.raises(DataError, match=f"llava.json: record 1.*{message}"):
        llava([formats.LLAVA[3], record])
    assert len(llava([formats.LLAVA[3], record], on_error="skip")) == 1


def test_missing_and_broken_images(llava, media):
    with pytest.raises(VideoError, match=r"none.png: video cannot be read \(No such file"):
        llava([talk("<image>", "x", image="none.png")])
    (media / "broken.jpg").write_bytes((media / "coco/two.jpg").read_bytes()[:300])
    with pytest.raises(VideoError, match=r"broken.jpg: not a readable image, or truncated"):
        read_frames(media / "broken.jpg", [0], 8)
    with pytest.raises(VideoError, match=r"a.mp4: not an image by its name"):
        llava([talk("<image>", "x", image="a.mp4")])


def test_an_array_is_read_record_by_record(tmp_path, media, monkeypatch):
    monkeypatch.setattr("vtskip.data.files.CHUNK", 16)
    path = tmp_path / "llava.json"
    path.write_text(f"[{json.dumps(formats.LLAVA[3])}, {{broken")
    samples = read_llava(path, media, 2)
    assert next(samples).uid == "text"  # before the broken record is looked at
    with pytest.raises(DataError, match=rf"{path}: record 1: not valid JSON"):
        next(samples)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr("vtskip.data.files.CHUNK", chunk)
    path = tmp_path / "a.json"
    values = [{"a": ']},{[ é " \\'}, {}, {"b": [1, {"c": [2]}]}]
    for text in (
        json.dumps(values),
        json.dumps(values, indent=3, ensure_ascii=False),
        " \n" + json.dumps(values) + "\n ",
    ):
        path.write_text(text, encoding="utf-8")
        assert list(read_array(path)) == values
    path.write_text("[]")
    assert list(read_array(path)) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "expected a list"),
        ("[1]", "record 0: expected an object, got '1"),
        ('[{"a": 1}, {"b"', "record 1: not valid JSON, or cut off"),
        ('[{"a": 1}', "record 1: "),
        ('[{"a": 1} {"b": 2}]', "expected ',' or ']'"),
        ('[{"a": 1}] x', "something follows"),
        ("", "expected a list"),
        ('[{"a": ' + "[" * 100000, "nested too deeply"),
    ],
)
def test_broken_arrays_are_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"{path}: .*".replace("\\", r"\\") + message):
        list(read_array(path))
