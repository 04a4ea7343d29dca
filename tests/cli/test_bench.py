"""``vtskip bench``: record, tables, picture, resumption's folder, shapes, errors."""

import json

import pytest

from tests.fixtures_stream import run_cli

TINY = ["hidden=32", "ffn=48", "heads=2", "kv_heads=1", "vocab=16"]
SMALL = [*TINY, "frames=2", "vision_rows=8", "text_rows=4", "batch=1", "rounds=1", "train_rounds=0", "decode_rows=0"]


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.json"
    result = run_cli("bench", *SMALL, "layers=2", "methods=[skip_ffn]", "--json", path)
    assert result.code == 0, result.err
    assert "| `skip_ffn` |" in result.out and "GB/s" in result.out
    return path


def test_record_is_written_and_shown_again(record, tmp_path):
    assert json.loads(record.read_text())["kind"] == "bench"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["record.json"]  # what a killed run would need is gone
    files = tmp_path / "table.md", tmp_path / "picture.png"
    result = run_cli("bench", "--record", record, "--markdown", files[0], "--picture", files[1])
    assert result.code == 0, result.err
    assert files[0].read_text() == result.out and files[1].read_bytes().startswith(b"\x89PNG")


def test_shape_and_layers():
    result = run_cli("bench", "--shape", "llava-1.5-7b", "--layers", "2", *SMALL, "methods=[skip_ffn]", "--json", "-")
    found = json.loads(result.out)
    assert found["config"]["layers"] == 2 and found["full_depth"]["layers"] == 32


def test_stream():
    sizes = [*TINY, "layers=2", "contexts=[8]", "context=8", "frames_per_step=[1]", "streams=[1]", "methods=[dense]"]
    result = run_cli("bench", "--stream", "--quick", *sizes, "bounded=null")
    assert result.code == 0, result.err
    assert "**8 cached frames, 1 per step, one stream**" in result.out


def test_bad_input_is_one_line_and_exit_2(record, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    for arguments, words in [
        (["--shape", "llava-7b"], "did you mean 'llava-1.5-7b'"),
        (["rouns=3"], "did you mean 'rounds'"),
        (["--record", other], "not the record of a bench"),
        (["--config", tmp_path / "no.yaml"], "no.yaml"),
    ]:
        result = run_cli("bench", *arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert words in result.err and "Traceback" not in result.err
