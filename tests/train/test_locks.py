"""Two runs never write into one folder, and a killed one leaves no lock behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import train
from vtskip.errors import ConfigError
from vtskip.train.locks import LOCK_NAME, run_lock

HOLD = """
import sys, time
from pathlib import Path
from vtskip.train.locks import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path):
    out = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"another run \(process {holder.pid} on .*\) is writing there"
        with pytest.raises(ConfigError, match=message), run_lock(out):
            pass
        assert (out / LOCK_NAME).exists()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with run_lock(out):  # the lock went with its process, the file alone is none
        pass
    assert not (out / LOCK_NAME).exists()


def test_also_inside_one_process(tmp_path):
    with run_lock(tmp_path / "run"):
        with pytest.raises(ConfigError, match="this one"), run_lock(tmp_path / "other" / ".." / "run"):
            pass
        with pytest.raises(ConfigError, match="this one"), run_lock(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()  # nothing was written


def test_a_run_is_refused_while_another_is_there(values):
    with run_lock(Path(values["out"])), pytest.raises(ConfigError, match="another run"):
        train(values)
    assert train(values)["steps"] == 3
