from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.select import diversity
from divsel_ray.select.diversity import (
    COMPARED,
    Mix,
    PredictionInterval,
    Rows,
    intervals,
    measure,
    nearest_cosines,
    pool_mix,
    random_subset,
    vendi_score,
)


def ids(n):
    return np.array([f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for i in range(n)], dtype="S32")


def rows_of(vectors, cluster=None, tokens=None, source=None):
    n = len(vectors)
    return Rows(
        ids(n),
        np.asarray(vectors, dtype=np.float32),
        np.zeros(n, int) if cluster is None else np.array(cluster),
        np.arange(n) if tokens is None else np.array(tokens),
        np.array(["a"] * n if source is None else source, dtype=object),
    )


def random_units(n, d, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


POOL = Mix(np.array([5, 5, 0, 10]), {"a": 10, "b": 10})


@pytest.mark.parametrize(("n", "d"), [(4, 8), (4, 4), (1, 3)])
def test_orthogonal_rows_have_a_vendi_score_of_their_number(n, d):
    assert vendi_score(np.eye(d, dtype=np.float32)[:n]) == pytest.approx(n)


@pytest.mark.parametrize(("n", "d"), [(5, 2), (2, 5), (1, 1)])
def test_equal_rows_have_a_vendi_score_of_one(n, d):
    assert vendi_score(np.tile(random_units(1, d), (n, 1))) == pytest.approx(1)


def test_the_vendi_score_of_two_rows_follows_from_their_cosine():
    # K / 2 of two rows at 60 degrees has the eigenvalues (1 + 0.5) / 2 and (1 - 0.5) / 2.
    two = np.array([[1, 0, 0], [0.5, np.sqrt(0.75), 0]], dtype=np.float32)
    assert vendi_score(two) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    # Three rows, two of them equal: 2/3 and 1/3.
    assert vendi_score(np.eye(2, dtype=np.float32)[[0, 0, 1]]) == pytest.approx(np.exp(np.log(3) - 2 / 3 * np.log(2)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_vendi_score_is_that_of_the_kernel_whichever_matrix_is_smaller(n, d, seed):
    units = random_units(n, d, seed)
    eigenvalues = np.linalg.eigvalsh(units.astype(float) @ units.T.astype(float) / n)
    eigenvalues = eigenvalues[eigenvalues > 1e-9]
    assert vendi_score(units) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-4)
    assert 1 - 1e-6 <= vendi_score(units) <= min(n, d) + 1e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 99), st.integers(1, 7), st.integers(1, 7))
def test_nearest_cosines_are_those_of_a_full_search_whatever_the_blocks(n, seed, block, others):
    units = random_units(n, 3, seed)
    asked = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.6)
    full = units @ units.T
    np.fill_diagonal(full, -np.inf)
    before = diversity._BLOCK, diversity._OTHERS_BLOCK
    diversity._BLOCK, diversity._OTHERS_BLOCK = block, others
    try:
        found = nearest_cosines(units, asked)
    finally:
        diversity._BLOCK, diversity._OTHERS_BLOCK = before
    assert np.allclose(found, np.minimum(full[asked].max(axis=1), 1) if n > 1 else -np.inf, atol=1e-6)


