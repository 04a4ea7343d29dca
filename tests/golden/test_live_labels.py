"""Conversation rendering and shifted labels against the reference renderer, with a tokenizer of characters."""

import re

from vtskip.template import IGNORE, StreamTemplate


class Characters:
    """Every character is a token, except the special ones and ``]`` + newline; the id is the place in ``tokens``."""

    def __init__(self, special):
        self.special = special
        self.tokens: list[str] = []

    def id(self, token):
        if token not in self.tokens:
            self.tokens.append(token)
        return self.tokens.index(token)

    def encode(self, text, add_special_tokens=False):
        pattern = "|".join([*map(re.escape, self.special), "]\n", "(?s:.)"])
        return [self.id(t) for t in re.findall(pattern, text)]

    def read(self, ids):
        return [self.tokens[i] for i in ids]


def build(config):
    tokenizer = Characters([config["bos"], config["eos"], config["frame_placeholder"]])
    template = StreamTemplate(
        tokenizer,
        frame_tokens=config["tokens_per_frame"],
        frame_id=tokenizer.id(config["frame_placeholder"]),
        interval_id=tokenizer.id(config["interval"]),
        close_id=tokenizer.id("]\n"),
        bos_id=tokenizer.id(config["bos"]),
        eos_id=tokenizer.id(config["eos"]),
    )
    return tokenizer, template


def test_tokens_and_labels(golden):
    item = golden("live_labels")
    tokenizer, template = build(item.json["config"])
    for case in item.json["cases"]:
        encoded = template.encode(case["conversation"])
        assert tokenizer.read(encoded.input_ids) == case["tokens"]
        labels = [None if i == IGNORE else tokenizer.tokens[i] for i in encoded.labels]
        assert labels == case["labels"]
        assert encoded.num_frames == sum(turn.get("num_frames", 0) for turn in case["conversation"])


def test_generation_prompt(golden):
    item = golden("live_labels")
    tokenizer, template = build(item.json["config"])
    for case in item.json["cases"]:
        encoded = template.encode(case["conversation"][:-1], generation_prompt=True)
        assert "".join(tokenizer.read(encoded.input_ids)) == case["text_with_generation_prompt_without_last_reply"]
