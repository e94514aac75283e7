import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.cluster.criteria import check_grid, default_grid, elbow, parse_grid, recommend
from divsel_ray.errors import InputError
from tests.cluster.vectors import PLAIN


def candidates(*rows):
    """Candidates from (k, simplified silhouette, stability, deviation)."""
    return [
        dataclasses.replace(PLAIN, k=k, simplified_silhouette=silhouette, stability=stability, stability_deviation=deviation)
        for k, silhouette, stability, deviation in rows
    ]


def curve(*points):
    return [dataclasses.replace(PLAIN, k=k, inertia=inertia) for k, inertia in points]


@pytest.mark.parametrize(
    ("rows", "grid"),
    [
        (1_000_000, [64, 128, 256, 512, 1024, 2048, 4096, 8192]),
        (163_839, [64, 128, 256, 512, 1024, 2048, 4096]),
        (20_480, [64, 128, 256, 512, 1024]),
        (20_479, [32, 64, 128, 256, 512]),
        (2_000, [4, 8, 16, 32, 64]),
        (100, [2, 4]),
        (40, [2]),
    ],
)
def test_the_default_grid_is_powers_of_two_up_to_a_twentieth_of_the_rows(rows, grid):
    assert default_grid(rows) == grid


def test_too_few_rows_for_a_default_grid_are_refused():
    with pytest.raises(InputError, match=r"39 rows are too few.*at least 40"):
        default_grid(39)


def test_a_grid_is_sorted_and_each_k_kept_once():
    assert parse_grid("128, 64,128") == [64, 128]


@pytest.mark.parametrize("text", ["", "64,", "many", "64;128", "1.5", "64,0", "-3"])
def test_a_grid_that_is_not_of_positive_integers_is_refused(text):
    with pytest.raises(InputError, match=f"^--grid {text!r}: .*e.g. 64,128,256$"):
        parse_grid(text)


def test_more_clusters_than_rows_are_refused_by_name():
    check_grid([5, 10], 10)
    with pytest.raises(InputError, match="k 11 exceeds the pool's 10 rows"):
        check_grid([5, 11], 10)


def test_the_elbow_is_where_the_curve_is_farthest_below_its_chord():
    # In log2: (0, 6), (1, 3), (2, 2), (3, 0). The chord falls by 2 a step: 4 and 2 at the inner points, depths 1/6 and 0.
    assert elbow(curve((1, 64), (2, 8), (4, 4), (8, 1))) == 2


@pytest.mark.parametrize(
    "points",
    [
        [(2, 8), (4, 4), (8, 2), (16, 1)],
        [(2, 8), (4, 7.9), (8, 7), (16, 1)],
        [(2, 8), (4, 1)],
        [(2, 8), (4, 8), (8, 8)],
        [(2, 8), (4, 2), (8, 0)],
    ],
)
def test_a_power_law_a_concave_curve_and_too_few_points_have_no_elbow(points):
    assert elbow(curve(*points)) is None


def test_the_best_separated_of_the_most_stable_is_recommended():
    # Within one deviation (0.03) of 0.97: k = 16 and 32. The others' median of 0.30, 0.40, 0.35 is 0.35.
    grid = candidates((8, 0.30, 0.60, 0.1), (16, 0.40, 0.97, 0.03), (32, 0.50, 0.95, 0.01), (64, 0.35, 0.80, 0.01))
    found = recommend(grid, 100_000)
    assert (found.k, found.preferred) == (32, True)
    assert found.reason == (
        "k = 32: refits reproduce its clusters (adjusted Rand index 0.95 ± 0.01) and its simplified silhouette, 0.500, "
        "stands out from the other k's median, 0.350."
    )


def test_a_high_silhouette_of_an_unstable_clustering_is_not_followed():
    grid = candidates((8, 0.50, 0.95, 0.01), (16, 0.40, 0.80, 0.01), (32, 0.9, 0.70, 0.01), (64, 0.1, 0.5, 0.01))
    assert recommend(grid, 100_000).k == 8


def test_stabilities_closer_than_two_hundredths_are_not_told_apart():
    grid = candidates((8, 0.30, 0.985, 0.0), (16, 0.60, 0.97, 0.0), (32, 0.30, 0.96, 0.0))
    assert recommend(grid, 100_000).k == 16


