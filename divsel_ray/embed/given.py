"""Vectors that the user brings, made into the embeddings of the pool: lined up, checked, scaled to unit length."""

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
"""Times that a file is read without a word; at the bounds of partitions some of it is read twice."""


def take_vectors(
    pool_files: Sequence[str], given: str, records: Mapping[str, int], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write one Parquet file (row_id, embedding: fixed-size list of float16) for each pool partition, as `embed_pool` does.

    Args:
        pool_files: the pool.
        given: file or folder, see `data.aligned`.
        records: records of each input file.
        folder: where to write.
        progress: told of partitions done.

    Returns:
        {"rows", "dimension", "given"}.

    Raises:
        InputError: the vectors cannot be lined up, a row has none, or one has no direction.
    """
    check_given(given, SETTING, "embedding", records)
    dimension = width_of(given, SETTING, "embedding")
    if dimension == 0:
        raise InputError(f"{SETTING}: {given}: expected a vector for each row, found single numbers or nothing")
    if Path(given_files(given, SETTING)[0]).suffix == ".parquet" and (times := rows_read(given, SETTING, pool_files)) > _OFTEN:
        progress.note(f"{given}: not in the order of row_id, so that it is read {times:,.0f} times; sort it to be quicker")
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
            f"{SETTING}: {given}: {len(bad):,} of {len(vectors):,} rows looked at have no vector, a zero one or one that is not "
            f"finite, the first is row_id {row_ids[int(bad[0])].as_py()}; give every row of the pool a vector"
        )
    return np.asarray((vectors / norms[:, None]).astype(np.float16))
