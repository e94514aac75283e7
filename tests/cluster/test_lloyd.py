import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans as Reference
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from divsel_ray.cluster import kernels, lloyd, shards
from divsel_ray.cluster.journal import Journal
from divsel_ray.cluster.lloyd import Settings
from divsel_ray.cluster.rows import normalise
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import LocalShards
from tests.cluster.vectors import geometry_of, shards_of


def fit(rows, settings, parts=1, journal=None):
    return lloyd.fit(shards_of(rows, parts), settings, geometry_of(rows), journal=journal)


def labels_of(rows, centroids):
    return Shard(rows).labels(centroids)


def random_rows(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize(("n", "d", "k"), [(500, 2, 5), (2000, 16, 40), (900, 64, 8)])
def test_equals_scikit_learn_from_the_same_first_centroids(n, d, k):
    rows = random_rows(n, d)
    first = rows[:k].copy()
    reference = Reference(k, init=first, n_init=1, algorithm="lloyd").fit(rows.astype(np.float64))
    ours = fit(rows, Settings(k, init=first), parts=3)
    assert (labels_of(rows, ours.centroids) == reference.labels_).all()
    assert ours.inertia == pytest.approx(reference.inertia_, rel=1e-6)
    assert ours.iterations == reference.n_iter_
    assert ours.converged


def test_an_empty_cluster_is_repaired_as_scikit_learn_does():
    rows = random_rows(300, 3)
    first = np.concatenate([rows[:4], np.full((1, 3), 1e3, np.float32)])
    reference = Reference(5, init=first, n_init=1, algorithm="lloyd").fit(rows.astype(np.float64))
    ours = fit(rows, Settings(5, init=first), parts=2)
    assert (labels_of(rows, ours.centroids) == reference.labels_).all()
    assert ours.sizes.min() > 0


def test_an_emptied_cluster_takes_the_farthest_row_of_all_partitions_and_is_never_zero():
    rows = np.array([[1, 0], [3, 0], [2, 5], [2, 1]], np.float16)
    first = np.array([[2, 0], [90, 90], [80, 80]], np.float32)
    update = lloyd.Updater(shards_of(rows, 3), geometry_of(rows)).step(first)
    assert update.centroids.tolist() == [[2.5, 0.5], [2, 5], [1, 0]]


def test_inertia_is_scikit_learns_in_single_precision_too():
    rows = random_rows(3000, 32)
    first = rows[:50].copy()
    reference = Reference(50, init=first, n_init=1, algorithm="lloyd", max_iter=20, tol=0).fit(rows)
    assert fit(rows, Settings(50, init=first, max_iter=20, tol=0)).inertia == pytest.approx(reference.inertia_, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_inertia_never_rises_and_the_history_ends_where_the_fit_does(dtype):
    rows = random_rows(600, 8, dtype)
    found = fit(rows, Settings(30, tol=0, max_iter=25))
    inertias = [*(step.inertia for step in found.history), found.inertia]
    assert len(found.history) == found.iterations
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(inertias))
    assert inertias[-1] < 0.98 * inertias[0]
    assert {step.rows for step in found.history} == {600}


def test_the_history_gives_the_inertia_of_the_centroids_an_iteration_began_with():
    rows = random_rows(300, 4)
    first = rows[:9].copy()
    step = fit(rows, Settings(9, init=first, max_iter=3, tol=0)).history[0]
    distances = np.square(rows[:, None].astype(float) - first).sum(axis=2)
    assert step.inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-12)
    assert 0 < step.moved <= 9


def test_separated_blobs_are_found():
    rows, truth = make_blobs(600, 5, centers=6, cluster_std=0.05, center_box=(-20, 20), random_state=3)
    found = fit(rows.astype(np.float32), Settings(6))
    assert adjusted_rand_score(truth, labels_of(rows.astype(np.float32), found.centroids)) == 1


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize("k", [21, 1000])
def test_k_centroids_are_returned_and_all_are_used(init, k):
    rows = random_rows(3000, 4, np.float16)
    found = fit(rows, Settings(k, init=init, max_iter=5), parts=2)
    assert found.centroids.shape == (k, 4)
    assert len(np.unique(labels_of(rows, found.centroids))) == k
    assert found.sizes.sum() == 3000


