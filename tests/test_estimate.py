"""Costs without weights: published figures, and what a forward counts."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import vtskip
from tests.methods_matrix import MATRIX
from tests.tiny import FAMILIES, TEXT
from vtskip.errors import ModelError
from vtskip.estimate import Prompt, prefill_report, weightless

TINY = FAMILIES["llava-llama"]


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory):
    """The configuration of LLaVA-1.5-7B's language model behind a small tower, in a folder without weights."""
    folder = tmp_path_factory.mktemp("llava")
    config = LlavaConfig(
        vision_config=TINY.model().config.vision_config, text_config=LlamaConfig(vocab_size=32064), dtype="bfloat16"
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    return str(folder)


def test_a_published_model_without_its_weights(llava_7b):
    model = weightless(llava_7b)
    assert type(model) is LlavaForConditionalGeneration and model.lm_head.weight.is_meta
    with vtskip.attach(model, "dense", lossless=False) as handle:
        report = prefill_report(handle)
    head = 2 * 4096 * 32064
    assert (report.flops_full - head) / 1e12 == pytest.approx(8.504, abs=1e-3)  # ShortV's figure for the dense model
    assert report.kv_bytes == report.kv_bytes_dense == 2 * 32 * 4096 * 640 * 2


@pytest.mark.parametrize("row", MATRIX, ids=str)
@pytest.mark.parametrize("prompt", [Prompt(), Prompt(10, 48, 3)], ids=["image", "frames"])
def test_every_method_costs_the_same_with_and_without_weights(row, prompt):
    found = []
    for device in ("cpu", "meta"):
        with vtskip.attach(TINY.model(torch.float32).to(device), row.spec) as handle:
            found.append(prefill_report(handle, prompt))
    assert found[0] == found[1]
    assert [len(c.groups[0]) for c in found[0].layers] == [prompt.groups] * 4


def test_routers_that_only_all_processes_can_gather_are_not_called():
    """Under ZeRO-3 a call of a module gathers its weights in every process; a model card is written by one."""
    with vtskip.attach(TINY.model(torch.float32), {"name": "mod", "keep": 0.4}) as handle:
        expected = prefill_report(handle)
        layers = handle.model.get_decoder().layers
        for parameter in layers[0].parameters():
            parameter.ds_id = 0  # as DeepSpeed marks them; small ones stay whole
        for layer in layers:
            layer.vtskip.register_forward_pre_hook(lambda *args: pytest.fail("called in one process"))
        assert prefill_report(handle) == expected


def test_groups_are_as_equal_as_can_be():
    assert Prompt(4, 10, 3).row_map().sizes == ((3, 3, 4),)


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"no model.s config\.json can be read there"):
        weightless(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["NoModel"]}))
    with pytest.raises(ModelError, match="names 'NoModel', which transformers does not have"):
        weightless(str(tmp_path))


@pytest.mark.parametrize(
    "row", [r for r in MATRIX if r.spec["name"] in ("dense", "mod", "fastv", "shortv", "pmod")], ids=str
)
def test_a_forward_on_the_meta_device_counts_what_one_with_weights_counts(row):
    found = []
    rows = torch.zeros(2, 12, dtype=torch.bool)
    rows[:, 2:9] = True
    for device in ("cpu", "meta"):
        model = LlamaForCausalLM(LlamaConfig(**TEXT)).eval().to(device)
        with torch.no_grad(), vtskip.attach(model, row.spec) as handle, handle.rows(rows):
            model(input_ids=torch.full((2, 12), 7, device=device), logits_to_keep=1)
            found.append(handle.report().as_dict())
    groups = [layer.pop("groups") for report in found for layer in report["layers"]]
    assert found[0] == found[1] and groups[:4] != [[]] * 4 and groups[4:] == [[]] * 4
