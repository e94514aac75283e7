"""Reading configurations: YAML files, and `key.path=value` overrides on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from divsel_ray.config import Config, Section
from divsel_ray.errors import InputError, words_of

_S = TypeVar("_S", bound=Section)


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses duplicate keys in a mapping; YAML would silently drop the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, as any loader does, if its keys are distinct."""
        seen = set[str]()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {name}", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key.path=value` overrides.

    Raises:
        InputError: the file is missing, is not YAML, or contains an unknown key or an invalid value.
    """
    return build_config(override(read_settings(Path(path)), overrides), str(path))


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """`load_config` for text; messages refer to it by `name`."""
    return build_config(override(_settings(text, name), overrides), name)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file contains.

    Raises:
        InputError: the file is missing, is not YAML, or does not contain a mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({words_of(error, 100)})") from None
    return _settings(text, str(path))


def read_around_job(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Settings of a file whose `job` key contains a job's settings or the name of their file; `job.` overrides apply last.

    Raises:
        InputError: a file is missing or is not YAML, or an override cannot be applied.
    """
    of_job = [change for change in changes if change.startswith("job.")]
    values = override(read_settings(path), [change for change in changes if change not in of_job])
    if isinstance(values.get("job"), str):
        values["job"] = read_settings(_beside(path, values["job"]))
    return override(values, of_job)


def _beside(path: Path, named: str) -> Path:
    """Resolve a file named in a configuration: relative to the current folder, else to the configuration's folder."""
    place = Path(named).expanduser()
    return place if place.is_file() or place.is_absolute() else path.parent / place


def _settings(text: str, name: str) -> dict[str, Any]:
    try:
        # S506: _UniqueKeys is a SafeLoader.
        values = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {words_of(error, 1000)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected a mapping of settings at the top level")
    return values


def build_config(values: dict[str, Any], name: str) -> Config:
    """Build a job's configuration; see `build_section`."""
    return build_section(Config, values, name, "config")


def build_section(kind: type[_S], values: dict[str, Any], name: str, whole: str) -> _S:
    """Validate settings; one line reports every problem with its key.

    Args:
        kind: section that the settings belong to.
        values: nested settings, as in a YAML file.
        name: origin of the settings, for messages.
        whole: replaces the key in messages about problems that concern no single key.

    Raises:
        InputError: a key is unknown, or a value has the wrong type or range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or whole}: {_plain(kind, e)}" for e in error.errors()]
        raise InputError(f"{name}: " + "; ".join(problems)) from None


def _plain(kind: type[Section], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key; expected one of {', '.join(_keys_beside(kind, error['loc']))}"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys_beside(kind: type[Section], place: tuple[str | int, ...]) -> list[str]:
    """The allowed keys of the section that contains an unknown key."""
    section = kind
    for key in place[:-1]:
        # A key of a mapping is not a field: the level below it belongs to the section that the mapping contains.
        if field := section.model_fields.get(str(key)):
            kinds = [field.annotation, *get_args(field.annotation)]
            section = next(one for one in kinds if isinstance(one, type) and issubclass(one, Section))
    return list(section.model_fields)


def override(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply `key.path=value` overrides in place.

    Raises:
        InputError: an override is malformed, or its key descends into a value.
    """
    for change in changes:
        keys, sign, text = change.partition("=")
        if not sign or not keys:
            raise InputError(f"override {change!r}: expected key.path=value, e.g. cluster.k=64")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"override {change!r}: {text!r} is not a valid YAML value") from None
        put(values, keys, value, f"override {change!r}")
    return values


def put(values: dict[str, Any], place: str, value: Any, name: str) -> None:
    """Set the value of a dotted key in place; messages name `name` as the origin.

    Raises:
        InputError: the key descends into a value.
    """
    *parents, last = place.split(".")
    for parent in parents:
        values[parent] = {} if values.get(parent) is None else values[parent]
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"{name}: {parent} is a value, not a section")
    values[last] = value


def quickstart_config(fast: bool, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `divsel quickstart`, which is shipped in the package."""
    changes = yaml.safe_load(_shipped("quickstart-fast.yaml")) if fast else {}
    return parse_config(quickstart_text(), "quickstart.yaml", [*(f"{key}={value}" for key, value in changes.items()), *overrides])


def quickstart_text() -> str:
    """The shipped quickstart configuration, including its comments."""
    return _shipped("quickstart.yaml")


def _shipped(name: str) -> str:
    return (files("divsel_ray.config") / name).read_text(encoding="utf-8")


def dump_config(config: Config) -> str:
    """YAML of the settings that were set explicitly; loading it returns the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