def test_one_cluster_is_the_mean():
    rows = random_rows(101, 3, np.float16)
    found = fit(rows, Settings(1), parts=4)
    np.testing.assert_allclose(found.centroids[0], rows.astype(np.float64).mean(axis=0), rtol=1e-6)
    assert found.inertia == pytest.approx(np.square(rows - rows.astype(np.float64).mean(axis=0)).sum(), rel=1e-6)


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_as_many_clusters_as_rows_give_each_row_its_own(init):
    rows = random_rows(40, 3, np.float16)
    found = fit(rows, Settings(40, init=init), parts=3)
    assert found.inertia == 0
    assert found.sizes.tolist() == [1] * 40


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_equal_rows_make_one_cluster_and_leave_the_others_empty(init):
    rows = np.tile(np.array([[0.1, -0.7, 0.3]], np.float16), (50, 1))
    found = fit(rows, Settings(4, init=init), parts=3)
    assert found.sizes.tolist() == [50, 0, 0, 0]
    assert found.inertia == 0
    assert (found.centroids == rows[0].astype(np.float32)).all()
    assert found.converged


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_the_partition_of_the_rows_changes_no_bit(init, dtype):
    rows = random_rows(1500, 33, dtype)
    one, two, seven = (fit(rows, Settings(37, init=init, n_init=2, seed=5), parts) for parts in (1, 2, 7))
    assert one.centroids.tobytes() == two.centroids.tobytes() == seven.centroids.tobytes()
    assert one.inertia == two.inertia == seven.inertia
    assert one.iterations == two.iterations == seven.iterations


@pytest.mark.parametrize("change", [{"progressive": True}, {"share": 0.4}, {"progressive": True, "share": 0.4}])
def test_samples_do_not_depend_on_the_partition_either(change):
    rows = random_rows(4000, 6)
    one, two, seven = (fit(rows, Settings(8, max_iter=8, **change), parts) for parts in (1, 2, 7))
    assert one.centroids.tobytes() == two.centroids.tobytes() == seven.centroids.tobytes()
    assert one.sizes.sum() == 4000


def test_the_precision_of_the_screen_changes_no_bit(monkeypatch):
    from divsel_ray.cluster import screen

    rows = random_rows(800, 24, np.float16)
    usual = fit(rows, Settings(20))
    monkeypatch.setattr(screen, "screening_type", lambda device: torch.float32)
    assert fit(rows, Settings(20)).centroids.tobytes() == usual.centroids.tobytes()


