from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_kmeans_rows as bench_rows

from divsel_ray.cluster import rows as product_rows
from divsel_ray.errors import InputError


def test_inertia_is_the_sum_of_squared_distances_to_the_nearest_centroid(tmp_path: Path) -> None:
    rows = np.array([[0, 0], [0, 1], [4, 0], [7, 0]], np.float16)
    folder = bench_rows.write_rows(tmp_path / "rows", 4, 2, lambda index, count: rows)
    centroids = np.array([[0, 0], [5, 0]], np.float32)
    assert bench_rows.total_inertia(folder, centroids) == 0 + 1 + 1 + 4
    assert bench_rows.total_inertia(folder, centroids, step=3) == 6


def test_files_cut_the_rows_and_those_that_exist_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows, "ROWS_PER_FILE", 3)
    asked: list[tuple[int, int]] = []

    def make(index: int, count: int) -> np.ndarray:
        asked.append((index, count))
        return np.full((count, 2), index, np.float16)

    folder = bench_rows.write_rows(tmp_path / "rows", 8, 2, make)
    assert asked == [(0, 3), (1, 3), (2, 2)]
    assert bench_rows.count_rows(folder) == 8
    assert bench_rows.read_float32(str(folder))[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    ids = pq.read_table(folder, columns=["row_id"])["row_id"].to_pylist()
    assert ids == [f"{i:032x}" for i in range(8)]
    (folder / "part-00001.parquet").unlink()
    asked.clear()
    bench_rows.write_rows(folder, 8, 2, make)
    assert asked == [(1, 3)]


def test_the_product_reads_these_files_as_half_floats(tmp_path: Path) -> None:
    folder = bench_rows.write_rows(tmp_path / "rows", 5, 8, lambda index, count: bench_rows.synthetic_rows(index, count, 8))
    files = product_rows.check_files(product_rows.list_files(folder))
    assert (files.rows, files.dimension) == (5, 8)


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows, "_free_bytes", lambda folder: 10**9)
    with pytest.raises(InputError, match=r"10,000,000 rows need 8\.3 GB, 1\.0 GB are free; name a larger disk with --work"):
        bench_rows.write_rows(tmp_path / "rows", 10_000_000, 384, lambda index, count: pytest.fail("wrote"))


def test_first_centroids_are_distinct_rows_and_repeat(tmp_path: Path) -> None:
    rows = np.array([[i // 2, 0] for i in range(20)], np.float16)
    folder = bench_rows.write_rows(tmp_path / "rows", 20, 2, lambda index, count: rows)
    start = bench_rows.first_centroids(folder, 10)
    assert start.dtype == np.float32
    assert sorted(start[:, 0].tolist()) == list(range(10))
    assert np.array_equal(start, bench_rows.first_centroids(folder, 10))
    with pytest.raises(InputError, match="only 10 differ"):
        bench_rows.first_centroids(folder, 11)


def test_synthetic_rows_are_unit_vectors_that_depend_on_their_number_alone() -> None:
    rows = bench_rows.synthetic_rows(3, 50, 16)
    assert rows.dtype == np.float16
    assert np.linalg.norm(rows.astype(np.float64), axis=1) == pytest.approx(np.ones(50), abs=2e-3)
    assert np.array_equal(rows, bench_rows.synthetic_rows(3, 50, 16))
    assert not np.array_equal(rows, bench_rows.synthetic_rows(4, 50, 16))


def test_embeddings_are_read_gzipped_or_not_and_anything_else_is_refused(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "plain.npy", array)
    with gzip.open(tmp_path / "zipped.npy.gz", "wb") as stream:
        np.save(stream, array)
    for name in ("plain.npy", "zipped.npy.gz"):
        read = bench_rows.load_embeddings(tmp_path / name)
        assert read.dtype == np.float16
        assert read.tolist() == array.tolist()
    np.save(tmp_path / "labels.npy", np.arange(3))
    with pytest.raises(InputError, match=r"labels\.npy: int64 of shape \(3,\); expected floats, one vector per row"):
        bench_rows.load_embeddings(tmp_path / "labels.npy")
    with pytest.raises(InputError, match=r"none\.npy: .*expected a \.npy or \.npy\.gz file"):
        bench_rows.load_embeddings(tmp_path / "none.npy")