def test_of_equal_candidates_the_smallest_k_leads():
    grid = candidates((8, 0.6, 0.9, 0.0), (16, 0.6, 0.9, 0.0), (32, 0.1, 0.1, 0.0), (64, 0.1, 0.1, 0.0))
    assert recommend(grid, 100_000).k == 8


def test_flat_figures_leave_the_default_and_the_reason_says_so():
    found = recommend(candidates((8, 0.20, 0.80, 0.01), (16, 0.21, 0.80, 0.01), (32, 0.20, 0.79, 0.01)), 100_000)
    assert (found.k, found.preferred) == (256, False)
    assert found.reason == (
        "The data shows no preferred k, so the default k = 256 is used: k = 16 comes closest, but its simplified silhouette, "
        "0.210, does not stand out from the other k's median, 0.200."
    )


def test_clusterings_that_do_not_repeat_leave_the_default():
    found = recommend(candidates((8, 0.40, 0.50, 0.02), (16, 0.20, 0.40, 0.01), (32, 0.45, 0.30, 0.01)), 1_000)
    assert (found.k, found.preferred) == (50, False)
    assert found.reason == (
        "The data shows no preferred k, so the default k = 50 is used: k = 8 comes closest, but its refits agree only with an "
        "adjusted Rand index of 0.50 ± 0.02 (0.65 is moderate)."
    )


def test_measures_that_contradict_each_other_are_both_named():
    found = recommend(candidates((64, 0.109, 0.585, 0.008), (256, 0.154, 0.499, 0.01), (2048, 0.3, 0.394, 0.014)), 55_185)
    assert not found.preferred
    assert "0.58 ± 0.01 (0.65 is moderate) and its simplified silhouette, 0.109, does not stand out" in found.reason
    assert found.reason.endswith("median, 0.227 (highest: 0.300 at k = 2,048).")


@pytest.mark.parametrize(
    "change", [{"singletons": 2}, {"empty": 1}, {"stability": None, "stability_deviation": None}, {"k": 51}], ids=str
)
def test_k_of_many_singletons_empty_clusters_or_few_rows_is_never_recommended(change):
    grid = candidates((8, 0.3, 0.7, 0.0), (16, 0.3, 0.7, 0.0), (32, 0.9, 0.99, 0.0))
    assert recommend(grid, 1_000).k == 32
    grid[2] = dataclasses.replace(grid[2], **change)
    assert recommend(grid, 1_000).k == 50
    assert not recommend(grid, 1_000).preferred


def test_one_singleton_in_twenty_clusters_is_few():
    grid = candidates((20, 0.3, 0.7, 0.0), (40, 0.9, 0.99, 0.0), (60, 0.3, 0.7, 0.0))
    assert recommend([grid[0], dataclasses.replace(grid[1], singletons=2), grid[2]], 10_000).k == 40
    assert not recommend([grid[0], dataclasses.replace(grid[1], singletons=3), grid[2]], 10_000).preferred


def test_a_single_k_has_nothing_to_be_compared_with():
    alone = recommend(candidates((8, 0.9, 1.0, 0.0)), 1_000)
    assert (alone.k, alone.preferred) == (50, False)
    assert "only k = 8 of the grid is eligible" in alone.reason
    none = recommend(candidates((80, 0.9, 1.0, 0.0)), 1_000)
    assert "no k of the grid is eligible (k up to 50 (rows / 20)" in none.reason


figures = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(st.tuples(figures, figures, figures), min_size=1, max_size=8), st.integers(1, 10**6))
def test_there_is_always_one_recommendation_and_it_is_sound(values, rows):
    grid = candidates(*((2 ** (power + 1), *value) for power, value in enumerate(values)))
    found = recommend(grid, rows)
    assert 1 <= found.k <= max(1, rows // 20)
    assert found.reason.endswith(".")
    if found.preferred:
        [chosen] = [one for one in grid if one.k == found.k]
        assert chosen.stability >= 0.65
        others = [one.simplified_silhouette for one in grid if one.k * 20 <= rows and one is not chosen]
        assert chosen.simplified_silhouette >= 1.1 * np.median(others)
