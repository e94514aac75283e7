from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.report.apart import measure_silhouette


def write(folder: Path, vectors: np.ndarray, labels: np.ndarray, k: int) -> tuple[Path, Path, list[int]]:
    """Embeddings and their clusters, with means as centroids, in two files each."""
    members = [vectors[labels == one] for one in range(k)]
    centroids = np.stack([rows.mean(0) if len(rows) else np.zeros(vectors.shape[1]) for rows in members])
    distance = np.linalg.norm(vectors - centroids[labels], axis=1).astype(np.float32)
    embeddings, clusters = folder / "embed", folder / "cluster"
    for place in (embeddings, clusters):
        place.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(vectors)), 2)):
        pq.write_table(pa.table({"embedding": vectors[part].tolist()}), embeddings / f"part-{number}.parquet")
        columns = {"cluster": labels[part].astype(np.int32), "distance": distance[part]}
        pq.write_table(pa.table(columns), clusters / f"part-{number}.parquet")
    np.save(clusters / "centroids.npy", centroids.astype(np.float32))
    return embeddings, clusters, np.bincount(labels, minlength=k).tolist()


def test_it_is_the_mean_of_the_rows_each_left_out_of_its_centroid(tmp_path: Path) -> None:
    vectors = np.array([[0.0], [2.0], [10.0], [14.0], [18.0]])
    # left out, 0 and 2 lie 2 from their own; 10, 14 and 18 lie 6, 0 and 6 from theirs; the other centroids are at 14 and 1
    expected = np.mean([1 - 2 / 14, 1 - 2 / 12, 1 - 6 / 9, 1.0, 1 - 6 / 17])
    assert measure_silhouette(*write(tmp_path, vectors, np.array([0, 0, 1, 1, 1]), 2)) == pytest.approx(expected, abs=1e-6)


def test_rows_alone_count_as_nothing_and_empty_clusters_as_no_clusters(tmp_path: Path) -> None:
    vectors = np.array([[0.0], [1.0], [9.0]])
    expected = np.mean([1 - 1 / 9, 1 - 1 / 8, 0.0])
    assert measure_silhouette(*write(tmp_path, vectors, np.array([0, 0, 2]), 3)) == pytest.approx(expected, abs=1e-6)


def test_a_partition_without_rows_is_passed_over(tmp_path: Path) -> None:
    vectors = np.array([[0.0], [2.0], [10.0], [14.0], [18.0]])
    embeddings, clusters, sizes = write(tmp_path, vectors, np.array([0, 0, 1, 1, 1]), 2)
    expected = measure_silhouette(embeddings, clusters, sizes)
    for folder in (embeddings, clusters):
        pq.write_table(pq.read_table(folder / "part-0.parquet").slice(0, 0), folder / "part-.parquet")
    assert measure_silhouette(embeddings, clusters, sizes) == expected
    for file in (*embeddings.glob("part-?.parquet"), *clusters.glob("part-?.parquet")):
        file.unlink()
    assert measure_silhouette(embeddings, clusters, sizes) is None


def test_one_cluster_has_none(tmp_path: Path) -> None:
    assert measure_silhouette(*write(tmp_path, np.array([[0.0], [1.0]]), np.array([0, 0]), 1)) is None


def test_random_vectors_come_to_nothing_however_small_the_clusters(tmp_path: Path) -> None:
    from sklearn.cluster import KMeans

    vectors = np.random.default_rng(0).standard_normal((300, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = KMeans(15, n_init=1, max_iter=300, random_state=0).fit_predict(vectors)
    assert measure_silhouette(*write(tmp_path, vectors, labels, 15)) < 0.01
