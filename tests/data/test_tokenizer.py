"""The word-level tokenizer and the streaming template's demands on it."""

import pytest

from vtskip.data.synthetic.grammars import GRAMMARS
from vtskip.data.tokenizer import build_word_tokenizer, conversation_texts
from vtskip.data.types import Sample

SENTENCES = [text for grammar in GRAMMARS.values() for text in grammar.sentences()]


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(SENTENCES)


def _ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_every_sentence_comes_back_exactly(tokenizer):
    for text in SENTENCES:
        ids = _ids(tokenizer, text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
        assert _ids(tokenizer, " " + text) == ids


def test_marks_of_the_template_are_single_tokens(tokenizer):
    for mark in ("]\n", ",", "\n", "[", "<v>", "<s>", "</s>"):
        assert len(_ids(tokenizer, mark)) == 1
    text = "<s>\n[<v><v>,<v><v>]\nAssistant: C opens the red cup.</s>\n["
    parts = [
        "<s>",
        "\n",
        "[",
        "<v>",
        "<v>",
        ",",
        "<v>",
        "<v>",
        "]\n",
        "Assistant",
        ":",
        "C",
        "opens",
        "the",
        "red",
        "cup",
        ".",
    ]
    assert tokenizer.convert_ids_to_tokens(_ids(tokenizer, text)) == [*parts, "</s>", "\n", "["]


def test_pieces_tokenize_as_the_whole(tokenizer):
    """The template is built segment by segment; joining the segments must not change a token."""
    parts = ["\n[", "<v>", ",", "<v>", "]\n", "Assistant:", " C cuts the blue box.", "</s>", "\n["]
    assert _ids(tokenizer, "".join(parts)) == [i for part in parts for i in _ids(tokenizer, part)]


def test_unknown_words_and_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    assert _ids(tokenizer, "zebra cup") == [tokenizer.unk_token_id, *_ids(tokenizer, "cup")]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<s>User: C fills the green box.\n[<v>,<v>]\n"
    assert _ids(loaded, text) == _ids(tokenizer, text)
    assert loaded.decode(_ids(loaded, "C wipes the red cup.")) == "C wipes the red cup."
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_vocabulary_does_not_depend_on_the_order_of_texts():
    texts = SENTENCES
    assert build_word_tokenizer(texts).get_vocab() == build_word_tokenizer(reversed(texts)).get_vocab()


def test_texts_of_samples(tmp_path):
    turns = [{"role": "user", "content": "Go."}, {"role": "stream", "num_frames": 1, "learn": True}]
    assert conversation_texts([Sample("a", tmp_path, 2, [0], turns)]) == ["Go."]
