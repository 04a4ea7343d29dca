"""Shipped files by name."""

import pytest

from vtskip._shipped import file_or_shipped, shipped


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_file_is_found_by_its_name(name, tmp_path, monkeypatch):
    """Dots in a name, as in llava_1.5_7b, begin no suffix."""
    monkeypatch.chdir(tmp_path)
    kind, _, stem = name.partition("/")
    assert file_or_shipped(stem, kind) == shipped()[name]
