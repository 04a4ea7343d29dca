"""Where a result comes from, and what a conversation costs."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from vtskip.eval.cost import SUMS, sample_cost, summary
from vtskip.eval.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_git_state_names_the_commit_and_uncommitted_changes(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == state | {"dirty": True}


def test_provenance_is_json_and_complete():
    facts = json.loads(json.dumps(provenance(seed=3)))
    assert set(facts) == {"command", "date", "seed", "git", "versions", "machine"}
    assert facts["seed"] == 3
    assert {"python", "vtskip", "torch", "transformers"} <= set(facts["versions"])
    assert facts["machine"]["threads"] >= 1


def report(kept, **sums):
    layers = [SimpleNamespace(kept=k, kept_ffn=k / 2) for k in kept]
    return SimpleNamespace(layers=layers, **(dict.fromkeys(SUMS, 1) | sums))


def test_costs_add_up_and_weigh_kept_rows_by_frames():
    first = report([1.0, 0.2], flops_full=30, flops_full_dense=40, kv_bytes=5, kv_bytes_dense=10)
    second = report([1.0, 0.4], flops_full=30, flops_full_dense=80, kv_bytes=5, kv_bytes_dense=30)
    whole = summary([sample_cost(first, frames=1), sample_cost(second, frames=3)])
    assert (whole["flops_ratio"], whole["kv_ratio"]) == (0.5, 0.25)
    assert whole["kept_vision"] == pytest.approx([1.0, 0.35])
    assert whole["kept_vision_ffn"] == pytest.approx([0.5, 0.175])


def test_no_conversations_cost_as_dense():
    whole = summary([])
    assert whole["flops_ratio"] == 1.0
    assert whole["kept_vision"] == []
