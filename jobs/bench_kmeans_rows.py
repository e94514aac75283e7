"""The rows that `bench_kmeans.py` clusters: their origin, how contenders read them, and the inertia of a clustering."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path

DIMENSION = 384
ROWS_PER_FILE = 25_000
TINY_ROWS = 256
_CENTRES, _TOPICS, _SPREAD, _ZIPF = 5_000, 160, 0.6, 0.7


@dataclass(frozen=True)
class Rows:
    """Parquet files of a case: all rows, a few of them, their number, dimension and origin."""

    folder: Path
    tiny: Path
    count: int
    dimension: int
    origin: str


def prepare_rows(count: int, embeddings: Path | None, work: Path) -> Rows:
    """Write rows below `work` unless they exist: those of `embeddings`, else `count` synthetic ones.

    Raises:
        InputError: the embeddings cannot be used, or there is not enough disk space.
    """
    array, dimension = None, DIMENSION
    name, origin = f"synthetic-{count}x{dimension}", "synthetic"
    if embeddings is not None:
        array = load_embeddings(embeddings)
        count, dimension = array.shape
        name, origin = f"embeddings-{hashlib.sha256(array.tobytes()).hexdigest()[:12]}", embeddings.name

    def make(index: int, size: int) -> np.ndarray:
        first = index * ROWS_PER_FILE
        return synthetic_rows(index, size, dimension) if array is None else array[first : first + size]

    folder = write_rows(work / name, count, dimension, make)
    few = next(read_blocks(folder))[:TINY_ROWS]
    tiny = write_rows(work / f"{name}-tiny", len(few), dimension, lambda index, size: few)
    return Rows(folder, tiny, count, dimension, origin)


def synthetic_rows(index: int, count: int, dimension: int) -> np.ndarray:
    """Rows (count, d) float16 number `index` x ROWS_PER_FILE onwards of a mixture that resembles sentence embeddings.

    160 topics contain 5,000 centres with Zipf-like sizes; features have a decaying spectrum. The constants are chosen so that the
    inertia per row at k = 64 to 1,024 is within 10 % of that of 55k MiniLM embeddings, with a similar effective dimension.
    """
    centres, own = _centres(dimension), np.random.default_rng([index + 1])
    sizes = (np.arange(_CENTRES) + 1.0) ** -_ZIPF
    drawn = own.choice(_CENTRES, count, p=sizes / sizes.sum())
    return _unit(centres[drawn] + _SPREAD * _directions(own, count, dimension)).astype(np.float16)


@lru_cache
def _centres(dimension: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    topics = _unit(_directions(generator, _TOPICS, dimension))[generator.integers(_TOPICS, size=_CENTRES)]
    return _unit(topics + _directions(generator, _CENTRES, dimension))


def _directions(generator: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    scales = (np.arange(dimension) + 4.0) ** -0.375
    scales = (scales / np.linalg.norm(scales)).astype(np.float32)
    return generator.standard_normal((count, dimension), dtype=np.float32) * scales


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_rows(folder: Path, rows: int, dimension: int, make: Callable[[int, int], np.ndarray]) -> Path:
    """Write Parquet files of `row_id` and `embedding`; existing files are left unchanged.

    Args:
        folder: output folder.
        rows: total number of rows.
        dimension: dimension of a row.
        make: function from a file's number and number of rows to these rows (count, d) float16.

    Raises:
        InputError: there is not enough disk space.
    """
    files = [folder / f"part-{index:05d}.parquet" for index in range(math.ceil(rows / ROWS_PER_FILE))]
    missing = [index for index, file in enumerate(files) if not file.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = len(missing) * min(rows, ROWS_PER_FILE) * (2 * dimension + 64), _free_bytes(folder)
    if needed > free:
        raise InputError(
            f"{folder}: {rows:,} rows need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name a larger disk with --work"
        )
    for index in missing:
        first = index * ROWS_PER_FILE
        _write_file(files[index], first, make(index, min(ROWS_PER_FILE, rows - first)))
    return folder


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _write_file(path: Path, first: int, rows: np.ndarray) -> None:
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float16()), rows.shape[1])
    row_ids = pa.array([f"{first + i:032x}" for i in range(len(rows))])
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"row_id": row_ids, "embedding": embedding}), temporary)


def count_rows(folder: str | Path) -> int:
    """Number of rows in all files of a folder."""
    return sum(pq.read_metadata(path).num_rows for path in Path(folder).glob("*.parquet"))


def read_blocks(folder: str | Path) -> Iterator[np.ndarray]:
    """The rows of a folder, file by file: (m, d) float16."""
    for path in sorted(Path(folder).glob("*.parquet")):
        column = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def read_float32(folder: str) -> np.ndarray:
    """All rows, without ever keeping two copies in memory."""
    matrix, filled = np.empty((0, 0), np.float32), 0
    for block in read_blocks(folder):
        if filled == 0:
            matrix = np.empty((count_rows(folder), block.shape[1]), np.float32)
        matrix[filled : filled + len(block)] = block
        filled += len(block)
    return matrix


def load_embeddings(path: Path) -> np.ndarray:
    """An array (n, d) float16 from a .npy file, gzipped or not.

    Raises:
        InputError: the file does not exist or has different contents.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            array = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: {error}; expected a .npy or .npy.gz file") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: {array.dtype} of shape {array.shape}; expected floats, one vector per row")
    return array.astype(np.float16)


def first_centroids(folder: Path, k: int, seed: int = 0) -> np.ndarray:
    """Distinct rows (k, d) float32 drawn at random.

    Raises:
        InputError: too few rows are distinct.
    """
    generator = np.random.default_rng(seed)
    rows = count_rows(folder)
    drawn = np.sort(generator.choice(rows, min(rows, 2 * k), replace=False))
    taken, first = [], 0
    for block in read_blocks(folder):
        taken += list(block[drawn[(drawn >= first) & (drawn < first + len(block))] - first])
        first += len(block)
    distinct = list({row.tobytes(): row for row in taken}.values())
    if len(distinct) < k:
        raise InputError(f"--k {k}: of {len(drawn)} rows drawn only {len(distinct)} differ; choose fewer clusters")
    return np.stack([distinct[i] for i in generator.permutation(len(distinct))[:k]]).astype(np.float32)


def total_inertia(folder: Path, centroids: np.ndarray, step: int = 4096) -> float:
    """Sum over all rows of the squared distance to the nearest centroid, in float64; the nearest is found in float32."""
    exact, halves, total = centroids.astype(np.float64), 0.5 * np.square(centroids).sum(axis=1), 0.0
    for block in read_blocks(folder):
        for start in range(0, len(block), step):
            part = block[start : start + step]
            nearest = np.argmax(part.astype(np.float32) @ centroids.T - halves, axis=1)
            total += float(np.square(part - exact[nearest]).sum())
    return total
