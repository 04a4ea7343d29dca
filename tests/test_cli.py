"""The vtskip program: quick help, listings, JSON that stands alone, one-line errors and exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtskip.cli import main as program
from vtskip.errors import ConfigError

HEAVY = ("torch", "transformers", "numpy", "yaml", "decord", "av", "open_clip", "datasets", "vtskip.config")


def vtskip(capsys, *argv: str) -> tuple[int, str, str]:
    code = program.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("argv", [(), *((name,) for name in program.COMMANDS), ("data", "make")], ids=" ".join)
def test_help_is_there_and_imports_nothing_heavy(argv):
    script = (
        "import sys; from vtskip.cli.main import main; code = main(sys.argv[1:]);"
        f"print('LOADED', [m for m in {HEAVY} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: vtskip" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_main_help_lists_every_command(capsys):
    code, out, _ = vtskip(capsys, "--help")
    assert code == 0
    for name in program.COMMANDS:
        assert f" {name} " in out


def test_module_and_function_are_the_same_program(capsys):
    done = subprocess.run([sys.executable, "-m", "vtskip", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == vtskip(capsys, "--version")[:2]


@pytest.mark.parametrize("listing", ["methods", "models", "env"])
def test_listing_is_a_json_list_of_named_objects_and_a_table_of_the_same(capsys, listing):
    code, out, _ = vtskip(capsys, listing, "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows
    assert all(next(iter(row)) == "name" for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same keys"
    code, table, _ = vtskip(capsys, listing)
    assert code == 0
    for row in rows:
        assert row["name"] in table


def test_methods_are_those_that_can_be_attached(capsys):
    from vtskip.methods import METHODS, get_method

    rows = json.loads(vtskip(capsys, "methods", "--json")[1])
    assert [row["name"] for row in rows] == list(METHODS)
    for row in rows:
        assert row["summary"]
        assert row["skips"]
        if not row["required"]:
            method = get_method({"name": row["name"], **row["defaults"]})
            assert method == get_method(row["name"]), "the listed defaults are the defaults"
        assert set(row["required"]) | set(row["defaults"]) == set(METHODS[row["name"]].model_fields) - {"name"}


def test_models_are_the_families(capsys):
    from vtskip.models.families import FAMILIES

    rows = json.loads(vtskip(capsys, "models", "--json")[1])
    assert {row["model_class"] for row in rows if not row["refused"]} == set(FAMILIES)


def test_env_tells_installed_from_missing(capsys, monkeypatch):
    from vtskip.cli import env

    rows = {row["name"]: row for row in json.loads(vtskip(capsys, "env", "--json")[1])}
    assert rows["python"]["version"] == sys.version.split()[0]
    import torch

    assert rows["torch"]["version"] == torch.__version__
    assert rows["sdpa"]["usable"] is True
    monkeypatch.setattr(env, "installed", lambda name: None)
    rows = {row["name"]: row for row in json.loads(vtskip(capsys, "env", "--json")[1])}
    assert rows["peft"]["version"] == "missing"
    assert rows["peft"]["usable"] is False
    assert rows["flash_attention_2"]["usable"] is False
    assert "flash-attn" in rows["flash_attention_2"]["note"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("stram",), "did you mean 'stream'"),
        (("methods", "--jsn"), "--jsn"),
        (("stream",), "missing key 'model'"),
        (("data", "make", "synthetic"), "--out"),
        (("data", "make", "synthetic", "--out", "x", "--seed", "one"), "--seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_exits_2(capsys, argv, said):
    code, out, err = vtskip(capsys, *argv)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert out == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("data", "make", "synthetik", "--out", "x"), "unknown data set 'synthetik'; did you mean 'synthetic'"),
        (("data", "make", "synthetic", "--tier", "smal", "--out", "x"), "unknown tier 'smal'; did you mean 'small'"),
        (("train", "none.yaml"), "none.yaml: cannot be read"),
        (("eval", "none.yaml"), "none.yaml: cannot be read"),
        (("bench", "--config", "none.yaml"), "none.yaml: cannot be read"),
        (("stream", "none.mp4", "--model", "none"), "none.mp4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_on_stderr_exits_2_and_writes_nothing(capsys, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = vtskip(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def env_raises(monkeypatch):
    def replace(error: BaseException) -> None:
        def command() -> None:
            raise error

        monkeypatch.setattr("vtskip.cli.env.command", command)

    return replace


def test_several_faults_stay_on_one_line(capsys, env_raises):
    env_raises(ConfigError("a.yaml:1: first\na.yaml:2: second\n"))
    assert vtskip(capsys, "env") == (2, "", "error: a.yaml:1: first; a.yaml:2: second\n")


def test_unwritable_paths_are_named(capsys, env_raises):
    env_raises(PermissionError(13, "Permission denied", "/somewhere/x.json"))
    assert vtskip(capsys, "env") == (2, "", "error: /somewhere/x.json: Permission denied\n")


def test_faults_of_the_program_keep_their_traceback(env_raises):
    env_raises(KeyError("x"))
    with pytest.raises(KeyError):
        program.main(["env"])


def test_interrupt_exits_130(capsys, env_raises):
    env_raises(KeyboardInterrupt())
    code, out, _ = vtskip(capsys, "env")
    assert (code, out) == (130, "")


def test_ctrl_c_in_a_running_command_exits_130(tmp_path):
    """The signal itself: clips are being made when it arrives, and no half-written one is left."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "vtskip", "data", "make", "synthetic", "--tier", "small", "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with Ctrl-C ignored, and children inherit that: the command is one in front.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(out.glob("timelines/*.json")):
            assert process.poll() is None, process.communicate()
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.part"))


def test_data_make_writes_a_tier_and_prints_only_json(capsys, tmp_path):
    out = tmp_path / "set"
    code, stdout, _ = vtskip(capsys, "data", "make", "synthetic", "--tier", "smoke", "--out", str(out), "--json")
    assert code == 0
    assert json.loads(stdout) == {
        "out": str(out), "tier": "smoke", "seed": 0, "clips": {"train": 8, "val": 2, "test": 2}
    }  # fmt: skip
    assert len(list((out / "videos").glob("*.mp4"))) == 12
    again = vtskip(capsys, "data", "make", "synthetic", "--tier", "smoke", "--out", str(out))
    assert again[0] == 0
    assert again[1] == f"{out}: 12 clips (8 train, 2 val, 2 test)\n"
    assert vtskip(capsys, "data", "make", "synthetic", "--out", str(out), "--seed", "1")[0] == 2


def test_every_command_file_is_in_the_table():
    files = {p.stem for p in Path(program.__file__).parent.glob("*.py")} - {"__init__", "main", "listing"}
    assert {name for name in files if not name.startswith("tables")} == set(program.COMMANDS)
