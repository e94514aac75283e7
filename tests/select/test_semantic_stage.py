from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.select import semantic_stage
from divsel_ray.select.semantic import semantic_duplicates
from divsel_ray.select.semantic_stage import drop_semantic_duplicates, group_clusters

K = 5


@pytest.fixture
def rows():
    """120 rows, two in three of them near copies."""
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.normal(size=(40, 8)), 3, axis=0) + generator.normal(scale=0.05, size=(120, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    cluster = np.repeat(generator.integers(0, K - 1, size=40), 3).astype(np.int32)
    quality = np.where(generator.random(120) < 0.8, generator.normal(size=120), np.nan)
    ids = np.sort(np.array([f"{i:032x}" for i in generator.permutation(1000)[:120]]))
    return ids, vectors, cluster, quality


def write_files(folder: Path, rows, parts, shuffle=False):
    """(cluster, embedding, quality) files of consecutive rows; shuffled, each file has an order of its own."""
    ids, vectors, cluster, quality = rows
    generator, files = np.random.default_rng(1), ([], [], [])
    for part, mine in enumerate(np.array_split(np.arange(len(ids)), parts)):
        for kind, name in enumerate(("clusters", "embeddings", "quality")):
            order = generator.permutation(mine) if shuffle else mine
            vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors[order].ravel()), vectors.shape[1])
            value = [cluster[order], vector, pa.array(quality[order], from_pandas=True)][kind]
            path = folder / name / f"part-{part:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"row_id": ids[order], name.rstrip("s"): value}), path)
            files[kind].append(str(path))
    return files


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(semantic_stage, "run_tasks", lambda function, calls, *_: [function(*call) for call in calls])


def drop(files, folder, threshold=0.95):
    folder.mkdir()
    facts = drop_semantic_duplicates(*files, K, threshold, folder, Silent())
    return facts, pq.read_table(folder / "removed.parquet").to_pylist()


def expected(rows, threshold=0.95):
    ids, vectors, cluster, quality = rows
    found = semantic_duplicates(vectors, cluster, ids.astype("S32"), quality, threshold)
    return [
        {"row_id": ids[removed], "of": ids[kept], "cosine": pytest.approx(cosine, abs=1e-6)}
        for removed, kept, cosine in zip(found.removed, found.kept, found.cosine, strict=True)
    ]


@pytest.mark.parametrize(("parts", "limit", "shuffle"), [(1, 1000, False), (4, 30, False), (3, 1, True)])
def test_what_goes_does_not_depend_on_files_groups_or_order(rows, tmp_path, monkeypatch, without_ray, parts, limit, shuffle):
    monkeypatch.setattr(semantic_stage, "GROUP_ROWS", limit)
    facts, removed = drop(write_files(tmp_path, rows, parts, shuffle), tmp_path / "out")
    assert removed == expected(rows)
    assert facts == {"rows": 120, "removed": len(removed)}
    assert 40 < len(removed) < 100
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["removed.parquet"]


def test_without_quality_the_smallest_ids_stay(rows, tmp_path, without_ray):
    ids, vectors, cluster, _ = rows
    clusters, embeddings, _ = write_files(tmp_path, rows, 2)
    _, removed = drop((clusters, embeddings, []), tmp_path / "out")
    assert removed == expected((ids, vectors, cluster, np.full(120, np.nan)))
    assert all(row["of"] < row["row_id"] for row in removed)


def test_where_nothing_is_alike_the_file_is_empty(rows, tmp_path, without_ray):
    facts, removed = drop(write_files(tmp_path, rows, 2), tmp_path / "out", threshold=1.0)
    assert removed == []
    assert facts == {"rows": 120, "removed": 0}


def test_embeddings_of_other_rows_are_refused(rows, tmp_path, without_ray):
    clusters, embeddings, quality = write_files(tmp_path, rows, 2)
    with pytest.raises(
        ValueError, match=r"embeddings/part-00001.parquet: its rows differ from those of .*clusters/part-00000.parquet"
    ):
        drop((clusters, embeddings[::-1], quality), tmp_path / "out")


def test_a_stopped_stage_is_continued_to_the_same_rows(rows, tmp_path, monkeypatch, without_ray):
    files = write_files(tmp_path, rows, 3)
    with monkeypatch.context() as patch:
        patch.setattr(semantic_stage, "join_removed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop(files, tmp_path / "out")
    # Were anything made again, this would fail.
    monkeypatch.setattr(semantic_stage, "semantic_duplicates", lambda *_: 1 / 0)
    monkeypatch.setattr(semantic_stage.PoolColumns, "read_vectors", lambda *_: 1 / 0)
    drop_semantic_duplicates(*files, K, 0.95, tmp_path / "out", Silent())
    assert pq.read_table(tmp_path / "out" / "removed.parquet").to_pylist() == expected(rows)


def test_clusters_are_grouped_up_to_the_limit():
    assert group_clusters(np.array([3, 3, 3, 9, 1]), 6).tolist() == [0, 0, 1, 2, 3]
    assert group_clusters(np.array([0, 0, 9, 0, 1]), 4).tolist() == [0, 0, 0, 1, 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 30))
def test_a_group_is_within_the_limit_or_one_cluster(sizes, limit):
    group = group_clusters(np.array(sizes), limit)
    assert set(np.diff(group)) <= {0, 1}
    assert group[0] == 0
    for number in set(group.tolist()):
        members = [size for size, other in zip(sizes, group, strict=True) if other == number and size]
        assert sum(members) <= limit or len(members) == 1


def test_on_ray_the_rows_are_the_same(cluster: Cluster, rows, tmp_path):
    facts, removed = drop(write_files(tmp_path, rows, 2), tmp_path / "out")
    assert removed == expected(rows)
    assert facts["removed"] == len(removed)