@given(
    hnp.arrays(np.float16, st.tuples(st.integers(1, 25), st.integers(1, 3)), elements=st.floats(-2, 2, width=16)),
    st.integers(1, 25),
    st.sampled_from(["k-means++", "k-means||", "random"]),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_every_cluster_is_used_wherever_there_are_as_many_distinct_rows(rows, k, init, max_iter):
    k, distinct = min(k, len(rows)), len(np.unique(rows + np.float16(0), axis=0))
    found = fit(rows, Settings(k, init=init, max_iter=max_iter), parts=2)
    assert (found.sizes > 0).sum() == min(k, distinct)
    assert (found.sizes == np.bincount(labels_of(rows, found.centroids), minlength=k)).all()
    if k >= distinct:
        assert found.inertia == 0


def test_seeds_and_starts_draw_other_first_centroids():
    rows = random_rows(400, 4)
    starts = ((0, 0), (0, 1), (1, 0))
    draws = [
        lloyd.first_centroids(shards_of(rows, 2), Settings(5, seed=seed), start, geometry_of(rows)) for seed, start in starts
    ]
    assert not any((draws[i] == draws[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_best_of_several_starts_is_kept():
    rows, _ = make_blobs(300, 2, centers=9, cluster_std=0.1, center_box=(-9, 9), random_state=1)
    rows = rows.astype(np.float32)
    geometry = geometry_of(rows)
    firsts = [lloyd.first_centroids(shards_of(rows), Settings(9), start, geometry) for start in range(4)]
    alone = [fit(rows, Settings(9, init=first)) for first in firsts]
    inertias = [one.inertia for one in alone]
    assert min(inertias) < max(inertias)
    assert fit(rows, Settings(9, n_init=4)).inertia == min(inertias)


@pytest.mark.parametrize("init", ["k-means++", "k-means||"])
def test_drawn_centroids_spread_better_than_random_rows(init):
    rows, _ = make_blobs(2000, 4, centers=30, cluster_std=0.05, center_box=(-9, 9), random_state=0)
    rows = rows.astype(np.float32)
    spread, plain = ([fit(rows, Settings(30, init=i, seed=s, max_iter=1)).inertia for s in range(5)] for i in (init, "random"))
    assert np.mean(spread) < 0.5 * np.mean(plain)


def test_stopping_at_max_iter_is_said_and_inertia_belongs_to_the_last_centroids():
    rows = random_rows(800, 5)
    found = fit(rows, Settings(25, max_iter=2, tol=0))
    assert (found.converged, found.iterations) == (False, 2)
    labels, squared = Shard(rows).assign(found.centroids)
    assert found.inertia == pytest.approx(squared.astype(np.float64).sum(), rel=1e-12)
    assert (found.sizes == np.bincount(labels, minlength=25)).all()


def test_zero_vectors_are_ordinary_points():
    rows = np.array([[0, 0], [0, 0], [4, 4], [4, 5]], np.float16)
    found = fit(rows, Settings(2))
    assert sorted(found.centroids.tolist()) == [[0, 0], [4, 4.5]]


def test_the_unit_of_the_tolerance_is_the_mean_variance_of_the_features():
    rows = (random_rows(500, 6) * np.arange(1, 7) + 100).astype(np.float16)
    first = rows[:7].astype(np.float32)
    update = lloyd.Updater(shards_of(rows, 3), geometry_of(rows)).step(first)
    movement = np.square(update.centroids.astype(float) - first).sum()
    assert update.movement == pytest.approx(movement / rows.astype(np.float64).var(axis=0).mean(), rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_row_is_named(value):
    rows = random_rows(20, 3)
    rows[[13, 17], 1] = value
    assert shards.inspect(shards_of(rows, 3), 3).bad == 13


def test_the_first_row_of_zeros_is_named():
    rows = random_rows(20, 3)
    rows[[9, 17]] = 0
    assert shards.inspect(shards_of(rows, 3), 3).zero == 9


def test_spherical_centroids_have_unit_length_and_follow_directions_only():
    generator = np.random.default_rng(0)
    directions = np.eye(3)[generator.integers(0, 3, 300)] + generator.normal(0, 0.05, (300, 3))
    rows = (directions * generator.uniform(0.1, 50, (300, 1))).astype(np.float32)
    found = fit(normalise(rows), Settings(3, spherical=True))
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-6)
    truth = directions.argmax(axis=1)
    assert adjusted_rand_score(truth, labels_of(normalise(rows), found.centroids)) == 1
    cosines = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) * found.centroids[labels_of(normalise(rows), found.centroids)]
    ).sum(1)
    assert found.inertia == pytest.approx(2 * (1 - cosines).sum(), rel=1e-4)


def test_a_progressive_fit_begins_with_samples_and_ends_with_all_rows():
    rows, _ = make_blobs(20_000, 6, centers=40, cluster_std=0.4, random_state=0)
    rows = rows.astype(np.float16)
    plain, found = (fit(rows, Settings(40, init="random", tol=0, max_iter=60, progressive=on)) for on in (False, True))
    seen = [step.rows for step in found.history]
    assert seen == sorted(seen)
    assert seen[0] < 2000
    assert seen[-1] == 20_000
    assert seen.count(20_000) == found.iterations
    first_on_all = next(step for step in found.history if step.rows == 20_000)
    assert first_on_all.inertia < plain.history[1].inertia
    assert found.inertia < 1.2 * plain.inertia


def test_a_fit_on_a_sample_still_assigns_all_rows():
    rows = random_rows(3000, 5)
    found = fit(rows, Settings(12, share=0.2))
    assert {step.rows for step in found.history} == {found.history[0].rows}
    assert 400 < found.history[0].rows < 800
    assert found.sizes.sum() == 3000
    assert found.inertia == pytest.approx(Shard(rows).assign(found.centroids).squared_distances.sum(), rel=1e-12)
    assert found.inertia < 1.1 * fit(rows, Settings(12)).inertia


class Interrupted(LocalShards):
    def __init__(self, parts, calls):
        super().__init__(parts)
        self.calls = calls

    def map(self, *args, **kwargs):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().map(*args, **kwargs)


@pytest.mark.parametrize(
    ("change", "calls"), [({}, 3), ({}, 10), ({"n_init": 3}, 9), ({"n_init": 3}, 21), ({"progressive": True}, 4)]
)
def test_an_interrupted_fit_continues_from_its_journal_and_ends_the_same(tmp_path, change, calls):
    rows, _ = make_blobs(3000, 4, centers=12, cluster_std=1.0, random_state=0)
    rows = rows.astype(np.float16)
    asked = Settings(12, init="random", max_iter=12, tol=0, **change)
    whole, reports = [], []
    expected = lloyd.fit(shards_of(rows), asked, geometry_of(rows), lambda *report: whole.append(report))
    journal = Journal(tmp_path / "fit.npz", "same")
    halves = [Shard(rows[:1000]), Shard(rows[1000:], 1000)]
    with pytest.raises(KeyboardInterrupt):
        lloyd.fit(Interrupted(halves, calls), asked, geometry_of(rows), journal=journal)
    found = lloyd.fit(shards_of(rows, 3), asked, geometry_of(rows), lambda *report: reports.append(report), journal)
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert (found.inertia, found.iterations, len(found.history)) == (
        expected.inertia,
        expected.iterations,
        len(expected.history),
    )
    assert len(reports) < len(whole)


def test_progress_counts_centroids_then_iterations_over_all_starts():
    reports = []
    rows = random_rows(50, 2)
    asked = Settings(4, n_init=2, max_iter=3, tol=0)
    lloyd.fit(shards_of(rows), asked, geometry_of(rows), lambda *report: reports.append(report))
    drawn = [done for done, total, unit in reports if unit == "centroids" and total == 8]
    assert drawn == sorted(drawn)
    assert {4, 8} <= set(drawn)
    assert [done for done, total, unit in reports if unit == "iterations" and total == 6] == [1, 2, 3, 4, 5, 6]


def test_a_sample_of_fewer_rows_than_clusters_is_not_used():
    rows = random_rows(500, 4)
    found = fit(rows, Settings(100, share=0.1, max_iter=3), parts=2)
    assert found.centroids.shape == (100, 4)
    assert found.sizes.min() > 0


def test_rows_without_variance_converge_from_far_centroids():
    found = fit(np.ones((3, 2), np.float32), Settings(1, init=np.zeros((1, 2), np.float32)))
    assert (found.centroids.tolist(), found.inertia, found.converged) == ([[1, 1]], 0, True)


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_rows_far_from_the_origin_are_clustered_as_exactly_and_few_are_settled_one_by_one(offset, monkeypatch):
    rows = (random_rows(1500, 8) + offset).astype(np.float32)
    settled, settle = [], kernels.settle
    monkeypatch.setattr(kernels, "settle", lambda *args: settled.append(len(args[2])) or settle(*args))
    first = rows[:40].copy()
    found = fit(rows, Settings(40, init=first, max_iter=10, tol=0))
    reference = Reference(40, init=first, n_init=1, max_iter=10, tol=0).fit(rows.astype(np.float64))
    assert found.inertia == pytest.approx(reference.inertia_, rel=1e-6)
    assert sum(settled) < 0.05 * 40 * 1500 * 10


class LostTwice(LocalShards):
    """Loses a partition at the given calls."""

    def __init__(self, rows, calls):
        super().__init__([Shard(rows[:100]), Shard(rows[100:], 100)])
        self.rows, self.lost, self.calls = rows, calls, 0

    def map(self, question, *args, **kwargs):
        self.calls += 1
        if self.calls in self.lost:
            self._shards[1] = Shard(self.rows[100:], 100)
        return super().map(question, *args, **kwargs)


@pytest.mark.parametrize("init", ["k-means++", "k-means||"])
@pytest.mark.parametrize("first", range(2, 8))
def test_a_shard_that_is_lost_again_while_it_is_told_anew_changes_nothing(init, first):
    rows = random_rows(300, 3)
    lost = LostTwice(rows, {first, first + 2})
    found = lloyd.first_centroids(lost, Settings(12, init=init), 0, geometry_of(rows))
    assert (found == lloyd.first_centroids(shards_of(rows), Settings(12, init=init), 0, geometry_of(rows))).all()


@pytest.mark.parametrize("init", ["k-means++", "k-means||"])
def test_a_lost_shard_changes_nothing_in_what_is_drawn_or_found(init):
    rows = random_rows(400, 3)
    asked = Settings(12, init=init, seed=2, max_iter=6)

    class Forgetful(LocalShards):
        calls = 0

        def map(self, question, *args, **kwargs):
            self.calls += 1
            if self.calls % 3 == 0:
                self._shards[1] = Shard(rows[100:], 100)
            return super().map(question, *args, **kwargs)

    forgetful = Forgetful([Shard(rows[:100]), Shard(rows[100:], 100)])
    found, expected = lloyd.fit(forgetful, asked, geometry_of(rows)), fit(rows, asked)
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert found.inertia == expected.inertia
    assert forgetful.calls > 12
