"""Every setting of a section as a user looks it up: its place, what it takes, its default, and what it says."""

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
"""What a setting takes that holds settings of its own."""
_NAMES = {bool: "true or false", int: "integer", float: "number", str: "string", type(None): "null", Any: "anything"}
_OF_PARTS = {Annotated: "{0}", list: "list of {0}", tuple: "list of two: {0}", dict: "mapping from {0} to {1}"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        place: its dotted key, e.g. `cluster.k`.
        takes: what its value may be.
        default: as YAML would hold it; None, too, of what has no default.
        required: whether it has no default; of one in a section that may be left out: where the section is there.
        description: what it does.
    """

    place: str
    takes: str
    default: Any
    required: bool
    description: str


def list_settings(kind: type[Section], below: str = "") -> Iterator[Setting]:
    """The settings of a section and of those in it, in their order; `below` is the dotted key of the section itself."""
    for name, field in kind.model_fields.items():
        place, section = f"{below}{name}", _section_of(field.annotation)
        if section is None:
            default = None if field.is_required() else field.get_default()
            yield Setting(place, _takes(field.annotation, field), default, field.is_required(), field.description or "")
        else:
            yield Setting(place, SECTION, None, field.is_required(), _about(section, field))
            yield from list_settings(section, f"{place}.")


def find_settings(kind: type[Section], place: str = "") -> list[Setting]:
    """What there is of a place: the setting itself and, of a section, all in it; without a place, what is not in a section.

    Raises:
        InputError: there is no such setting.
    """
    every = list(list_settings(kind))
    if not place:
        return [one for one in every if "." not in one.place]
    found = [one for one in every if f"{one.place}.".startswith(f"{place}.")]
    if not found:
        known = get_close_matches(place, [one.place for one in every], n=3, cutoff=0.5) or [every[0].place]
        raise InputError(f"{place}: no such setting; near it: {', '.join(known)}")
    return found


def _about(section: type[Section], field: FieldInfo) -> str:
    """What a section is, in a line, and what the field that holds it says of it."""
    summary = (inspect.getdoc(section) or "").partition("\n\n")[0].replace("\n", " ")
    return " ".join(part for part in (summary, field.description) if part)


def _section_of(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *get_args(annotation)] if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _takes(annotation: Any, field: FieldInfo | None = None) -> str:
    """What values of a type are called, with the bounds that a field sets."""
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
