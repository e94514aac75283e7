from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from divsel_ray.cluster import distributed, rows, shards
from divsel_ray.cluster.actors import Holding, RayShards
from divsel_ray.cluster.distributed import default_shards
from divsel_ray.cluster.estimator import KMeans
from divsel_ray.cluster.lloyd import Settings, fit
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.stage import build_clusters
from divsel_ray.config import ClusterConfig, Workers
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster


class Recorder(Silent):
    def __init__(self):
        self.reports = []

    def advance(self, done, total, unit):
        self.reports.append((done, total, unit))


def write_embeddings(folder, vectors, cuts):
    folder.mkdir(exist_ok=True)
    paths = []
    for number, part in enumerate(np.split(vectors.astype(np.float16), cuts)):
        path = folder / f"part-{number}.parquet"
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        pq.write_table(
            pa.table({"row_id": pa.array([f"{number}-{i}" for i in range(len(part))], pa.string()), "embedding": column}), path
        )
        paths.append(str(path))
    return paths


def unit_rows(n, d):
    vectors = np.random.default_rng(0).normal(size=(n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_output_files_line_up_with_input_files(cluster, tmp_path):
    vectors = unit_rows(400, 6)
    # The third has no row, as partitions of a small pool may.
    paths = write_embeddings(tmp_path / "embed", vectors, [90, 300, 300])
    progress = Recorder()
    facts = build_clusters(paths, ClusterConfig(k=7, max_iter=100), 3, tmp_path / "out", cluster, progress)
    centroids = np.load(tmp_path / "out" / "centroids.npy")
    assert (centroids.shape, centroids.dtype) == ((7, 6), np.float32)
    tables = [pq.read_table(tmp_path / "out" / f"part-{i}.parquet") for i in range(4)]
    for source, table in zip(paths, tables, strict=True):
        assert table["row_id"].equals(pq.read_table(source)["row_id"])
        assert table.schema.types == [pa.string(), pa.int32(), pa.float32()]
    found = pa.concat_tables(tables)
    distances = np.linalg.norm(vectors.astype(np.float16)[:, None].astype(float) - centroids[None], axis=2)
    assert (found["cluster"].to_numpy() == distances.argmin(axis=1)).all()
    np.testing.assert_allclose(found["distance"].to_numpy(), distances.min(axis=1), rtol=1e-5)
    assert facts["sizes"] == np.bincount(found["cluster"].to_numpy(), minlength=7).tolist()
    assert facts["inertia"] == pytest.approx(np.square(distances.min(axis=1)).sum(), rel=1e-5)
    assert (facts["k"], facts["rows"], facts["empty"], facts["converged"], facts["warnings"]) == (7, 400, 0, True, [])
    assert (facts["iterations"], 100, "iterations") in progress.reports
    assert progress.reports[-1] == (4, 4, "files")


def test_a_started_folder_is_finished_without_another_fit(cluster, tmp_path):
    paths = write_embeddings(tmp_path / "embed", unit_rows(60, 4), [30])
    out = tmp_path / "out"
    config = ClusterConfig(k=3)
    first = build_clusters(paths, config, 0, out, cluster, Silent())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "part-1.parquet").unlink()
    progress = Recorder()
    assert build_clusters(paths, config, 0, out, cluster, progress) == first
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {unit for _, _, unit in progress.reports} == {"files"}


def test_the_estimator_reads_the_files_of_a_folder_as_the_stage_does(cluster, tmp_path):
    vectors = unit_rows(200, 5)
    write_embeddings(tmp_path / "embed", vectors, [77])
    from_files = KMeans(6, seed=2, n_shards=3).fit(tmp_path / "embed")
    from_array = KMeans(6, seed=2, n_shards=1).fit(vectors.astype(np.float16))
    assert (from_files.labels_ == from_array.labels_).all()
    assert (from_files.predict(str(tmp_path / "embed")) == from_files.labels_).all()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_killed_shard_actor_is_rebuilt_and_the_result_is_the_same(cluster, tmp_path, streamed):
    files = rows.check_files(write_embeddings(tmp_path / "embed", unit_rows(500, 6), [123, 400]))
    settings = Settings(10, n_init=2, tol=0, max_iter=15)
    expected = KMeans(10, n_init=2, tol=0, max_iter=15).fit(list(files.paths))

    class Killing(RayShards):
        calls = 0

        def _ask(self, *args):
            self.calls += 1
            if self.calls in (5, 18):
                ray.kill(self.actors[self.calls % 2], no_restart=False)
            return super()._ask(*args)

    apart = replace(cluster, nodes=2)
    with distributed.start_shards(rows.partition(files, 2), apart, Holding(streamed=streamed)) as held:
        assert len(held.actors) == 2
        killing = Killing(held.actors)
        found = fit(killing, settings, shards.inspect(held, 6).geometry)
        labels = np.concatenate(held.map(Shard.labels, found.centroids))
    assert killing.calls > 18
    assert found.centroids.tobytes() == expected.cluster_centers_.tobytes()
    assert (found.inertia, found.iterations) == (expected.inertia_, expected.n_iter_)
    assert (labels == expected.labels_).all()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_coordinator_starts_over_and_the_result_is_the_same(cluster, tmp_path, monkeypatch, nodes):
    """With one node it holds the rows too, and is all there is to be killed."""
    cluster = replace(cluster, nodes=nodes)
    paths = write_embeddings(tmp_path / "embed", unit_rows(300, 4), [])
    expected = build_clusters(paths, ClusterConfig(k=40, tol=0), 0, tmp_path / "undisturbed", cluster, Silent())
    watch, killed = distributed._watch, []

    def kill_then_watch(coordinator, *args):
        while not (tmp_path / "killed" / "fit.npz").is_file():
            ray.get(coordinator.state.remote(), timeout=300)
        ray.kill(coordinator, no_restart=False)
        killed.append(True)
        watch(coordinator, *args)

    monkeypatch.setattr(distributed, "_watch", kill_then_watch)
    assert build_clusters(paths, ClusterConfig(k=40, tol=0), 0, tmp_path / "killed", cluster, Silent()) == expected
    assert killed
    for name in ("centroids.npy", "part-0.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_bad_row_is_named_by_its_id(cluster, tmp_path):
    vectors = unit_rows(50, 3)
    vectors[41, 2] = np.nan
    paths = write_embeddings(tmp_path / "embed", vectors, [30])
    with pytest.raises(InputError, match=r"part-1\.parquet: row 11 \(row_id 1-11\)") as caught:
        build_clusters(paths, ClusterConfig(k=3), 0, tmp_path / "out", cluster, Silent())
    assert "\n" not in str(caught.value)


def test_more_clusters_than_rows_are_refused(cluster, tmp_path):
    paths = write_embeddings(tmp_path / "embed", unit_rows(250, 2), [100])
    with pytest.raises(InputError, match=r"^k 300 exceeds the pool's 250 rows; lower cluster\.k$"):
        build_clusters(paths, ClusterConfig(k=300), 0, tmp_path / "out", cluster, Silent())


def test_without_k_the_number_of_rows_decides(cluster, tmp_path):
    paths = write_embeddings(tmp_path / "embed", unit_rows(100, 2), [50])
    facts = build_clusters(paths, ClusterConfig(), 0, tmp_path / "out", cluster, Silent())
    assert facts["k"] == ClusterConfig().resolved(100).k < 100


def test_too_few_distinct_vectors_are_a_warning_in_the_facts(cluster, tmp_path):
    vectors = np.repeat(np.eye(2), 10, axis=0)
    paths = write_embeddings(tmp_path / "embed", vectors, [])
    facts = build_clusters(paths, ClusterConfig(k=5), 0, tmp_path / "out", cluster, Silent())
    assert sorted(facts["sizes"]) == [0, 0, 0, 10, 10]
    assert (facts["empty"], facts["inertia"]) == (3, 0.0)
    assert facts["warnings"][0].startswith("3 of 5 clusters are empty")


def test_files_of_one_base_name_are_refused(cluster, tmp_path):
    paths = [write_embeddings(tmp_path / name, unit_rows(5, 2), [])[0] for name in ("a", "b")]
    with pytest.raises(InputError, match="base name"):
        build_clusters(paths, ClusterConfig(k=2), 0, tmp_path / "out", cluster, Silent())


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "streaming", "n_shards": 3},
        {"mode": "streaming", "n_shards": 1, "workers": {"cpus": 2}},
        {"mode": "memory", "n_shards": 7},
        {"n_shards": 5, "workers": {"count": 1}},
    ],
)
def test_how_rows_are_held_changes_no_byte(cluster, tmp_path, settings):
    paths = write_embeddings(tmp_path / "embed", unit_rows(300, 5), [77, 200])
    build_clusters(paths, ClusterConfig(k=6), 0, tmp_path / "usual", cluster, Silent())
    build_clusters(paths, ClusterConfig(k=6, **settings), 0, tmp_path / "other", cluster, Silent())
    names = ["centroids.npy", "facts.json", "part-0.parquet", "part-2.parquet"]
    assert all((tmp_path / "other" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes() for name in names)


def test_a_size_cap_holds_over_all_files(cluster, tmp_path):
    vectors = np.concatenate([unit_rows(100, 4) * 0.01 + 1, unit_rows(100, 4)])
    paths = write_embeddings(tmp_path / "embed", vectors, [50, 120])
    facts = build_clusters(paths, ClusterConfig(k=8, size_cap=1.2), 0, tmp_path / "out", cluster, Silent())
    found = pa.concat_tables([pq.read_table(tmp_path / "out" / f"part-{i}.parquet") for i in range(3)])
    sizes = np.bincount(found["cluster"].to_numpy(), minlength=8)
    assert sizes.tolist() == facts["sizes"]
    assert sizes.max() <= 30


def test_cosine_clusters_are_those_of_the_directions(cluster, tmp_path):
    vectors = unit_rows(120, 4)
    scaled = write_embeddings(tmp_path / "scaled", vectors * np.geomspace(0.5, 8, 120)[:, None], [40])
    plain = write_embeddings(tmp_path / "plain", vectors, [40])
    config = ClusterConfig(k=5, metric="cosine")
    build_clusters(scaled, config, 0, tmp_path / "a", cluster, Silent())
    build_clusters(plain, config, 0, tmp_path / "b", cluster, Silent())
    tables = [pq.read_table(tmp_path / name / "part-1.parquet")["cluster"].to_numpy() for name in "ab"]
    assert (tables[0] == tables[1]).mean() > 0.95


def test_the_plan_streams_what_does_not_fit_and_says_so(tmp_path):
    from dataclasses import replace

    from divsel_ray.resources import Cluster

    files = replace(rows.check_files(write_embeddings(tmp_path / "embed", unit_rows(5, 2), [])), counts=(10**7,), dimension=384)
    small = Cluster(cpus=2, gpus=0, node_cpus=2, node_gpus=0, memory_gib=8, nodes=1, local=True)
    plan = distributed.plan_memory(files, small, "auto")
    assert plan.streamed
    assert plan.reason == "10,000,000 vectors take 7.7 GiB, 4.8 GiB are available for them: streamed from Parquet on every pass"
    assert not distributed.plan_memory(files, replace(small, memory_gib=64), "auto").streamed
    assert not distributed.plan_memory(files, small, "memory").streamed


def test_files_of_several_types_are_clustered_as_one(cluster, tmp_path):
    vectors = unit_rows(200, 4)
    paths = write_embeddings(tmp_path / "embed", vectors, [90])
    wide = pa.FixedSizeListArray.from_arrays(pa.array(vectors[90:].astype(np.float32).ravel()), 4)
    pq.write_table(pa.table({"row_id": [f"1-{i}" for i in range(110)], "embedding": wide}), paths[1])
    config = ClusterConfig(k=5, metric="cosine", size_cap=1.1)
    facts = build_clusters(paths, config, 0, tmp_path / "out", cluster, Silent())
    found = pa.concat_tables([pq.read_table(tmp_path / "out" / f"part-{i}.parquet") for i in range(2)])
    assert np.bincount(found["cluster"].to_numpy(), minlength=5).tolist() == facts["sizes"]
    assert max(facts["sizes"]) <= 44


@pytest.mark.parametrize(
    ("rows", "workers", "expected"),
    [
        (1_000_000, Workers(), 15),
        (1_000_000, Workers(cpus=4), 3),
        (1_000_000, Workers(count=5), 5),
        (40_000, Workers(), 3),
        (100, Workers(), 1),
    ],
)
def test_rows_are_spread_over_what_the_cluster_has_room_for(rows, workers, expected):
    node = (15.0, 0.0)
    assert default_shards(rows, workers, Cluster(*node, *node, memory_gib=64, nodes=1, local=False)) == expected