def test_measures_of_three_rows_by_hand():
    angles = np.deg2rad([0, 10, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = measure(rows_of(vectors, [0, 0, 3], [10, 20, 60], ["a", "a", "c"]), POOL, seed=0)
    assert found.rows == found.nearest_rows == found.vendi_rows == 3
    assert found.clusters_covered == pytest.approx(2 / 3)
    assert found.cluster_entropy == pytest.approx((np.log(3) - 2 / 3 * np.log(2)) / np.log(3))
    near, far = np.cos(np.deg2rad(10)), np.cos(np.deg2rad(80))
    assert found.nearest_distance == pytest.approx(1 - (2 * near + far) / 3, abs=1e-6)
    assert found.copies == pytest.approx(2 / 3)
    assert found.tokens_mean == 30
    assert found.tokens_quantiles == pytest.approx((11, 15, 20, 40, 56))
    assert found.sources == {"a": pytest.approx(2 / 3), "c": pytest.approx(1 / 3)}
    # The pool has a and b half and half: (|2/3 - 1/2| + 1/2 + 1/3) / 2.
    assert found.source_distance == pytest.approx(0.5)


def test_the_pools_own_mix_is_at_no_distance_and_even_clusters_have_entropy_one():
    rows = rows_of(np.eye(6), [0, 0, 1, 1, 3, 3], source=["a", "b"] * 3)
    found = measure(rows, POOL, seed=0)
    assert (found.clusters_covered, found.source_distance, found.copies) == (1, 0, 0)
    assert found.cluster_entropy == pytest.approx(1)
    assert found.nearest_distance == pytest.approx(1)
    assert found.vendi == pytest.approx(6)


def test_a_single_row_has_no_nearest_row():
    found = measure(rows_of(np.eye(1)), Mix(np.array([7]), {"a": 7}), seed=0)
    assert np.isnan(found.nearest_distance)
    assert (found.copies, found.vendi, found.cluster_entropy, found.clusters_covered) == (0, 1, 1, 1)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        measure(rows_of(np.empty((0, 2))), POOL, seed=0)


def test_float16_copies_count_as_copies():
    vectors = np.tile(random_units(1, 384), (2, 1)).astype(np.float16)
    assert measure(rows_of(vectors), POOL, seed=0).copies == 1


def test_above_the_sample_size_some_rows_stand_for_all_and_the_result_says_how_many():
    units = random_units(400, 16)
    rows, pool = rows_of(units), Mix(np.array([400]), {"a": 400})
    whole, part = measure(rows, pool, seed=0), measure(rows, pool, seed=0, sample=200)
    assert (whole.nearest_rows, whole.vendi_rows) == (400, 400)
    assert (part.nearest_rows, part.vendi_rows) == (100, 200)
    assert part.nearest_distance == pytest.approx(whole.nearest_distance, rel=0.1)
    assert part.nearest_distance != whole.nearest_distance
    assert measure(rows, pool, seed=1, sample=200).nearest_distance != part.nearest_distance


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_the_order_of_the_rows_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    rows = rows_of(random_units(50, 8, seed), generator.choice([0, 1, 3], 50), generator.integers(1, 99, 50), ["a", "b"] * 25)
    turned = rows.take(generator.permutation(50))
    straight, turned = (asdict(measure(some, POOL, seed=3, sample=30)) for some in (rows, turned))
    for name, value in straight.items():
        assert turned[name] == pytest.approx(value, rel=1e-5), name


def test_random_subsets_have_the_size_asked_for_and_differ_by_draw_and_seed():
    row_ids = ids(100)
    subset = random_subset(row_ids, 30, seed=0, draw=0)
    assert len(set(subset.tolist())) == 30
    assert subset.tolist() == sorted(subset.tolist())
    others = [random_subset(row_ids, 30, seed, draw).tolist() for seed, draw in [(0, 1), (1, 0)]]
    assert subset.tolist() not in others
    order = np.random.default_rng(0).permutation(100)
    assert set(order[random_subset(row_ids[order], 30, 0, 0)]) == set(subset)


def test_every_row_is_drawn_about_equally_often():
    row_ids = ids(60)
    counts = np.bincount(np.concatenate([random_subset(row_ids, 15, 0, draw) for draw in range(1000)]), minlength=60)
    # Binomial(1000, 1/4): five standard deviations are 68.
    assert np.abs(counts - 250).max() < 68


def test_an_interval_is_that_of_one_more_draw():
    rows = rows_of(np.eye(4), tokens=[1, 2, 3, 4])
    draws = [measure(rows.take(np.array(index)), POOL, seed=0) for index in ([0, 1], [2, 3], [1, 2])]
    assert set(intervals(draws)) == set(COMPARED)
    # Means of 1.5, 3.5 and 2.5 tokens: t of two degrees of freedom is 4.3027. Nothing lies below 0.
    assert intervals(draws)["tokens_mean"] == PredictionInterval(2.5, 0.0, pytest.approx(2.5 + 4.302653 * np.sqrt(4 / 3)))


def test_random_subsets_of_a_pool_give_an_interval_that_random_subsets_lie_in():
    generator = np.random.default_rng(0)
    pool = rows_of(random_units(300, 8), generator.integers(0, 20, 300), generator.integers(1, 99, 300), ["a", "b", "b"] * 100)
    mix = pool_mix(pool.cluster, pool.source, 20)
    found = intervals([measure(pool.take(random_subset(pool.row_ids, 60, 0, draw)), mix, seed=0) for draw in range(30)])
    assert found["tokens_mean"].mean == pytest.approx(pool.tokens.mean(), rel=0.05)
    fresh = [measure(pool.take(random_subset(pool.row_ids, 60, 1, draw)), mix, seed=0) for draw in range(20)]
    for name in COMPARED:
        inside = [found[name].low <= getattr(draw, name) <= found[name].high for draw in fresh]
        assert sum(inside) >= 16, name
    # One row of every cluster first: more clusters covered than random subsets.
    spread = np.argsort([list(pool.cluster[:i]).count(c) for i, c in enumerate(pool.cluster)], kind="stable")[:60]
    assert measure(pool.take(spread), mix, seed=0).cluster_entropy > found["cluster_entropy"].high
