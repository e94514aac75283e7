"""The rows that `bench_select.py` draws from: files in the format of the stages, and arrays of rows with vectors."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_kmeans_rows import DIMENSION, ROWS_PER_FILE, load_embeddings, synthetic_rows

from divsel_ray import KMeans
from divsel_ray.errors import InputError
from divsel_ray.select.sampler import Candidates
from divsel_ray.store import atomic_path

_BYTES_PER_ROW = 100
"""Bytes of a row in the files: twice 32 for the id, a float64, a float32, an int32, and the overhead of Parquet."""
_ROWS_AT_ONCE = 1 << 13
_ARRAYS = ("row_ids", "cluster", "quality", "distance", "vectors")


@dataclass(frozen=True)
class Rows:
    """Rows to draw from.

    Attributes:
        folder: folder of the rows.
        count: number of rows.
        k: number of clusters.
        origin: description of their origin.
    """

    folder: Path
    count: int
    k: int
    origin: str


# Files


def prepare_files(count: int, k: int, per_file: int, work: Path) -> Rows:
    """Write synthetic rows below `work` unless they exist: `clusters/` and `quality/`, in the format of the stages.

    Row ids ascend from file to file; cluster sizes are inversely proportional to the square root of the rank.

    Raises:
        InputError: there is not enough disk space.
    """
    folder = work / f"files-{count}-{k}-{per_file}"
    files = math.ceil(count / per_file)
    names = [f"part-{index:05d}.parquet" for index in range(files)]
    # The file of qualities is written last.
    missing = [index for index, name in enumerate(names) if not (folder / "quality" / name).exists()]
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = len(missing) * min(count, per_file) * _BYTES_PER_ROW, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {count:,} rows need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name a larger disk with --work"
        )
    for index in missing:
        rows = min(per_file, count - index * per_file)
        clusters, quality = _synthetic_tables(rows, k, index, files)
        for stage, table in (("clusters", clusters), ("quality", quality)):
            with atomic_path(folder / stage / names[index]) as path:
                pq.write_table(table, path)
    return Rows(folder, count, k, "synthetic")


def _synthetic_tables(rows: int, k: int, index: int, files: int) -> tuple[pa.Table, pa.Table]:
    generator = np.random.default_rng([index])
    row_id = pa.array(random_ids(rows, generator, (index / files, (index + 1) / files)).astype("U32"))
    sizes = (np.arange(k) + 1.0) ** -0.5
    cluster = generator.choice(k, rows, p=sizes / sizes.sum()).astype(np.int32)
    distance = np.sqrt(generator.gamma(20.0, 0.03, rows)).astype(np.float32)
    clusters = pa.table({"row_id": row_id, "cluster": cluster, "distance": distance})
    return clusters, pa.table({"row_id": row_id, "quality": generator.normal(size=rows)})


def random_ids(count: int, generator: np.random.Generator, between: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Row ids (count,) S32 in ascending order, spread evenly over this part of the range of all ids."""
    low, high = (round(edge * 2**64) for edge in between)
    first = np.sort(generator.integers(low, high - 1, count, np.uint64, endpoint=True))
    words = np.stack([first, generator.integers(0, 2**64 - 1, count, np.uint64, endpoint=True)], axis=1)
    return np.frombuffer(words.astype(">u8").tobytes().hex().encode(), "S32")


# Arrays


def prepare_arrays(shape: tuple[int, int], k: int, embeddings: Path | None, quality: Path | None, work: Path) -> Rows:
    """Write rows below `work` unless they exist: vectors, their clusters by `divsel_ray.KMeans` with seed 0, and qualities.

    Args:
        shape: number and dimension of synthetic rows.
        k: number of clusters.
        embeddings: .npy or .npy.gz (n, d) to use instead of synthetic rows.
        quality: .npy (n,); None for random normal qualities.
        work: output folder.

    Raises:
        InputError: a file cannot be used.
    """
    vectors = _synthetic_vectors(*shape) if embeddings is None else load_embeddings(embeddings)
    generator = np.random.default_rng(0)
    row_ids = random_ids(len(vectors), generator)
    values = generator.normal(size=len(vectors)) if quality is None else load_quality(quality, len(vectors))
    name = hashlib.sha256(vectors.tobytes() + values.tobytes()).hexdigest()[:12]
    folder = work / f"arrays-{name}-{k}"
    if not folder.exists():
        cluster, distance = cluster_rows(vectors, k, seed=0)
        with atomic_path(folder) as path:
            path.mkdir()
            for array, content in zip(_ARRAYS, (row_ids, cluster, values, distance, vectors), strict=True):
                np.save(path / f"{array}.npy", content)
    return Rows(folder, len(vectors), k, "synthetic" if embeddings is None else embeddings.name)


def _synthetic_vectors(count: int, dimension: int = DIMENSION) -> np.ndarray:
    starts = range(0, count, ROWS_PER_FILE)
    blocks = [synthetic_rows(index, min(ROWS_PER_FILE, count - start), dimension) for index, start in enumerate(starts)]
    return np.concatenate(blocks)


def load_quality(path: Path, count: int) -> np.ndarray:
    """Read qualities (count,) float64 from a .npy file.

    Raises:
        InputError: the file does not exist or has different contents.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: {error}; expected a .npy file") from None
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path}: {values.dtype} of shape {values.shape}; expected a number for each of {count} rows")
    return np.asarray(values, np.float64)


def cluster_rows(vectors: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each row, (n,) int32, and its distance to the centroid, (n,) float32, with the job's own settings.

    Raises:
        InputError: there are fewer rows than clusters.
    """
    model = KMeans(k, seed=seed, max_iter=50).fit(vectors)
    distance = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        distance[part] = np.linalg.norm(vectors[part].astype(np.float32) - model.cluster_centers_[model.labels_[part]], axis=1)
    return model.labels_, distance


def load_arrays(folder: Path, k: int) -> Candidates:
    """Read the rows written by `prepare_arrays`."""
    row_ids, cluster, quality, distance, vectors = (np.load(folder / f"{name}.npy") for name in _ARRAYS)
    return Candidates(row_ids, cluster, quality, k, distance, vectors)
