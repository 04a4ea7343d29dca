"""Commands in README, docs and the heads of shipped files: each exists, with the options and files that are named."""

import re
import shlex
from pathlib import Path

import pytest
from click import Context
from typer.main import get_command

from vtskip.cli.main import app
from vtskip.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/*/*.yaml"))]


def commands(text: str) -> list[list[str]]:
    """Lines of a block and code in a sentence that begin with ``vtskip COMMAND``, without the comment at the end.

    Rows of a table of measurements begin like it with a method.
    """
    found = re.findall(r"^(?:# )?(vtskip [a-z].*)$", text, re.MULTILINE) + re.findall(r"`(vtskip [a-z][^`|]*)`", text)
    words = [shlex.split(line, comments=True)[1:] for line in found]
    return [line for line in words if re.fullmatch(r"[a-z]+", line[0]) and line[0] not in METHODS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page):
    for line in commands(page.read_text(encoding="utf-8")):
        command, words = get_command(app), list(line)
        while words and hasattr(command, "get_command"):
            found = command.get_command(Context(command), words[0])
            assert found is not None, (words[0], line)
            command, words = found, words[1:]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line
        assert all((ROOT / word).exists() for word in words if re.fullmatch(r"configs/\S+\.(yaml|json)", word)), line


def test_commands_are_found_at_all():
    pages = {page.name: commands(page.read_text(encoding="utf-8")) for page in PAGES}
    assert len(pages["README.md"]) > 20 and ["methods"] in pages["README.md"]
    assert commands("```\nvtskip nowhere --x  # why\n```") == [["nowhere", "--x"]]
