"""Task scores while training: the same numbers as ``vtskip eval`` gives, a training that is not changed, the best checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.train import stand_ins
from tests.train.runs import log, train, weights
from tests.train.test_resume import killed
from vtskip.config import parse
from vtskip.errors import ConfigError, VtskipError
from vtskip.eval.training import scorer_of
from vtskip.train import TrainConfig, run

DIFF = "ego4d_narration/strict/time_diff"
TASKS = ["ego4d_narration", {"task": "coin_step", "max_samples": 1}]


def lines(out):
    return [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]


def scores(out):
    """Step -> task scores."""
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("eval_") and "/" in k}
        for line in lines(out)
        if f"eval_{DIFF}" in line
    }


@pytest.fixture
def evaluated(values):
    """Four steps with dropout, scored after the second and the last one."""
    own = {key: values["data"][key] for key in ("kind", "root", "tier", "system", "instruction")}
    values["model"]["lm"]["attention_dropout"] = 0.0
    values["lora"] = {"r": 2, "alpha": 4, "dropout": 0.3}
    values["optim"]["steps"] = 4
    return values | {
        "validation": values["data"] | {"split": "val"},
        "evaluation": {"data": own | {"split": "val"}, "tasks": TASKS, "max_samples": 2},
        "eval_every": 2,
    }


def test_evaluation_changes_no_training_and_gives_the_scores_of_vtskip_eval(evaluated, tmp_path):
    from vtskip.eval import EvalConfig
    from vtskip.eval import run as evaluate

    evaluated["lora"] = None
    evaluated["keep_warmup"] = {"steps": 4, "start": 0.8}
    summary = train(evaluated)
    found = scores(evaluated["out"])
    assert list(found) == [2, 4] and set(found[2]) >= {f"eval_{DIFF}", "eval_coin_step/strict/accuracy"}
    assert summary[f"eval_{DIFF}"] == found[4][f"eval_{DIFF}"] and summary["eval_loss"] > 0
    own = {"model": evaluated["out"], "rows": [], "live_clips": 0} | evaluated["evaluation"]
    record = evaluate(parse(EvalConfig, own, "test"))
    for name, value in found[4].items():
        task, flavour, metric = name.removeprefix("eval_").split("/")
        assert value == pytest.approx(record["tasks"][task]["rows"]["model"][flavour][metric]["value"], rel=1e-6), name


def test_losses_are_the_same_bit_for_bit_with_and_without(evaluated, tmp_path):
    """With dropout, whose masks come from the random numbers that an evaluation could have drawn."""
    train(evaluated)
    plain = {k: v for k, v in evaluated.items() if k not in ("evaluation", "validation", "eval_every")}
    train(plain | {"out": str(tmp_path / "plain")})
    assert log(evaluated["out"]) == log(tmp_path / "plain")
    a, b = (adapters(out) for out in (evaluated["out"], tmp_path / "plain"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    train(plain | {"out": str(tmp_path / "other"), "seed": 1})
    assert log(tmp_path / "other") != log(tmp_path / "plain")


def adapters(out):
    from safetensors.torch import load_file

    return load_file(Path(out) / "adapter_model.safetensors")


def test_the_held_out_loss_is_the_saved_model_s_and_makes_no_logits(values, monkeypatch):
    from tests.train.test_run import one_batch
    from vtskip.loading import load
    from vtskip.train.loop import RunTrainer

    seen = []
    compute = RunTrainer.compute_loss

    def noted(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = compute(self, model, inputs, True, num_items_in_batch)
        seen.extend([] if model.training else [outputs.logits])
        return (loss, outputs) if return_outputs else loss

    monkeypatch.setattr(RunTrainer, "compute_loss", noted)
    summary = train(values | {"validation": values["data"] | {"split": "test"}})
    assert seen == [None]  # both clips in one batch
    model, _ = load(values["out"])
    with torch.no_grad():
        assert summary["eval_loss"] == pytest.approx(
            model(**one_batch(values, values["out"], model)).loss.item(), rel=1e-5
        )


def test_the_best_checkpoint_is_kept_marked_and_loaded(evaluated, tmp_path):
    """A score that falls from step to step: the first one is the best if less is worse."""
    evaluated |= {"lora": None, "eval_every": 1, "keep": 1, "best": {"metric": "loss"}}
    train(evaluated)
    out = Path(evaluated["out"])
    losses = {line["step"]: line["eval_loss"] for line in lines(out) if "eval_loss" in line}
    least = min(losses, key=losses.get)
    facts = json.loads((out / "best.json").read_text())
    assert facts == {"checkpoint": f"checkpoint-{least}", "step": least, "metric": "loss", "value": losses[least]}
    worst = max(losses, key=losses.get)
    assert least != worst
    again = evaluated | {"out": str(tmp_path / "worst"), "save_every": 1}
    summary = train(again | {"best": {"metric": "loss", "higher_is_better": True, "load": True}})
    held = sorted(p.name for p in (tmp_path / "worst").glob("checkpoint-*"))
    assert held == sorted({f"checkpoint-{worst}", "checkpoint-4"})
    assert (summary["best"], summary["eval_loss"]) == (f"checkpoint-{worst}", losses[worst])
    of_best, finished = weights(tmp_path / "worst" / f"checkpoint-{worst}"), weights(tmp_path / "worst")
    assert all(torch.equal(of_best[key], finished[key]) for key in of_best)


def test_the_best_score_goes_on_with_a_resumed_run(evaluated, tmp_path):
    evaluated |= {"lora": None, "save_every": 2, "keep": 9, "best": {"metric": DIFF, "higher_is_better": False}}
    train(evaluated)
    out, again = Path(evaluated["out"]), tmp_path / "again"
    again.mkdir()
    for name in ("checkpoint-2", "train_config.yaml", "train_log.jsonl"):
        (shutil.copytree if (out / name).is_dir() else shutil.copy)(out / name, again / name)
    train(evaluated | {"out": str(again)}, "auto")
    assert log(again) == log(out) and scores(again) == scores(out)
    assert json.loads((again / "best.json").read_text()) == json.loads((out / "best.json").read_text())


def test_patience_ends_a_run_and_a_resumed_one_finds_it_over(evaluated):
    """The first loss is taken for the best of a falling curve, so that each later one is a miss."""
    best = {"metric": "loss", "higher_is_better": True, "patience": 2}
    evaluated |= {"lora": None, "evaluation": None, "eval_every": 1, "best": best}
    evaluated["optim"] |= {"steps": 5, "schedule": "constant"}
    out = Path(evaluated["out"])
    for resume in ("never", "auto"):
        summary = train(evaluated, resume)
        assert (summary["steps"], summary["best"], summary["ended_early"]) == (3, "checkpoint-1", True)
        assert summary["eval_loss"] == lines(out)[5]["eval_loss"]
    summary = train(evaluated | {"best": best | {"patience": 3}}, "auto")  # one more miss, from where it ended
    assert (summary["steps"], summary["ended_early"]) == (4, True)
    assert [line["step"] for line in log(out)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_killed_while_the_best_is_saved(evaluated, tmp_path):
    evaluated |= {"lora": None, "eval_every": 1, "keep": 1, "best": {"metric": "loss"}}
    assert killed(evaluated, tmp_path / "killed", [[1, "save"], [2, "publish"]]) == [-9, -9, 0]
    train(evaluated)
    out, again = Path(evaluated["out"]), tmp_path / "killed" / "run"
    assert log(again) == log(out) and scores(again) == scores(out)
    assert (again / "best.json").read_text() == (out / "best.json").read_text()
    best = json.loads((out / "best.json").read_text())["checkpoint"]
    assert (again / best / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"best": {"metric": "loss"}, "validation": None}, "needs 'validation'"),
        ({"best": {"metric": DIFF}, "evaluation": None}, "needs 'evaluation'"),
        ({"best": {"metric": "ego4d_naration/strict/time_diff"}}, "did you mean 'ego4d_narration/strict/time_diff'"),
        ({"best": {"metric": "ego4d_narration/strict/fluency"}}, "say 'higher_is_better'"),
        ({"best": {"metric": "ego4d_narration/strict/fluenzy", "higher_is_better": True}}, "did you mean"),
        ({"evaluation": {"task": ["coin_step"]}}, "did you mean 'tasks'"),
        ({"evaluation": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(evaluated, change, said):
    with pytest.raises(VtskipError, match=said):
        train(evaluated | {"lora": None, "eval_every": 1} | change)
    assert not Path(evaluated["out"]).exists()


def test_from_python_a_scorer_is_asked_for(evaluated):
    with pytest.raises(ConfigError, match=r"scorer=vtskip.eval.training.scorer_of"):
        run(parse(TrainConfig, evaluated, "test"), progress=False)


def test_a_stock_model_answers_its_held_out_questions(tmp_path, monkeypatch):
    """As the finished model does in ``vtskip.eval``: the conversation so far, then what it says itself."""
    from vtskip.eval.answerer import load_answerer
    from vtskip.eval.chat import Decoding
    from vtskip.train.scoring import Learner

    model, data = stand_ins.llava(tmp_path / "model"), stand_ins.llava_json(tmp_path / "data")
    own = {"kind": "llava", "annotations": str(data / "records.json"), "videos": str(data)}
    said = {}
    answer = Learner.answer
    monkeypatch.setattr(Learner, "answer", lambda self, s, g: said.setdefault(s.uid, answer(self, s, g)))
    values = {
        "out": str(tmp_path / "run"),
        "model": {"pretrained": str(model)},
        "method": {"name": "pmod"},
        "data": own,
        "validation": own,
        "evaluation": {"data": own, "tasks": ["visual_qa"]},
        "trains": {"vision": False},
        "optim": {"steps": 2, "batch_size": 2, "lr": 0.01},
        "log_every": 1,
    }
    summary = train(values)
    assert 0 <= summary["eval_visual_qa/strict/accuracy"] <= 1 and summary["eval_loss"] > 0
    picture = {"type": "image", "url": str(data / "b.png")}
    first, second = ({"type": "text", "text": text} for text in ("What is shown here ?", "And now ?"))
    reply = {"role": "assistant", "content": [{"type": "text", "text": "The circle is blue ."}]}
    talks = [[{"role": "user", "content": [picture, first]}, reply, {"role": "user", "content": [second]}]]
    found = load_answerer(values["out"]).answer(talks, Decoding(max_new_tokens=128))
    assert len(said) == 4 and [found[0].text] == next(v for k, v in said.items() if "turns" in k)


def test_a_stock_model_is_not_asked_to_narrate(tmp_path, smoke):
    data = {"kind": "synthetic", "root": str(smoke), "split": "val"}
    scorer = scorer_of({"data": data, "tasks": ["ego4d_narration"]}, tmp_path)
    with pytest.raises(ConfigError, match=r"a stock model .'model.pretrained'. does not narrate"):
        scorer.fits(object())
