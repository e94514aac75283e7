"""Semantic duplicates on Ray: rows are grouped by cluster on disk, and each group of clusters is one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.data.hashing import id_array
from divsel_ray.progress import Progress, Silent
from divsel_ray.select.columns import PoolColumns
from divsel_ray.select.semantic import semantic_duplicates
from divsel_ray.store import atomic_path, remove_folder, write_table
from divsel_ray.tasks import run_tasks

GROUP_ROWS = 1 << 17
"""Maximum rows of the clusters in one task; a larger cluster has its own task."""
_REMOVED = pa.schema({"row_id": pa.string(), "of": pa.string(), "cosine": pa.float32()})


@dataclass(frozen=True)
class SemanticFiles:
    """The files read and written; the three lists contain the same rows, file by file.

    Attributes:
        folder: the stage's folder; temporary files go to its `raw`.
        clusters: Parquet with row_id, cluster.
        embeddings: Parquet with row_id, embedding.
        quality: Parquet with row_id, quality; empty for none.
    """

    folder: Path
    clusters: tuple[str, ...]
    embeddings: tuple[str, ...]
    quality: tuple[str, ...]

    @property
    def raw(self) -> Path:
        """The folder of temporary files."""
        return self.folder / "raw"

    def split(self, part: int) -> Path:
        """The rows of one input file, one record batch per group of clusters."""
        return self.raw / f"split-{part:05d}.arrow"

    def found(self, group: int) -> Path:
        """The removed rows of one group of clusters."""
        return self.raw / f"removed-{group:05d}.parquet"


def drop_semantic_duplicates(
    cluster_files: Sequence[str],
    embedding_files: Sequence[str],
    quality_files: Sequence[str],
    k: int,
    threshold: float,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write `removed.parquet` (row_id, of, cosine), by row id: the rows that are too similar to a better one.

    The rule is that of `semantic.semantic_duplicates`. The embeddings are copied on disk while the stage runs. A task holds
    the rows of one input file, or of one group of clusters: 131,072 rows or one larger cluster, 2 d bytes each, plus 4 d for
    each row of the largest cluster. A call on the folder of an interrupted one resumes it.

    Args:
        cluster_files: Parquet with row_id, cluster.
        embedding_files: Parquet with row_id, embedding, the same rows in each file.
        quality_files: Parquet with row_id, quality, the same rows in each file; empty for none.
        k: number of clusters.
        threshold: minimum cosine of duplicates.
        folder: the stage's folder; the caller commits it.
        progress: receives the number of finished files and groups.

    Returns:
        `rows` examined, and how many of them are `removed`.
    """
    files = SemanticFiles(folder, tuple(cluster_files), tuple(embedding_files), tuple(quality_files))
    parts = range(len(cluster_files))
    sizes = np.sum(run_tasks(count_clusters, [(files, part, k) for part in parts], Silent(), "files"), axis=0)
    group = group_clusters(sizes, GROUP_ROWS)
    groups = range(int(group.max()) + 1)
    run_tasks(split_file, [(files, part, group) for part in parts], progress, "files")
    run_tasks(find_duplicates, [(files, number, threshold) for number in groups], progress, "groups")
    removed = run_tasks(join_removed, [(files, len(groups))], Silent(), "files")[0]
    remove_folder(files.raw)
    return {"rows": int(sizes.sum()), "removed": removed}


def count_clusters(files: SemanticFiles, part: int, k: int) -> NDArray[np.int64]:
    """Number of rows of each cluster in one file, (k,)."""
    return np.bincount(pq.read_table(files.clusters[part], columns=["cluster"])["cluster"].to_numpy(), minlength=k)


def group_clusters(sizes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The group of each cluster, (k,): consecutive clusters share a group as long as their rows do not exceed the limit.

    `sizes 3 3 3 9 1, limit 6` gives `0 0 1 2 3`.
    """
    group, rows = np.zeros(len(sizes), dtype=np.int64), 0
    for cluster, size in enumerate(sizes):
        rows += int(size)
        group[cluster] = group[cluster - 1] if cluster else 0
        if rows > limit and rows > size:
            group[cluster] += 1
            rows = int(size)
    return group


def split_file(files: SemanticFiles, part: int, group: NDArray[np.int64]) -> None:
    """Write one file's rows by group of clusters. Skipped if already done.

    Raises:
        ValueError: the embeddings and the clusters belong to different rows.
    """
    if files.split(part).exists():
        return
    columns = PoolColumns([files.clusters[part]])
    if not np.array_equal(PoolColumns([files.embeddings[part]]).row_ids, columns.row_ids):
        raise ValueError(f"{files.embeddings[part]}: its rows differ from those of {files.clusters[part]}")
    vectors = columns.read_vectors([files.embeddings[part]], np.ones(len(columns.row_ids), bool))
    cluster = columns.read([files.clusters[part]], "cluster", np.int32, 0)
    quality = columns.read(list(files.quality[part : part + 1]), "quality", np.float64, np.nan)
    order = np.argsort(group[cluster], kind="stable")
    ends = np.searchsorted(group[cluster][order], np.arange(group.max() + 1), side="right")
    flat = pa.array(vectors[order].ravel(), pa.float16())
    batch = pa.record_batch(
        {
            "row_id": pa.array(columns.row_ids[order].astype(str), pa.string()),
            "cluster": pa.array(cluster[order]),
            "quality": pa.array(quality[order]),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    with atomic_path(files.split(part)) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            writer.write_batch(batch.slice(start, end - start))


def find_duplicates(files: SemanticFiles, group: int, threshold: float) -> None:
    """Write the removed rows of one group of clusters. Skipped if already done."""
    if files.found(group).exists():
        return
    rows = pa.Table.from_batches([_read_batch(files.split(part), group) for part in range(len(files.clusters))])
    row_ids = id_array(rows["row_id"])
    embedding = rows["embedding"].combine_chunks()
    vectors = embedding.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), embedding.type.list_size)
    cluster, quality = rows["cluster"].to_numpy(), rows["quality"].to_numpy()
    duplicates = semantic_duplicates(vectors, cluster, row_ids, quality, threshold)
    columns = [row_ids[duplicates.removed].astype(str), row_ids[duplicates.kept].astype(str), duplicates.cosine]
    write_table(files.found(group), pa.table(columns, schema=_REMOVED), compression="zstd")


def _read_batch(path: Path, group: int) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(group)


def join_removed(files: SemanticFiles, groups: int) -> int:
    """Write `removed.parquet` for all groups, about 200 bytes of memory per row; returns its number of rows."""
    found = pa.concat_tables([pq.read_table(files.found(group)) for group in range(groups)])
    write_table(files.folder / "removed.parquet", found.sort_by("row_id").combine_chunks(), compression="zstd")
    return len(found)
