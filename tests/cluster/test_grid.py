import dataclasses

import numpy as np
import pytest

from divsel_ray.cluster import lloyd, stage
from divsel_ray.cluster.criteria import recommend
from divsel_ray.cluster.grid import measure_grid
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import LocalShards, inspect
from divsel_ray.config import ClusterConfig
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from tests.cluster.vectors import blobs, write_embeddings


class Recorder(Silent):
    def __init__(self):
        self.reports = []

    def advance(self, done, total, unit):
        self.reports.append((done, total, unit))


def figures(candidates):
    return [dataclasses.replace(one, seconds=0.0) for one in candidates]


@pytest.fixture(scope="module")
def measured(cluster, tmp_path_factory):
    """Embedding files, the folder with the measures of k = 3 and 8, and these."""
    folder = tmp_path_factory.mktemp("measured")
    paths = write_embeddings(folder / "embed", blobs(400, spread=1.0))
    found = measure_grid(paths, [3, 8], ClusterConfig(n_shards=1), 5, folder / "out", cluster, Silent())
    return paths, folder / "out", found


def test_the_figures_are_those_of_the_fit_itself(measured):
    _, _, [_, found] = measured
    vectors = blobs(400, spread=1.0).astype(np.float16)
    fit = lloyd.fit(LocalShards([Shard(vectors)]), *settings_and_geometry(vectors, 8, seed=5))
    distances = np.sort(np.linalg.norm(vectors.astype(float)[:, None] - fit.centroids.astype(float)[None], axis=2), axis=1)
    assert (found.k, found.rows, found.inertia, found.iterations) == (8, 400, fit.inertia, fit.iterations)
    assert found.inertia == pytest.approx(np.square(distances[:, 0]).sum(), rel=1e-6)
    assert (found.smallest, found.largest, found.median) == (fit.sizes.min(), fit.sizes.max(), np.median(fit.sizes))
    assert found.singletons == found.empty == 0
    assert found.simplified_silhouette == pytest.approx(np.mean(1 - distances[:, 0] / distances[:, 1]), rel=1e-6)
    assert 0 < found.silhouette < found.simplified_silhouette
    assert (found.silhouette_rows, found.refits) == (400, 3)
    assert found.seconds > 0


def settings_and_geometry(vectors, k, seed):
    geometry = inspect(LocalShards([Shard(vectors)]), vectors.shape[1]).geometry
    return stage.settings(ClusterConfig(), k, seed, len(vectors)), geometry


def test_seven_partitions_give_the_same_figures_as_one(measured, cluster, tmp_path):
    paths, _, expected = measured
    found = measure_grid(paths, [3, 8], ClusterConfig(n_shards=7), 5, tmp_path / "out", cluster, Silent())
    assert figures(found) == figures(expected)


def test_what_is_measured_is_not_measured_again(measured, cluster):
    paths, folder, expected = measured
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["k-00003.json", "k-00008.json"]
    again = Recorder()
    assert measure_grid(paths, [3, 8], ClusterConfig(n_shards=1), 5, folder, cluster, again) == expected
    assert again.reports == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_stopped_grid_keeps_what_is_measured_and_continues(measured, cluster, tmp_path):
    paths, _, expected = measured
    arguments = (paths, [3, 8], ClusterConfig(), 5, tmp_path / "out", cluster)

    class Stopping(Silent):
        def advance(self, done, total, unit):
            if unit.endswith("k = 8"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_grid(*arguments, Stopping())
    kept = tmp_path / "out" / "k-00003.json"
    written = kept.stat().st_mtime_ns
    again = Recorder()
    assert figures(measure_grid(*arguments, again)) == figures(expected)
    assert {unit.split("k = ")[1] for _, _, unit in again.reports} <= {"8"}
    assert kept.stat().st_mtime_ns == written


def test_planted_clusters_are_recommended(cluster, tmp_path):
    paths = write_embeddings(tmp_path / "embed", blobs(900, 16))
    config = ClusterConfig(n_init=4)
    found = measure_grid(paths, [4, 8, 16, 32], config, 0, tmp_path / "out", cluster, Silent())
    chosen = recommend(found, 900)
    assert (chosen.k, chosen.preferred) == (16, True), chosen.reason
    assert found[2].stability > 0.9
    assert found[2].simplified_silhouette == max(one.simplified_silhouette for one in found)


def test_data_without_clusters_is_said_to_have_none(cluster, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(900, 8))
    paths = write_embeddings(tmp_path / "embed", vectors)
    chosen = recommend(measure_grid(paths, [4, 8, 16, 32], ClusterConfig(), 0, tmp_path / "out", cluster, Silent()), 900)
    assert (chosen.k, chosen.preferred) == (45, False)
    assert "shows no preferred k" in chosen.reason


def test_k_beyond_half_the_rows_has_no_stability_and_singletons_are_counted(cluster, tmp_path):
    vectors = np.arange(10.0)[:, None] ** 2
    paths = write_embeddings(tmp_path / "embed", vectors)
    low, high = measure_grid(paths, [5, 9], ClusterConfig(), 0, tmp_path / "out", cluster, Silent())
    assert low.refits == 3
    assert (high.stability, high.stability_deviation, high.refits) == (None, None, 0)
    assert (high.singletons, high.smallest, high.largest) == (8, 1, 2)


def test_too_large_a_k_and_a_bad_row_are_named_before_any_fit(cluster, tmp_path):
    vectors = blobs(60)
    vectors[41, 2] = np.nan
    paths = write_embeddings(tmp_path / "embed", vectors)
    with pytest.raises(InputError, match="k 61 exceeds the pool's 60 rows"):
        measure_grid(paths, [2, 61], ClusterConfig(), 0, tmp_path / "out", cluster, Silent())
    with pytest.raises(InputError, match=r"part-1.parquet: row 11 \(row_id 1-11\)"):
        measure_grid(paths, [2], ClusterConfig(), 0, tmp_path / "out", cluster, Silent())
