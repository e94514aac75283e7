import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from divsel_ray.cluster import kernels, screen
from divsel_ray.cluster.exact import Grid
from divsel_ray.cluster.shard import Shard

VALUES = st.floats(-4, 4, width=16)


@st.composite
def rows_and_centroids(draw, dtype=np.float16):
    d = draw(st.integers(1, 9))
    rows = draw(hnp.arrays(dtype, (draw(st.integers(1, 30)), d), elements=VALUES))
    return rows, draw(hnp.arrays(np.float32, (draw(st.integers(1, 6)), d), elements=VALUES))


def brute_force(rows, centroids):
    return np.square(rows[:, None].astype(np.float64) - centroids[None]).sum(axis=2)


@given(rows_and_centroids())
@settings(max_examples=60, deadline=None)
def test_assign_finds_the_nearest_centroid_and_ties_go_to_the_lowest_index(case):
    distances = brute_force(*case)
    labels, squared = kernels.assign(*case)
    assert (labels == distances.argmin(axis=1)).all()
    np.testing.assert_allclose(squared, distances.min(axis=1), rtol=1e-6)


def sums_of(rows, labels, k):
    sums = torch.zeros(k, rows.shape[1], dtype=torch.float64)
    kernels.accumulate(torch.from_numpy(rows), torch.from_numpy(labels), sums, Grid.of(len(rows), 8.0))
    return sums.numpy()


def whole_sums(rows, labels, k):
    return np.array([rows[labels == j].astype(np.float64).sum(axis=0) for j in range(k)])


@given(rows_and_centroids(), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_sums_are_the_same_bits_however_rows_are_cut(case, cut):
    rows, centroids = case
    labels = kernels.assign(rows, centroids).labels
    sums = sums_of(rows, labels, len(centroids))
    parts = [sums_of(rows[part], labels[part], len(centroids)) for part in (slice(cut, None), slice(0, cut))]
    assert (sums == parts[0] + parts[1]).all()
    assert (sums == whole_sums(rows, labels, len(centroids))).all()


def test_rows_that_are_taken_away_leave_the_sums_as_they_were():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    grid, labels = Grid.of(200, 8.0), torch.arange(200) % 7
    sums = torch.zeros(7, 6, dtype=torch.float64)
    kernels.accumulate(rows, labels, sums, grid)
    before = sums.clone()
    kernels.accumulate(rows[50:], labels[50:], sums, grid, -1)
    kernels.accumulate(rows[50:].flip(0), labels[50:].flip(0), sums, grid)
    assert (sums == before).all()


def test_labels_of_near_ties_do_not_depend_on_the_neighbouring_rows():
    generator = np.random.default_rng(0)
    centroids = generator.normal(size=(40, 65)).astype(np.float32)
    pairs = generator.integers(0, 40, size=(500, 2))
    rows = centroids[pairs].mean(axis=1).astype(np.float32)
    whole = kernels.assign(rows, centroids)
    alone = [kernels.assign(rows[i : i + 1], centroids) for i in range(len(rows))]
    assert (whole.labels == [one.labels[0] for one in alone]).all()
    assert (whole.squared_distances == [one.squared_distances[0] for one in alone]).all()
    assert (whole.labels == brute_force(rows, centroids).argmin(axis=1)).all()


def test_batches_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    rows, centroids = generator.normal(size=(300, 7)).astype(np.float16), generator.normal(size=(11, 7)).astype(np.float32)
    whole = kernels.assign(rows, centroids)
    for module, name in ((kernels, "BLOCK_ELEMENTS"), (kernels, "CACHED_ELEMENTS"), (screen, "PRODUCT_BYTES")):
        monkeypatch.setattr(module, name, 100)
    cut = kernels.assign(rows, centroids)
    assert (cut.labels == whole.labels).all()
    assert (cut.squared_distances == whole.squared_distances).all()
    assert (sums_of(rows, whole.labels, 11) == whole_sums(rows, whole.labels, 11)).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rows_of_every_type_and_scale_are_assigned_exactly_in_both_precisions_of_the_screen(kind, scale, screen_types):
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(400, 20, generator=generator) * scale).to(kind)
    centroids = (torch.randn(60, 20, generator=generator) * scale).numpy()
    distances = (rows.double()[:, None] - torch.from_numpy(centroids).double()).square().sum(dim=2)
    labels, squared = kernels.assign(rows, centroids)
    assert (labels == distances.argmin(dim=1).numpy()).all()
    np.testing.assert_allclose(squared, distances.amin(dim=1).numpy(), rtol=1e-12)


