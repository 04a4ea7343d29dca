"""``vtskip data check``: names and files, exit codes, what is printed and written."""

import json

import pytest

from tests.data import formats
from tests.data.gray import gray_clip
from vtskip.cli.main import main


@pytest.fixture
def coin(tmp_path, monkeypatch):
    """A folder laid out as ``configs/data/coin.yaml`` says, with one video of two missing. Tables are not wrapped."""
    monkeypatch.setenv("COLUMNS", "400")
    gray_clip(tmp_path / "videos/a.mp4", fps=10)
    (tmp_path / "COIN.json").write_text(json.dumps(formats.COIN))
    return tmp_path


def test_a_shipped_name_with_overrides(coin, capsys, tmp_path):
    arguments = ["data", "check", "coin", f"root={coin}"]
    assert main([*arguments, "--picture", str(tmp_path / "out/c.png")]) == 0
    out = capsys.readouterr().out
    assert "ReplaceCDDriveWithSSD" in out and "0.00%" in out
    assert (tmp_path / "out/c.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "split=testing"]) == 1
    out = capsys.readouterr().out
    assert "missing file" in out and "100.00%" in out and "b.mp4" in out


@pytest.mark.parametrize("share, code", [(0.49, 1), (0.5, 0), (1, 0)])
def test_the_exit_code_is_by_the_share_of_failures(coin, capsys, share, code):
    assert main(["data", "check", "coin", f"root={coin}", "split=null", "--json", "--max-failures", str(share)]) == code
    (report,) = json.loads(capsys.readouterr().out).values()
    assert (report["units"], report["failed"], report["share_failed"]) == (2, 1, 0.5)
    assert report["faults"][0]["unit"] == "b" and report["faults_by_kind"] == {"missing file": 1}


def test_sections_of_a_training_configuration(coin, capsys, tmp_path):
    data = f"{{kind: coin, root: {coin}, annotations: COIN.json, videos: videos, split: training}}"
    path = tmp_path / "train.yaml"
    path.write_text(f"# x\nout: x\nmodel: {{lm: x}}\ndata: {data}\nvalidation: {data.replace('training', 'testing')}\n")
    assert main(["data", "check", str(path), "--json", "--picture", str(tmp_path / "p.png")]) == 1
    reports = json.loads(capsys.readouterr().out)
    assert [reports[name]["failed"] for name in ("data", "validation")] == [0, 1]
    assert (tmp_path / "p.png").is_file() and (tmp_path / "p_validation.png").is_file()
    assert main(["data", "check", str(path), "data.split=testing", "validation=null", "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)) == ["data"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["coinn"], "coinn: no such file, nor a name; did you mean 'coin'"),
        (["coin", "splitt=x"], "'splitt'"),
        (["coin", "passes=[1]"], "kind 'coin' has no key 'passes': it belongs to ego4d_narration, synthetic"),
        (["coin", "--max-failures", "2"], "max-failures"),
    ],
)
def test_wrong_calls(arguments, message, capsys):
    assert main(["data", "check", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_without_a_data_section(tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text("name: mod\n")
    assert main(["data", "check", str(path)]) == 2
    assert f"{path}: neither a data section ('data') nor one itself ('kind')" in capsys.readouterr().err


def test_texts_of_the_file_are_printed_as_they_are(coin, capsys):
    value = json.loads((coin / "COIN.json").read_text())
    value["database"]["a"]["class"] = "[bold]Odd[/x] \U0001f373"
    value["database"]["a\ud800[/]"] = value["database"].pop("b") | {"subset": "training"}
    (coin / "COIN.json").write_text(json.dumps(value))
    assert main(["data", "check", "coin", f"root={coin}"]) == 1
    out = capsys.readouterr().out
    assert "[bold]Odd[/x]" in out and "\\ud800[/]" in out
