"""``vtskip stream``: timed text, JSON, subtitles, and one clear error for everything that cannot be played."""

import json
import os

import pytest

from tests.fixtures_stream import run_cli


def test_replies_are_printed_with_their_time_and_a_cost_table(checkpoint, clips):
    result = run_cli(
        "stream", clips / "videos/a.mp4", "--model", checkpoint, "--query", "What?@1.5", "--max-new-tokens", 4
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert any(line.startswith("[00:01.5] What?") for line in lines)
    assert "frames per second" in result.out
    assert "5 2 5 2" in result.out  # kept tokens per layer
    assert "KV bytes" in result.out


def test_json_is_the_only_thing_on_stdout_and_files_agree(checkpoint, clips, tmp_path):
    vtt, out, kept = (tmp_path / "sub" / name for name in ("narration.vtt", "narration.json", "kept.png"))
    result = run_cli(
        "stream", clips / "videos/a.mp4", "--model", checkpoint, "--json", "--vtt", vtt, "--out", out,
        "--threshold", 1, "--max-new-tokens", 3, "--instruction", "Narrate.", "--picture", kept,
    )  # fmt: skip
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record == json.loads(out.read_text())
    assert [e["time"] for e in record["events"]] == [
        k / 2 for k in range(1, 8)
    ]  # threshold 1: after every frame but the first
    assert record["cost"]["frames"] == 8
    assert record["cost"]["kept_per_frame"] == pytest.approx([5, 2, 5, 2])
    assert record["cost"]["kv_bytes"] < record["cost"]["kv_bytes_dense"]
    assert record["method"]["name"] == "mod"
    text = vtt.read_text()
    assert text.startswith("WEBVTT\n")
    assert text.count(" --> ") == sum(bool(e["text"]) for e in record["events"])
    assert sorted(os.listdir(vtt.parent)) == ["kept.png", "narration.json", "narration.vtt"]
    assert kept.read_bytes().startswith(b"\x89PNG")


def test_frames_method_and_threshold_are_obeyed(checkpoint, clips):
    result = run_cli(
        "stream", clips / "videos/a.mp4", "--model", checkpoint, "--json", "--max-frames", 3, "--method", "dense",
        "--threshold", 0,
    )  # fmt: skip
    record = json.loads(result.out)
    assert record["cost"]["frames"] == 3
    assert record["method"]["name"] == "dense"
    assert record["cost"]["kv_bytes"] == record["cost"]["kv_bytes_dense"]


def test_untrained_routers_are_announced(checkpoint, clips, tmp_path):
    method = tmp_path / "all.yaml"
    method.write_text("name: mod\nkeep: 0.4\nschedule: {kind: constant}\n")
    result = run_cli(
        "stream", clips / "videos/a.mp4", "--model", checkpoint, "--json", "--method", method, "--max-frames", 1
    )
    assert json.loads(result.out)["cost"]["kept_per_frame"] == pytest.approx([2.0] * 4)
    assert "no trained parameters" in result.err


def bad(clips, copied):
    """Arguments after ``stream`` and the words the one error line must hold."""
    clip, model = clips / "videos/a.mp4", copied
    return {
        "missing": ([clips / "nowhere.mp4", "--model", model], "nowhere.mp4"),
        "folder": ([clips, "--model", model], "folder"),
        "empty": ([clips / "empty.mp4", "--model", model], "empty.mp4"),
        "truncated": ([clips / "truncated.mp4", "--model", model], "truncated"),
        "no video": ([clips / "text.mp4", "--model", model], "text.mp4"),
        "audio only": ([clips / "audio.mp4", "--model", model], "no video stream"),
        "no model": ([clip, "--model", clips], "config.json"),
        "no folder": ([clip, "--model", clips / "gone"], "gone"),
        "threshold": ([clip, "--model", model, "--threshold", 1.2], "[0, 1]"),
        "query": ([clip, "--model", model, "--query", "What?"], "TEXT@SECONDS"),
        "query time": ([clip, "--model", model, "--query", "What?@soon"], "TEXT@SECONDS"),
        "method": ([clip, "--model", model, "--method", "mdo"], "did you mean 'mod'"),
        "dtype": ([clip, "--model", model, "--dtype", "float7"], "float7"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing", "folder", "empty", "truncated", "no video", "audio only", "no model", "no folder",
        "threshold", "query", "query time", "method", "dtype",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_2_and_no_file(case, clips, copied, tmp_path):
    arguments, words = bad(clips, copied)[case]
    result = run_cli("stream", *arguments, "--json", "--vtt", tmp_path / "o/n.vtt", "--out", tmp_path / "o/n.json")
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_checkpoint_of_another_base_model_is_refused(clips, copied):
    config = json.loads((copied / "vtskip_config.json").read_text())
    config["base"]["layers"] = 9
    (copied / "vtskip_config.json").write_text(json.dumps(config))
    result = run_cli("stream", clips / "videos/a.mp4", "--model", copied)
    assert result.code == 2
    assert "another base model: layers 9" in result.err


@pytest.fixture
def stream_file(checkpoint, clips, tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"# A stream.\nmodel: {checkpoint}\nvideo: {clips / 'videos/a.mp4'}\nthreshold: 1\nmax_new_tokens: 3\n"
        f"query: ['What?@1.5']\nmax_frames: 4\nout: {tmp_path / 'file.json'}\n"
    )
    return path


def test_a_file_says_what_options_say(stream_file, checkpoint, clips, tmp_path):
    by_file = run_cli("stream", "--config", stream_file, "--json")
    by_options = run_cli(
        "stream", clips / "videos/a.mp4", "--model", checkpoint, "--json", "--threshold", 1, "--max-new-tokens", 3,
        "--query", "What?@1.5", "--max-frames", 4,
    )  # fmt: skip
    assert (by_file.code, by_options.code) == (0, 0), by_file.err
    first, second = json.loads(by_file.out), json.loads(by_options.out)
    assert first["events"] == second["events"] and any(e["query"] == "What?" for e in first["events"])
    assert first == json.loads((tmp_path / "file.json").read_text())


def test_key_value_wins_over_the_file_and_options_over_both(stream_file, clips):
    arguments = [
        clips / "videos/b.mp4",
        "--config",
        stream_file,
        "threshold=0.25",
        "max_frames=2",
        "query=[]",
        "--json",
    ]
    record = json.loads(run_cli("stream", *arguments, "--max-frames", 3, "--method", "dense").out)
    assert record["clip"] == str(clips / "videos/b.mp4")
    assert (record["threshold"], record["cost"]["frames"], record["method"]["name"]) == (0.25, 3, "dense")
    assert not [e for e in record["events"] if e["query"]]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("treshold=0.5", "did you mean 'threshold'"),
        ("query=['What?']", "TEXT@SECONDS"),
        ("camera=rtsp://nowhere", "one source"),
        ("video=null", "one source"),
        ("method=mdo", "did you mean 'mod'"),
        ("other.mp4", "other.mp4"),
    ],
)
def test_a_fault_in_a_stream_file_is_one_line(stream_file, tmp_path, argument, said):
    result = run_cli("stream", "--config", stream_file, argument)
    assert (result.code, result.out, len(result.err.strip().splitlines())) == (2, "", 1)
    assert said in result.err
    assert not (tmp_path / "file.json").exists()


def test_a_folder_of_pictures_is_a_stream_in_the_order_of_names(checkpoint, tmp_path):
    from PIL import Image

    for name in ("2.png", "1.png", "10.txt"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name, format="png")
    record = json.loads(run_cli("stream", tmp_path, "--model", checkpoint, "--json").out)
    assert record["cost"]["frames"] == 2


def test_a_camera_is_a_stream(checkpoint):
    """ffmpeg's test pattern is the camera: ten frames per second for two seconds; the model takes two per second."""
    result = run_cli(
        "stream", "--camera", "testsrc=size=64x64:rate=10:duration=2", "--camera-format", "lavfi", "--model", checkpoint,
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["cost"]["frames"] == 4
    result = run_cli("stream", "--camera", "nowhere", "--model", checkpoint)
    assert result.code == 2 and "nowhere: camera cannot be read" in result.err


def test_shipped_stream_files_are_listed_described_and_copied(tmp_path):
    names = {row["name"] for row in json.loads(run_cli("config", "ls", "stream", "--json").out)}
    assert names >= {"stream/demo", "stream/bounded", "stream/ego4d"}
    assert {"model", "window", "query"} <= json.loads(run_cli("config", "schema", "stream").out)["properties"].keys()
    assert run_cli("config", "cp", "stream/bounded", tmp_path).code == 0 and (tmp_path / "bounded.yaml").is_file()
    missing = run_cli("stream", "--config", "demo")
    assert missing.code == 2 and "runs/demo" in missing.err
