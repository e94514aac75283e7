"""Configurations as people write them: YAML files and `key.path=value` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from divsel_ray.config import Config, Section
from divsel_ray.errors import InputError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key.path=value` overrides.

    Raises:
        InputError: the file is missing, is not YAML, or holds a key or value that is not allowed.
    """
    return build_config(override(read_settings(Path(path)), overrides), str(path))


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """`load_config` on text; `name` says in messages where the text is from."""
    return build_config(override(_settings(text, name), overrides), name)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: the file is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    return _settings(path.read_text(encoding="utf-8"), str(path))


def _settings(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected a mapping of settings at the top level")
    return values


def build_config(values: dict[str, Any], name: str) -> Config:
    """Validate settings; every problem in one line that names its key.

    Raises:
        InputError: a key is unknown, or a value has the wrong type or range.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {_plain(e)}" for e in error.errors()]
        raise InputError(f"{name}: " + "; ".join(problems)) from None


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key; expected one of {', '.join(_keys_beside(error['loc']))}"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys_beside(place: tuple[str | int, ...]) -> list[str]:
    """The keys that the section has in which a key is not allowed."""
    section: Any = Config
    for key in place[:-1]:
        kinds = [section.model_fields[str(key)].annotation]
        kinds += get_args(kinds[0])
        section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
    return list(section.model_fields)


def override(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply `key.path=value` changes, in place.

    Raises:
        InputError: a change has another form, or goes below a value.
    """
    for change in changes:
        keys, sign, text = change.partition("=")
        if not sign or not keys:
            raise InputError(f"override {change!r}: expected key.path=value, e.g. cluster.k=64")
        *parents, last = keys.split(".")
        section = values
        for parent in parents:
            section[parent] = {} if section.get(parent) is None else section[parent]
            section = section[parent]
            if not isinstance(section, dict):
                raise InputError(f"override {change!r}: {parent} is a value, not a section")
        try:
            section[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"override {change!r}: {text!r} is no YAML value") from None
    return values


def quickstart_config(fast: bool, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `divsel quickstart`, which ships inside the package."""
    changes = yaml.safe_load(_shipped("quickstart-fast.yaml")) if fast else {}
    return parse_config(quickstart_text(), "quickstart.yaml", [*(f"{key}={value}" for key, value in changes.items()), *overrides])


def quickstart_text() -> str:
    """The shipped quickstart configuration with its comments."""
    return _shipped("quickstart.yaml")


def _shipped(name: str) -> str:
    return (files("divsel_ray.config") / name).read_text(encoding="utf-8")


def dump_config(config: Config) -> str:
    """YAML of the settings that were given, such that `load_config` of it gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
