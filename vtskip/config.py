"""YAML to pydantic, in one place: strict keys, nearest names, ``key=value`` overrides typed by their field."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from vtskip._faults import describe, field_at
from vtskip._yaml import YamlDict, parse_yaml, read_yaml
from vtskip.errors import ConfigError

__all__ = ["StrictModel", "apply_overrides", "load_config", "parse", "read_yaml"]

T = TypeVar("T", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of every configuration object: unknown keys are errors, values do not change after construction.

    ``renamed``: keys as they were called before, or are called elsewhere, and what they are here; for the error message.
    """

    renamed: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse(model: type[T], values: Any, source: str) -> T:
    """Validate ``values``. Raises ConfigError with one line per fault: place, key, value and what is accepted."""
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise ConfigError(describe(e, model, values, source)) from None


def load_config(model: type[T], path: str | Path, overrides: list[str] | None = None) -> T:
    """Read, override and validate a YAML file. Raises ConfigError that names file, key, value and what is accepted."""
    return parse(model, apply_overrides(read_yaml(path), overrides or [], model), str(path))


def apply_overrides(
    values: dict[str, Any], overrides: list[str], model: type[BaseModel] | None = None
) -> dict[str, Any]:
    """Set dotted keys in ``values``, in order: ``["train.steps=20", "stages.0.keep=0.5"]``.

    A number in the path is a place in a list. A group that ``values`` lacks starts from the default of ``model``. The text
    is read as YAML; where the key's field wants a string, ``out=2024`` stays a string. Raises ConfigError naming the override.
    """
    for item in overrides:
        key, eq, text = item.partition("=")
        path = key.strip().split(".")
        if not eq or not all(path):
            raise ConfigError(f"override {item!r}: expected key=value, for example train.steps=20")
        node: Any = values
        for depth, name in enumerate(path[:-1]):
            node = _step(node, name, item, _default(model, tuple(path[: depth + 1])))
        location = tuple(int(p) if p.isdigit() else p for p in path)
        _assign(node, path[-1], _typed(text, location, model, item), item)
    return values


def _step(node: Any, name: str, item: str, default: Any) -> Any:
    """The group or list ``name`` inside ``node``, made from ``default`` where it is missing."""
    if isinstance(node, list):
        value = node[_index(node, name, item)]
    else:
        if node.get(name) is None:
            _assign(node, name, {} if default is None else default, item)
        value = node[name]
    if not isinstance(value, dict | list):
        hint = f"; write {name}='{{name: {value}, ...}}'" if isinstance(value, str) else ""
        raise ConfigError(f"override {item!r}: {name!r} is {value!r}, not a group of keys{hint}")
    return value


def _assign(node: Any, name: str, value: Any, item: str) -> None:
    if isinstance(node, list):
        node[_index(node, name, item)] = value
        return
    node[name] = value
    if isinstance(node, YamlDict):
        node.origin[name] = f"override {item!r}"


def _index(node: list, name: str, item: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(
            f"override {item!r}: {name!r} is no place in a list of {len(node)}; accepted: 0 to {len(node) - 1}"
        )
    return int(name)


def _default(model: type[BaseModel] | None, location: tuple[str, ...]) -> Any:
    """A fresh copy of the default of the group at ``location``, or None. An unknown group is left to validation."""
    field = field_at(model, location) if model else None
    value = field.get_default(call_default_factory=True, validated_data={}) if field else None
    if value is PydanticUndefined:
        return None
    value = _plain(value)
    return value if isinstance(value, dict | list) else None


def _plain(value: Any) -> Any:
    """Models as dicts of what differs from their class, plus the name that tells members of a union apart."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            n: _plain(v) for n, f in fields.items() if (v := getattr(value, n)) != f.default or _is_tag(f.annotation)
        }
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _is_tag(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _typed(text: str, location: tuple[Any, ...], model: type[BaseModel] | None, item: str) -> Any:
    """``text`` as YAML, or as it stands where only that fits the field at ``location``."""
    field = field_at(model, location) if model else None
    try:
        value = parse_yaml(text, f"override {item!r}")
    except ConfigError:
        if field is None or not _fits(field, text):
            raise
        return text
    if field is not None and not _fits(field, value) and _fits(field, text):
        return text
    return value


def _fits(field: Any, value: Any) -> bool:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True
