"""DEITA: the best rows that are unlike each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.data.hashing import uniform_hash
from divsel_ray.select import deita
from divsel_ray.select.deita import SAMPLER
from divsel_ray.select.kmq import known_quality
from divsel_ray.select.lattice import Lattice
from tests.select.pools import NONE, check_contract, odd_pools, pool, random_pool, same_whatever_the_threads, unit


def naive(candidates, taken, threshold):
    """One row after the other against all chosen: positions that pass, in order, and those passed over."""
    values = Lattice(candidates.vectors).values.astype(np.int64)
    chosen, passing, over = list(taken), [], []
    for row in np.argsort(-known_quality(candidates), kind="stable").tolist():
        if row in taken:
            continue
        cosines = [values[row] @ values[c] / np.sqrt((values[row] @ values[row]) * (values[c] @ values[c])) for c in chosen]
        fits = max(cosines, default=-1) < threshold
        (passing if fits else over).append(row)
        chosen += [row] if fits else []
    return passing, over


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.data())
def test_contract(candidates, threshold, data):
    check_contract(SAMPLER, candidates, SelectConfig(threshold=threshold), data)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_blocks_do_what_one_row_after_the_other_does(threshold, rows, monkeypatch):
    monkeypatch.setattr(deita, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(deita, "_CHOSEN_AT_ONCE", 5)
    candidates, taken = random_pool(150), [4, 90, 33]
    passing, over = naive(candidates, taken, threshold)
    picks = SAMPLER.choose(candidates, np.array(taken), 147, SelectConfig(threshold=threshold), 0)
    assert picks.index.tolist() == passing + over
    assert np.isnan(picks.gain).tolist() == [False] * len(passing) + [True] * len(over)


def test_rows_like_a_better_one_come_last_by_hand():
    # Cosines: rows 0 and 1 are 0.8 alike, rows 2 and 0 at right angles. Best first: 1, 0, 2.
    candidates = pool(unit([[1, 0], [4, 3], [0, 1]]), quality=[2, 3, 1])
    picks = SAMPLER.choose(candidates, NONE, 3, SelectConfig(threshold=0.7), 0)
    assert picks.index.tolist() == [1, 2, 0]
    assert picks.gain[:2].tolist() == [3, 1]
    assert np.isnan(picks.gain[2])
    loose = SAMPLER.choose(candidates, NONE, 3, SelectConfig(threshold=0.9), 0)
    assert loose.index.tolist() == [1, 0, 2]


def test_at_threshold_one_only_equal_rows_are_passed_over():
    candidates = pool(unit([[1, 2, 3], [1, 2, 3], [1, 2, 3.2]]), quality=[1, 1, 1])
    picks = SAMPLER.choose(candidates, NONE, 3, SelectConfig(threshold=1), 0)
    assert picks.index.tolist() == [0, 2, 1]
    assert np.isnan(picks.gain).tolist() == [False, False, True]


def test_a_row_like_a_taken_one_is_passed_over():
    candidates = pool(unit([[1, 0], [1, 0], [0, 1]]), quality=[3, 2, 1])
    assert SAMPLER.choose(candidates, np.array([0]), 2, SelectConfig(), 0).index.tolist() == [2, 1]


def test_without_any_quality_the_order_is_a_hash_of_the_seed():
    candidates = pool(unit(np.eye(12)))
    for seed in (0, 1):
        expected = np.argsort(uniform_hash(seed, "deita", candidates.row_ids))
        picks = SAMPLER.choose(candidates, NONE, 12, SelectConfig(), seed)
        assert picks.index.tolist() == expected.tolist()
        assert picks.gain.tolist() == [0] * 12


def test_a_row_without_quality_counts_as_its_cluster():
    candidates = pool(unit(np.eye(4)), cluster=[0, 0, 0, 1], quality=[1, 3, np.nan, 2.5])
    picks = SAMPLER.choose(candidates, NONE, 4, SelectConfig(), 0)
    assert picks.index.tolist() == [1, 3, 2, 0]
    assert picks.gain == pytest.approx([3, 2.5, 2, 1])


def test_the_threads_do_not_matter():
    assert same_whatever_the_threads(SAMPLER, random_pool(400, d=96), 80, SelectConfig(threshold=0.5))
