"""Lists of row ids supplied by a user: one per line, or in any format that selections are written in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.config import SelectConfig
from divsel_ray.data.hashing import id_array
from divsel_ray.errors import InputError, first_line

_ID = re.compile(r"[0-9a-f]{32}")


def read_ids(path: Path) -> np.ndarray:
    """The row ids of a file, (m,) bytes of 32 hex digits: lines of text, JSON Lines or Parquet with a column row_id.

    Raises:
        InputError: the file is missing or contains an invalid row id.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected row ids, one per line, or .jsonl or .parquet with row_id")
    if path.suffix == ".parquet":
        try:
            if "row_id" not in pq.read_schema(path).names:
                raise InputError(f"{path}: no column row_id")
            return id_array(pq.read_table(path, columns=["row_id"])["row_id"])
        except pa.ArrowException as error:
            raise InputError(f"{path}: not readable as Parquet ({first_line(error)})") from None
    ids = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if text := line.strip():
                ids.append(_id_of(text, f"{path} line {number}"))
    return np.array(ids, dtype="S32")


def find_ids(row_ids: np.ndarray, path: str | None, setting: str, *, required: bool) -> np.ndarray:
    """Positions, ascending, of the listed ids in the pool. (n,) ascending to (m,).

    Raises:
        InputError: with `required`, an id is not in the pool.
    """
    if path is None:
        return np.array([], np.int64)
    wanted = np.unique(read_ids(Path(path)))
    found = positions_of(row_ids, wanted)
    if required and len(found) < len(wanted):
        missing = np.setdiff1d(wanted, row_ids[found])
        raise InputError(
            f"select.{setting}: {path}: {len(missing)} of {len(wanted)} row ids are not in the pool, the first is "
            f"{missing[0].decode()}; see row_id in pool/*.parquet or in any selection"
        )
    return found


def check_sources(config: SelectConfig, known: Iterable[str]) -> None:
    """Make sure that every source with a quota exists.

    Raises:
        InputError: a source is unknown; the message names some known ones.
    """
    names = sorted(known)
    for name in config.quotas:
        if name not in names:
            raise InputError(f"select.quotas.{name}: no such source in the pool; its sources include {', '.join(names[:5])}")


def positions_of(row_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the wanted ids among the ascending row ids; absent ids are skipped. (n,), (m,) to (at most m,)."""
    at = np.searchsorted(row_ids, wanted)
    inside = at < len(row_ids)
    at, wanted = at[inside], wanted[inside]
    return np.asarray(at[row_ids[at] == wanted])


def _id_of(text: str, place: str) -> str:
    if text.startswith("{"):
        try:
            text = str(json.loads(text).get("row_id"))
        except ValueError:
            raise InputError(f"{place}: not valid JSON") from None
    if not _ID.fullmatch(text):
        raise InputError(f"{place}: {text[:40]!r} is not a row id; expected 32 hex digits")
    return text
