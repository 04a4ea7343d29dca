"""``vtskip env``: the kernels that run here, and why the others do not."""

import json

import pytest

from vtskip.__main__ import main
from vtskip.kernels import choice


def kernels(capsys):
    assert main(["env", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out) if row["kind"] == "kernel"}


def test_every_operation_has_a_kernel_and_reasons_against_the_others(capsys, monkeypatch):
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    rows = kernels(capsys)
    assert list(rows) == ["attention", "attention of other rows", "decode", "rows", "topk"]
    for name, row in rows.items():
        table = choice.TABLE.get(name, choice.TABLE["attention"])
        assert row["usable"] and row["version"] in table
        assert all(f"{other}: " in row["note"] for other in set(table) - {row["version"]})


@pytest.mark.parametrize("asked", ["attention=reference", "flash"])
def test_a_kernel_asked_for_is_shown_or_refused(capsys, monkeypatch, asked):
    monkeypatch.setenv(choice.VARIABLE, asked)
    monkeypatch.setattr(choice, "installed", lambda module: False)
    row = kernels(capsys)["attention"]
    if asked == "flash":
        assert not row["usable"] and "flash was asked for attention" in row["note"]
    else:
        assert row["version"] == "reference" and row["note"].startswith("VTSKIP_KERNELS asks for it")
