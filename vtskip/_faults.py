"""Pydantic's validation errors in our words: where, which key, what was given, what is accepted."""

import reprlib
from collections.abc import Iterator
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vtskip.errors import VtskipError, nearest

_short = reprlib.Repr()
_short.maxstring, _short.maxother, _short.maxlist, _short.maxdict = 80, 120, 6, 6
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation: itself, members of a union, items of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def _answers_to(model: type[BaseModel], tag: object) -> bool:
    """Whether ``tag``, as it stands in a pydantic location, chose ``model`` out of a union."""
    if tag == model.__name__:
        return True
    return any(tag in get_args(f.annotation) for f in model.model_fields.values() if isinstance(tag, str))


def follow(model: type[BaseModel], location: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The models that may stand at ``location``; union tags and list indices are stepped over."""
    here = [model]
    for part in location:
        below = [m for h in here if part in h.model_fields for m in models_in(h.model_fields[part].annotation)]
        here = below or [h for h in here if _answers_to(h, part)] or here
    return here


def field_at(model: type[BaseModel], location: tuple[Any, ...]) -> FieldInfo | None:
    """The field a location names, or None where a union leaves it open or there is no such field."""
    found = [h.model_fields[location[-1]] for h in follow(model, location[:-1]) if location[-1] in h.model_fields]
    return found[0] if found and all(f.annotation == found[0].annotation for f in found) else None


def interval(field: FieldInfo | None) -> str:
    """``(0, 1]`` for a number field with bounds, an empty string without."""
    low, high = "(-inf", "inf)"
    for bound in _metadata(field):
        if isinstance(bound, Gt | Ge):
            low = f"({bound.gt:g}" if isinstance(bound, Gt) else f"[{bound.ge:g}"
        elif isinstance(bound, Lt | Le):
            high = f"{bound.lt:g})" if isinstance(bound, Lt) else f"{bound.le:g}]"
    return "" if (low, high) == ("(-inf", "inf)") else f"{low}, {high}"


def _metadata(field: FieldInfo | None) -> Iterator[Any]:
    """Constraints of a field, also those inside ``Optional[Annotated[...]]`` and a ``Field(...)`` that holds them."""
    pending: list[Any] = [] if field is None else [*field.metadata, field.annotation]
    while pending:
        item = pending.pop(0)
        yield item
        pending += getattr(item, "metadata", []) if isinstance(item, FieldInfo) else getattr(item, "__metadata__", ())
        pending += get_args(item)


def locate(values: Any, location: tuple[Any, ...], source: str) -> tuple[str, str]:
    """(where, dotted key) of a fault. ``where`` is file:line or an override if ``values`` remember it, else ``source``."""
    where = source
    key: list[str] = []
    for part in location:
        inside = isinstance(values, dict) and part in values
        if inside:
            where = getattr(values, "origin", {}).get(part, where)
        elif not (isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)):
            continue  # the tag of a union member: no part of the file
        values = values[part]
        key.append(str(part))
    return where, ".".join(key)


def changed_inside(values: Any, location: tuple[Any, ...]) -> list[str]:
    """The overrides of keys inside what stands at ``location``: a check of the whole may be about one of them.

    (A key of a value that an override gave has the line in that value.)
    """
    for part in location:
        held = range(len(values)) if isinstance(values, list) else values if isinstance(values, dict) else ()
        values = values[part] if part in held else values
    inner = list(values.values()) if isinstance(values, dict) else values if isinstance(values, list) else []
    own = [
        place
        for place in getattr(values, "origin", {}).values()
        if place.startswith("override ") and place[-1] in "'\""
    ]
    return own + [place for value in inner for place in changed_inside(value, ())]


def _line(fault: Any, model: type[BaseModel], values: Any, source: str) -> str:
    location, kind, given = fault["loc"], fault["type"], _short.repr(fault["input"])
    where, key = locate(values, location, source)
    prefix = f"{where}: {key}: " if key else f"{where}: "
    own = fault.get("ctx", {}).get("error")
    if own is not None and location and (overrides := changed_inside(values, location)):
        prefix = prefix.replace(where, f"{where} with {', '.join(overrides)}", 1)
    if kind == "extra_forbidden":
        models = follow(model, location[:-1])
        for own_names in (getattr(m, "renamed", {}) for m in models):
            if location[-1] in own_names:
                return f"{where}: unknown key {key!r}: here it is {own_names[location[-1]]!r}"
        names = list(dict.fromkeys(n for m in models for n in m.model_fields))
        accepted = f"; accepted: {', '.join(names)}" if names else ""
        return f"{where}: unknown key {key!r}{nearest(str(location[-1]), names)}{accepted}"
    if kind == "missing":
        full = ".".join(filter(None, [key, str(location[-1])]))
        present = ", ".join(map(str, fault["input"])) if isinstance(fault["input"], dict) else ""
        return f"{where}: missing key {full!r}; given: {present or 'nothing'}"
    if kind == "union_tag_invalid":
        tag, accepted = str(fault["ctx"]["tag"]), fault["ctx"]["expected_tags"]
        name = fault["ctx"]["discriminator"].strip("'")
        return f"{prefix}unknown {name} {tag!r}{nearest(tag, accepted.replace(chr(39), '').split(', '))}; accepted: {accepted}"
    if kind == "union_tag_not_found":
        name = fault["ctx"]["discriminator"].strip("'")
        members = [m.model_fields[name].annotation for m in follow(model, location) if name in m.model_fields]
        tags = ", ".join(repr(tag) for annotation in members for tag in get_args(annotation))
        return f"{prefix}missing key {name!r}, which says what this is; accepted: {tags}"
    if kind == "literal_error" and isinstance(fault["input"], str):
        expected = fault["ctx"]["expected"]
        options = expected.replace(" or ", ", ").replace("'", "").split(", ")
        return f"{prefix}got {given}, accepted: {expected}{nearest(fault['input'], options)}"
    if kind in _BOUNDS and (accepted := interval(field_at(model, location))):
        return f"{prefix}got {given}, accepted: a number in {accepted}"
    if isinstance(own, VtskipError):
        return f"{prefix}{own}"
    message = str(own) if own is not None and kind == "value_error" else fault["msg"]
    return f"{prefix}{message} (got {given})"


def describe(error: ValidationError, model: type[BaseModel], values: Any, source: str) -> str:
    """One line per fault: place, dotted key, what was given, what is accepted."""
    return "\n".join(_line(fault, model, values, source) for fault in error.errors())
