"""The stock Hugging Face Trainer on an attached model: it trains the routers, checkpoints, saves, and resumes."""

import dataclasses
from functools import partial

import pytest
import torch
from transformers import Trainer, TrainingArguments

import vtskip
from tests.tiny import FAMILIES
from vtskip.saving import method_state

TINY = FAMILIES["llava-llama"]
SKIPS = [
    {"name": "mod", "keep": 0.3},
    {"name": "pmod"},
    {"name": "gamma_mod", "keep": 0.4, "schedule": {"kind": "constant"}},
]
FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in FIELDS)  # new name first
METHODS = pytest.mark.parametrize("spec", SKIPS, ids=[spec["name"] for spec in SKIPS])


def collate(kinds: list[str], family=TINY) -> dict[str, torch.Tensor]:
    batch = family.batch(kinds, "right", dtype=torch.float32)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def train(spec, folder, family=TINY, checkpointing: bool = True, resume: str | None = None) -> torch.nn.Module:
    """Three steps of two batches each; one of every three samples has no image."""
    model = family.model(torch.float32)
    vtskip.attach(model, spec)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        **{CHECKPOINTING: checkpointing},
        learning_rate=0.01,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data = ["long", "short", "text"] * 4
    trainer = Trainer(model, arguments, data_collator=partial(collate, family=family), train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return model.eval()


def logits(model: torch.nn.Module, family=TINY) -> torch.Tensor:
    with torch.no_grad():
        return model(**family.batch(["long", "short"], dtype=torch.float32)).logits


@METHODS
def test_it_trains_the_routers_and_saves(spec, tmp_path):
    untrained = TINY.model(torch.float32)
    vtskip.attach(untrained, spec)
    model = train(spec, tmp_path)
    before, after = method_state(untrained), method_state(model)
    assert before.keys() == after.keys() and all(not torch.equal(after[k], before[k]) for k in after)
    vtskip.save_pretrained(model, tmp_path)
    again = vtskip.load_pretrained(tmp_path).model
    assert torch.equal(logits(again), logits(model))


@METHODS
def test_checkpointing_changes_nothing(spec, tmp_path):
    replayed, plain = train(spec, tmp_path / "a"), train(spec, tmp_path / "b", checkpointing=False)
    assert (logits(replayed) - logits(plain)).abs().max() < 1e-5
    ours, theirs = method_state(replayed), method_state(plain)
    assert all((ours[k] - theirs[k]).abs().max() < 1e-5 for k in ours)


def test_it_resumes_with_the_routers(tmp_path):
    """On Qwen3-VL: in some releases the stock Trainer cannot read back the keys that others, Llava too, are saved under."""
    family = FAMILIES["qwen3_vl"]
    whole = train(SKIPS[0], tmp_path / "whole", family)
    resumed = train(SKIPS[0], tmp_path / "resumed", family, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(t, method_state(resumed)[k]) for k, t in method_state(whole).items())
    assert torch.equal(logits(resumed, family), logits(whole, family))


def test_the_dense_model_reads_its_checkpoint(tmp_path):
    """Without a method the routers in a stock checkpoint are surplus keys, and nothing else changes."""
    model = train(SKIPS[0], tmp_path)
    plain, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and all("vtskip" in key for key in report["unexpected_keys"])
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
