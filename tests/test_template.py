"""The template with a real tokenizer, and its agreement with what a live session feeds."""

import pytest

from vtskip.errors import ConfigError, DataError
from vtskip.template import IGNORE, StreamTemplate, special_ids

WORDS = ["<unk>", "<s>", "</s>", "\n", "[", "]", ",", "User", "Assistant", ":", "C", "cuts", "looks", "now", ".", "?"]


@pytest.fixture
def tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" +"), "removed"), pre_tokenizers.Split(Regex(r"\w+|[^\w]"), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def template(tokenizer):
    return StreamTemplate(tokenizer, frame_tokens=3, **special_ids(tokenizer))


def test_special_ids_adds_what_is_missing_and_is_stable(tokenizer):
    ids = special_ids(tokenizer)
    assert tokenizer.encode("<v>", add_special_tokens=False) == [ids["frame_id"]]
    assert tokenizer.encode("]\n", add_special_tokens=False) == [ids["close_id"]]
    assert ids["interval_id"] == WORDS.index(",")
    assert (ids["bos_id"], ids["eos_id"]) == (1, 2)
    size = len(tokenizer)
    assert special_ids(tokenizer) == ids and len(tokenizer) == size


def test_an_interval_of_two_tokens_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="'now now' is 2 tokens"):
        special_ids(tokenizer, interval="now now")


def test_a_session_feeds_what_training_saw(template):
    """Joining the session's segments gives the ids of the whole conversation."""
    frame, comma, eos = template.frame_ids(), [template.interval_id], [template.eos_id]
    said = template.text(" C cuts.")
    live = template.start_ids("now.") + frame + comma + frame + template.reply_ids() + said + eos
    live += template.resume_ids() + frame + template.query_ids("looks?") + template.text(" C.") + eos
    whole = template.encode(
        [
            {"role": "system", "content": "now."},
            {"role": "stream", "num_frames": 2},
            {"role": "assistant", "content": "C cuts."},
            {"role": "stream", "num_frames": 1},
            {"role": "user", "content": "looks?"},
            {"role": "assistant", "content": "C."},
        ]
    )
    assert live == whole.input_ids
    assert set(whole.labels) == {IGNORE}


def test_an_open_stream_ends_with_its_last_frame(template):
    encoded = template.encode([{"role": "stream", "num_frames": 2, "learn": True}])
    assert encoded.input_ids[-3:] == template.frame_ids()
    assert [i for i in encoded.labels if i != IGNORE] == [template.interval_id]
    asked = template.encode([{"role": "stream", "num_frames": 2, "learn": True}], generation_prompt=True)
    assert [i for i in asked.labels if i != IGNORE] == [template.interval_id, template.close_id]
    assert asked.input_ids[-len(template.reply_ids()) :] == template.reply_ids()


def test_streams_in_a_row_are_closed_between(template):
    encoded = template.encode([{"role": "stream", "num_frames": 1, "learn": True}, {"role": "stream", "num_frames": 1}])
    assert encoded.num_frames == 2
    assert encoded.input_ids.count(template.close_id) == 1
    assert template.close_id in encoded.labels


def test_without_an_interval_token_silence_is_eos(tokenizer):
    ids = {**special_ids(tokenizer), "interval_id": None}
    template = StreamTemplate(tokenizer, frame_tokens=1, **ids)
    encoded = template.encode(
        [{"role": "stream", "num_frames": 3, "learn": True}, {"role": "assistant", "content": "C.", "learn": False}]
    )
    assert encoded.input_ids.count(template.frame_id) == 3
    assert [i for i in encoded.labels if i != IGNORE] == [template.eos_id, template.eos_id, template.close_id]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "asistant", "content": "C."}, "turn 1: role 'asistant'; did you mean 'assistant'"),
        ({"role": "stream", "num_frames": 0}, "num_frames 0"),
        ({"role": "user", "content": None}, "content None"),
        ({"role": "system", "content": "now."}, "can only be the first"),
    ],
)
def test_malformed_turns_are_named(template, turn, message):
    with pytest.raises(DataError, match=message):
        template.encode([{"role": "user", "content": "now"}, turn])
