"""Samplers: exactly what was asked for, odds that follow quality, draws that depend on no order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.kmq import fill_missing, log_odds, pooled_sd
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates

CONFIG = SelectConfig()


def row_ids(n: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([generator.bytes(16).hex() for _ in range(n)], dtype="S32")


def candidates(cluster, quality=None, seed=0) -> Candidates:
    cluster = np.asarray(cluster)
    quality = np.full(len(cluster), np.nan) if quality is None else np.asarray(quality, dtype=float)
    return Candidates(row_ids(len(cluster), seed), cluster, quality, int(cluster.max(initial=0)) + 1)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_sampler_returns_exactly_the_counts_asked_for(name, data):
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    counts = np.array([data.draw(st.integers(0, size)) for size in sizes])
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    quality = data.draw(st.lists(st.floats(allow_nan=True), min_size=len(cluster), max_size=len(cluster)))
    pool = Candidates(row_ids(len(cluster)), cluster, np.array(quality, dtype=float), len(sizes))
    draw = SAMPLERS[name](pool, counts, CONFIG, seed=1)
    assert np.bincount(cluster[draw.index], minlength=len(sizes)).tolist() == counts.tolist()
    assert len(set(draw.index.tolist())) == counts.sum()
    assert (draw.weight >= 1 - 1e-12).all()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_shuffled_input_gives_the_same_rows(name):
    pool = candidates(np.arange(300) % 5, np.random.default_rng(2).normal(size=300))
    order = np.random.default_rng(3).permutation(300)
    shuffled = Candidates(pool.row_ids[order], pool.cluster[order], pool.quality[order], pool.k)
    counts = np.array([3, 7, 1, 0, 10])
    first = SAMPLERS[name](pool, counts, CONFIG, seed=4)
    second = SAMPLERS[name](shuffled, counts, CONFIG, seed=4)
    assert set(pool.row_ids[first.index]) == set(shuffled.row_ids[second.index])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_larger_draw_holds_the_smaller_one(name):
    pool = candidates(np.arange(200) % 4, np.random.default_rng(5).normal(size=200))
    small = SAMPLERS[name](pool, np.array([2, 3, 4, 5]), CONFIG, seed=6).index
    large = SAMPLERS[name](pool, np.array([9, 9, 9, 9]), CONFIG, seed=6).index
    assert set(small) <= set(large)


def test_another_seed_gives_another_draw():
    pool = candidates(np.zeros(400, dtype=int), np.zeros(400))
    draws = [SAMPLERS["kmq"](pool, np.array([40]), CONFIG, seed=s).index.tolist() for s in (0, 1)]
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    "scores", [[0.0, 1e3, -1e3, 1.0], [np.nan] * 4, [5.0] * 4, [0.0, np.nan, 1e300, -1e300], [np.inf, 1.0, -np.inf, 2.0]]
)
def test_odd_scores_give_finite_odds(scores):
    quality = fill_missing(np.array(scores), np.zeros(4, dtype=int), 1)
    odds = log_odds(quality, np.zeros(4, dtype=int), 1, temperature=1.0)
    assert np.isfinite(odds).all()
    assert (np.exp(odds) > 0).all()


def test_fractional_scores_order_the_odds():
    odds = log_odds(np.array([0.1, 0.4, 0.2]), np.zeros(3, dtype=int), 1, temperature=1.0)
    assert np.argsort(odds).tolist() == [0, 2, 1]


def test_odds_do_not_depend_on_the_scale_of_quality():
    quality, cluster = np.array([1.0, 2.0, 4.0, 3.0, 8.0]), np.array([0, 0, 0, 1, 1])
    plain, scaled = (log_odds(q, cluster, 2, 1.0) for q in (quality, 1000 * quality - 7))
    assert plain == pytest.approx(scaled)


def test_pooled_sd_is_taken_inside_clusters():
    # Deviations: -1, 1 in one cluster and -2, 2 in the other; 10 / (4 rows - 2 clusters) = 5.
    assert pooled_sd(np.array([0.0, 2.0, 100.0, 104.0]), np.array([0, 0, 1, 1]), 2) == pytest.approx(np.sqrt(5))


def test_missing_quality_takes_the_mean_of_its_cluster_or_of_all():
    filled = fill_missing(np.array([1.0, 3.0, np.nan, np.nan]), np.array([0, 0, 0, 1]), 2)
    assert filled.tolist() == [1.0, 3.0, 2.0, 2.0]


def test_kmq_draws_rows_as_often_as_their_odds_say():
    # Two rows, one drawn: the better one's odds are e to 1 (its lead is one pooled sd).
    quality = np.array([0.0, 1.0])
    lead = 1.0 / pooled_sd(quality, np.zeros(2, dtype=int), 1)
    wins = 0
    for seed in range(3000):
        pool = Candidates(row_ids(2, seed), np.zeros(2, dtype=int), quality, 1)
        wins += int(SAMPLERS["kmq"](pool, np.array([1]), CONFIG, seed).index[0])
    expected = 1 / (1 + np.exp(-lead))
    assert wins / 3000 == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 3000))


def test_a_low_temperature_takes_the_best_rows():
    quality = np.arange(50, dtype=float)
    pool = candidates(np.zeros(50, dtype=int), quality)
    draw = SAMPLERS["kmq"](pool, np.array([5]), SelectConfig(temperature=0.001), seed=0)
    assert draw.index.tolist() == [45, 46, 47, 48, 49]


def test_weights_estimate_the_pool_without_bias():
    """Inverse-probability weights of draws add up to the number of rows drawn from, on average."""
    quality = np.random.default_rng(8).normal(size=60)
    totals = []
    for seed in range(400):
        pool = Candidates(row_ids(60, seed), np.arange(60) % 3, quality, 3)
        totals.append(SAMPLERS["kmq"](pool, np.array([6, 6, 6]), CONFIG, seed).weight.sum())
    standard_error = np.std(totals) / np.sqrt(len(totals))
    assert np.mean(totals) == pytest.approx(60, abs=4 * standard_error)


def test_a_whole_cluster_has_weight_one():
    pool = candidates([0, 0, 1, 1, 1], np.arange(5))
    draw = SAMPLERS["kmq"](pool, np.array([2, 1]), CONFIG, seed=0)
    assert draw.weight[pool.cluster[draw.index] == 0].tolist() == [1.0, 1.0]
