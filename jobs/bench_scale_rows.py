"""The rows that `bench_scale.py` selects from: texts with a quality, and vectors by row id, written a part at a time.

A part is `PART_ROWS` rows. Texts are JSON Lines that contain a number, so that all are distinct. Row ids are computed as in a
job and stored next to each part; the vectors are then written in the order of all ids, like the vectors of a pool. Existing
files are left unchanged.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_kmeans_rows import synthetic_rows

from divsel_ray.data.conversation import canonicalise, row_id
from divsel_ray.data.formats import from_prompt_completion
from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path

PART_ROWS = 50_000
ROW_GROUP = 10_000
QUALITY = "score"
"""The key of a text's quality."""
_PROMPT_WORDS, _COMPLETION_WORDS = 8, 16
_WORDS = np.array(
    "river market light engine garden paper winter number friend window answer planet music bridge doctor summer letter "
    "mountain kitchen village picture science morning history weather animal language teacher journey harbour forest".split()
)
_REPORT_BYTES = 6 << 20
"""Bytes of the report, which embeds its plotting library and a sample of the rows."""
_OTHER_BYTES = 1_300
"""Maximum bytes of a row on disk, besides its vectors: four times its text (input, spilled, pool, quality and clusters)."""


@dataclass(frozen=True)
class Rows:
    """Input of a job.

    Attributes:
        texts: folder of JSON Lines with prompt, completion and a quality.
        vectors: folder of Parquet with row_id and embedding (float16), ascending by row id.
        count: number of rows.
        dimension: dimension of the vectors.
    """

    texts: Path
    vectors: Path
    count: int
    dimension: int


def disk_bytes(rows: int, dimension: int) -> int:
    """Maximum disk space of rows and a run over them: vectors as input and in the run, the texts, the report."""
    return rows * (2 * (2 * dimension + 40) + _OTHER_BYTES) + _REPORT_BYTES


def write_rows(folder: Path, count: int, dimension: int) -> Rows:
    """Write the missing rows of a size below `folder`.

    Raises:
        InputError: there is not enough disk space for them and a run over them.
    """
    _check_room(folder, count, dimension)
    rows = Rows(folder / "texts", folder / "vectors", count, dimension)
    parts = math.ceil(count / PART_ROWS)
    ids = [folder / "ids" / f"part-{index:05d}.npy" for index in range(parts)]
    vectors = [rows.vectors / f"part-{index:05d}.parquet" for index in range(parts)]
    for index, path in enumerate(ids):
        if not path.exists():
            _write_texts(rows.texts / f"part-{index:05d}.jsonl", path, index, min(PART_ROWS, count - index * PART_ROWS))
    for index, path in enumerate(vectors):
        if not path.exists():
            _write_vectors(path, ids_between(ids, index / parts, (index + 1) / parts), index, dimension)
    return rows


def _check_room(folder: Path, count: int, dimension: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = disk_bytes(count, dimension) - used_bytes(folder), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {count:,} rows and a run over them need {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free; name a "
            "larger disk with --work"
        )


def used_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def texts(index: int, count: int) -> Iterator[dict[str, object]]:
    """Rows number `index` x PART_ROWS onwards: a prompt and a completion of common words, and a standard normal quality."""
    generator = np.random.default_rng([index])
    words = _WORDS[generator.integers(len(_WORDS), size=(count, _PROMPT_WORDS + _COMPLETION_WORDS))]
    for at, (row, quality) in enumerate(zip(words.tolist(), generator.normal(size=count).tolist(), strict=True)):
        prompt, completion = " ".join(row[:_PROMPT_WORDS]), " ".join(row[_PROMPT_WORDS:])
        yield {"prompt": f"{index * PART_ROWS + at}: {prompt}?", "completion": f"{completion}.", QUALITY: round(quality, 4)}


def _write_texts(target: Path, ids: Path, index: int, count: int) -> None:
    found = []
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in texts(index, count):
            found.append(row_id(canonicalise(from_prompt_completion(row))))
            stream.write(json.dumps(row) + "\n")
    # Last, because it marks the part as complete.
    with atomic_path(ids) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.sort(np.array(found, "S32")), allow_pickle=False)


def ids_between(files: list[Path], low: float, high: float) -> np.ndarray:
    """Row ids (m,) S32 in ascending order between two shares of the range of all possible ids; each file is sorted by id."""
    edges = [np.array(f"{round(edge * 2**32):08x}", "S32") for edge in (low, high)]
    found = []
    for file in files:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
        begin, end = np.searchsorted(ids, edges)
        # The edge 1.0 has nine hexadecimal digits, which would sort before many of the ids.
        found.append(ids[begin : end if high < 1 else None])
    return np.sort(np.concatenate(found))


def _write_vectors(path: Path, ids: np.ndarray, index: int, dimension: int) -> None:
    vectors = synthetic_rows(index, len(ids), dimension)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), dimension)
    table = pa.table({"row_id": pa.array(ids.astype("U32")), "embedding": embedding})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP)
