from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.data.near_duplicates import (
    alike_pairs,
    band_keys,
    banding,
    buckets,
    jaccard,
    shingle_set,
    signatures,
    smallest_connected,
    thin_out,
)
from divsel_ray.data.words import WordHasher


def numbers(*values):
    return np.array(values, dtype=np.uint64)


def random_set(generator, size):
    return np.unique(generator.integers(0, 2**64, size=size, dtype=np.uint64))


def overlapping(generator, size, share):
    """Two sets of `size` values with a Jaccard similarity of about `share`."""
    common = round(2 * size * share / (1 + share))
    values = random_set(generator, 2 * size - common)
    generator.shuffle(values)
    return np.sort(values[:size]), np.sort(values[size - common :])


def groups_of(n, pairs):
    label = smallest_connected(n, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    return label.tolist()


def reference_groups(n, pairs):
    label = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    return label


def test_a_text_is_its_distinct_runs_of_five_words():
    hasher = WordHasher()
    assert len(shingle_set(hasher("a b c d e f"))) == 2
    assert len(shingle_set(hasher("a a a a a a a"))) == 1
    assert set(shingle_set(hasher("a b c d e f"))) > set(shingle_set(hasher("b c d e f")))
    assert len(shingle_set(hasher("a b c d"))) == len(shingle_set(hasher("a"))) == 1
    assert len(shingle_set(hasher("..."))) == 0


def test_jaccard_is_what_is_shared_over_what_there_is():
    assert jaccard(numbers(1, 2, 3), numbers(2, 3, 4)) == 0.5
    assert jaccard(numbers(1), numbers(1)) == 1.0
    assert jaccard(numbers(1), numbers(2)) == 0.0
    assert jaccard(numbers(1, 2, 3, 4), numbers(1, 2, 3, 4, 5)) == 0.8


@pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
def test_signatures_estimate_jaccard_without_bias(share):
    generator = np.random.default_rng(0)
    drawn = [overlapping(generator, 300, share) for _ in range(200)]
    signature = signatures([side for pair in drawn for side in pair])
    estimates = (signature[::2] == signature[1::2]).mean(axis=1)
    exact = np.mean([jaccard(*pair) for pair in drawn])
    # The standard error of the mean of 200 estimates of 128 entries each is at most 0.0029.
    assert abs(estimates.mean() - exact) < 0.012
    assert np.array_equal(signature[:2], signatures(list(drawn[0])))


def test_no_text_gives_no_signature():
    assert signatures([]).shape == (0, 128)


@pytest.mark.parametrize(("threshold", "expected"), [(0.8, (21, 6)), (0.95, (8, 16)), (1.0, (1, 128)), (0.01, (128, 1))])
def test_bands_are_as_long_as_finding_99_of_100_pairs_allows(threshold, expected):
    assert banding(threshold) == expected
    bands, rows = expected
    if rows > 1:
        assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_band_keys_are_equal_just_where_bands_are():
    generator = np.random.default_rng(1)
    signature = generator.integers(0, 2, size=(40, 128), dtype=np.uint32)
    keys = band_keys(signature, 32, 4)
    assert keys.shape == (32, 40)
    bands = signature.reshape(40, 32, 4)
    for band in range(32):
        same = (bands[:, None, band] == bands[None, :, band]).all(axis=2)
        assert np.array_equal(keys[band][:, None] == keys[band][None, :], same)


def test_buckets_are_the_positions_of_keys_that_occur_twice():
    assert [bucket.tolist() for bucket in buckets(numbers(5, 3, 5, 9, 3, 5))] == [[1, 4], [0, 2, 5]]
    assert list(buckets(numbers())) == []


def test_a_crowd_is_split_by_further_bands_and_where_they_agree_into_pieces_with_one_row_in_common():
    rows = np.arange(10, 20)
    further = [np.r_[np.zeros(7), np.ones(2), 2.0], np.zeros(10)]
    found = thin_out(rows, lambda depth, some: further[depth][some - 10].astype(np.uint64), 2, crowd=4)
    assert sorted(piece.tolist() for piece in found) == [[10, 11, 12, 13, 14], [10, 15, 16], [17, 18]]
    small = list(thin_out(rows, lambda *_: 1 / 0, 2, crowd=10))
    assert [piece.tolist() for piece in small] == [rows.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 12), st.sampled_from([0.3, 0.5, 0.8]))
def test_alike_pairs_connect_what_all_alike_pairs_connect(data, n, threshold):
    universe = st.integers(1, 12)
    sets = [numbers(*sorted(data.draw(st.sets(universe, min_size=1)))) for _ in range(n)]
    sizes, spread = np.array([len(s) for s in sets]), [np.unique(s * np.uint64(0x9E3779B97F4A7C15)) for s in sets]
    found = alike_pairs(signatures(spread), sizes, np.empty((n, 0), np.uint64), lambda row: sets[row], threshold)
    alike = [(a, b) for a, b in combinations(range(n), 2) if jaccard(sets[a], sets[b]) >= threshold]
    assert all(tuple(sorted(pair)) in alike for pair in found)
    assert groups_of(n, found) == reference_groups(n, alike)
    assert len(found) == n - len(set(groups_of(n, found)))


def test_pairs_that_met_before_are_not_compared_again():
    same = numbers(*range(1, 40))
    signature, sizes = signatures([same] * 3), np.array([39] * 3)
    looked = []

    def set_of(row):
        looked.append(row)
        return same

    def met(*rows):
        return np.array(rows, dtype=np.uint64)

    assert alike_pairs(signature, sizes, met([1, 7], [1, 8], [1, 9]), set_of, 0.8) == []
    assert looked == []
    assert alike_pairs(signature, sizes, met([1], [1], [2]), set_of, 0.8) == [(0, 2), (2, 1)]
    assert alike_pairs(signature, sizes, met([], [], []), set_of, 0.8) == [(0, 1), (0, 2)]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_nodes_get_their_smallest(case):
    n, pairs = case
    assert groups_of(n, pairs) == reference_groups(n, pairs)


def test_a_long_chain_is_one_group():
    n = 5000
    order = np.random.default_rng(0).permutation(n)
    label = smallest_connected(n, np.stack([order[:-1], order[1:]], axis=1))
    assert (label == 0).all()
