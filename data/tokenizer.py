"""A word-level tokenizer for small vocabularies, in the form that the streaming template needs.

``"]\\n"`` and ``","`` are one token each; spaces separate and are not tokens, so a leading space changes nothing; decoding
puts one space between words and none before punctuation, which restores the narrations exactly.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vtskip.data.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECE = r"\]\n|\n|\w+(?:'\w+)?|[^\w\s]"
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<v>")
_TEMPLATE = ("]\n", "\n", "[", "]", ",", ".", ":", "User", "Assistant")


def conversation_texts(samples: Iterable[Sample]) -> list[str]:
    """Every text in the samples' conversations."""
    return [turn["content"] for sample in samples for turn in sample.conversation if "content" in turn]


def build_word_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer of the words in ``texts``, with pad, unknown, begin, end and frame (``<v>``) tokens. Ids are sorted by word."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word for text in texts for word in re.findall(PIECE, text)}
    vocabulary = [*SPECIAL, *_TEMPLATE, *sorted(words - {*SPECIAL, *_TEMPLATE})]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="removed", invert=True)
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"frame_token": "<v>"},
        clean_up_tokenization_spaces=False,
    )
