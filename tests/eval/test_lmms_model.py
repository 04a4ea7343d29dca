"""The lmms-eval plug-in: against a stand-in of what it touches, and in the real program where that is installed."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests import lmms_standin
from tests.fixtures_stream import run_cli
from tests.tiny_hub import save

ROOT = Path(__file__).resolve().parents[2]


def entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["lmms_eval.models"]["vtskip"]


@pytest.fixture
def logged(monkeypatch):
    return lmms_standin.install(monkeypatch)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("stock")))


def request(text, doc, **settings):
    """As lmms-eval makes it for a chat model."""

    def messages(row):
        return [{"role": "user", "content": [{"type": "text", "text": row["text"]}]}]

    settings = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "until": []} | settings
    return SimpleNamespace(args=(text, messages, settings, doc, "task", "test"))


def test_the_entry_point_leads_to_a_chat_model(logged):
    module, _, name = entry_point().partition(":")
    manifest = getattr(import_module(module), name)()
    assert manifest.model_id == "vtskip"
    module, _, name = manifest.chat_class_path.rpartition(".")
    model = getattr(import_module(module), name)
    assert issubclass(model, lmms_standin.lmms)
    assert model.is_simple is False


def test_requests_are_answered_in_order_and_what_was_skipped_is_logged(logged, stock):
    model_class = import_module("vtskip.eval.lmms_model").Vtskip
    texts = ["cut the bread", "open the lid", "what is the action", "narrate", "C looks around"]
    found = {}
    for size in (1, "2"):
        model = model_class(pretrained=stock, method="uniform", device="cpu", batch_size=size)
        model.task_dict = {"task": {"test": [{"text": text} for text in texts]}}
        requests = [request(text, i, max_new_tokens=3 if i == 2 else 5) for i, text in enumerate(texts)]
        found[size] = [(r.text, r.token_counts.output_tokens) for r in model.generate_until(requests)]
    assert found[1] == found["2"]
    assert len({text for text, _ in found[1]}) == 5
    assert [tokens for _, tokens in found[1]] == [5, 5, 3, 4, 5], "one answer ends by itself"
    assert logged[0]["tokens"] == 22
    assert set(logged[0]) == {"tokens", "flops_ratio", "kv_ratio", "kept_vision"}
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    model.clean()
    assert model.answerer is None


def test_settings_of_a_task_become_a_decoding(logged):
    module = import_module("vtskip.eval.lmms_model")
    greedy = module.decoding(
        {"max_new_tokens": 9, "temperature": 0.7, "do_sample": False, "until": ["x"], "top_p": None}
    )
    assert (greedy.max_new_tokens, greedy.temperature, greedy.top_p) == (9, 0.0, None)
    assert module.decoding({"temperature": 0.7}).temperature == 0.7
    assert module.cut("a, b. c", [".", ","]) == "a"
    assert module.cut(" a ", None) == "a"
    runs = module.batches([request("", 0), request("", 1), request("", 2, num_beams=2), request("", 3)], 3)
    assert [[args[3] for args in run] for run in runs] == [[0, 1], [2], [3]]


# ------------------------------------------------------------------------------------------------------ the real program

HERE = "import vtskip, sys; from lmms_eval.__main__ import cli_evaluate; sys.argv[0] = 'lmms-eval'; cli_evaluate()"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed (pip install 'vtskip[lmms]')")
@pytest.mark.parametrize("of", ["stock", "streaming"])
def test_lmms_eval_runs_our_model_on_our_tasks(of, stock, checkpoint, coin, clips, tmp_path):
    narration = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json")}
    narration |= {"videos": str(clips / "videos"), "system": "You see it.", "instruction": "Narrate."}
    tasks = ["coin_step", "coin_procedure", {"task": "ego4d_narration_rollout", "data": narration}]
    values = {"model": str(checkpoint), "data": coin, "tasks": tasks, "rows": [], "live_clips": 0}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(values | {"out": str(tmp_path / "own")}))
    names = run_cli("eval", tmp_path / "eval.yaml", "--lmms-eval", tmp_path / "tasks").out.split()
    method = ROOT / "configs/methods/uniform.yaml"
    model = f"pretrained={stock if of == 'stock' else checkpoint}" + f",method={method}" * (of == "stock")
    arguments = ["--model", "vtskip", "--model_args", model, "--tasks", ",".join(names), "--device", "cpu"]
    arguments += [
        "--include_path",
        str(tmp_path / "tasks"),
        "--output_path",
        str(tmp_path / "out"),
        "--batch_size",
        "2",
    ]
    cached = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HERE, *arguments, "--log_samples"],
        env=cached,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("*_results.json")).read_text())
    assert results["n-samples"]["vtskip_coin_step"]["effective"] == 5
    assert set(results["results"]) >= set(names)
    assert results["results"]["vtskip_coin_step"]["strict_accuracy,none"] is not None
    if of == "streaming":  # the same answers, so the same scores as `vtskip eval`
        own = json.loads(run_cli("eval", tmp_path / "eval.yaml", "--json").out)["tasks"]
        for name in names:
            for flavour, metrics in own[name.removeprefix("vtskip_")]["rows"]["model"].items():
                for metric, estimate in metrics.items():
                    there = results["results"][name][f"{flavour}_{metric},none"]
                    assert estimate["value"] is None or there == pytest.approx(estimate["value"]), metric
