"""Every sampler: exactly what was asked for, odds that follow quality, draws that depend on no order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.kmq import fill_missing, log_odds, log_rates, pooled_sd
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates, Keyed
from tests.select.drawing import candidates, drawn, row_ids

NAMES = sorted(SAMPLERS)
BY_CLUSTER = sorted(name for name, one in SAMPLERS.items() if isinstance(one, Keyed) and one.by_cluster)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_sampler_returns_exactly_the_budget_whatever_the_pool_looks_like(name, data):
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    qualities = st.one_of(st.floats(allow_nan=True), st.just(1.0))
    quality = data.draw(st.lists(qualities, min_size=len(cluster), max_size=len(cluster)))
    pool = candidates(cluster, quality, k=len(sizes))
    taken = data.draw(st.sets(st.integers(0, max(len(cluster) - 1, 0)), max_size=3)) if len(cluster) else set()
    budget = data.draw(st.integers(len(taken), len(cluster)))
    config = SelectConfig(sampler=name, min_one=data.draw(st.booleans()))
    draw = drawn(pool, budget, config, seed=1, taken=sorted(taken))
    assert len(set(draw.index.tolist())) == len(draw.index) == budget
    assert taken <= set(draw.index.tolist())
    assert draw.drawn.sum() == budget
    assert (draw.weight >= 1 - 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_larger_budget_holds_the_smaller_ones(name):
    pool = candidates(np.arange(200) % 4, np.random.default_rng(5).normal(size=200))
    config = SelectConfig(sampler=name)
    nested = drawn(pool, [10, 30, 80], config, seed=6)
    assert np.bincount(nested.level).tolist() == [10, 20, 50]
    alone = drawn(pool, 10, config, seed=6)
    assert set(nested.index[nested.level == 0]) == set(alone.index)


@pytest.mark.parametrize("name", NAMES)
def test_the_configured_number_of_clusters_reaches_the_sampler(name):
    """A misspelt class once made every k the default; here counts per cluster come back for the k that was given."""
    for k in (1, 7, 50):
        draw = drawn(candidates(np.arange(100) % k, np.arange(100), k=k), 50, SelectConfig(sampler=name))
        assert len(draw.drawn) == k


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_in_already_are_not_drawn_again_and_count_against_the_budget(name):
    pool = candidates(np.arange(40) % 4, np.arange(40))
    draw = drawn(pool, 12, SelectConfig(sampler=name), taken=[0, 1, 2, 3, 4])
    assert draw.index[:5].tolist() == [0, 1, 2, 3, 4]
    assert len(set(draw.index.tolist())) == 12


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_tokens_is_filled_and_never_exceeded(name):
    tokens = np.random.default_rng(7).integers(1, 40, 120)
    pool = candidates(np.arange(120) % 5, np.random.default_rng(8).normal(size=120))
    config = SelectConfig(sampler=name)
    for budget in (300, 1000, int(tokens.sum())):
        draw = drawn(pool, budget, config, tokens=tokens)
        spent = tokens[draw.index].sum()
        assert budget - tokens.max() < spent <= budget
    nested = drawn(pool, [300, 1000], config, tokens=tokens)
    assert tokens[nested.index[nested.level == 0]].sum() <= 300
    assert set(nested.index[nested.level == 0]) == set(drawn(pool, 300, config, tokens=tokens).index)


@pytest.mark.parametrize("name", BY_CLUSTER)
def test_included_rows_count_against_their_clusters_share(name):
    pool = candidates(np.arange(40) % 4, np.arange(40))
    draw = drawn(pool, 20, SelectConfig(sampler=name), taken=[0, 4, 8, 12])
    assert draw.drawn.tolist() == [5, 5, 5, 5]


def test_another_seed_gives_another_draw():
    pool = candidates(np.zeros(400, dtype=int), np.zeros(400))
    for name in ("kmq", "kmrandom", "random", "density"):
        draws = [drawn(pool, 40, SelectConfig(sampler=name), seed).index.tolist() for seed in (0, 1)]
        assert draws[0] != draws[1]


def test_kmclosest_takes_the_rows_nearest_their_centroids():
    pool = candidates(np.repeat([0, 1], 50))
    draw = drawn(pool, 10, SelectConfig(sampler="kmclosest"))
    expected = [set(rows[np.argsort(pool.distance[rows])[:5]]) for rows in (np.arange(50), np.arange(50, 100))]
    assert set(draw.index) == expected[0] | expected[1]
    assert (draw.weight == 1).all()


def test_top_takes_the_best_rows_of_the_pool_and_missing_quality_counts_as_the_clusters_mean():
    quality = [5.0, 1.0, np.nan, 9.0, 3.0, 3.0]
    draw = drawn(candidates([0, 0, 0, 1, 1, 1], quality), 3, SelectConfig(sampler="top"))
    # The third row counts as 3, the mean of its cluster, and comes before the later ones that have 3.
    assert draw.index.tolist() == [0, 2, 3]


def test_density_draws_small_clusters_more_often_than_random_does():
    sizes = np.array([90, 10])
    shares = {}
    for name in ("random", "density"):
        draws = [
            drawn(candidates(np.repeat([0, 1], sizes), seed=s), 10, SelectConfig(sampler=name), s).drawn[1] for s in range(200)
        ]
        shares[name] = np.mean(draws)
    assert shares["random"] == pytest.approx(1.0, abs=0.3)
    # Each draw takes either cluster alike at first; the small one is half of ten draws, a little less as it is used up.
    assert 3.8 < shares["density"] < 5.0


@pytest.mark.parametrize(
    "scores", [[0.0, 1e3, -1e3, 1.0], [np.nan] * 4, [5.0] * 4, [0.0, np.nan, 1e300, -1e300], [np.inf, 1.0, -np.inf, 2.0]]
)
@pytest.mark.parametrize("odds", ["softmax", "linear", "power", "rank"])
def test_odd_scores_give_finite_odds(scores, odds):
    rates = log_rates(candidates([0, 0, 0, 0], scores), SelectConfig(odds=odds, temperature=0.5))
    assert np.isfinite(rates).all()
    assert (np.exp(rates) > 0).all()


def test_odds_by_rank_power_and_value_are_what_their_names_say():
    pool = candidates([0, 0, 0, 1], [1.0, 3.0, 3.0, 5.0])
    assert np.exp(log_rates(pool, SelectConfig(odds="rank"))) == pytest.approx([1, 2, 2, 1])
    # (q - 1) / 4 + 0.01
    linear = [0.01, 0.51, 0.51, 1.01]
    assert np.exp(log_rates(pool, SelectConfig(odds="linear"))) == pytest.approx(linear)
    assert np.exp(log_rates(pool, SelectConfig(odds="power", temperature=0.5))) == pytest.approx(np.square(linear))


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
        wins += int(drawn(pool, 1, seed=seed).index[0])
    expected = 1 / (1 + np.exp(-lead))
    assert wins / 3000 == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 3000))


def test_a_low_temperature_takes_the_best_rows():
    pool = candidates(np.zeros(50, dtype=int), np.arange(50))
    assert drawn(pool, 5, SelectConfig(temperature=0.001)).index.tolist() == [45, 46, 47, 48, 49]


@pytest.mark.parametrize("name", ["kmq", "random", "density"])
def test_weights_estimate_the_pool_without_bias(name):
    """Inverse-probability weights of draws add up to the number of rows drawn from, on average."""
    quality = np.random.default_rng(8).normal(size=60)
    totals = [
        drawn(candidates(np.arange(60) % 3, quality, s), 18, SelectConfig(sampler=name), s).weight.sum() for s in range(400)
    ]
    standard_error = np.std(totals) / np.sqrt(len(totals))
    assert np.mean(totals) == pytest.approx(60, abs=max(4 * standard_error, 1e-9))


def test_a_whole_cluster_has_weight_one():
    pool = candidates([0, 0, 1, 1, 1], np.arange(5))
    draw = drawn(pool, 3, weights=np.array([2 / 3, 1 / 3]))
    assert draw.weight[0, pool.cluster[draw.index] == 0].tolist() == [1.0, 1.0]
