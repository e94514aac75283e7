"""Reference of all settings, as `divsel settings` shows them: key, accepted values, default and description."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from divsel_ray.config.base import Section
from divsel_ray.errors import InputError

SECTION = "section"
"""`Setting.takes` of a setting that is a section."""
_NAMES = {bool: "true or false", int: "integer", float: "number", str: "string", type(None): "null", Any: "anything"}
_OF_PARTS = {Annotated: "{0}", list: "list of {0}", tuple: "list of two: {0}", dict: "mapping from {0} to {1}"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        place: dotted key, e.g. `cluster.k`.
        takes: accepted values.
        default: default value as in YAML; None also if there is no default.
        required: whether there is no default; in an optional section: required if the section is present.
        description: effect of the setting.
    """

    place: str
    takes: str
    default: Any
    required: bool
    description: str


def list_settings(kind: type[Section], below: str = "") -> Iterator[Setting]:
    """The settings of a section and its subsections, in order; `below` is the section's own dotted key with a final dot."""
    for name, field in kind.model_fields.items():
        place, section = f"{below}{name}", _section_of(field.annotation)
        if section is None:
            default = None if field.is_required() else field.get_default()
            yield Setting(place, _takes(field.annotation, field), default, field.is_required(), field.description or "")
        else:
            yield Setting(place, SECTION, None, field.is_required(), _about(section, field))
            yield from list_settings(section, f"{place}.")


def find_settings(kind: type[Section], place: str = "") -> list[Setting]:
    """The setting at a dotted key and, for a section, all settings in it; without a key, the top-level settings.

    Raises:
        InputError: no such setting exists.
    """
    every = list(list_settings(kind))
    if not place:
        return [one for one in every if "." not in one.place]
    found = [one for one in every if f"{one.place}.".startswith(f"{place}.")]
    if not found:
        known = get_close_matches(place, [one.place for one in every], n=3, cutoff=0.5) or [every[0].place]
        raise InputError(f"{place}: no such setting; similar ones: {', '.join(known)}")
    return found


def _about(section: type[Section], field: FieldInfo) -> str:
    """The summary line of a section, followed by the description of its field."""
    summary = (inspect.getdoc(section) or "").partition("\n\n")[0].replace("\n", " ")
    return " ".join(part for part in (summary, field.description) if part)


def _section_of(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *get_args(annotation)] if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _takes(annotation: Any, field: FieldInfo | None = None) -> str:
    """Description of a type's values, including the bounds set by the field."""
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is None:
        return " ".join([_NAMES.get(annotation, SECTION), *_bounds(field)])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return ", or ".join(_takes(part, field if part is not type(None) else None) for part in parts)
    names = [_takes(part) for part in parts if isinstance(part, type) or get_origin(part)]
    return _OF_PARTS[origin].format(*names)


def _bounds(field: FieldInfo | None) -> Iterator[str]:
    for limit in field.metadata if field else ():
        for attribute, sign in _BOUNDS.items():
            if (bound := getattr(limit, attribute, None)) is not None:
                yield f"{sign} {bound:g}"
