import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from divsel_ray.cluster import balance, kernels
from divsel_ray.cluster.balance import BINS, EVERY_ROW, Tally, balanced, balanced_fit, balanced_labels, tighten
from divsel_ray.cluster.exact import Grid
from divsel_ray.cluster.rows import Held, bounds
from divsel_ray.cluster.shard import Shard
from divsel_ray.cluster.shards import LocalShards
from divsel_ray.errors import InputError
from tests.cluster.vectors import shards_of

QUARTERS = st.integers(-6, 6).map(lambda value: value / 4)


class Torn(Held):
    """Rows that come in blocks of five."""

    def blocks(self):
        for start in range(0, len(self), 5):
            yield start, self._rows[start : start + 5]


class Forgetful(LocalShards):
    """Partitions that lose their memory, one after the other."""

    def __init__(self, rows, parts):
        self._make = lambda i: Shard(rows[slice(*bounds(len(rows), parts)[i])], bounds(len(rows), parts)[i][0])
        super().__init__([self._make(i) for i in range(parts)])
        self.questions = 0

    def map(self, question, *args, **kwargs):
        self.questions += 1
        lost = self.questions % len(self._shards)
        self._shards[lost] = self._make(lost)
        return super().map(question, *args, **kwargs)


def random_case(n, k, d, dtype=np.float16, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)).astype(dtype), generator.normal(size=(k, d)).astype(np.float32)


def distances_of(rows, centroids):
    return np.stack([kernels.pair_distances(rows, centroid) for centroid in centroids], axis=1)


def labels_of(shards, found):
    assignments = shards.map(balanced_labels, found.centroids, found.thresholds)
    return np.concatenate([assignment.labels for assignment in assignments])


def deferred_acceptance(rows, centroids, max_size):
    """Gale and Shapley 1962, one proposal at a time."""
    distances = distances_of(rows, centroids)
    preferences = [sorted(range(len(centroids)), key=lambda j, i=i: (distances[i, j], j)) for i in range(len(rows))]
    held = [[] for _ in centroids]
    free, labels = list(range(len(rows))), [-1] * len(rows)
    while free:
        row = free.pop()
        labels[row] = preferences[row].pop(0)
        here = held[labels[row]]
        here.append((np.float32(distances[row, labels[row]]), row))
        if len(here) > max_size:
            here.sort()
            free.append(here.pop()[1])
    return labels


def greedy(rows, centroids, max_size):
    """The nearest pair first."""
    distances = distances_of(rows, centroids)
    near = np.float32(distances)
    pairs = [(near[i, j], i, distances[i, j], j) for i in range(len(rows)) for j in range(len(centroids))]
    labels, room = [-1] * len(rows), [max_size] * len(centroids)
    for _, row, _, cluster in sorted(pairs):
        if labels[row] < 0 and room[cluster]:
            labels[row] = cluster
            room[cluster] -= 1
    return labels


@st.composite
def cases(draw):
    n, k, d = draw(st.integers(1, 25)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    rows = draw(hnp.arrays(np.float16, (n, d), elements=QUARTERS))
    centroids = draw(hnp.arrays(np.float32, (k, d), elements=QUARTERS))
    return rows, centroids, -(-n // k) + draw(st.integers(0, 3))


def test_a_row_that_is_too_far_goes_to_the_next_cluster_and_pushes_on():
    rows = np.array([[0], [1], [2], [3], [4.4]], np.float16)
    centroids = np.array([[0], [4], [9]], np.float32)
    # 0 keeps rows 0 and 1, so row 2 asks 4, where rows 3 and 4 are nearer: it is left with 9.
    shards = shards_of(rows)
    found = balanced(shards, centroids, 2)
    assert labels_of(shards, found).tolist() == [0, 0, 2, 1, 1]
    assert found.counts.tolist() == [2, 2, 1]
    assert found.inertia == pytest.approx(0 + 1 + 49 + 1 + 0.16, rel=1e-3)


def test_equal_rows_are_served_by_their_number_and_equal_clusters_by_their_index():
    rows = np.tile(np.array([[0.5, 0.5]], np.float16), (7, 1))
    centroids = np.array([[3, 3], [1, 1], [1, 1], [0, 9]], np.float32)
    shards = shards_of(rows, 3)
    assert labels_of(shards, balanced(shards, centroids, 2)).tolist() == [1, 1, 2, 2, 0, 0, 3]


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_deferred_acceptance_one_proposal_at_a_time_and_the_greedy_matching(case):
    rows, centroids, max_size = case
    shards = shards_of(rows, 2)
    found = balanced(shards, centroids, max_size)
    labels = labels_of(shards, found)
    assert labels.tolist() == deferred_acceptance(*case) == greedy(*case)
    assert (found.counts == np.bincount(labels, minlength=len(centroids))).all()
    assert found.counts.max() <= max_size
    assert found.counts.sum() == len(rows)
    assert found.rounds <= 26 * len(centroids) + 1
    assert found.inertia == distances_of(rows, centroids)[np.arange(len(rows)), labels].sum()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "k", "max_size"), [(400, 8, 50), (400, 8, 61), (500, 30, 17), (300, 100, 3), (90, 3, 40)])
