from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.select import semantic
from divsel_ray.select.semantic import semantic_duplicates


def ids(n):
    return np.array([f"{i:032x}" for i in range(n)], dtype="S32")


def at_angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def found(vectors, quality=None, cluster=None, threshold=0.95):
    n = len(vectors)
    quality = np.full(n, np.nan) if quality is None else np.array(quality, dtype=np.float64)
    duplicates = semantic_duplicates(
        vectors, np.zeros(n, int) if cluster is None else np.array(cluster), ids(n), quality, threshold
    )
    return list(zip(duplicates.removed.tolist(), duplicates.kept.tolist(), strict=True)), duplicates.cosine


def brute_force(vectors, cluster, quality, threshold):
    """Row by row, best first, in float64: removed to the most alike row that stays."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    best_first = sorted(range(len(units)), key=lambda i: (np.isnan(quality[i]), -np.nan_to_num(quality[i]), i))
    stays, gone = [], {}
    for row in best_first:
        cosines = {other: float(units[row] @ units[other]) for other in stays if cluster[other] == cluster[row]}
        if cosines and max(cosines.values()) >= threshold:
            gone[row] = max(cosines.values())
        else:
            stays.append(row)
    return gone


def test_the_best_of_near_copies_stays():
    # cos 10 degrees = 0.985, cos 20 degrees = 0.940
    pairs, cosine = found(at_angles(0, 10, 90), quality=[1, 2, 0])
    assert pairs == [(0, 1)]
    assert cosine[0] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)


def test_a_row_goes_only_where_the_row_it_is_like_stays():
    assert found(at_angles(0, 10, 20), quality=[3, 2, 1])[0] == [(1, 0)]
    assert found(at_angles(0, 10, 20), quality=[1, 3, 2])[0] == [(0, 1), (2, 1)]


def test_of_several_twins_the_most_alike_is_named():
    # 17 and -17 degrees are 34 degrees apart: both stay.
    assert found(at_angles(17, -17, 3), quality=[3, 2, 1])[0] == [(2, 0)]
    assert found(at_angles(17, -17, -3), quality=[3, 2, 1])[0] == [(2, 1)]


def test_rows_without_quality_come_last_and_ties_go_by_row_id():
    assert found(at_angles(0, 0, 0), quality=[np.nan, -5, np.nan])[0] == [(0, 1), (2, 1)]
    assert found(at_angles(0, 0, 0))[0] == [(1, 0), (2, 0)]


def test_rows_of_other_clusters_are_not_looked_at():
    assert found(at_angles(0, 0, 1, 1), cluster=[1, 0, 1, 0])[0] == [(2, 0), (3, 1)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equal_vectors_reach_a_threshold_of_one_and_others_do_not(dtype):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 384))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
    pairs, cosine = found(np.concatenate([vectors, vectors]), threshold=1.0)
    assert pairs == [(30 + i, i) for i in range(30)]
    assert cosine.max() <= 1


def test_a_zero_vector_is_like_no_other():
    assert found(np.zeros((3, 4), np.float16), threshold=0.01)[0] == []


def test_nothing_is_found_among_no_rows():
    assert found(np.empty((0, 4), np.float32))[0] == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([0.5, 0.8, 0.95]), st.integers(1, 9), st.booleans())
def test_duplicates_are_those_of_a_row_by_row_search_whatever_the_blocks(seed, n, threshold, block, known):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n, 3)).astype(np.float32)
    cluster = generator.integers(0, 3, size=n)
    quality = np.where(generator.random(n) < (0.7 if known else 0), generator.integers(0, 4, size=n), np.nan)
    expected = brute_force(vectors, cluster, quality, threshold)
    before = semantic._BLOCK, semantic._KEPT_BLOCK
    semantic._BLOCK, semantic._KEPT_BLOCK = block, 2 * block
    try:
        duplicates = semantic_duplicates(vectors, cluster, ids(n), quality, threshold)
    finally:
        semantic._BLOCK, semantic._KEPT_BLOCK = before
    assert duplicates.removed.tolist() == sorted(expected)
    assert not set(duplicates.kept.tolist()) & set(expected)
    assert np.allclose(duplicates.cosine, [expected[row] for row in sorted(expected)], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_the_rows_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    n = 40
    vectors, cluster = generator.normal(size=(n, 3)).astype(np.float16), generator.integers(0, 2, size=n)
    quality, order = generator.integers(0, 3, size=n).astype(float), generator.permutation(n)
    straight = semantic_duplicates(vectors, cluster, ids(n), quality, 0.8)
    turned = semantic_duplicates(vectors[order], cluster[order], ids(n)[order], quality[order], 0.8)
    pairs = dict(zip(straight.removed.tolist(), straight.kept.tolist(), strict=True))
    assert pairs == dict(zip(order[turned.removed].tolist(), order[turned.kept].tolist(), strict=True))
