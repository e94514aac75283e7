"""Turns vectors that the user supplies into the embeddings of the pool: aligned, checked, scaled to unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.data.aligned import check_given, given_files, mappable, rows_read, take_given, unpack, width_of
from divsel_ray.embed.files import write_vectors
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress
from divsel_ray.tasks import run_tasks

SETTING = "embed.given"
_OFTEN = 4
"""Number of times a file may be read without a note; at partition boundaries parts of it are always read twice."""


def take_vectors(
    pool_files: Sequence[str], given: str, records: Mapping[str, int], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write one Parquet file (row_id, embedding: fixed-size list of float16) for each pool partition, as `embed_pool` does.

    Args:
        pool_files: pool partitions.
        given: file or folder, see `data.aligned`.
        records: number of records of each input file.
        folder: where to write.
        progress: receives the number of finished partitions.

    Returns:
        {"rows", "dimension", "given"}.

    Raises:
        InputError: the vectors cannot be aligned with the pool, or a row's vector is missing, zero or not finite.
    """
    check_given(given, SETTING, "embedding", records)
    dimension = width_of(given, SETTING, "embedding")
    if dimension == 0:
        raise InputError(f"{SETTING}: {given}: expected a vector for each row, found single numbers or no data")
    if Path(given_files(given, SETTING)[0]).suffix == ".parquet" and (times := rows_read(given, SETTING, pool_files)) > _OFTEN:
        progress.note(f"{given}: not sorted by row_id, so it is read {times:,.0f} times; sort it to save time")
    array = mappable(given, folder)
    if array is not None:
        run_tasks(unpack, [(given, array, SETTING)], progress, "files")
    calls = [(file, str(array or given), dimension, str(folder / Path(file).name)) for file in pool_files]
    done = sum(run_tasks(_take, calls, progress, "partitions"))
    if array is not None:
        array.unlink()
    return {"rows": done, "dimension": dimension, "given": Path(given).name}


def _take(source: str, given: str, dimension: int, target: str) -> int:
    part = pq.read_table(source, columns=["row_id", "position"])
    if not Path(target).exists():
        found = take_given(given, SETTING, "embedding", part) if len(part) else np.zeros((0, dimension))
        write_vectors(part["row_id"], _unit(found.astype(np.float32), part["row_id"], given), Path(target))
    return len(part)


def _unit(vectors: np.ndarray, row_ids: pa.ChunkedArray, given: str) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise InputError(
            f"{SETTING}: {given}: {len(bad):,} of {len(vectors):,} rows read have a missing, zero or non-finite vector; the "
            f"first is row_id {row_ids[int(bad[0])].as_py()}; every row of the pool needs a valid vector"
        )
    return np.asarray((vectors / norms[:, None]).astype(np.float16))
