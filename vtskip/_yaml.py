"""YAML with memory: every mapping knows the line of each of its keys; a key given twice is an error."""

import re
from pathlib import Path
from typing import Any

import yaml

from vtskip.errors import ConfigError


class YamlDict(dict):
    """A mapping read from a file. ``origin[key]`` says where the key was set: ``file.yaml:12`` or an override."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[str, str] = {}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-4`` is a number and duplicate keys are refused."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> YamlDict:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(f"{loader.name}:{line}: a key must be a plain word, not a list or mapping")
        if key in lines and key != "<<":
            raise ConfigError(f"{loader.name}:{line}: key {key!r} is given twice, first in line {lines[key]}")
        lines[key] = line
    loader.flatten_mapping(node)
    values = YamlDict()
    for key_node, value_node in node.value:
        key = str(key_node.value)
        values[key] = loader.construct_object(
            value_node, deep=True
        )  # a key of its own comes after, and over, a merged one
        values.origin[key] = f"{loader.name}:{key_node.start_mark.line + 1}"
    return values


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text. Raises ConfigError that starts with ``name`` and has the line of the fault."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        reason = " ".join(filter(None, [getattr(e, "context", None), getattr(e, "problem", None)])) or str(e)
        raise ConfigError(f"{where}: not valid YAML: {' '.join(reason.split())}") from None
    except ValueError as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{name}: not valid YAML: {e}") from None  # e.g. the date 2026-13-45


def read_yaml(path: str | Path) -> YamlDict:
    """The mapping in a YAML file. Raises ConfigError that names the file, and the line where there is one."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid YAML: the file is not UTF-8 text") from None
    value = parse_yaml(text, str(path))
    if value is None:
        raise ConfigError(f"{path}: the file is empty; expected a mapping of keys")
    if not isinstance(value, YamlDict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(value).__name__}")
    return value
