"""FSDP2 on two CPU processes, one of them without images: losses and all gradients are those of the unsharded model."""

import json
from pathlib import Path

import pytest

import vtskip
from tests.processes import launch
from tests.tiny_stream import tiny
from vtskip.errors import ModelError

WORKER = Path(__file__).with_name("fsdp_worker.py")
MOD, SHORTV, SKIP_FFN = (
    {"name": "mod", "keep": 0.4},
    {"name": "shortv", "layers": [1, 2]},
    {"name": "skip_ffn", "keep": 0.4},
)
LIMIT = 1e-12  # float64: some thousand roundings of 1e-16


def run(cases, folder):
    """Both ranks' results of every case."""
    path = folder / "cases.json"
    path.write_text(json.dumps({"cases": cases, "report": str(folder)}))
    launch(WORKER, path, 2)
    return list(zip(*(json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))))


def case(method, checkpointing, attach_late=False):
    return {"method": method, "checkpointing": checkpointing, "attach_late": attach_late}


def check(cases, folder):
    for given, results in zip(cases, run(cases, folder)):
        for result in results:
            assert result["cut"] == 0.5  # each process holds half of every matrix
            assert result["loss"] <= LIMIT * 10
            assert result["gradients"] <= LIMIT * result["largest"]
            assert result["state"] == 0
            assert result["calls"] == (8 if given["checkpointing"] else 4)  # four layers, and recomputed or not


def test_two_processes_equal_one(tmp_path):
    check([case(MOD, True), case(SHORTV, False)], tmp_path)


@pytest.mark.slow
def test_every_seam_with_and_without_checkpointing(tmp_path):
    check([case(m, checkpointing) for m in (MOD, SHORTV, SKIP_FFN) for checkpointing in (False, True)], tmp_path)


@pytest.mark.slow
def test_routers_of_every_kind(tmp_path):
    everywhere = {"kind": "constant"}
    methods = [
        {"name": "pmod", "schedule": everywhere},
        {"name": "gamma_mod", "shared": False, "schedule": everywhere},
        {"name": "mindskip"},
        {"name": "fastv", "keep": 0.4, "layer": 1},
    ]
    check([case(method, True) for method in methods], tmp_path)


def test_a_deepspeed_engine_is_too_late_for_routers():
    model, _ = tiny()
    for layer in model.get_decoder().layers:
        layer.ds_id = 1  # what the engine of ZeRO-3 leaves on a module
    vtskip.attach(model, SHORTV).detach()
    with pytest.raises(ModelError, match="attach the method first, then shard"):
        vtskip.attach(model, MOD)


@pytest.mark.slow
def test_after_sharding_only_methods_without_parameters_attach(tmp_path):
    check([case(SHORTV, True, True), case(SKIP_FFN, False, True)], tmp_path)
    ((first, second),) = run([case(MOD, False, True)], tmp_path)
    assert first == second and "attach the method first, then shard" in first["refused"]
