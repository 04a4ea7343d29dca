"""Our tasks in lmms-eval's form: what is asked, what is shown, and that the scores are those of ``vtskip eval``."""

import json

import numpy as np
import pytest
import yaml

from tests.fixtures_stream import run_cli
from vtskip.config import parse
from vtskip.errors import ConfigError
from vtskip.eval import EvalConfig, run
from vtskip.eval.answerer import load_answerer
from vtskip.eval.chat import TIMED, Decoding
from vtskip.eval.events import timed_lines
from vtskip.eval.lmms_tasks import Exported, export

NAMES = ["coin_step", "coin_procedure", "ego4d_narration_rollout"]


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory):
    """(folder, evaluation) of two COIN tasks and the narration of two clips."""
    coin, clips = request.getfixturevalue("coin"), request.getfixturevalue("clips")
    checkpoint = request.getfixturevalue("checkpoint")
    folder = tmp_path_factory.mktemp("lmms")
    narration = {"kind": "ego4d_narration", "annotations": str(clips / "narration.json")}
    narration |= {"videos": str(clips / "videos"), "system": "You see it.", "instruction": "Narrate."}
    tasks = [*NAMES[:2], {"task": NAMES[2], "data": narration}]
    values = {"model": str(checkpoint), "data": coin, "tasks": tasks, "rows": [], "live_clips": 0}
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(values))
    written = run_cli("eval", path, "--lmms-eval", folder / "tasks")
    assert written.code == 0, written.err
    assert written.out.split() == [f"vtskip_{name}" for name in NAMES]
    return folder / "tasks", parse(EvalConfig, values, "test")


def docs(folder, name):
    return [json.loads(line) for line in (folder / f"vtskip_{name}.jsonl").read_text().splitlines()]


def bound(folder, name):
    return Exported(str(folder / f"vtskip_{name}.py"))


class Loader(yaml.SafeLoader):
    """Reads ``!function`` as its name."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_task_files_have_what_lmms_eval_reads(exported):
    folder, _ = exported
    task = yaml.load((folder / "vtskip_coin_step.yaml").read_text(), Loader)
    assert (task["task"], task["output_type"], task["test_split"]) == ("vtskip_coin_step", "generate_until", "test")
    assert [m["metric"] for m in task["metric_list"]] == ["strict_accuracy", "reference_accuracy"]
    functions = [task[key] for key in ("doc_to_messages", "doc_to_visual", "doc_to_text", "process_results")]
    module: dict = {"__file__": str(folder / "vtskip_coin_step.py")}
    exec((folder / "vtskip_coin_step.py").read_text(), module)
    assert all(callable(module[name.split(".")[1]]) for name in functions)
    narration = yaml.load((folder / "vtskip_ego4d_narration_rollout.yaml").read_text(), Loader)
    assert narration["model_specific_generation_kwargs"]["vtskip"]["stream_fps"] == 2.0
    better = {m["metric"]: m["higher_is_better"] for m in narration["metric_list"]}
    assert better["strict_timing_f1@1"]
    assert not better["strict_miss_rate"]
    assert not better["strict_false_triggers_per_minute"]


def test_questions_are_asked_in_the_order_of_the_benchmark_with_the_segment_s_frames(exported):
    folder, _ = exported
    doc, task = docs(folder, "coin_step")[0], bound(folder, "coin_step")
    messages = task.messages(doc)
    assert [(m["role"], [p["type"] for p in m["content"]]) for m in messages] == [
        ("system", ["text"]),
        ("user", ["text", "video"]),
    ]
    assert doc["target"] == "Cut the bread."
    assert doc["target"] not in json.dumps(task.question(doc))
    shown = task.visuals(doc)
    assert len(shown) == len(json.loads(doc["sample"])["frames"]) == 3
    assert shown[0].size == (64, 64)


def test_narration_is_asked_in_timed_lines(exported):
    folder, _ = exported
    doc, task = docs(folder, "ego4d_narration_rollout")[0], bound(folder, "ego4d_narration_rollout")
    user = task.messages(doc)[1]
    assert [p["type"] for p in user["content"]] == ["text", "video"]
    assert user["content"][0]["text"] == "Narrate." + TIMED
    assert doc["target"] == "0: C cuts the bread.\n1.5: C opens the lid."
    perfect = task.results(doc, [doc["target"]])
    assert perfect["strict_timing_f1@0.5"] == [4, 4]
    assert perfect["strict_exact"] == [200.0, 2.0]
    assert task.results(doc, ["nothing"])["strict_miss_rate"] == [2, 2]
    assert task.ratio([[4, 4], [0, 2]]) == pytest.approx(4 / 6)
    assert np.isnan(task.ratio([[0, 0]]))


def test_lines_with_times_are_read_as_people_write_them():
    text = "Here it is:\n3.5: opens the lid\n[0.5 s] - cuts: the bread\n**12 seconds**: walks away\nno time"
    assert timed_lines(text, 2.0, 10) == [[1, "cuts: the bread"], [7, "opens the lid"], [9, "walks away"]]
    assert timed_lines("", 2.0, 0) == []


def test_a_streaming_checkpoint_scores_there_as_here(exported, checkpoint):
    """Clips are as large as the model's frames here, so that nothing is resized in another way."""
    folder, config = exported
    record = run(config)
    answerer = load_answerer(str(checkpoint), device="cpu")
    for name in NAMES:
        task, rows = bound(folder, name), docs(folder, name)
        decoding = Decoding(64 if name != NAMES[1] else 256, stream_fps=2.0 if name == NAMES[2] else None)
        found = [task.results(doc, [answerer.answer([task.messages(doc)], decoding)[0].text]) for doc in rows]
        own = record["tasks"][name]["rows"]["model"]
        for flavour, metrics in own.items():
            for metric, estimate in metrics.items():
                there = task.ratio([values[f"{flavour}_{metric}"] for values in found])
                assert there == pytest.approx(estimate["value"], nan_ok=True) or estimate["value"] is None, metric


def test_streams_of_logits_are_no_task_there(exported, tmp_path):
    _, config = exported
    streams = parse(EvalConfig, {"model": "m", "data": config.runs[2].data}, "test")
    with pytest.raises(ConfigError, match="none of them asks for text"):
        export(streams, tmp_path)
    assert list(tmp_path.iterdir()) == []
