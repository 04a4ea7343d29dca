"""Two processes with DeepSpeed ZeRO on gloo do what one process with the whole batch does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.train import stand_ins
from tests.train.runs import train
from tests.train.zero_runs import logged, slow, start, zero
from vtskip.config import parse
from vtskip.data import build
from vtskip.data.config import DataConfig
from vtskip.data.tokenizer import conversation_texts
from vtskip.loading import load

# Weighed by its own contribution: a scaled row is the same to the next norm, and a router would hardly get a gradient.
MOD = {"name": "mod", "keep": 0.4, "combine": "delta", "schedule": {"kind": "constant"}}


def logits(folder, method):
    """Of a saved model, with its own method (None) or another, on a prompt of two frames."""
    model, _ = load(folder / "run", method)
    config = model.config
    words = [i for i in range(4, 20) if i not in (config.frame_id, config.interval_id)]
    ids = torch.tensor([words[:3] + [config.frame_id] * 2 * config.frame_tokens + words[3:6]])
    with torch.no_grad():
        return model(input_ids=ids, frames=torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).byte()).logits


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        (2, MOD),
        slow(1, MOD),
        slow("2_offload", MOD),
        (3, MOD),
        slow("3_offload", MOD),
        slow(3, {"name": "shortv", "layers": [0, 1]}),
        slow(3, {"name": "skip_ffn", "keep": 0.4}),
        # One router for both layers. Its auxiliary loss is a mean of each batch, which is another one in one process.
        slow(3, {"name": "gamma_mod", "schedule": {"kind": "constant"}, "aux_weight": 0}),
        slow(3, {"name": "mindskip", "layers": [0, 1]}),
        slow(3, None),
    ],
)
def test_two_processes_equal_one(values, alone, tmp_path, stage, method):
    pytest.importorskip("deepspeed")
    values["method"] = method
    values["optim"] = {"steps": 4, "batch_size": 2, "lr": 1e-3, "weight_decay": 0.1}
    one, seen_alone = alone(values)
    values["optim"]["batch_size"] = 1
    values["deepspeed"] = zero(stage, tmp_path)
    values["gradient_checkpointing"] = str(stage)[0] == "3"  # weights are gathered once more in the backward pass
    # In training and in the validation one rank has frames and the other has none.
    values |= {"validation": values["data"], "eval_every": 2}
    two = tmp_path / "two"
    first, second = start(values, two, 2)
    # Rank by rank the batches of the one process, dealt out in turn: different samples on each.
    trained = [[uid for uid, training in seen if training] for seen in (first, second)]
    together = [uid for pair in zip(*trained) for uid in pair]
    assert together[:8] == [uid for uid, _ in seen_alone][:8] and all(a != b for a, b in zip(*trained))
    for pairs in (zip(*trained), ((a, b) for (a, t), (b, _) in zip(first, second) if not t)):
        mixed = [a.startswith("talk") != b.startswith("talk") for a, b in pairs]
        assert any(mixed), "no step had one rank with frames and one without"
    # The gradient norm shows what the loss hides: gradients added up over ranks in another order of parameters.
    for key in ("loss", "grad_norm", "stream_loss", "language_loss", *(["router_grad_norm"] if method == MOD else [])):
        found = logged(two, key)
        assert found and found == pytest.approx(logged(one, key), rel=1e-4), key
    for name in ("model.safetensors", "vtskip_model.safetensors")[: 1 if method is None else 2]:
        expected, found = (load_file(folder / "run" / name) for folder in (one, two))
        assert expected.keys() == found.keys()
        for key, e in expected.items():
            torch.testing.assert_close(found[key], e, atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
    for other in ("dense", None):
        torch.testing.assert_close(logits(two, other), logits(one, other), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_stage_3_goes_on_where_it_was_interrupted(values, tmp_path):
    pytest.importorskip("deepspeed")
    values["optim"] = {"steps": 4, "batch_size": 1, "lr": 1e-3}
    values |= {"deepspeed": zero(3, tmp_path), "save_every": 2}
    folder = tmp_path / "two"
    start(values, folder, 2)
    files = [folder / "run" / name for name in ("model.safetensors", "vtskip_model.safetensors")]
    whole, losses = [load_file(f) for f in files], logged(folder, "loss")
    for unwritten in (*files, folder / "run" / "checkpoint-4"):
        shutil.rmtree(unwritten) if unwritten.is_dir() else unwritten.unlink()
    ranks = start(values, folder, 2, resume=True)
    assert [len(rank) for rank in ranks] == [2, 2]
    for file, expected in zip(files, whole):
        found = load_file(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert logged(folder, "loss") == losses
    with pytest.raises(AssertionError, match=r"ConfigError.*checkpoint-4: all 4 steps are done"):
        start(values, folder, 2, resume=True)
    with pytest.raises(AssertionError, match=r"ConfigError.*checkpoint-4: written by 2 processes, and this run has 1"):
        start(values, folder, 1, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["lm", "checkpoint"])
def test_stage_3_cuts_up_what_it_reads(values, smoke, tmp_path, source):
    """A language model, or a whole StreamingLlava, from a folder: losses are those of one process."""
    pytest.importorskip("deepspeed")
    values["optim"] = {"steps": 4, "batch_size": 2, "lr": 1e-3}
    if source == "checkpoint":
        train(values | {"out": str(tmp_path / "first")})
        values["model"] = {"checkpoint": str(tmp_path / "first")}
    else:
        texts = conversation_texts(build(parse(DataConfig, values["data"], "test"), progress=False))
        values["model"] |= {"lm": str(stand_ins.language_model(tmp_path / "lm", texts)), "tokenizer": None}
    start(values, tmp_path / "one", 1)
    values |= {"deepspeed": zero(3, tmp_path)}
    values["optim"]["batch_size"] = 1
    start(values, tmp_path / "two", 2)
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), rel=1e-4), key
