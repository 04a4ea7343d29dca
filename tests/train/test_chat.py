"""Conversations in a stock model's own words: ids as its processor makes them, labels on the replies and nothing else."""

import pytest
import torch
import transformers as hf

from tests.train import stand_ins
from vtskip.data import DataConfig, build
from vtskip.data.types import Sample
from vtskip.errors import DataError
from vtskip.train.chat import ChatTemplate
from vtskip.train.chat_collate import ChatCollator
from vtskip.train.loading import batches_of
from vtskip.train.options import Sampling

KINDS = {"llava": stand_ins.llava, "llava_next": stand_ins.llava_next, "qwen2_5_vl": stand_ins.qwen2_5_vl}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stand_ins.llava_json(tmp_path_factory.mktemp("llava"), videos=True)


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    """(model, template) of a tiny stock model."""
    folder = KINDS[request.param](tmp_path_factory.mktemp(request.param))
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model, ChatTemplate(hf.AutoProcessor.from_pretrained(folder), request.param)


def samples(data, most=3):
    config = DataConfig(kind="llava", annotations=data / "records.json", videos=data, fps=2, max_frames=most)
    return {sample.uid: sample for sample in build(config, progress=False)}


def learned(template, row):
    """The texts between the gaps of the labels."""
    ids, texts, run = row["labels"][0].tolist(), [], []
    for token in [*ids, -100]:
        if token != -100:
            run.append(token)
        elif run:
            texts.append(template.tokenizer.decode(run))
            run = []
    return texts


def test_labels_are_the_replies_to_their_end(family, data):
    _, template = family
    end = template.tokenizer.eos_token
    for uid, replies in {
        "one": ["A red square."],
        "turns": ["The circle is blue.", "A red square."],
        "text": ["The circle is blue."],
        "two": ["A red square.", "The circle."],
        "clip": ["A red square."],
    }.items():
        row = template.encode(samples(data)[uid])
        found = [text.replace(" ", "").strip() for text in learned(template, row)]
        assert found == [(reply + end).replace(" ", "") for reply in replies], uid
        labelled = row["labels"] != -100
        assert torch.equal(row["labels"][labelled], row["input_ids"][labelled])


def test_ids_are_those_of_a_later_prompt(family, data):
    """What training sees before the first reply is what ``apply_chat_template`` makes for generation."""
    _, template = family
    sample = samples(data)["turns"]
    shown = template.look(sample)
    row = template.encode(sample, shown)
    prompt = template.messages(sample)[:1]
    text = template.processor.apply_chat_template(
        [{k: m[k] for k in ("role", "content")} for m in prompt], tokenize=False, add_generation_prompt=True
    )
    ids = template.inputs(text, shown)["input_ids"][0]
    first = int((row["labels"][0] != -100).nonzero()[0])
    assert torch.equal(row["input_ids"][0, :first], ids)


def test_a_batch_is_its_samples(family, data):
    """Logits of a padded batch are those of its samples one by one, and the loss is over their labels."""
    model, template = family
    some = [samples(data)[uid] for uid in ("one", "text", "two", "clip")]
    collate = ChatCollator(template)
    batch = collate(some)
    model.eval()
    with torch.no_grad():
        together = model(**batch)
        for number, sample in enumerate(some):
            alone = collate([sample])
            length = alone["input_ids"].shape[1]
            torch.testing.assert_close(together.logits[number, :length], model(**alone).logits[0], atol=2e-5, rtol=1e-4)
    assert together.loss > 0


@pytest.mark.parametrize(
    ("uid", "always"), [("text", ["image"]), ("one", ["image", "video"]), ("text", ["image", "video"])]
)
def test_a_batch_without_pictures_still_calls_tower_and_connector(family, data, uid, always):
    model, template = family
    always = always if template.videos else ["image"]
    sample = samples(data)[uid]
    plain, filled = ChatCollator(template)([sample] * 2), ChatCollator(template, always)([sample] * 2)
    assert "pixel_values" in filled and ("pixel_values_videos" in filled) is ("video" in always)
    assert filled["attention_mask"].sum() == plain["attention_mask"].sum()  # nothing attends to it, no router counts it
    gradients = []
    for batch in (plain, filled):
        model.train().zero_grad()
        loss = model(**batch).loss
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    without, with_blank = gradients
    assert {n for n in dict(model.named_parameters()) if "projector" in n or "merger" in n} <= with_blank.keys()
    for name, found in with_blank.items():
        torch.testing.assert_close(found, without.get(name, torch.zeros_like(found)), atol=1e-6, rtol=1e-4)


def test_long_conversations_are_cut_but_not_inside_an_image(family, data):
    _, template = family
    whole = template.encode(samples(data)["turns"])["input_ids"].shape[1]
    short = ChatTemplate(template.processor, template.family, whole - 2)
    assert short.encode(samples(data)["turns"])["input_ids"].shape[1] == whole - 2
    assert ChatCollator(short)([samples(data)["turns"]])["labels"].shape[1] == whole - 2
    with pytest.raises(DataError, match="'turns': its images alone are longer than max_tokens 8"):
        ChatTemplate(template.processor, template.family, 8).encode(samples(data)["turns"])


def test_lengths_are_about_right(family, data):
    _, template = family
    for uid in ("one", "text"):
        sample = samples(data)[uid]
        assert abs(template.length(sample) - template.encode(sample)["input_ids"].shape[1]) < 120


def test_lengths_are_exact_for_a_budget_and_read_no_picture_for_groups(family, data, monkeypatch):
    _, template = family
    found, collate = [samples(data)[uid] for uid in ("one", "text")], ChatCollator(template)
    exact = batches_of(found, collate, 1, Sampling(tokens=10_000), 0)
    assert exact.lengths == [template.encode(sample)["input_ids"].shape[1] for sample in found]
    monkeypatch.setattr(ChatTemplate, "look", lambda *_: pytest.fail("a picture is read"))
    assert batches_of(found, collate, 1, Sampling(group=["length"]), 0).lengths == [*map(template.length, found)]


def test_streams_to_narrate_are_refused(family, tmp_path):
    _, template = family
    turns = [{"role": "stream", "num_frames": 1, "learn": True}, {"role": "assistant", "content": "A", "learn": True}]
    with pytest.raises(DataError, match="a stream to narrate"):
        template.messages(Sample("s", tmp_path / "a.png", 2, [0], turns))


def test_a_template_that_refuses_is_named(family, data, monkeypatch):
    _, template = family
    monkeypatch.setattr(template.processor, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=f"chat template of {template.family}: roles must alternate"):
        template.encode(samples(data)["text"])