def test_equals_deferred_acceptance_on_random_rows(n, k, max_size, dtype):
    rows, centroids = random_case(n, k, 12, dtype, seed=n + k)
    shards = shards_of(rows, 3)
    assert labels_of(shards, balanced(shards, centroids, max_size)).tolist() == deferred_acceptance(rows, centroids, max_size)


def test_bfloat16_rows_are_balanced_too():
    rows, centroids = random_case(200, 6, 5, np.float32)
    halves = torch.from_numpy(rows).bfloat16()
    shards = shards_of(halves, 2)
    assert labels_of(shards, balanced(shards, centroids, 40)).tolist() == deferred_acceptance(halves, centroids, 40)


def test_nearer_clusters_are_full_of_nearer_rows():
    rows, centroids = random_case(4000, 50, 16, seed=3)
    found = balanced(shards_of(rows), centroids, 90)
    labels, squared = balanced_labels(Shard(rows), centroids, found.thresholds)
    distances = distances_of(rows, centroids)
    farthest = np.array([distances[labels == j, j].max(initial=0) for j in range(50)])
    assert (squared == distances[np.arange(4000), labels]).all()
    row, cluster = np.nonzero(distances < squared[:, None])
    assert len(row) > 100
    assert (found.counts[cluster] == 90).all()
    assert (distances[row, cluster] > farthest[cluster]).all()


def test_more_equal_centroids_than_are_listed_at_once_share_the_rows():
    rows, centroids = random_case(240, 6, 4)
    centroids = np.repeat(centroids, 4 * balance.LISTED, axis=0)
    shards = shards_of(rows, 2)
    found = balanced(shards, centroids, 3)
    assert labels_of(shards, found).tolist() == deferred_acceptance(rows, centroids, 3)


@pytest.mark.parametrize("max_size", [60, 75])
def test_the_partition_of_the_rows_changes_no_bit(max_size):
    rows, centroids = random_case(1500, 25, 33, np.float32)
    results = [(shards, balanced(shards, centroids, max_size)) for shards in (shards_of(rows, parts) for parts in (1, 2, 7))]
    labels = [labels_of(*result).tobytes() for result in results]
    assert labels[0] == labels[1] == labels[2]
    one, two, seven = (found for _, found in results)
    assert one.thresholds.tobytes() == two.thresholds.tobytes() == seven.thresholds.tobytes()
    assert one.counts.tobytes() == two.counts.tobytes() == seven.counts.tobytes()
    assert one.inertia == two.inertia == seven.inertia
    assert one.rounds == two.rounds == seven.rounds


def test_blocks_of_rows_change_nothing():
    rows, centroids = random_case(203, 11, 7)
    torn = LocalShards([Shard(Torn(rows[:101])), Shard(Torn(rows[101:]), 101)])
    whole = shards_of(rows)
    assert (labels_of(torn, balanced(torn, centroids, 19)) == labels_of(whole, balanced(whole, centroids, 19))).all()


def test_partitions_that_lose_their_memory_give_the_same_result():
    rows, centroids = random_case(900, 20, 9)
    forgetful = Forgetful(rows, 3)
    expected, found = balanced(shards_of(rows, 3), centroids, 45), balanced(forgetful, centroids, 45)
    assert forgetful.questions > 5
    assert found.thresholds.tobytes() == expected.thresholds.tobytes()
    assert (found.inertia, found.rounds) == (expected.inertia, expected.rounds)
    assert (labels_of(forgetful, found) == labels_of(shards_of(rows, 3), expected)).all()


def test_what_a_shard_remembers_of_other_caps_and_centroids_is_not_used():
    rows, centroids = random_case(300, 10, 4)
    shards = shards_of(rows, 2)
    for used, max_size in ((centroids, 30), (centroids, 300), (centroids[::-1].copy(), 33), (centroids[:4], 80)):
        found = balanced(shards, used, max_size)
        assert labels_of(shards, found).tolist() == deferred_acceptance(rows, used, max_size)


def test_a_cap_that_binds_nowhere_gives_the_plain_assignment():
    rows, centroids = random_case(700, 13, 40)
    plain = Shard(rows).assign(centroids)
    for max_size in (np.bincount(plain.labels).max(), 700, 10**9):
        found = balanced(shards_of(rows, 2), centroids, int(max_size))
        labels, squared = balanced_labels(Shard(rows), centroids, found.thresholds)
        assert labels.dtype == plain.labels.dtype
        assert (labels == plain.labels).all()
        assert squared.tobytes() == plain.squared_distances.tobytes()
        assert found.rounds == 1


def test_perfect_balance_fills_every_cluster():
    rows, centroids = random_case(960, 32, 6)
    assert balanced(shards_of(rows, 2), centroids, 30).counts.tolist() == [30] * 32


@pytest.mark.parametrize("max_size", [33, 0, -1])
def test_an_impossible_cap_is_refused_with_the_least_possible_one(max_size):
    rows, centroids = random_case(100, 3, 2)
    with pytest.raises(InputError, match=f"max_size={max_size}: 3 clusters .* set max_size to at least 34"):
        balanced(shards_of(rows, 2), centroids, max_size)


