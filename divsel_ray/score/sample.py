"""Pool rows drawn by a hash of their ids: rows to fit a reward model on, and rows to score."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divsel_ray.data.hashing import id_array, uniform_hash
from divsel_ray.score.preferences import draw
from divsel_ray.score.scorer import Exchange

_ROWS = 65_536


def draw_exchanges(pool_files: Sequence[str], count: int, seed: int) -> list[Exchange]:
    """Draw at most `count` rows of the pool, by the seed and the ids alone; returns them in row id order.

    The ids are read first, then only the files that contain a chosen row, one at a time.

    Args:
        pool_files: Parquet files with row_id and messages (role, content), whose last message is the completion.
        count: number of rows.
        seed: seed of the draw.
    """
    smallest = heapq.nsmallest(count, ((draw(seed, "fit", row_id), row_id) for row_id in _row_ids(pool_files)))
    chosen = {row_id for _, row_id in smallest}
    rows = [row for file in pool_files for row in read_exchanges(file, chosen)]
    return sorted(rows, key=lambda row: row.row_id)


def read_exchanges(file: str, wanted: set[str] | None = None) -> list[Exchange]:
    """Read the rows of one pool partition, or only the wanted ones."""
    table = pq.read_table(file, columns=["row_id"] if wanted else ["row_id", "messages"])
    if wanted:
        kept = pc.is_in(table["row_id"], value_set=pa.array(sorted(wanted), pa.string()))
        if not pc.any(kept).as_py():
            return []
        table = pq.read_table(file, columns=["row_id", "messages"]).filter(kept)
    pairs = zip(table["row_id"].to_pylist(), table["messages"].to_pylist(), strict=True)
    return [Exchange(row_id, messages[:-1], messages[-1]["content"]) for row_id, messages in pairs]


def draw_per_cluster(cluster_files: Sequence[str], counts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of each cluster uniformly by a hash of seed and row id; a larger draw contains every smaller one.

    Args:
        cluster_files: Parquet files with row_id and cluster.
        counts: (k,) number of rows to draw per cluster; smaller clusters are drawn completely.
        seed: seed of the draw.

    Returns:
        The drawn ids and the others, each ascending: bytes of 32 hex digits.
    """
    tables = [pq.read_table(file, columns=["row_id", "cluster"]) for file in cluster_files]
    row_ids = np.concatenate([id_array(table["row_id"]) for table in tables])
    cluster = np.concatenate([table["cluster"].to_numpy() for table in tables])
    order = np.lexsort((row_ids, uniform_hash(seed, "oversample", row_ids), cluster))
    sizes = np.bincount(cluster)
    place = np.empty(len(row_ids), np.int64)
    place[order] = np.arange(len(row_ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = place < counts[cluster]
    return np.sort(row_ids[drawn]), np.sort(row_ids[~drawn])


def _row_ids(files: Sequence[str]) -> Iterator[str]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=["row_id"]):
            yield from batch["row_id"].to_pylist()
