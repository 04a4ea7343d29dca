"""YAML to pydantic, in one place: strict keys, nearest names, ``key=value`` overrides typed by their field."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vtskip.errors import ConfigError, nearest

T = TypeVar("T", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of every configuration object: unknown keys are errors, values do not change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError that names the file (and the line, for a syntax error)."""
    path = Path(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(value).__name__}")
    return value


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Set dotted keys: ``["train.steps=20"]``. The value is read as YAML; its field gives it the final type."""
    for item in overrides:
        key, eq, text = item.partition("=")
        if not eq or not key:
            raise ConfigError(f"override {item!r}: expected key=value, e.g. train.steps=20")
        node = values
        *parents, last = key.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {item!r}: {name!r} is not a group of keys")
        node[last] = yaml.safe_load(text)
    return values


def _field_names(model: type[BaseModel], location: tuple) -> list[str]:
    """The keys accepted at the place a pydantic error points to, following nested models as far as they are known."""
    fields = model.model_fields
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        fields = annotation.model_fields
    return list(fields)


def describe(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line per fault: source, dotted key, what was given, what is accepted."""
    lines = []
    for fault in error.errors():
        location = fault["loc"]
        key = ".".join(str(p) for p in location)
        if fault["type"] == "extra_forbidden":
            names = _field_names(model, location)
            accepted = f"; accepted: {', '.join(names)}" if names else ""
            lines.append(f"{source}: unknown key {key!r}{nearest(location[-1], names)}{accepted}")
        else:
            lines.append(f"{source}: {key}: {fault['msg']} (got {fault['input']!r})")
    return "\n".join(lines)


def parse(model: type[T], values: dict[str, Any], source: str) -> T:
    """Validate ``values``. Raises ConfigError in our words."""
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise ConfigError(describe(e, model, source)) from None


def load_config(model: type[T], path: str | Path, overrides: list[str] | None = None) -> T:
    """Read, override and validate a YAML file. Raises ConfigError that names file, key, value and what is accepted."""
    return parse(model, apply_overrides(read_yaml(path), overrides or []), str(path))
