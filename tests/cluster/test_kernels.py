import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from divsel_ray.cluster import kernels
from divsel_ray.cluster.kernels import Assignment, Farthest

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


@given(rows_and_centroids(), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_sums_of_float16_rows_are_the_same_bits_however_they_are_cut(case, cut):
    rows, centroids = case
    labels = kernels.assign(rows, centroids).labels
    sums, counts = kernels.accumulate(rows, labels, len(centroids))
    parts = [kernels.accumulate(rows[part], labels[part], len(centroids)) for part in (slice(cut, None), slice(0, cut))]
    assert (sums == parts[0][0] + parts[1][0]).all()
    assert (counts == parts[0][1] + parts[1][1]).all()
    expected = [rows[labels == j].astype(np.float64).sum(axis=0) for j in range(len(centroids))]
    assert (sums == expected).all()


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


def test_chunks_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    rows, centroids = generator.normal(size=(300, 7)).astype(np.float16), generator.normal(size=(11, 7)).astype(np.float32)
    whole = kernels.assign(rows, centroids)
    sums, _ = kernels.accumulate(rows, whole.labels, 11)
    for name in ("CHUNK_ELEMENTS", "CACHED_ELEMENTS"):
        monkeypatch.setattr(kernels, name, 50)
    cut = kernels.assign(rows, centroids)
    assert (cut.labels == whole.labels).all()
    assert (cut.squared_distances == whole.squared_distances).all()
    assert (kernels.accumulate(rows, whole.labels, 11)[0] == sums).all()


def test_equal_centroids_leave_the_later_one_empty():
    rows = np.array([[0.1, 0.3], [0.1, 0.3], [5, 5]], np.float16)
    assert kernels.assign(rows, np.array([[0.1, 0.3], [0.1, 0.3], [5, 5]], np.float32)).labels.tolist() == [0, 0, 2]


def test_an_offset_that_float32_cannot_hold_does_not_change_labels():
    rows = np.array([[1000.5, 0.25], [1000.25, 0.25]], np.float32)
    centroids = np.array([[1000.0, 0.25], [1000.75, 0.25], [1000.5, 0.25]], np.float32)
    labels, squared = kernels.assign(rows, centroids)
    assert labels.tolist() == [2, 0]
    assert squared.tolist() == [0.0, 0.0625]


def test_an_emptied_cluster_takes_the_farthest_row_out_of_its_old_cluster():
    rows = np.array([[0, 0], [2, 0], [10, 0], [1, 3]], np.float16)
    centroids = np.array([[1, 0], [50, 50], [60, 60]], np.float32)
    assignment = kernels.assign(rows, centroids)
    sums, counts = kernels.accumulate(rows, assignment.labels, 3)
    far = kernels.farthest(rows, assignment, 2)
    assert far.indices.tolist() == [2, 3]
    assert far.squared_distances.tolist() == [81.0, 9.0]
    sums, counts = kernels.relocate(sums, counts, far)
    assert counts.tolist() == [2, 1, 1]
    assert kernels.finish(sums, counts, centroids).tolist() == [[1, 0], [10, 0], [1, 3]]


def test_a_cluster_that_stays_empty_keeps_its_centroid():
    sums, counts = np.array([[4.0, 8.0], [0.0, 0.0]]), np.array([4, 0])
    assert kernels.finish(sums, counts, np.array([[9, 9], [7, 5]], np.float32)).tolist() == [[1, 2], [7, 5]]


def test_a_row_on_its_centroid_is_never_relocated():
    rows = np.array([[1, 1], [3, 3]], np.float32)
    assignment = Assignment(np.array([0, 1], np.int32), np.array([0, 2], np.float32))
    assert kernels.farthest(rows, assignment, 5, first=10).indices.tolist() == [11]


def test_farthest_rows_of_parts_merge_by_distance_then_row_number():
    def part(distances, indices):
        n = len(indices)
        rows = np.array(indices, np.float32)[:, None]
        return Farthest(np.array(distances, np.float32), np.array(indices), np.arange(n, dtype=np.int32), rows)

    merged = kernels.merge_farthest([part([4, 1], [7, 8]), part([9, 4], [3, 2])], 3)
    assert merged.indices.tolist() == [3, 2, 7]
    assert merged.rows[:, 0].tolist() == [3, 2, 7]


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(0, 2.0**100, width=32)), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_exact_sums_are_fractions_sums_rounded_once(values, cut):
    from fractions import Fraction

    parts = kernels.exact_parts(values[cut:]) + kernels.exact_parts(values[:cut])
    assert kernels.exact_total(parts) == float(sum(map(Fraction, values.tolist()), Fraction(0)))


def test_exact_sums_keep_what_float32_would_lose():
    values = np.array([2.0**60, 1.0, 2.0**-40])
    assert kernels.exact_total(kernels.exact_parts(values[1:])) == 1 + 2.0**-40
    assert kernels.exact_total(kernels.exact_parts(np.array([1 + 2.0**-40]))) == 1 + 2.0**-40


@pytest.mark.parametrize("d", [1, 7, 8, 9, 127, 129, 384])
def test_a_pair_distance_does_not_depend_on_the_rows_beside_it(d):
    rows = np.random.default_rng(d).normal(size=(33, d)).astype(np.float16)
    whole = kernels.pair_distances(rows, rows[0])
    assert all(kernels.pair_distances(rows[i : i + 1], rows[0])[0] == whole[i] for i in range(33))
    assert whole[0] == 0