def test_more_rows_than_a_key_can_number_are_refused(monkeypatch):
    monkeypatch.setattr(balance, "LARGEST_POOL", 99)
    rows, centroids = random_case(100, 3, 2)
    with pytest.raises(InputError, match="100 rows: max_size supports at most 99"):
        balanced(shards_of(rows), centroids, 50)


def test_thresholds_of_other_rows_are_refused():
    rows, centroids = random_case(10, 3, 2)
    with pytest.raises(InputError, match="row 4: no cluster admits it"):
        balanced_labels(Shard(rows[4:], 4), centroids, np.zeros(3, np.int64))


def test_a_threshold_falls_to_the_lowest_edge_that_leaves_the_cap_filled():
    bins = np.zeros((4, BINS), np.int32)
    bins[:, [10, 20, 31]] = [1, 3, 1]
    # Keys below the bins: 3, 4, 6, none; the last cluster holds no more than the cap.
    found = Tally(np.array([8, 9, 11, 5]), bins)
    thresholds, widths = tighten(np.full(4, 10 * BINS), np.full(4, 10), found, 5)
    assert thresholds.tolist() == [210, 110, 0, 320]
    # Zoomed in on two keys too many, exact, zoomed out as the row on the cap lies lower, left alone.
    assert widths.tolist() == [1, 10, 10 * BINS, 10]


def test_bins_never_grow_wider_than_all_keys():
    widest = EVERY_ROW // BINS + 1
    found = Tally(np.array([9]), np.zeros((1, BINS), np.int32))
    thresholds, widths = tighten(np.array([EVERY_ROW // 2]), np.array([widest // 4]), found, 5)
    assert thresholds[0] < EVERY_ROW // 2
    assert widest - BINS < widths[0] <= widest


def test_progress_counts_the_rows_within_the_caps():
    reports = []
    rows, centroids = random_case(500, 10, 3)
    balanced(shards_of(rows), centroids, 50, lambda *report: reports.append(report))
    assert reports[0][0] < 500
    assert reports[-1] == (500, 500, "rows")


def fit(rows, centroids, max_size, iterations, parts=1, **options):
    grid = Grid.of(len(rows), float(np.abs(rows).max()))
    return balanced_fit(shards_of(rows, parts), centroids, max_size, iterations, grid, **options)


def test_each_iteration_starts_at_the_means_of_the_one_before_and_the_best_is_kept():
    rows, centroids = random_case(400, 9, 5, seed=8)
    expected = []
    for _ in range(6):
        labels = np.array(deferred_acceptance(rows, centroids, 50))
        expected.append((distances_of(rows, centroids)[np.arange(400), labels].sum(), centroids))
        centroids = np.array([rows[labels == j].astype(np.float64).mean(axis=0) for j in range(9)], np.float32)
    found = fit(rows, expected[0][1], 50, 6, parts=3)
    np.testing.assert_allclose(found.inertias, [inertia for inertia, _ in expected], rtol=1e-9)
    best = int(np.argmin(found.inertias))
    assert found.best.inertia == found.inertias[best] < found.inertias[0]
    assert (found.best.centroids == expected[best][1]).all()
    assert found.best.counts.max() <= 50


def test_a_worse_later_iteration_is_not_kept(monkeypatch):
    rows, centroids = random_case(200, 5, 3)
    monkeypatch.setattr(balance.repair, "finish", lambda sums, counts, before, spherical: before + 1)
    found = fit(rows, centroids, 45, 3)
    assert len(found.inertias) == 3
    assert found.inertias[0] < found.inertias[1] < found.inertias[2]
    assert (found.best.centroids == centroids).all()


def test_centroids_that_stand_still_end_the_iterations():
    rows = np.array([[0], [2], [10], [12]], np.float16)
    found = fit(rows, np.array([[0], [12]], np.float32), 2, 50)
    assert found.inertias == (8, 4)
    assert found.best.centroids.tolist() == [[1], [11]]


def test_the_partition_changes_no_bit_of_a_fit():
    rows, centroids = random_case(800, 12, 20, np.float32)
    one, seven = (fit(rows, centroids, 70, 4, parts) for parts in (1, 7))
    assert one.best.centroids.tobytes() == seven.best.centroids.tobytes()
    assert one.inertias == seven.inertias


def test_spherical_means_have_unit_length():
    rows, centroids = random_case(300, 6, 8)
    found = fit(rows, centroids, 60, 4, spherical=True)
    assert found.inertias.index(found.best.inertia) > 0
    np.testing.assert_allclose(np.linalg.norm(found.best.centroids, axis=1), 1, rtol=1e-6)


def test_progress_of_a_fit_goes_over_all_iterations():
    reports = []
    rows, centroids = random_case(200, 5, 3)
    fit(rows, centroids, 42, 2, report=lambda *report: reports.append(report))
    assert reports[-1] == (400, 400, "rows")


def test_no_iteration_is_refused():
    rows, centroids = random_case(20, 3, 2)
    with pytest.raises(InputError, match="iterations=0: expected at least 1"):
        fit(rows, centroids, 10, 0)