def test_float16_rows_at_the_edge_of_their_range_are_assigned_exactly(screen_types):
    rows = np.array([[60000, -60000], [6e-8, 0], [-60000, 60000], [0, 1.2e-7]], np.float16)
    assert kernels.assign(rows, rows.astype(np.float32)).labels.tolist() == [0, 1, 2, 3]


@given(rows_and_centroids(), st.data())
@settings(max_examples=150, deadline=None)
def test_reassigning_after_any_moves_says_what_assigning_anew_says(case, data):
    rows, centroids = case
    shard = Shard(rows)
    shard.labels(centroids)
    for _ in range(4):
        moved = data.draw(st.lists(st.integers(0, len(centroids) - 1), unique=True))
        centroids = centroids.copy()
        centroids[moved] = data.draw(hnp.arrays(np.float32, (len(moved), rows.shape[1]), elements=VALUES))
        assert (shard.labels(centroids) == brute_force(rows, centroids).argmin(axis=1)).all()


def test_reassigning_follows_a_whole_fit_in_both_precisions_of_the_screen(screen_types):
    rows = np.random.default_rng(3).normal(size=(900, 12)).astype(np.float16)
    centroids, shard = rows[:60].astype(np.float32), Shard(rows)
    for _ in range(12):
        labels = shard.labels(centroids)
        assert (labels == brute_force(rows, centroids).argmin(axis=1)).all()
        means = [rows[labels == j].mean(axis=0, dtype=np.float64) for j in range(60)]
        centroids = np.where(np.arange(60)[:, None] % 3 == 0, centroids, means).astype(np.float32)


def test_equal_centroids_leave_the_later_one_empty():
    rows = np.array([[0.1, 0.3], [0.1, 0.3], [5, 5]], np.float16)
    assert kernels.assign(rows, np.array([[0.1, 0.3], [0.1, 0.3], [5, 5]], np.float32)).labels.tolist() == [0, 0, 2]


def test_an_offset_that_float32_cannot_hold_does_not_change_labels():
    rows = np.array([[1000.5, 0.25], [1000.25, 0.25]], np.float32)
    centroids = np.array([[1000.0, 0.25], [1000.75, 0.25], [1000.5, 0.25]], np.float32)
    labels, squared = kernels.assign(rows, centroids)
    assert labels.tolist() == [2, 0]
    assert squared.tolist() == [0.0, 0.0625]


@pytest.mark.parametrize("d", [1, 7, 8, 9, 127, 129, 384])
def test_a_pair_distance_does_not_depend_on_the_rows_beside_it(d):
    rows = np.random.default_rng(d).normal(size=(33, d)).astype(np.float16)
    whole = kernels.pair_distances(rows, rows[0])
    assert all(kernels.pair_distances(rows[i : i + 1], rows[0])[0] == whole[i] for i in range(33))
    assert whole[0] == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32]))
@settings(deadline=None, max_examples=30)
def test_settling_where_the_rows_are_names_the_centroids_that_the_host_names_ties_included(seed, dtype):
    generator = np.random.default_rng(seed)
    rows = generator.integers(-3, 4, (40, 5)).astype(dtype) / 8
    centroids = np.concatenate([generator.integers(-3, 4, (6, 5)) / 8, rows[:3] + 2.0**-26, rows[:3] - 2.0**-26])
    centroids = centroids.astype(np.float32)
    row, centroid = np.repeat(np.arange(40), 12), np.tile(np.arange(12), 40)
    labels, squared = kernels.settle(rows, centroids, row, centroid)
    found, measured = kernels.settle_on_device(torch.from_numpy(rows), centroids, row, centroid)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(measured, squared, rtol=1e-13)


def test_a_near_tie_is_left_to_the_host_and_a_clear_case_is_not(monkeypatch):
    settled, settle = [], kernels.settle
    monkeypatch.setattr(kernels, "settle", lambda rows, *rest: settled.append(len(rows)) or settle(rows, *rest))
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    centroids = np.array([[0, 1], [1, 0], [0, -1]], np.float32)
    pairs = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    labels, squared = kernels.settle_on_device(rows, centroids, *pairs)
    assert labels.tolist() == [0, 1] and squared.tolist() == [1.0, 0.0]
    assert settled == [1]
