"""A run that was killed goes on; damaged clips are named and counted; processes share the work."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures_stream import run_cli
from vtskip.config import parse
from vtskip.errors import ConfigError, DataError, VideoError
from vtskip.eval import EvalConfig, run
from vtskip.eval.journal import Journal, fingerprint
from vtskip.eval.subject import StreamSubject

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("seconds_per_frame_p50", "seconds_per_frame_p95", "frames_per_second", "tokens_per_second")
TIMES += ("first_token_seconds_p50", "first_token_seconds_p95", "peak_memory_bytes")


def configured(values, **changes):
    return parse(EvalConfig, values | changes, "test")


def timeless(record):
    """The record without what differs from start to start."""
    record = copy.deepcopy(json.loads(json.dumps(record)))
    for key in ("provenance", "peak_memory_bytes", "peak_memory_of"):
        record.pop(key)
    record["config"].pop("out")
    for costs in (record.get("cost", {}), *(task["cost"] for task in record["tasks"].values())):
        for cost in costs.values():
            for key in TIMES:
                cost.pop(key, None)
    return record


def killed(monkeypatch, after):
    """The program dies while it is asked for sample number ``after``; returns how often it was asked since."""
    asked, real = [], StreamSubject.stream_score

    def score(self, prompt, threshold, continuation):
        asked.append(1)
        if len(asked) == after:
            raise KeyboardInterrupt
        return real(self, prompt, threshold, continuation)

    monkeypatch.setattr(StreamSubject, "stream_score", score)
    return asked


@pytest.fixture
def config(eval_config, tmp_path):
    return eval_config | {"rows": ["blind", "random"], "out": str(tmp_path / "out")}


def test_finished_samples_are_not_asked_again_and_the_record_is_the_same(config, tmp_path, monkeypatch):
    whole = run(configured(config, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        asked = killed(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            run(configured(config))
    partial = tmp_path / "out/samples.partial.0.jsonl"
    with partial.open("a") as file:
        file.write('{"row": "blind", "task": "stre')  # cut off in the middle of a line
    with monkeypatch.context() as patch:
        asked = killed(patch, after=0)
        second = run(configured(config))
    assert len(asked) == 3  # of six
    assert timeless(second) == timeless(whole)
    texts = [(tmp_path / name / "samples.jsonl").read_text().splitlines() for name in ("whole", "out")]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "cost"} for line in text] for text in texts]
    assert rows[0] == rows[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["record.json", "samples.jsonl"]


def test_the_cost_of_a_batch_is_counted_once(checkpoint, coin, tmp_path, monkeypatch):
    values = {"model": str(checkpoint), "data": coin, "tasks": ["coin_step"], "rows": ["random"], "batch_size": 2}
    whole = run(configured(values, out=str(tmp_path / "whole")))
    calls, real = [], StreamSubject.generate

    def generate(self, prompts, generation):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, prompts, generation)

    monkeypatch.setattr(StreamSubject, "generate", generate)
    again = values | {"out": str(tmp_path / "again")}
    with pytest.raises(KeyboardInterrupt):
        run(configured(again))
    assert timeless(run(configured(again))) == timeless(whole)
    assert calls == [2, 2, 1, 1, 2, 2, 1]


def test_another_run_s_samples_are_not_taken(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            run(configured(config))
    with monkeypatch.context() as patch:
        asked = killed(patch, after=0)
        run(configured(config, threshold=0.2))
    assert len(asked) == 6


def test_fingerprints_tell_models_samples_and_settings_apart(copied, eval_config):
    from vtskip.eval.sets import task_sets

    samples = task_sets(configured(eval_config))[0].samples
    prints = [
        fingerprint({}, [copied], samples),
        fingerprint({}, [copied], samples[:1]),
        fingerprint({"a": 1}, [copied], samples),
    ]
    weights = copied / "model.safetensors"
    os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 10**9))
    prints.append(fingerprint({}, [copied], samples))
    assert len(set(prints)) == 4
    assert fingerprint({}, [copied], samples) == prints[3]


def test_a_journal_survives_whatever_is_in_its_file(tmp_path):
    def loaded(run, rank=0):
        journal = Journal(tmp_path, run, rank)
        journal.load()
        return list(journal.done)

    for text in ("", "no json\n", '{"run": "other"}\n{"row": "model", "task": "t", "uid": "u"}\n', '{"run": "mine"}'):
        (tmp_path / "samples.partial.0.jsonl").write_text(text)
        assert loaded("mine") == [], text
    journal = Journal(tmp_path, "mine")
    journal.add([{"row": "model", "task": "t", "uid": "u"}])
    journal.close()
    assert loaded("mine", rank=1) == [("model", "t", "u")]
    assert loaded("other") == []
    path = tmp_path / "samples.partial.0.jsonl"
    path.write_text(path.read_text() + '{"row": "model", "ta\x00\n')
    assert loaded("mine") == [("model", "t", "u")]


# ------------------------------------------------------------------------------------------------------- damaged clips


def test_damaged_clips_are_named_and_counted(config, damaged, monkeypatch):
    record = run(configured(config, data=damaged, on_error="skip"))
    assert (record["n_samples"], record["n_videos"], record["n_skipped"]) == (4, 4, 1)
    assert record["skipped"][0]["name"] == "d"
    assert "d.mp4" in record["skipped"][0]["fault"]
    assert {row["strict"]["time_diff"]["clusters"] for row in record["tasks"]["streams"]["rows"].values()} <= {3, 4}
    with pytest.raises(DataError, match=r"d\.mp4"):
        run(configured(config, data=damaged))


def test_a_clip_that_fails_only_when_it_is_decoded_is_left_out_of_every_row(config, damaged, monkeypatch):
    from vtskip.data import collate

    real = collate.read_frames

    def read(path, indices, size):
        if path.name == "c.mp4":
            raise VideoError(f"{path}: cannot decode frames")
        return real(path, indices, size)

    monkeypatch.setattr(collate, "read_frames", read)
    record = run(configured(config, data=damaged, on_error="skip"))
    assert [fault["name"] for fault in record["skipped"]] == ["c/a", "d"]
    assert record["n_samples"] == 3
    streams = record["tasks"]["streams"]["rows"]
    assert {row["strict"]["fluency"]["items"] for row in streams.values()} == {2}  # b has no frame to be fluent at
    (Path(damaged["videos"]) / "d.mp4").write_bytes((Path(damaged["videos"]) / "a.mp4").read_bytes())
    with pytest.raises(VideoError, match=r"c\.mp4"):
        run(configured(config, data=damaged))


def test_every_clip_damaged_is_an_error(config, damaged):
    for path in Path(damaged["videos"]).iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no conversations to evaluate.*first fault.*0 bytes"):
        run(configured(config, data=damaged, on_error="skip"))


def test_on_error_of_the_command_line(config, damaged, tmp_path):
    import yaml

    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump(config | {"data": damaged, "rows": []}))
    stopped = run_cli("eval", path)
    assert (stopped.code, stopped.out) == (2, "")
    assert "d.mp4" in stopped.err
    finished = run_cli("eval", path, "--on-error", "skip")
    assert finished.code == 0, finished.err
    assert "skipped d:" in finished.out
    wrong = run_cli("eval", path, "--on-error", "skipp")
    assert wrong.code == 2
    assert "on_error" in wrong.err


# ----------------------------------------------------------------------------------------------------------- processes


def test_two_processes_write_the_record_of_one(config, tmp_path):
    import yaml

    alone = run(configured(config, out=str(tmp_path / "alone")))
    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = "import sys; from vtskip.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "eval", str(path), "--json"]
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank)}, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert outputs[1] == ""
    assert timeless(json.loads(outputs[0])) == timeless(alone)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["record.json", "samples.jsonl"]


def test_processes_need_a_folder_to_meet_in(eval_config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="'out' has to be a folder"):
        run(configured(eval_config))
