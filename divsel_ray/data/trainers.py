"""Selections in the form a trainer accepts: a file of conversations, and the entry that makes the trainer read it.

- LLaMA-Factory: an entry in `dataset_info.json` (its data/README.md), added to existing ones;
- axolotl: `axolotl.yaml`, a `datasets` section of type chat_template (its docs/dataset-formats/conversation.qmd);
- TRL: `trl.yaml`, for `trl sft --config` (its docs/source/clis.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from divsel_ray.data.conversation import Message
from divsel_ray.errors import InputError, first_line
from divsel_ray.store import atomic_path, write_text

DATASET_INFO = "dataset_info.json"
ENTRIES = {"llama-factory": DATASET_INFO, "axolotl": "axolotl.yaml", "trl": "trl.yaml"}
"""The file in which each trainer looks up the data."""
_OURS = "# Written by divsel-ray."
_BATCH_ROWS = 1024
_LLAMA_FACTORY_ENTRY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}


class _Row(NamedTuple):
    place: str
    messages: list[Message]


class _UnfitError(Exception):
    """A conversation that the trainer would skip; the message says why."""


def export_selection(selection: Path, trainer: str, out: Path, name: str | None = None) -> list[Path]:
    """Write a selection for a trainer: `<name>.jsonl` with the key `messages` only, and the trainer's entry for it.

    LLaMA-Factory skips conversations that do not alternate, noting it only in its log. For it, several system messages at
    the start are merged, as are consecutive messages of one role, joined by blank lines. Other trainers receive the
    messages unchanged.

    Args:
        selection: `.parquet` or `.jsonl` with `messages`, such as that of a run.
        trainer: llama-factory, axolotl or trl.
        out: folder; for LLaMA-Factory its `data` folder, or the one set as `dataset_dir`.
        name: name of the data set. Default: the name of the selection file, or of its folder if that is `selection`.

    Returns:
        The files written: the conversations, then the entry.

    Raises:
        InputError: the selection cannot be read, contains conversations that the trainer would skip, or one of the user's
            files would be overwritten.
    """
    if trainer not in ENTRIES:
        raise InputError(f"--to {trainer!r}: expected one of {', '.join(ENTRIES)}")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; expected a folder")
    name = _plain_name(name if name is not None else _default_name(selection))
    data, entry = out / f"{name}.jsonl", out / ENTRIES[trainer]
    text = _dataset_info(entry, name, data) if trainer == "llama-factory" else _yaml_entry(entry, trainer, data)
    if data.exists() and (data.resolve() == selection.resolve() or not _says(entry, text)):
        raise InputError(f"{data}: another file exists, or its entry was changed; choose another folder or name")
    _write_conversations(selection, data, alternate if trainer == "llama-factory" else _as_they_are, trainer)
    write_text(entry, text)
    return [data, entry]


def alternate(messages: list[Message]) -> list[Message]:
    """A conversation in which the user or a tool alternates with the assistant, after at most one system message.

        system A, system B, user C, user D, assistant E
        -> system "A\\n\\nB", user "C\\n\\nD", assistant E

    Raises:
        _UnfitError: a later system message, adjacent user and tool messages, or the assistant speaks first or not last.
    """
    joined = [
        Message(role=role, content="\n\n".join(message["content"] for message in run))
        for role, run in groupby(messages, key=lambda message: message["role"])
    ]
    turns = joined[1:] if joined[0]["role"] == "system" else joined
    for place, turn in enumerate(turns):
        if turn["role"] == "system":
            raise _UnfitError("a system message after the first turn")
        if (turn["role"] == "assistant") != (place % 2 == 1):
            raise _UnfitError("the assistant speaks first" if place == 0 else "adjacent user and tool messages")
    if len(turns) % 2:
        raise _UnfitError("the assistant does not speak last")
    return joined


def _as_they_are(messages: list[Message]) -> list[Message]:
    return messages


def _default_name(selection: Path) -> str:
    return selection.absolute().parent.name if selection.stem == "selection" else selection.stem


def _says(entry: Path, text: str) -> bool:
    """Whether the entry is what this export would write, so that an earlier export wrote the data it names."""
    there = entry.read_text(encoding="utf-8") if entry.is_file() else ""
    return there == text or (entry.name == DATASET_INFO and there != "" and json.loads(there) == json.loads(text))


def _plain_name(name: str) -> str:
    """The name reduced to letters, digits, dots, hyphens and underscores, safe in comma-separated lists."""
    plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")
    if not plain:
        raise InputError(f"name {name!r}: expected letters or digits")
    return plain


def _write_conversations(selection: Path, data: Path, convert: Callable[[list[Message]], list[Message]], trainer: str) -> None:
    unfit, first = 0, ""
    with atomic_path(data) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for row in _read(selection):
                try:
                    stream.write(json.dumps({"messages": convert(row.messages)}, ensure_ascii=False) + "\n")
                except _UnfitError as error:
                    unfit += 1
                    first = first or f"{row.place}: {error}"
        if unfit:
            raise InputError(
                f"{selection}: {trainer} would skip {unfit:,} rows, the first is {first}; exclude them (select.exclude) or "
                "export for another trainer"
            )


def _read(selection: Path) -> Iterator[_Row]:
    if not selection.is_file():
        raise InputError(f"{selection}: no such file; expected a selection in .parquet or .jsonl")
    reader = {".parquet": _read_parquet, ".jsonl": _read_lines}.get(selection.suffix.lower())
    if reader is None:
        raise InputError(f"{selection}: expected a selection in .parquet or .jsonl")
    for place, row in reader(selection):
        if not isinstance(row, dict) or not _is_conversation(row.get("messages")):
            raise InputError(f"{selection}: {place}: expected `messages`, a list of objects with role and content")
        messages = [Message(role=message["role"], content=message["content"]) for message in row["messages"]]
        yield _Row(f"{row.get('row_id') or place}", messages)


def _is_conversation(messages: object) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content")) for m in messages)
    )


def _read_parquet(selection: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        opened = pq.ParquetFile(selection)
    except pa.ArrowException as error:
        raise InputError(f"{selection}: not readable as Parquet ({first_line(error)})") from None
    with opened as file:
        columns = [name for name in ("messages", "row_id") if name in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _read_lines(selection: Path) -> Iterator[tuple[str, Any]]:
    with selection.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{selection}: line {number}: not JSON: {error.msg}") from None


def _dataset_info(path: Path, name: str, data: Path) -> str:
    """The text of `dataset_info.json` with our entry added and all others unchanged."""
    entries: Any = {}
    if path.exists():
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            entries = None
        if not isinstance(entries, dict):
            raise InputError(f"{path}: expected a JSON object of data sets, as for LLaMA-Factory; fix or move the file")
    ours = {"file_name": data.name, **_LLAMA_FACTORY_ENTRY}
    there = entries.get(name, ours)
    if not isinstance(there, dict) or there.get("file_name") != data.name:
        raise InputError(f"{path}: already contains another data set {name}; choose another name")
    return json.dumps({**entries, name: ours}, indent=2, ensure_ascii=False) + "\n"


def _yaml_entry(path: Path, trainer: str, data: Path) -> str:
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_OURS):
        raise InputError(f"{path}: would overwrite a file that divsel-ray did not write; choose another folder")
    # Absolute, because both resolve relative paths from where they are started.
    location = data.absolute().as_posix()
    axolotl = {
        "path": location,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
    }
    trl = {"path": "json", "data_files": location, "columns": ["messages"]}
    head, entry = {
        "axolotl": ("Add this section to your axolotl configuration.", axolotl),
        "trl": (f"trl sft --config {path.name} --model_name_or_path MODEL --output_dir FOLDER", trl),
    }[trainer]
    return f"{_OURS}\n# {head}\n" + yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True)
