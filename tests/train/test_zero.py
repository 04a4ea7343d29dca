"""Two processes with DeepSpeed ZeRO on gloo do what one process with the whole batch does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vtskip.configs

WORKER = Path(__file__).with_name("zero_worker.py")
ZERO = Path(vtskip.configs.__path__[0]) / "deepspeed"


def start(values, folder, processes):
    """Run the worker in ``processes`` processes; returns what each rank saw."""
    folder.mkdir()
    settings = folder / "settings.json"
    values = values | {"out": str(folder / "run")}
    settings.write_text(json.dumps({"config": values, "report": str(folder)}))
    launcher = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(processes)]


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "run" / "train_log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize("stage", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_equal_one(values, tmp_path, stage):
    pytest.importorskip("deepspeed")
    if stage == 3:  # partitioned from the start, so both go on from one set of weights
        values["method"] = None
        start(values, tmp_path / "zero", 1)
        values["model"] = {"checkpoint": str(tmp_path / "zero" / "run")}
    values["optim"] = {"steps": 4, "batch_size": 2, "lr": 1e-3, "weight_decay": 0.1}
    (alone,) = start(values, tmp_path / "one", 1)
    values["optim"]["batch_size"] = 1
    values["deepspeed"] = str(ZERO / f"zero{stage}.json")
    first, second = start(values, tmp_path / "two", 2)
    # Rank by rank the batches of the one process, dealt out in turn: different samples on each.
    together = [uid for pair in zip(first, second) for uid in pair]
    assert together[:8] == alone[:8] and all(a != b for a, b in zip(first[:4], second[:4]))
    mixed = [a.startswith("talk") != b.startswith("talk") for a, b in zip(first[:4], second[:4])]
    assert any(mixed), "no step had one rank with frames and one without"
    # The gradient norm shows what the loss hides: gradients added up over ranks in another order of parameters.
    for key in ("loss", "grad_norm"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), rel=1e-4)
    for name in ("model.safetensors", "vtskip_model.safetensors")[: 1 if stage == 3 else 2]:
        one, two = (load_file(tmp_path / n / "run" / name) for n in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
